"""Resumption of a fit from a checkpoint to the same bits, and errors of checkpoints."""

from __future__ import annotations

import errno
import hashlib
import io
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr

import daskkm
from daskkm.kmeans.checkpoint import open_checkpoint
from daskkm.kmeans.options import FitOptions
from daskkm.kmeans.sweep import SweepResult, run_fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

pytestmark = pytest.mark.faults
KS = [2, 5]
SETTINGS: dict[str, Any] = {
    "n_init": 3, "init": "k-means++", "max_iter": 7, "tol": 1e-4, "random_state": 3,
}  # fmt: skip

RESUMED: list[tuple[dict[str, Any], int]] = [
    ({}, 500),
    ({"init": "random", "tol": 0.0}, 500),
    ({"coarse": False}, 100),
    ({"coarse": True}, 100),
    ({"init": "k-means||", "coarse": False}, 100),
    ({"init": "k-means||"}, 100),
    ({"init": "k-means||", "cache": "always"}, 500),
]


def make_tiles(dtype: str = "uint8") -> NDArray[Any]:
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, (6, 9))
    tiles = centres[rng.integers(0, 6, 500)] + rng.normal(0, 25, (500, 9))
    return tiles.clip(0, 255).astype(dtype)


class Cut(Exception):  # noqa: N818 (not an error)
    """Ends a fit after a pass."""


def fit(
    X: Any, folder: Path, *, cut_after: int | None = None, **changes: Any
) -> SweepResult | None:
    """Fit with a checkpoint that stays; cut short after a pass, return None."""

    def on_pass(done: daskkm.Pass) -> None:
        if done.number == cut_after:
            raise Cut

    settings = SETTINGS | changes
    sample_weight = settings.pop("sample_weight", None)
    with open_checkpoint(folder) as checkpoint:
        options = FitOptions.validate(KS, **settings)
        try:
            return run_fit(X, options, sample_weight, checkpoint=checkpoint, on_pass=on_pass)
        except Cut:
            return None


def assert_same_bits(result: Any, expected: SweepResult) -> None:
    assert (result.passes, result.bytes_read) == (expected.passes, expected.bytes_read)
    for k, model in expected.models.items():
        for name in ("cluster_centers_", "counts_", "inertia_", "n_iter_", "restart_"):
            assert np.array_equal(getattr(result.models[k], name), getattr(model, name)), name
        assert result.models[k].converged_ == model.converged_
        np.testing.assert_array_equal(result.statistics[k].table, expected.statistics[k].table)


# Each fit meets both dtypes, one of them with weights.
@pytest.mark.parametrize(
    ("settings", "sample", "dtype", "weighted"),
    [
        (settings, sample, dtype, (i + j) % 2 == 0)
        for i, (settings, sample) in enumerate(RESUMED)
        for j, dtype in enumerate(["uint8", "float32"])
    ],
)
def test_fit_cut_short_after_any_pass_resumes_to_the_same_bits(
    settings: dict[str, Any],
    sample: int,
    dtype: str,
    weighted: bool,
    tmp_path: Path,
    override_sizes: Callable[..., None],
) -> None:
    override_sizes(sample_tiles=sample)
    X = da.from_array(make_tiles(dtype), chunks=(190, -1))
    weights = np.random.default_rng(1).random(500) if weighted else None
    settings = {"coarse": True, "sample_weight": weights, **settings}
    whole = daskkm.fit_sweep(X, KS, **(SETTINGS | settings))
    assert whole.passes > 2
    for number in range(1, whole.passes):
        folder = tmp_path / str(number)
        assert fit(X, folder, cut_after=number, **settings) is None
        fit(X, folder, cut_after=number + 1, **settings)  # cut short once more
        assert_same_bits(fit(X, folder, **settings), whole)
    # The fit is at its end: tiles are not read again.
    broken = da.map_blocks(lambda: 1 / 0, chunks=X.chunks, dtype=dtype, meta=X._meta, name=X.name)
    assert_same_bits(fit(broken, folder, **settings), whole)


@pytest.mark.parametrize(
    "state", [lambda: None, np.random.default_rng, lambda: np.random.RandomState(5)]
)
def test_fit_sweep_resumed_keeps_the_seed_and_removes_the_folder(
    state: Callable[[], Any], tmp_path: Path
) -> None:
    X, folder = make_tiles(), tmp_path / "new" / "checkpoint"
    fit(X, folder, cut_after=2, random_state=state())
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.identity is not None
        seed = checkpoint.identity["random_state"]
    again = state()
    result = daskkm.fit_sweep(X, KS, **(SETTINGS | {"random_state": again}), checkpoint=folder)
    assert result.random_state == seed
    if isinstance(again, np.random.RandomState):  # advanced as in an uninterrupted fit
        state_of_one = np.random.RandomState(5)
        assert seed == state_of_one.randint(2**31 - 1)
        assert again.randint(100) == state_of_one.randint(100)
    assert_same_bits(result, daskkm.fit_sweep(X, KS, **(SETTINGS | {"random_state": seed})))
    assert not folder.exists()


