"""One block of tiles against a stack of centroids: exact labels and statistics.

The fast path (`daskkm.kernels.simd_products`) scores a panel of tiles at a time, and the reference
decides tiles in doubt. `daskkm.kernels.prepared_stack` defines labels and bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import squared_distance
from daskkm.kernels.dtypes import (
    check_exact,
    check_finite,
    check_shapes,
    norm_dtype,
    read_only,
    statistics_dtype,
)
from daskkm.kernels.prepared_stack import PreparedStack, prepare_stack
from daskkm.kernels.simd_products import (
    LANES,
    PAIRS,
    PANEL,
    add_vectors,
    allocate_aligned,
    score,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def label_block(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    prepared: PreparedStack | None = None,
) -> NDArray[np.int32]:
    """Return the label of each tile of a block under each model of a stack.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        Any of `daskkm.kernels.dtypes.SUPPORTED_DTYPES`, finite. n may be 0.
    stack : ndarray of shape (sum of k, d), float64
        The centroids of all models, one model after another.
    offsets : ndarray of shape (n_models + 1,), intp
        Model m owns the rows ``offsets[m]:offsets[m + 1]`` of the stack.
    prepared : PreparedStack, optional
        The result of `prepare_stack`, which blocks may share.

    Returns
    -------
    ndarray of shape (n, n_models), int32
        Labels count from 0 within each model.
    """
    tiles, stack = check_shapes(tiles, stack, offsets)
    check_finite(tiles)
    labels = np.empty((len(tiles), len(offsets) - 1), np.int32)
    prepared = prepared or prepare_stack(tiles.dtype, stack, offsets)
    _label(tiles, prepared, *allocate_workspace(tiles, prepared), labels)
    return labels


def block_statistics(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    weights: NDArray[Any] | None = None,
    prepared: PreparedStack | None = None,
) -> NDArray[Any]:
    """Reduce a block to the statistics of every centroid of a stack.

    Parameters
    ----------
    tiles, stack, offsets, prepared
        As for `label_block`.
    weights : ndarray of shape (n,), int64 or float64, optional
        Weight of each tile; 1 if not given.

    Returns
    -------
    ndarray of shape (sum of k, d + 2), int64 (float64 for float tiles or weights)
        Vector sum, count and sum of squares of the tiles of each centroid. Squares are squared
        norms in int64, and squared distances to the centroid in float64: norms would cancel.
    """
    if weights is not None or tiles.dtype.kind == "f":
        return _weighted_statistics(tiles, stack, offsets, weights, prepared)
    tiles, stack = check_shapes(tiles, stack, offsets)
    n, d = tiles.shape
    check_exact(n, d, tiles.dtype)
    statistics = np.zeros((len(stack), d + 2), np.int64)
    wide = np.dtype(f"{tiles.dtype.kind}{2 * tiles.dtype.itemsize}")
    sums = allocate_aligned((len(stack), d), wide)
    sums[:] = 0
    prepared = prepared or prepare_stack(tiles.dtype, stack, offsets)
    _reduce(tiles, prepared, *allocate_workspace(tiles, prepared), sums, statistics)
    return statistics


def _weighted_statistics(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    weights: NDArray[Any] | None,
    prepared: PreparedStack | None,
) -> NDArray[Any]:
    """Return the statistics of tiles with weights, or of floats."""
    labels = label_block(tiles, stack, offsets, prepared)
    number = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    if weights is None:
        weights = np.ones(len(tiles), number)
    statistics = np.zeros((len(stack), tiles.shape[1] + 2), number)
    weights, tiles = read_only(weights.astype(number)), read_only(tiles)
    if number == np.int64:
        check_exact(int(weights.sum()), tiles.shape[1], tiles.dtype)
        norms = np.empty(len(tiles), np.int64)
        _square_norms(tiles, norms)
        _add_weighted(tiles, norms, weights, labels, offsets, statistics)
    else:
        _add_compensated(tiles, weights, labels, offsets, read_only(stack), statistics)
    return statistics


class Workspace(NamedTuple):
    """Arrays for the work on one panel: columns are tiles."""

    scores: NDArray[Any]  # (sum of k, PANEL)
    labels: NDArray[np.int32]  # (n_models, PANEL)
    squares: NDArray[Any]  # |x|^2
    norms: NDArray[np.float64]  # |x|
    best: NDArray[Any]  # score under one model
    second: NDArray[Any]
    bounds: NDArray[np.float64]


def allocate_workspace(
    tiles: NDArray[Any], prepared: PreparedStack
) -> tuple[Workspace, NDArray[np.int32]]:
    """Return arrays for the work on a panel, and scratch for `score`."""
    pairs = allocate_aligned((PAIRS, PANEL), np.dtype(np.int32))
    pairs = pairs if prepared.weights.dtype == np.int32 else pairs[0]  # a dummy for floats
    scores = allocate_aligned((len(prepared.weights), PANEL), prepared.bias.dtype)
    models = len(prepared.offsets) - 1
    labels = np.empty((models, PANEL), np.int32)
    best, second = np.empty((2, PANEL), scores.dtype)
    norms, bounds = np.empty((2, PANEL))
    squares = np.zeros(PANEL, norm_dtype(tiles))
    return Workspace(scores, labels, squares, norms, best, second, bounds), pairs


@compile_kernel
def _label(tiles: Any, prepared: Any, work: Any, pairs: Any, labels: Any) -> None:
    """Label all tiles, a panel at a time."""
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        label_panel(panel, prepared, work, pairs)
        for i in range(len(panel)):
            for m in range(labels.shape[1]):
                labels[start + i, m] = work.labels[m, i]


@compile_kernel
def _reduce(tiles: Any, prepared: Any, work: Any, pairs: Any, sums: Any, statistics: Any) -> None:
    """Label all tiles and add each to its sums, a panel at a time while the panel is in cache."""
    # Sums are twice as wide as tiles: room for `limit` tiles and a panel more.
    limit = (1 << 8 * tiles.itemsize) - PANEL
    n_flushed = np.zeros(len(sums), np.int64)
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        label_panel(panel, prepared, work, pairs)
        _add_tiles(panel, work.squares, work.labels, prepared.offsets, sums, statistics)
        _flush_sums(sums, limit, n_flushed, statistics)
    _flush_sums(sums, 0, n_flushed, statistics)


@compile_kernel
def label_panel(tiles: Any, prepared: Any, work: Any, pairs: Any) -> None:
    """Label a panel of tiles: scores, then decisions."""
    # Norms first: to read tiles one after another is the fastest order for memory.
    _square_norms(tiles, work.squares)
    score(tiles, prepared.weights, prepared.bias, pairs, work.scores)
    _decide_labels(tiles, prepared, work)


@compile_kernel
def _square_norms(tiles: Any, norms: Any) -> None:
    """Write each tile's squared norm, exact for integer tiles."""
    number = norms.dtype.type
    for i in range(len(tiles)):
        total = number(0)
        for p in range(tiles.shape[1]):
            value = number(tiles[i, p])
            total = number(total + number(value * value))
        norms[i] = total


