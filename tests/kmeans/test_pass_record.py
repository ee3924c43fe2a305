"""`on_pass`: called after each pass and stage, when the checkpoint of the pass is written."""

from __future__ import annotations

import dataclasses
import shutil
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest

import daskkm
from daskkm.kmeans.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

KS = [2, 5]
INITS: dict[str, dict[str, Any]] = {
    "k-means++ in memory": {"init": "k-means++", "sample_tiles": 500},
    "k-means++ coarse": {"init": "k-means++", "sample_tiles": 100},
    "k-means++ in passes": {"init": "k-means++", "coarse": False, "sample_tiles": 100},
    "k-means||": {"init": "k-means||", "sample_tiles": 100},
    "array": {"init": {k: np.linspace(0, 255, 3 * k).reshape(k, 3) for k in KS}},
}


class Cut(Exception):  # noqa: N818 (not an error)
    """Ends a fit from within on_pass."""


@pytest.fixture
def tiles() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    centres = rng.integers(40, 216, (6, 3))
    tiles = centres[rng.integers(0, 6, 500)] + rng.normal(0, 25, (500, 3))
    return tiles.clip(0, 255).astype(np.uint8)


@pytest.fixture(params=INITS)
def options(request: pytest.FixtureRequest, override_sizes: Callable[..., None]) -> dict[str, Any]:
    """Return options of a fit, with sizes that select each kind of seeding."""
    options = INITS[request.param].copy()
    override_sizes(sample_tiles=options.pop("sample_tiles", 1 << 15))
    return {"n_init": 2, "max_iter": 3, "tol": 0.0, "random_state": 3, **options}


def bits(result: daskkm.SweepResult) -> list[Any]:
    """Return the identity of a result."""
    models = result.models.items()
    found: list[Any] = [(k, m.inertia_, m.n_iter_, m.cluster_centers_.tobytes()) for k, m in models]
    return [*found, result.passes, result.bytes_read]


@pytest.mark.parametrize(
    ("init", "coarse", "seeding_passes", "stages"),
    [
        ("k-means++", False, 4, []),
        ("random", False, 1, ["sample", "draw"]),
        ("k-means++", True, 1, ["sample", "draw", "sample fit"]),
        ("k-means||", False, 7, ["pass", "draw", "candidate fit"]),
        ("k-means||", True, 8, ["pass", "draw", "candidate fit", "sample", "sample fit"]),
    ],
)
def test_on_pass_is_called_for_each_pass_and_stage_in_order(
    override_sizes: Callable[..., None],
    init: str,
    coarse: bool,
    seeding_passes: int,
    stages: list[str],
) -> None:
    override_sizes(sample_tiles=24)
    tiles = np.random.default_rng(0).integers(0, 256, (500, 2), np.uint8)
    options: dict[str, Any] = {"max_iter": 2, "tol": 0, "random_state": 0, "coarse": coarse}
    calls: list[daskkm.Pass] = []
    daskkm.fit_sweep(tiles, [3], n_init=2, init=init, on_pass=calls.append, **options)
    assert [stage for stage, _ in groupby(done.stage for done in calls)] == [*stages, "pass"]
    assert [done.number for done in calls] == list(accumulate(done.reads_tiles for done in calls))
    draws = 2 if "draw" in stages else 0  # a restart each
    assert sum(done.stage == "draw" for done in calls) == draws
    assert next(done.number for done in calls if done.steps) == seeding_passes + 1
    assert all(done.stage == "pass" for done in calls if done.steps)


def test_pass_fields_tell_how_far_the_fit_is(
    tiles: NDArray[np.uint8], options: dict[str, Any]
) -> None:
    calls: list[daskkm.Pass] = []
    X = da.from_array(tiles, chunks=(190, -1))
    result = daskkm.fit_sweep(X, KS, **options, cache="never", on_pass=calls.append)
    assert (calls[-1].number, calls[-1].bytes_read) == (result.passes, result.bytes_read)
    for before, done in pairwise(calls):
        assert done.number == before.number + done.reads_tiles
        assert (done.bytes_read > before.bytes_read) == done.reads_tiles
        assert done.seconds > 0
        assert done.reads_tiles == (done.stage in ("pass", "sample"))
        for name, step in before.steps.items():
            own = done.steps[name]
            assert own is step if step.last else own.iteration >= step.iteration
    for k, model in result.models.items():
        step = calls[-1].steps[k, model.restart_]
        assert (step.inertia, step.iteration) == (model.inertia_, model.n_iter_)
        assert (step.converged, step.last) == (model.converged_, True)
        np.testing.assert_array_equal(step.centroids, model.cluster_centers_)
        np.testing.assert_array_equal(step.counts, model.counts_)
    with pytest.raises(dataclasses.FrozenInstanceError):
        calls[0].number = 9  # type: ignore[misc]


def test_on_pass_is_called_when_the_checkpoint_of_the_pass_is_written(
    tiles: NDArray[np.uint8], options: dict[str, Any], tmp_path: Path
) -> None:
    expected = daskkm.fit_sweep(tiles, KS, **options)
    folders: list[Path] = []
    saved = 0

    def on_pass(done: daskkm.Pass) -> None:
        nonlocal saved
        saved = done.number if done.stage == "pass" else saved
        if saved:
            folders.append(tmp_path / f"{len(folders)} {done.stage}")
            shutil.copytree(tmp_path / "c", folders[-1])
            with open_checkpoint(folders[-1]) as checkpoint:
                assert checkpoint.number == saved

    result = daskkm.fit_sweep(tiles, KS, **options, checkpoint=tmp_path / "c", on_pass=on_pass)
    assert bits(result) == bits(expected)
    assert {folder.name.split(" ", 1)[1] for folder in folders} >= {"pass"}
    for folder in folders:  # each copy is a fit that was killed there
        calls: list[daskkm.Pass] = []
        again = daskkm.fit_sweep(tiles, KS, **options, checkpoint=folder, on_pass=calls.append)
        assert bits(again) == bits(expected)
        assert not calls or calls[-1].number == expected.passes


def test_on_pass_that_raises_ends_the_fit_which_resumes_to_the_same_bits(
    tiles: NDArray[np.uint8], options: dict[str, Any], tmp_path: Path
) -> None:
    calls: list[daskkm.Pass] = []
    expected = daskkm.fit_sweep(tiles, KS, **options, on_pass=calls.append)
    folder = tmp_path / "c"
    for n in range(1, len(calls) + 1):
        seen: list[daskkm.Pass] = []

        def cut(done: daskkm.Pass, n: int = n, seen: list[daskkm.Pass] = seen) -> None:
            seen.append(done)
            if len(seen) == n:
                raise Cut

        with pytest.raises(Cut):
            daskkm.fit_sweep(tiles, KS, **options, checkpoint=folder, on_pass=cut)
        assert [done.stage for done in seen] == [done.stage for done in calls[:n]]
        assert folder.exists() == any(done.stage == "pass" for done in seen)
        result = daskkm.fit_sweep(tiles, KS, **options, checkpoint=folder)
        assert bits(result) == bits(expected)
        assert not folder.exists()


def test_on_pass_of_a_read_that_counts_tiles_is_not_called(tiles: NDArray[np.uint8]) -> None:
    """Tiles of unknown number take one read more, which is no pass of the fit."""
    X = da.from_array(tiles, chunks=(190, -1))
    numbers: list[int] = []
    daskkm.fit_sweep(
        X[X[:, 0] > 99],
        KS,
        n_init=1,
        random_state=0,
        on_pass=lambda done: numbers.append(done.number),
    )
    assert numbers[0] == 2