def test_fit_sweep_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(daskkm.FitError, match="should be >= n_clusters"):
        daskkm.fit_sweep(make_tiles(), [900], checkpoint=tmp_path / "new" / "c")
    assert not list(tmp_path.iterdir())


def test_save_writes_no_more_than_the_next_pass_needs(tmp_path: Path) -> None:
    # The next centroids of each restart that moves, and the best that is done of each k.
    d = 400
    X = np.random.default_rng(0).integers(0, 256, (300, d), np.uint8)
    for cut_after, numbers in ((2, 3 * sum(KS) * d), (None, sum(KS) * (2 * d + 2))):
        fit(X, tmp_path / "c", cut_after=cut_after, tol=0.0, max_iter=50)
        (file,) = (tmp_path / "c").iterdir()
        assert 0.9 * 8 * numbers < file.stat().st_size < 8 * numbers + 8000


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"n_init": 4}, "n_init 3, not 4"),
        ({"init": "random"}, r"init k-means\+\+, not random"),
        ({"max_iter": 8}, "max_iter 7, not 8"),
        ({"tol": 0.0}, r"tol 0\.0001, not 0\.0"),
        ({"random_state": 4, "coarse": False}, "coarse True, not False and random_state 3, not 4"),
        ({"sample_weight": np.ones(500)}, "another sample_weight"),
    ],
)
def test_fit_with_other_options_names_the_difference(
    other: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, cut_after=2)
    message = rf"{folder}: .* with {difference}\. Resume with"
    with pytest.raises(daskkm.CheckpointError, match=message):
        fit(X, folder, **other)
    settings = SETTINGS | other
    fresh = daskkm.fit_sweep(X, KS, **settings, checkpoint=folder, fresh=True)
    assert_same_bits(fresh, daskkm.fit_sweep(X, KS, **settings))


def test_fit_of_other_tiles_or_ks_is_refused_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, cut_after=2)
    X[3, 3] ^= 1
    with pytest.raises(daskkm.CheckpointError, match=r"of a fit with another X\. Resume"):
        fit(X, folder)
    with pytest.raises(
        daskkm.CheckpointError, match=r"with another X and ks \[2, 5\], not \[2\]\."
    ):
        daskkm.fit_sweep(X, [2], **SETTINGS, checkpoint=folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.number == 2


def test_fit_of_a_store_that_moved_resumes(tmp_path: Path, digits: daskkm.TileStore) -> None:
    moved = tmp_path / "moved.zarr"
    moved.symlink_to(digits.path)
    fit(digits, tmp_path / "c", cut_after=2)
    result = fit(daskkm.open_store(moved).features(), tmp_path / "c")
    assert_same_bits(result, daskkm.fit_sweep(digits, KS, **SETTINGS))


def test_open_checkpoint_of_damaged_state_says_so(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder, cut_after=4)
    state = folder / "state"
    good = state.read_bytes()
    rng = random.Random(0)
    flips = [(bit // 8, 1 << bit % 8) for bit in rng.sample(range(8 * len(good)), 100)]
    flips += [(byte, 4) for byte in range(300)]  # the digest, and names and shapes of arrays
    for byte, bit in flips:
        state.write_bytes(good[:byte] + bytes([good[byte] ^ bit]) + good[byte + 1 :])
        with pytest.raises(daskkm.CheckpointError, match=r"damaged .*\. Start over \(fresh=True\)"):
            fit(X, folder)
    for size in (0, 1, 31, 32, 33, len(good) - 1):
        state.write_bytes(good[:size])
        with pytest.raises(daskkm.CheckpointError, match="damaged"):
            fit(X, folder)
    state.write_bytes(good)
    assert_same_bits(fit(X, folder), daskkm.fit_sweep(X, KS, **SETTINGS))


def test_open_checkpoint_of_a_running_fit_is_refused(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"

    def on_pass(done: daskkm.Pass) -> None:
        for fresh in (False, True):
            with pytest.raises(daskkm.CheckpointError, match="locked by another fit"):
                daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder, fresh=fresh)

    daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder, on_pass=on_pass)


def test_open_checkpoint_after_run_fit_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    # Else a second fit might begin, and lose its state when the first clears the folder.
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder)
    with open_checkpoint(folder) as checkpoint:
        run_fit(X, FitOptions.validate(KS, **SETTINGS), checkpoint=checkpoint)
        with (
            pytest.raises(daskkm.CheckpointError, match="locked by another fit"),
            open_checkpoint(folder, fresh=True),
        ):
            pass
        checkpoint.clear()
    assert not folder.exists()


def test_open_checkpoint_of_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    fit(X, folder)
    (folder / ".DS_Store").touch()
    (folder / "thesis.tex").touch()
    for fresh in (False, True):
        with pytest.raises(daskkm.CheckpointError, match=r"it holds thesis\.tex\. Choose"):
            daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder, fresh=fresh)
    assert {file.name for file in folder.iterdir()} == {"state", ".DS_Store", "thesis.tex"}


