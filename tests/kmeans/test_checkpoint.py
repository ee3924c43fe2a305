"""A fit goes on from its checkpoint, or says why not."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import dask.array as da
import numpy as np
import pytest
import zarr

import daskkm
from daskkm.kmeans.checkpoint import held
from daskkm.kmeans.sweep import SweepResult, iter_passes
from daskkm.passes.reader import made_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

pytestmark = pytest.mark.faults
KS = [2, 5]
SETTINGS: dict[str, Any] = {
    "n_init": 3, "init": "k-means++", "max_iter": 7, "tol": 1e-4, "random_state": 3,
}  # fmt: skip


def make_tiles(dtype: str = "uint8") -> NDArray[Any]:
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, (6, 9))
    tiles = centres[rng.integers(0, 6, 500)] + rng.normal(0, 25, (500, 9))
    return tiles.clip(0, 255).astype(dtype)


def fit(X: Any, folder: Path, passes: int | None = None, **settings: Any) -> SweepResult | int:
    """Make all passes, or so many: then return the number of the last."""
    number = 0
    with held(folder) as kept:
        run = iter_passes(X, KS, checkpoint=kept, **(SETTINGS | settings))
        try:
            while number != passes:
                number = next(run).number
        except StopIteration as done:
            result: SweepResult = done.value
            return result
    return number


def assert_same_bits(result: Any, expected: SweepResult) -> None:
    assert (result.passes, result.bytes_read) == (expected.passes, expected.bytes_read)
    for k, model in expected.models.items():
        for name in ("cluster_centers_", "counts_", "inertia_", "n_iter_", "restart_"):
            assert np.array_equal(getattr(result.models[k], name), getattr(model, name)), name
        assert result.models[k].converged_ == model.converged_
        np.testing.assert_array_equal(result.statistics[k], expected.statistics[k])


@pytest.mark.parametrize(
    ("settings", "sample"),
    [
        ({}, 500),
        ({"init": "random", "tol": 0.0}, 500),
        ({"coarse": False}, 100),
        ({"coarse": True}, 100),
        ({"init": "k-means||", "coarse": False}, 100),
        ({"init": "k-means||"}, 100),
        ({"init": "k-means||", "cache": "always"}, 500),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_fit_that_is_cut_short_after_any_pass_ends_in_the_same_bits(
    settings: dict[str, Any],
    sample: int,
    weighted: bool,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("daskkm.kmeans.seeding._SAMPLE", sample)
    X = da.from_array(make_tiles(dtype), chunks=(190, -1))
    weights = np.random.default_rng(1).random(500) if weighted else None
    settings = {"coarse": True, "sample_weight": weights, **settings}
    whole = daskkm.fit_sweep(X, KS, **(SETTINGS | settings))
    assert whole.passes > 2
    for passes in range(1, whole.passes):
        folder = tmp_path / str(passes)
        assert fit(X, folder, passes, **settings) == passes
        fit(X, folder, passes + 1, **settings)  # cut short once more on the way
        assert_same_bits(fit(X, folder, **settings), whole)
    # It was at its end: nothing is read any more.
    broken = da.map_blocks(lambda: 1 / 0, chunks=X.chunks, dtype=dtype, meta=X._meta, name=X.name)
    assert_same_bits(fit(broken, folder, **settings), whole)


@pytest.mark.parametrize(
    "state", [lambda: None, np.random.default_rng, lambda: np.random.RandomState(5)]
)
def test_it_is_removed_with_the_fit_and_the_seed_is_kept(
    state: Callable[[], Any], tmp_path: Path
) -> None:
    X, folder = make_tiles(), tmp_path / "new" / "checkpoint"
    fit(X, folder, 2, random_state=state())
    with held(folder) as kept:
        assert kept.said is not None
        seed = kept.said["of"]["random_state"]
    again = state()
    result = daskkm.fit_sweep(X, KS, **(SETTINGS | {"random_state": again}), checkpoint=folder)
    assert result.random_state == seed
    if isinstance(again, np.random.RandomState):  # it has moved on as if no fit was cut short
        state_of_one = np.random.RandomState(5)
        assert seed == state_of_one.randint(2**31 - 1)
        assert again.randint(100) == state_of_one.randint(100)
    assert_same_bits(result, daskkm.fit_sweep(X, KS, **(SETTINGS | {"random_state": seed})))
    assert not folder.exists()
    with pytest.raises(daskkm.FitError, match="should be >= n_clusters"):
        daskkm.fit_sweep(X, [900], checkpoint=folder)
    assert not folder.exists()


def test_it_is_small(tmp_path: Path) -> None:
    """Of each restart that moves the next centroids, of each k the best that is done."""
    d = 400
    X = np.random.default_rng(0).integers(0, 256, (300, d), np.uint8)
    for passes, most in ((2, 3 * sum(KS) * d), (None, sum(KS) * (2 * d + 2))):
        fit(X, tmp_path / "c", passes, tol=0.0, max_iter=50)
        (file,) = (tmp_path / "c").iterdir()
        assert 0.9 * 8 * most < file.stat().st_size < 8 * most + 8000


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"n_init": 4}, "n_init 3, not 4"),
        ({"init": "random"}, r"init k-means\+\+, not random"),
        ({"max_iter": 8}, "max_iter 7, not 8"),
        ({"tol": 0.0}, r"tol 0\.0001, not 0\.0"),
        ({"random_state": 4, "coarse": False}, "coarse True, not False and random_state 3, not 4"),
        ({"sample_weight": np.ones(500)}, "another sample_weight"),
    ],
)
def test_another_fit_is_refused_with_the_difference_named(
    other: dict[str, Any], named: str, tmp_path: Path
) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, 2)
    with pytest.raises(daskkm.CheckpointError, match=rf"{folder}: .* with {named}; go on with"):
        fit(X, folder, **other)
    settings = SETTINGS | other
    fresh = daskkm.fit_sweep(X, KS, **settings, checkpoint=folder, fresh=True)
    assert_same_bits(fresh, daskkm.fit_sweep(X, KS, **settings))


def test_other_tiles_and_other_ks_are_refused(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, 2)
    X[3, 3] ^= 1
    with pytest.raises(daskkm.CheckpointError, match="of a fit with another X; go on"):
        fit(X, folder)
    with pytest.raises(daskkm.CheckpointError, match=r"with another X and ks \[2, 5\], not \[2\];"):
        daskkm.fit_sweep(X, [2], **SETTINGS, checkpoint=folder)
    with held(folder) as kept:
        assert kept.said, "what was refused is still there"


def test_tiles_of_a_store_are_known_wherever_it_lies(tmp_path: Path, digits: Any) -> None:
    moved = tmp_path / "moved.zarr"
    moved.symlink_to(digits.path)
    fit(digits, tmp_path / "c", 2)
    result = fit(daskkm.open_store(moved).features(), tmp_path / "c")
    assert_same_bits(result, daskkm.fit_sweep(digits, KS, **SETTINGS))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "state")
    with pytest.raises(daskkm.CheckpointError, match="no checkpoint, its state is no file"):
        fit(make_tiles(), tmp_path)


def test_whatever_is_damaged_is_said(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, 4)
    state = folder / "state"
    good = state.read_bytes()
    rng = random.Random(0)
    flips = [(bit // 8, 1 << bit % 8) for bit in rng.sample(range(8 * len(good)), 150)]
    flips += [(byte, 4) for byte in range(300)]  # the digest, and names and shapes of arrays
    for byte, bit in flips:
        state.write_bytes(good[:byte] + bytes([good[byte] ^ bit]) + good[byte + 1 :])
        with pytest.raises(daskkm.CheckpointError, match=r"damaged .*; start over \(fresh=True\)"):
            fit(X, folder)
    for size in (0, 1, 31, 32, 33, len(good) - 1):
        state.write_bytes(good[:size])
        with pytest.raises(daskkm.CheckpointError, match="damaged"):
            fit(X, folder)
    state.write_bytes(good)
    assert_same_bits(fit(X, folder), daskkm.fit_sweep(X, KS, **SETTINGS))


def test_two_fits_at_once_and_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    with held(folder) as kept:
        next(iter_passes(X, KS, checkpoint=kept, **SETTINGS))
        for fresh in (False, True):
            with pytest.raises(daskkm.CheckpointError, match="another fit that is running"):
                daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder, fresh=fresh)
    fit(X, folder)
    (folder / ".DS_Store").touch()
    (folder / "thesis.tex").touch()
    for fresh in (False, True):
        with pytest.raises(daskkm.CheckpointError, match=r"it holds thesis\.tex; choose"):
            daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder, fresh=fresh)
    assert {file.name for file in folder.iterdir()} == {"state", ".DS_Store", "thesis.tex"}
    (tmp_path / "file").touch()
    for seed in (0, None):
        with pytest.raises(daskkm.CheckpointError, match="cannot be written"):
            fit(X, tmp_path / "file", random_state=seed)


def test_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    X = make_tiles()
    fit(X, tmp_path / "c", 2)
    assert_same_bits(fit(X, tmp_path / "c"), daskkm.fit_sweep(X, KS, **SETTINGS))


def test_starts_of_ones_own_are_known_by_what_they_hold(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    starts = {k: X[:k].astype(float) for k in KS}
    fit(X, folder, 2, init=starts)
    with pytest.raises(daskkm.CheckpointError, match=r"with init one's own .*, not one's own "):
        fit(X, folder, init={k: start + 1 for k, start in starts.items()})
    expected = daskkm.fit_sweep(X, KS, **(SETTINGS | {"init": starts}))
    assert_same_bits(fit(X, folder, init=starts), expected)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = make_tiles()
    fit(X, tmp_path, 2)
    monkeypatch.setattr("daskkm.kmeans.checkpoint._FORMAT", 3)
    with pytest.raises(daskkm.CheckpointError, match="format is 2, not 3; go on with the version"):
        fit(X, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("daskkm.kmeans.checkpoint.__version__", "9")
    with pytest.raises(daskkm.CheckpointError, match=r"with daskkm [\d.]+, not 9;"):
        fit(X, tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    X, folder = make_tiles(), tmp_path / "c"
    folder.mkdir()
    packed = io.BytesIO()
    np.savez(packed, said=np.array([Bad()], object))
    data = packed.getvalue()
    (folder / "state").write_bytes(hashlib.sha256(data).digest() + data)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        fit(X, folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", [".DS_Store", None])
def test_a_folder_that_stays_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | None
) -> None:
    """Such as one that a container mounts, or in which something else lies by then."""
    X, folder = make_tiles(), tmp_path / "c"
    if left is None:

        def refuse(_: Path) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        monkeypatch.setattr(Path, "rmdir", refuse)
    else:
        folder.mkdir()
        (folder / left).touch()
    expected = daskkm.fit_sweep(X, KS, **SETTINGS)
    assert_same_bits(daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder), expected)
    assert [entry.name for entry in folder.iterdir()] == ([] if left is None else [left])


def test_one_that_cannot_be_removed_is_a_warning(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    expected = daskkm.fit_sweep(X, KS, **SETTINGS)
    with held(folder) as kept:
        fitted = made_all(iter_passes(X, KS, checkpoint=kept, **SETTINGS))
        (folder / ".state.partial").mkdir()
        with pytest.warns(UserWarning, match=r"c: the checkpoint cannot be removed \("):
            kept.clear()
    assert_same_bits(fitted, expected)


def test_one_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    folder.mkdir()
    (folder / "state").symlink_to("state")
    with pytest.raises(daskkm.CheckpointError, match=r"cannot be read \(.*symbolic links") as error:
        fit(X, folder)
    assert "fresh" not in str(error.value)


def test_one_that_is_far_too_large_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state").touch()
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=MemoryError))
    with pytest.raises(daskkm.CheckpointError, match=r"takes more memory than there is\); start"):
        fit(make_tiles(), tmp_path / "c")


def test_a_place_of_which_nothing_can_be_known(tmp_path: Path) -> None:
    with pytest.raises(daskkm.CheckpointError, match=r"cannot be written .*File name too long"):
        fit(make_tiles(), tmp_path / ("x" * 300) / "c")


def test_it_is_held_until_the_results_are_kept(tmp_path: Path) -> None:
    """Else a second fit might begin, and lose its own when the first removes it."""
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder)
    with held(folder) as kept:
        made_all(iter_passes(X, KS, checkpoint=kept, **SETTINGS))
        with (
            pytest.raises(daskkm.CheckpointError, match="another fit that is running"),
            held(folder, fresh=True),
        ):
            pass
        kept.clear()
    assert not folder.exists()


def test_an_array_that_was_written_to_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Its name is the same, and all that dask and Zarr know of it."""
    tiles = make_tiles()
    array = zarr.create_array(tmp_path / "a", shape=tiles.shape, dtype="u1", chunks=(100, 9))
    array[:] = tiles
    X = da.from_zarr(tmp_path / "a")
    settings: dict[str, Any] = {"init": "random", "coarse": False, "max_iter": 50}
    fit(X, tmp_path / "c", 3, **settings)
    array[3, 3] = tiles[3, 3] ^ 1
    with pytest.raises(daskkm.FitError, match="not those of the passes before: they were written"):
        fit(X, tmp_path / "c", **settings)
    array[:] = tiles
    whole = daskkm.fit_sweep(X, KS, **(SETTINGS | settings))
    assert_same_bits(fit(X, tmp_path / "c", **settings), whole)


def test_fresh_alone_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="fresh=True is about a checkpoint, and there is none"):
        daskkm.fit_sweep(make_tiles(), KS, **SETTINGS, fresh=True)
