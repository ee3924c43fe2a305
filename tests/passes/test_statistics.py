"""Passes that compute statistics and farthest tiles: the definitions, in any blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest

from daskkm.passes.statistics import FarthestTiles, cache_blocks, find_farthest, statistics
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNKINGS = [300, 1, 7, 64, (100, 0, 150, 50), (0, 0, 299, 1)]


@pytest.fixture
def tiles() -> NDArray[Any]:
    rng = np.random.default_rng(0)
    # Few distinct tiles: ties in abundance.
    return rng.integers(0, 256, (40, 9), np.uint8)[rng.integers(0, 40, 300)]


def chunked(tiles: NDArray[Any], chunks: Any) -> da.Array:
    return da.from_array(tiles, chunks=(chunks, -1))


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_statistics_in_any_blocks_are_those_of_the_definition(
    tiles: NDArray[Any], chunks: Any
) -> None:
    stack, offsets = tiles[:11] * 0.75, np.array([0, 4, 11])
    table = statistics(chunked(tiles, chunks), stack, offsets).compute(scheduler="sync")
    expected = reference.statistics(tiles, stack, offsets)
    assert table.dtype == expected.dtype
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_statistics_with_weights_are_those_of_repeated_tiles(
    tiles: NDArray[Any], chunks: Any
) -> None:
    stack, offsets = tiles[:11] * 0.75, np.array([0, 4, 11])
    weights = np.arange(300) % 4
    X = chunked(tiles, chunks)
    lazy = da.from_array(weights, chunks=(X.chunks[0],))
    table = statistics(X, stack, offsets, weights=lazy).compute(scheduler="sync")
    expected = reference.statistics(tiles.repeat(weights, axis=0), stack, offsets)
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_statistics_of_cached_blocks_are_the_same_from_pass_to_pass(
    tiles: NDArray[Any], chunks: Any
) -> None:
    offsets = np.array([0, 4, 11])
    with dask.config.set(scheduler="sync"):
        X = cache_blocks(chunked(tiles, chunks)).persist()
        for step in range(3):
            stack = tiles[:11] * 0.75 + step
            table = statistics(X, stack, offsets, models=[0, 1]).compute()
            np.testing.assert_array_equal(table, reference.statistics(tiles, stack, offsets))


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_farthest_in_any_blocks_are_the_first_of_equals(tiles: NDArray[Any], chunks: Any) -> None:
    stack, offsets = tiles[:11] * 0.75, np.array([0, 4, 6, 11])
    wanted = [3, 0, 25]
    lazy = find_farthest(chunked(tiles, chunks), stack, offsets, wanted)
    for m, far in enumerate(lazy.compute(scheduler="sync")):
        rows, labels = reference.farthest(tiles, stack[offsets[m] : offsets[m + 1]], wanted[m])
        assert far.indices.tolist() == rows.tolist()
        np.testing.assert_array_equal(far.labels, labels)
        np.testing.assert_array_equal(far.tiles, tiles[rows])
        assert far.weights.tolist() == [1] * len(rows)


def test_farthest_leaves_out_tiles_on_their_centroid_and_without_weight() -> None:
    tiles = np.array([[1], [5], [1], [9]], np.uint8)
    X, weights = chunked(tiles, 2), da.from_array(np.array([1, 1, 1, 0]), chunks=2)
    centroid, offsets = np.array([[1.0]]), np.array([0, 1])
    (far,) = find_farthest(X, centroid, offsets, [3]).compute(scheduler="sync")
    assert far.indices.tolist() == [3, 1]
    (far,) = find_farthest(X, centroid, offsets, [3], weights=weights).compute(scheduler="sync")
    assert far.indices.tolist() == [1]


def test_farthest_top_sorts_by_distance_then_index() -> None:
    far = FarthestTiles(
        np.array([1.0, 4.0, 4.0, 2.0]),
        np.array([7, 9, 3, 1]),
        np.arange(4)[:, None],
        np.zeros(4, np.int32),
        np.ones(4, int),
    )
    assert far.top(3).indices.tolist() == [3, 9, 1]
    assert far.top(0).tiles.shape == (0, 1)


def test_statistics_with_a_large_stack_have_one_task_of_it() -> None:
    X = da.zeros((1000, 64), chunks=(10, -1), dtype=np.uint8)
    stack = np.zeros((200, 64))
    (optimized,) = dask.optimize(statistics(X, stack, np.array([0, 200])))
    graph = dict(optimized.__dask_graph__())
    holders = [
        key for key, task in graph.items() if np.shape(getattr(task, "value", 0)) == (200, 64)
    ]
    assert len(holders) == 1
    # A task a block, a tree with eight branches a node, and the stack.
    assert len(graph) < 100 + 13 + 2 + 4
