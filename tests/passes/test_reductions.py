"""Reductions over blocks: lazy, in the order of the tiles, one task a block and a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, strategies as st

from daskkm.passes import reductions
from daskkm.passes.arrays import in_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TILES = np.random.default_rng(0).integers(0, 256, (60, 3), np.uint8)
CUTS = st.lists(st.integers(0, 60), max_size=12)


def chunked(cuts: list[int]) -> da.Array:
    chunks = tuple(np.diff([0, *sorted(cuts), 60]).tolist())
    return da.from_array(TILES, chunks=(chunks, -1))


def rows_and_first(
    tiles: NDArray[Any], first: int, weights: NDArray[Any] | None = None
) -> list[tuple[int, ...]]:
    """Return the index, the values and the weight of each tile."""
    own = np.zeros(len(tiles), int) if weights is None else weights
    indices = range(first, first + len(tiles))
    return [(i, *tile, w) for i, tile, w in zip(indices, tiles.tolist(), own.tolist(), strict=True)]


def join(parts: list[list[Any]]) -> list[Any]:
    return [row for part in parts for row in part]


def table_of(tiles: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Return the sum of tiles, and of their weights, as a table of one row."""
    total = len(tiles) if weights is None else weights.sum()
    return np.append(tiles.sum(axis=0, dtype=np.int64), total)[None]


def sum_of_block(block: Any, *columns: NDArray[Any]) -> NDArray[np.int64]:
    return reductions.sum_over_pieces(table_of, block, columns)


@given(cuts=CUTS, weighted=st.booleans())
def test_gather_in_any_blocks_merges_in_the_order_of_the_tiles(
    cuts: list[int], weighted: bool
) -> None:
    X = chunked(cuts)
    weights = da.arange(60, chunks=(X.chunks[0],)) if weighted else None
    rows = reductions.gather(rows_and_first, X, weights, join).compute(scheduler="sync")
    expected = rows_and_first(TILES, 0, np.arange(60) if weighted else None)
    assert rows == expected


@given(cuts=CUTS)
def test_gather_with_notes_returns_the_note_of_each_tile_and_the_result(cuts: list[int]) -> None:
    def notes_and_rows(
        tiles: NDArray[Any], first: int, numbers: NDArray[Any]
    ) -> tuple[NDArray[Any], list[tuple[int, ...]]]:
        return numbers[:, None] * 2, rows_and_first(tiles, first, numbers)

    X = chunked(cuts)
    arrays = [X, da.arange(60, chunks=(X.chunks[0],))[:, None]]
    notes, result = reductions.gather_with_notes(notes_and_rows, arrays, join, np.dtype(int))
    notes, rows = dask.compute(notes, result.to_delayed().item(), scheduler="sync")
    assert notes[:, 0].tolist() == list(range(0, 120, 2))
    assert rows == rows_and_first(TILES, 0, np.arange(60))


@given(cuts=CUTS, weighted=st.booleans())
def test_sum_over_blocks_in_any_blocks_is_that_of_the_whole(
    cuts: list[int], weighted: bool
) -> None:
    X = chunked(cuts)
    weights = da.arange(60, chunks=(X.chunks[0],)) if weighted else None
    arrays = reductions.with_column(X, weights)
    total = reductions.sum_over_blocks(sum_of_block, arrays)
    expected = table_of(TILES, np.arange(60) if weighted else None)
    np.testing.assert_array_equal(total.compute(scheduler="sync"), expected)


def test_reductions_of_blocks_of_pieces_read_one_piece_at_a_time(
    override_sizes: Callable[..., None],
) -> None:
    override_sizes(piece_bytes=21)  # seven tiles
    X = in_blocks(TILES, 60, np.dtype(np.uint8))
    weights = da.arange(60, chunks=(X.chunks[0],))
    assert X.chunks[0] == (20, 20, 20)
    with dask.config.set(scheduler="sync"):
        rows = reductions.gather(rows_and_first, X, weights, join).compute()
        assert rows == rows_and_first(TILES, 0, np.arange(60))
        lengths = reductions.gather(lambda tiles, _: [len(tiles)], X, None, join).compute()
        assert lengths == [7, 7, 6] * 3
        arrays = reductions.with_column(X, weights)
        total = reductions.sum_over_blocks(sum_of_block, arrays)
        np.testing.assert_array_equal(total.compute(), table_of(TILES, np.arange(60)))


@given(cuts=CUTS, indices=st.sets(st.integers(0, 59), min_size=1))
def test_take_tiles_of_any_blocks_reads_only_blocks_that_hold_them(
    cuts: list[int], indices: set[int]
) -> None:
    X = chunked(cuts)
    wanted = np.array(sorted(indices))
    read: list[int] = []

    def block(tiles: NDArray[Any]) -> NDArray[Any]:
        read.append(len(tiles))
        return tiles

    watched = X.map_blocks(block, dtype=np.uint8, meta=X._meta)
    taken = reductions.take_tiles(watched, wanted).compute(scheduler="sync")
    np.testing.assert_array_equal(taken, TILES[wanted])
    assert sum(read) == reductions.count_tiles_in_blocks(X, wanted)


def test_reductions_compute_nothing_before_they_are_asked() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        msg = "computed"
        raise AssertionError(msg)

    X = chunked([20])
    with dask.config.set(scheduler=refuse):
        reductions.gather(rows_and_first, X, None, join)
        reductions.take_tiles(X, np.array([3]))
        reductions.sum_over_blocks(sum_of_block, [X])
        with pytest.raises(AssertionError, match="computed"):
            X.sum().compute()


@pytest.mark.parametrize("fan_in", [2, 8])
def test_gather_of_many_blocks_merges_in_a_tree(
    override_sizes: Callable[..., None], fan_in: int
) -> None:
    override_sizes(fan_in=fan_in)
    merged: list[int] = []

    def count(parts: list[int]) -> int:
        merged.append(len(parts))
        return sum(parts)

    X = da.zeros((64, 1), chunks=(1, 1), dtype=np.uint8)
    total = reductions.gather(lambda tiles, _: len(tiles), X, None, count)
    assert total.compute(scheduler="sync") == 64
    assert set(merged) == {fan_in}


def test_share_of_a_large_array_makes_one_task_of_it(override_sizes: Callable[..., None]) -> None:
    override_sizes(shared_bytes=100 * 8 * 6)
    X = da.zeros((100, 1), chunks=(1, 1))
    small, large = np.zeros(6), np.zeros(7)
    assert reductions.share(X, small) is small
    shared = reductions.share(X, large)
    assert dask.is_dask_collection(shared)
    assert shared.key == reductions.share(X, large.copy()).key