@pytest.mark.parametrize("name", ["file", f"{'x' * 300}/c"])
def test_open_checkpoint_where_no_folder_can_be_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for seed in (0, None):
        with pytest.raises(daskkm.CheckpointError, match="cannot be written"):
            fit(make_tiles(), tmp_path / name, random_state=seed)


def test_open_checkpoint_on_a_file_system_without_locks_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    X = make_tiles()
    fit(X, tmp_path / "c", cut_after=2)
    assert_same_bits(fit(X, tmp_path / "c"), daskkm.fit_sweep(X, KS, **SETTINGS))


def test_fit_from_given_centroids_knows_them_by_content(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    init = {k: X[:k].astype(float) for k in KS}
    fit(X, folder, cut_after=2, init=init)
    with pytest.raises(daskkm.CheckpointError, match=r"with init given \w+, not given \w+\."):
        fit(X, folder, init={k: centroids + 1 for k, centroids in init.items()})
    expected = daskkm.fit_sweep(X, KS, **(SETTINGS | {"init": init}))
    assert_same_bits(fit(X, folder, init=init), expected)


def test_open_checkpoint_of_another_format_or_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = make_tiles()
    fit(X, tmp_path, cut_after=2)
    with monkeypatch.context() as patch:
        patch.setattr("daskkm.kmeans.checkpoint._FORMAT", 5)
        with pytest.raises(daskkm.CheckpointError, match=r"of format 4, not 5\. Resume with"):
            fit(X, tmp_path)
    monkeypatch.setattr("daskkm.kmeans.checkpoint.__version__", "9")
    with pytest.raises(daskkm.CheckpointError, match=r"with daskkm [\d.]+, not 9\."):
        fit(X, tmp_path)


def test_open_checkpoint_with_a_pickle_does_not_load_it(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    X, folder = make_tiles(), tmp_path / "c"
    folder.mkdir()
    packed = io.BytesIO()
    np.savez(packed, attributes=np.array([Bad()], object))
    data = packed.getvalue()
    (folder / "state").write_bytes(hashlib.sha256(data).digest() + data)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        fit(X, folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [".DS_Store", None])
def test_fit_sweep_whose_folder_cannot_be_removed_returns_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str | None
) -> None:
    # For example a mount point, or a folder with a file of the system.
    X, folder = make_tiles(), tmp_path / "c"
    if other is None:

        def refuse(_: Path) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        monkeypatch.setattr(Path, "rmdir", refuse)
    else:
        folder.mkdir()
        (folder / other).touch()
    expected = daskkm.fit_sweep(X, KS, **SETTINGS)
    assert_same_bits(daskkm.fit_sweep(X, KS, **SETTINGS, checkpoint=folder), expected)
    assert [entry.name for entry in folder.iterdir()] == ([] if other is None else [other])


def test_clear_of_a_state_that_cannot_be_removed_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    X, folder = make_tiles(), tmp_path / "c"
    with open_checkpoint(folder) as checkpoint:
        run_fit(X, FitOptions.validate(KS, **SETTINGS), checkpoint=checkpoint)
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.warns(UserWarning, match=r"c: the checkpoint cannot be removed \("):
            checkpoint.clear()


def test_open_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    X, folder = make_tiles(), tmp_path / "c"
    folder.mkdir()
    (folder / "state").symlink_to("state")
    with pytest.raises(daskkm.CheckpointError, match=r"cannot be read \(.*symbolic links") as error:
        fit(X, folder)
    assert "fresh" not in str(error.value)


def test_resume_of_an_array_that_was_written_to_is_an_error(tmp_path: Path) -> None:
    # Its name is the same, and so is its metadata.
    tiles = make_tiles()
    array = zarr.create_array(tmp_path / "a", shape=tiles.shape, dtype="u1", chunks=(100, 9))
    array[:] = tiles
    X = da.from_zarr(tmp_path / "a")
    settings: dict[str, Any] = {"init": "random", "coarse": False, "max_iter": 50}
    fit(X, tmp_path / "c", cut_after=3, **settings)
    array[3, 3] = tiles[3, 3] ^ 1
    with pytest.raises(daskkm.FitError, match="X: the tiles changed between two passes"):
        fit(X, tmp_path / "c", **settings)
    array[:] = tiles
    whole = daskkm.fit_sweep(X, KS, **(SETTINGS | settings))
    assert_same_bits(fit(X, tmp_path / "c", **settings), whole)


def test_fit_sweep_fresh_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="fresh: True without a checkpoint"):
        daskkm.fit_sweep(make_tiles(), KS, **SETTINGS, fresh=True)
