"""Blocks: lazy, and the same whatever the chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest

from daskkm.passes import reductions
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
def test_statistics_and_labels(tiles: NDArray[Any], chunks: Any) -> None:
    stack, offsets = tiles[:11] * 0.75, np.array([0, 4, 11])
    X = chunked(tiles, chunks)
    statistics = reductions.statistics(X, stack, offsets)
    expected = reference.statistics(tiles, stack, offsets)
    assert (statistics.shape, statistics.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(statistics.compute(scheduler="sync"), expected)
    labels = reductions.labels(X, stack[:4])
    assert (labels.shape, labels.dtype, labels.chunks) == ((300,), np.int32, X.chunks[:1])
    np.testing.assert_array_equal(
        labels.compute(scheduler="sync"), reference.labels(tiles, stack[:4], np.array([0, 4]))[:, 0]
    )


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_farthest_is_the_first_of_equals(tiles: NDArray[Any], chunks: Any) -> None:
    stack, offsets = tiles[:11] * 0.75, np.array([0, 4, 6, 11])
    wanted = [3, 0, 25]
    found = reductions.farthest(chunked(tiles, chunks), stack, offsets, wanted)
    for m, far in enumerate(found.compute(scheduler="sync")):
        rows, labels = reference.farthest(tiles, stack[offsets[m] : offsets[m + 1]], wanted[m])
        assert far.indices.tolist() == rows.tolist()
        np.testing.assert_array_equal(far.labels, labels)
        np.testing.assert_array_equal(far.tiles, tiles[rows])


def test_a_tile_on_its_centroid_is_not_far() -> None:
    tiles = np.array([[1], [5], [1]], np.uint8)
    (far,) = reductions.farthest(
        chunked(tiles, 2), np.array([[1.0]]), np.array([0, 1]), [3]
    ).compute()
    assert far.indices.tolist() == [1]


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        msg = "computed"
        raise AssertionError(msg)

    X = da.zeros((100, 4), chunks=(10, -1), dtype=np.uint8)
    with dask.config.set(scheduler=refuse):
        reductions.statistics(X, np.zeros((2, 4)), np.array([0, 2]))
        reductions.labels(X, np.zeros((2, 4)))
        reductions.farthest(X, np.zeros((2, 4)), np.array([0, 2]), [1])
        with pytest.raises(AssertionError, match="computed"):
            X.sum().compute()


def test_the_stack_is_one_task_and_not_a_part_of_every_block() -> None:
    X = da.zeros((1000, 64), chunks=(10, -1), dtype=np.uint8)
    stack = np.zeros((200, 64))
    (optimized,) = dask.optimize(reductions.statistics(X, stack, np.array([0, 200])))
    graph = dict(optimized.__dask_graph__())
    holders = [
        key for key, task in graph.items() if "200, 64" in repr(np.shape(getattr(task, "value", 0)))
    ]
    assert len(holders) == 1
    # A task a block, a tree with eight branches a node, and the stack.
    assert len(graph) < 100 + 13 + 2 + 4
