"""Passes, made and counted: where tiles are, what stays in memory, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskkm
from daskkm.errors import FitError
from daskkm.kernels import assign
from daskkm.passes import scheduler
from daskkm.passes.runner import PassRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

X = np.random.default_rng(0).random((60, 4))
PIXELS = np.random.default_rng(1).integers(0, 256, (60, 4), np.uint8)
ONE = np.array([0, 1])


def test_pass_runner_of_unknown_number_uses_its_scheduler() -> None:
    made: list[str] = []

    def get(graph: Any, keys: Any, **options: Any) -> Any:
        made.append("chosen")
        return dask.get(graph, keys, **options)

    def forbidden(*_: Any, **__: Any) -> Any:
        msg = "not the scheduler that was chosen"
        raise AssertionError(msg)

    lazy = da.from_array(X, chunks=(20, 4))
    some = lazy[lazy[:, 0] > 0.5]
    weights = da.ones(60, chunks=20)[lazy[:, 0] > 0.5]
    with dask.config.set(scheduler=forbidden):
        runner = PassRunner(some, weights, scheduler=get)
    assert runner.shape[0] == (X[:, 0] > 0.5).sum()
    assert made
    assert np.isnan(some.shape[0])  # the caller's array stays as it was


def test_pass_runner_of_tiles_too_large_for_workers_is_refused_before_a_pass() -> None:
    given = np.zeros((1 << 20, 300), np.uint8)
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": "300MB"}
    with (
        LocalCluster(**options, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        assert scheduler.is_elsewhere()
        with pytest.raises(FitError, match=r"X: 315 MB in memory.*workers \(1\).*of 300 MB"):
            daskkm.fit_sweep(given, [2])


@pytest.mark.parametrize("cache", ["always", "never"])
def test_pass_runner_counts_passes_and_bytes(cache: str) -> None:
    runner = PassRunner(da.from_array(PIXELS, chunks=(20, -1)), scheduler="sync", cache=cache)
    runner.prepare(1, 1)
    for number in (1, 2):
        statistics = runner.measure(PIXELS[:1].astype(float), ONE)
        np.testing.assert_array_equal(statistics.sums[0], PIXELS.sum(axis=0, dtype=int))
        assert runner.passes == number
        assert runner.bytes_read == PIXELS.nbytes * (1 if cache == "always" else number)
    np.testing.assert_array_equal(runner.take(np.array([3, 5])), PIXELS[[3, 5]])
    assert runner.bytes_read == PIXELS.nbytes * (1 if cache == "always" else 2) + (
        0 if cache == "always" else 20 * 4
    )


def test_measure_of_tiles_that_changed_between_passes_is_refused() -> None:
    tiles = PIXELS.copy()
    runner = PassRunner(tiles, scheduler="sync")
    runner.measure(np.zeros((1, 4)), ONE)
    tiles[3, 3] ^= 1
    with pytest.raises(FitError, match=r"X: the tiles changed between two passes.*fresh=True"):
        runner.measure(np.zeros((1, 4)), ONE)


def test_measure_all_measures_only_the_first_stack_with_weights() -> None:
    weights = np.arange(60) % 3
    runner = PassRunner(PIXELS, weights, scheduler="sync")
    stack = PIXELS[:2].astype(float)
    weighted, alone = runner.measure_all([(stack, np.array([0, 2]), (0,)), (stack[:1], ONE, ())])
    assert weighted.counts.sum() == weights.sum()
    assert alone.counts.tolist() == [60]
    np.testing.assert_array_equal(alone.sums[0], PIXELS.sum(axis=0, dtype=int))
    assert runner.passes == 1


@pytest.mark.parametrize("kind", ["store", "array", "short blocks"])
def test_measure_with_fractional_weights_ignores_the_cache(
    kind: str, digits: daskkm.TileStore, override_sizes: Callable[..., None]
) -> None:
    # Sums of floats depend on the pieces of blocks, which a cache must keep.
    override_sizes(piece_bytes=400, block_bytes_min=2000, many_blocks=10)
    tiles = np.random.default_rng(0).integers(0, 256, (1000, 4), np.uint8)
    X = {"store": digits, "array": tiles, "short blocks": da.from_array(tiles, chunks=(13, -1))}[
        kind
    ]
    weights = np.random.default_rng(1).random(len(X))
    tables = []
    for cache in ("always", "never"):
        runner = PassRunner(X, weights, scheduler="sync", cache=cache)
        runner.prepare(1, 2)
        stack = np.full((2, runner.shape[1]), [[50.0], [200.0]])
        tables.append(runner.measure(stack, np.array([0, 2])).table)
    assert tables[0].tobytes() == tables[1].tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_draw_first_draws_tiles_that_have_weight(weighted: bool) -> None:
    weights = (np.arange(60) == 7) * 2 if weighted else None
    runner = PassRunner(PIXELS, weights, scheduler="sync")
    drawn = runner.draw_first(5, seed=0)
    assert drawn.shape == (5, 4)
    if weighted:
        np.testing.assert_array_equal(drawn, PIXELS[[7] * 5])
    assert set(map(tuple, drawn.tolist())) <= set(map(tuple, PIXELS.tolist()))


@pytest.mark.parametrize("has_room", [True, False])
def test_rounds_with_room_measure_each_candidate_once(
    monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    measured: list[int] = []
    label_block = assign.label_block

    def counting(tiles: NDArray[Any], stack: NDArray[Any], *args: Any) -> NDArray[Any]:
        measured.append(len(tiles) * len(stack))
        return label_block(tiles, stack, *args)

    monkeypatch.setattr(assign, "label_block", counting)
    runner = PassRunner(da.from_array(PIXELS, chunks=(20, -1)), scheduler="sync")
    if has_room:
        runner.prepare(1, 1)  # else no room is known
    rounds = runner.start_rounds()
    candidates = PIXELS[:1]
    for step in (1, 2):
        drawn = rounds.draw(candidates, 3, 0, step)
        candidates = np.concatenate([candidates, drawn.tiles])
    assert rounds.weigh(candidates).sum() == 60
    assert sum(measured) == 60 * (7 if has_room else 1 + 4 + 7)
    assert runner.passes == 3