@compile_kernel
def _decide_labels(tiles: Any, prepared: Any, work: Any) -> None:
    """Write each tile's label under each model: the label by the reference."""
    n, offsets, stack, worst = len(tiles), prepared.offsets, prepared.stack, prepared.worst_score
    scores, labels, squares, norms, best, second, bounds = work
    for i in range(PANEL):
        norms[i] = np.sqrt(np.float64(squares[i]))
    for m in range(len(offsets) - 1):
        first, last = offsets[m], offsets[m + 1]
        _find_two_best(scores, first, last, worst, best, second, labels, m)
        if last - first == 1:
            continue
        slope, curve, floor = prepared.slope[m], prepared.curve[m], prepared.floor[m]
        reach = prepared.reach[m]
        doubtful = 0
        for i in range(n):
            bound = slope * norms[i] + curve * np.float64(squares[i]) + floor
            bounds[i] = bound if norms[i] < reach else np.inf
            # "not >" rather than "<=", so that a NaN goes to the reference too.
            doubtful += not np.float64(second[i]) - np.float64(best[i]) > bounds[i]
        if doubtful == 0:
            continue
        for i in range(n):
            lowest = np.float64(best[i])
            if not np.float64(second[i]) - lowest > bounds[i]:
                label, least = -1, np.inf
                for j in range(first, last):
                    if not np.float64(scores[j, i]) - lowest > bounds[i]:
                        distance = squared_distance(tiles[i], stack[j])
                        if label < 0 or distance < least:
                            label, least = j, distance
                labels[m, i] = label - first


@compile_kernel
def _find_two_best(
    scores: Any, first: int, last: int, worst: Any, best: Any, second: Any, labels: Any, m: int
) -> None:
    """Write the best two scores of every tile and the centroid of the best.

    The selection has no branches, since mispredictions would cost more than the products.
    Neighbouring tiles share a vector, also in the idle columns of a last panel.
    """
    for i in range(PANEL):
        best[i], second[i], labels[m, i] = scores[first, i], worst, 0
    for j in range(first + 1, last):
        for i in range(PANEL):
            score, lowest = scores[j, i], best[i]
            closer = score < lowest
            loser = lowest if closer else score
            labels[m, i] = np.int32(j - first) if closer else labels[m, i]
            second[i] = min(second[i], loser)
            best[i] = score if closer else lowest


@compile_kernel
def _add_tiles(
    tiles: Any, squares: Any, labels: Any, offsets: Any, sums: Any, statistics: Any
) -> None:
    """Add a panel to the sums, counts and squared norms of its centroids."""
    n, d = tiles.shape
    whole = d - d % (2 * LANES // tiles.itemsize)
    for m in range(len(offsets) - 1):
        for i in range(n):
            j = offsets[m] + labels[m, i]
            if whole:
                add_vectors(tiles, i, sums, j, whole)
            for p in range(whole, d):
                sums[j, p] += tiles[i, p]
            statistics[j, d] += 1
            statistics[j, d + 1] += squares[i]


@compile_kernel
def _flush_sums(sums: Any, limit: int, n_flushed: Any, statistics: Any) -> None:
    """Move sums over more than `limit` tiles into the statistics."""
    d = sums.shape[1]
    for j in range(len(sums)):
        if statistics[j, d] - n_flushed[j] > limit:
            n_flushed[j] = statistics[j, d]
            for p in range(d):
                statistics[j, p] += sums[j, p]
                sums[j, p] = 0


@compile_kernel
def _add_weighted(
    tiles: Any, norms: Any, weights: Any, labels: Any, offsets: Any, statistics: Any
) -> None:
    """Add each tile times its weight to the statistics of its centroids."""
    d = tiles.shape[1]
    for i in range(len(tiles)):
        weight = weights[i]
        for m in range(len(offsets) - 1):
            j = offsets[m] + labels[i, m]
            for p in range(d):
                statistics[j, p] += weight * tiles[i, p]
            statistics[j, d] += weight
            statistics[j, d + 1] += weight * norms[i]


@compile_kernel
def _add_compensated(
    tiles: Any, weights: Any, labels: Any, offsets: Any, stack: Any, statistics: Any
) -> None:
    """Add tiles and squared distances to the statistics of their centroids.

    Sums are compensated (W. Kahan, Further remarks on reducing truncation errors, Communications of
    the ACM 8, 1965). So the mean of many equal tiles is within a few ulp of the tile, and no such
    tile seems to lie off its centroid.
    """
    d = tiles.shape[1]
    lost = np.zeros_like(statistics)
    row = np.ones(d + 2)
    for i in range(len(tiles)):
        for p in range(d):
            row[p] = tiles[i, p]
        for m in range(len(offsets) - 1):
            j = offsets[m] + labels[i, m]
            row[d + 1] = _fast_squared_distance(tiles[i], stack[j])
            for p in range(d + 2):
                term = weights[i] * row[p] - lost[j, p]
                total = statistics[j, p] + term
                lost[j, p] = (total - statistics[j, p]) - term
                statistics[j, p] = total


@compile_kernel(fastmath={"reassoc", "contract", "nsz"})
def _fast_squared_distance(tile: Any, centroid: Any) -> Any:
    """Return a squared distance, summed in any order."""
    total = 0.0
    for p in range(len(tile)):
        difference = np.float64(tile[p]) - centroid[p]
        total += difference * difference
    return total
