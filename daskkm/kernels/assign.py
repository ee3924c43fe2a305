"""One block of tiles against a stack of centroids: exact labels and statistics.

The label of a tile is *defined* by the reference, `_squared_distance`: the first centroid
of the model that minimises the squared Euclidean distance, summed in float64 in index
order, with neither fused multiply-add nor reassociation. It is slow, so it only decides
the tiles that need it. For all others the fast path is proved to agree:

* Scores drop what all centroids of a model share. With mu the mean of a model's
  centroids, ``|x - c|^2 = (|x|^2 - 2 x.mu) + (|c|^2 - 2 x.(c - mu))`` and only the second
  bracket depends on c. Centring makes the products, and so their rounding errors, small.
* Of 8-bit tiles the products are exact integers: a model's weights ``w = -2 (c - mu)`` are
  rounded to 16-bit multiples q u of a unit u, a power of two so large that no sum of 32 bits can
  overflow in any order. Only this rounding counts, ``|x.w - x.(q u)| <= |x| |w - q u|``
  (Cauchy-Schwarz), and |w - q u| is known. ``|c|^2 - |mu|^2`` is where the sum starts, rounded to
  a multiple of u, which is off by u / 2.
* Of other tiles the products are summed in float32 (float64 for 16-bit and float64 tiles, whose
  offsets would drown in float32's error) in whatever order the compiler likes;
  ``|fl(x.w) - x.w| <= gamma_d |x| |w|`` holds for every order, with or without FMA (Higham,
  Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1, with Cauchy-Schwarz).
* A tile whose best score leads the second by more than twice the bound, the reference's
  own rounding included, has the reference's label. Otherwise the reference decides among
  the centroids inside the bound.

Hence the labels are the reference's, bit for bit, on every CPU and at every vector width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import squared_distance
from daskkm.kernels.dtypes import (
    check_exact,
    check_finite,
    checked,
    norm_dtype,
    peak,
    read_only,
    statistics_dtype,
)
from daskkm.kernels.products import LANES, PANEL, add_vectors, aligned, pairs, score, scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two scores are compared; 1 % is far more than the bound's own rounding.
_TWICE = 2 * 1.01


def label_block(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    prepared: Prepared | None = None,
) -> NDArray[np.int32]:
    """Label every tile of a block under every model of a stack.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        uint8, int8, uint16, int16, float32 or float64; n may be 0.
    stack : ndarray of shape (sum of k, d), float64
        The centroids of all models, one model after another.
    offsets : ndarray of shape (n_models + 1,), intp
        Model m owns the rows ``offsets[m]:offsets[m + 1]`` of the stack.
    prepared : Prepared, optional
        What `prepare` makes of the stack: for many blocks, once will do.

    Returns
    -------
    ndarray of shape (n, n_models), int32
        Labels count from 0 within each model.

    Raises
    ------
    TypeError
        If the dtype of the tiles is not one of those above.
    ValueError
        If the shapes do not fit together, or float tiles are not finite.
    """
    tiles, stack = checked(tiles, stack, offsets)
    check_finite(tiles)
    labels = np.empty((len(tiles), len(offsets) - 1), np.int32)
    prepared = prepared or prepare(tiles.dtype, stack, offsets)
    work, turned = workspace(tiles, prepared)
    _label(tiles, prepared, work, turned, labels)
    return labels


def block_statistics(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    weights: NDArray[Any] | None = None,
    prepared: Prepared | None = None,
) -> NDArray[Any]:
    """Reduce a block to the statistics of every centroid of a stack.

    Parameters
    ----------
    tiles, stack, offsets, prepared
        As for `label_block`.
    weights : ndarray of shape (n,), int64 or float64, optional
        How often each tile counts; 1 if not given.

    Returns
    -------
    ndarray of shape (sum of k, d + 2), int64 (float64 for float tiles or weights)
        Per centroid, over the tiles labelled with it: vector sum, count, and sum of squares. For
        int64, which is exact, these are the squared norms; for float64 the squared distances
        to the centroid, because no sum of squares about another point could be trusted.

    Raises
    ------
    TypeError, ValueError
        As for `label_block`.
    OverflowError
        If sums of squares could exceed int64.
    """
    if weights is not None or tiles.dtype.kind == "f":
        return _weighted_statistics(tiles, stack, offsets, weights, prepared)
    tiles, stack = checked(tiles, stack, offsets)
    n, d = tiles.shape
    check_exact(n, d, tiles.dtype)
    statistics = np.zeros((len(stack), d + 2), np.int64)
    sums = aligned((len(stack), d), np.dtype(f"{tiles.dtype.kind}{2 * tiles.dtype.itemsize}"))
    sums[:] = 0
    prepared = prepared or prepare(tiles.dtype, stack, offsets)
    work, turned = workspace(tiles, prepared)
    _reduce(tiles, prepared, work, turned, sums, statistics)
    return statistics


def _weighted_statistics(
    tiles: NDArray[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    weights: NDArray[Any] | None,
    prepared: Prepared | None,
) -> NDArray[Any]:
    """Label the tiles, then add them up as often as their weights say."""
    labels = label_block(tiles, stack, offsets, prepared)
    number = statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    if weights is None:
        weights = np.ones(len(tiles), number)
    statistics = np.zeros((len(stack), tiles.shape[1] + 2), number)
    weights, tiles = read_only(weights.astype(number)), read_only(tiles)
    if number == np.int64:
        check_exact(int(weights.sum()), tiles.shape[1], tiles.dtype)
        norms = np.empty(len(tiles), np.int64)
        _square(tiles, norms)
        _add_weighted(tiles, norms, weights, labels, offsets, statistics)
    else:
        _add_about(tiles, weights, labels, offsets, read_only(stack), statistics)
    return statistics


class Prepared(NamedTuple):
    """A stack made ready for the fast path: rows are centroids or models."""

    stack: NDArray[np.float64]
    offsets: NDArray[np.intp]
    weights: NDArray[Any]  # (sum of k, d): -2 (c - mu), as `score` takes them
    bias: NDArray[Any]  # (sum of k,): |c|^2 but for what a model's centroids share
    worst: Any  # no score is above it
    # Twice the bound on a score's error is slope |x| + curve |x|^2 + floor, per model, while
    # |x| < reach, in the unit of the model's scores. Beyond, a product might overflow: all
    # centroids go to the reference.
    slope: NDArray[np.float64]
    curve: NDArray[np.float64]
    floor: NDArray[np.float64]
    reach: NDArray[np.float64]
    unit: NDArray[np.float64]  # of the model's scores


class Workspace(NamedTuple):
    """What is known of the tiles of a panel: columns are tiles."""

    scores: NDArray[Any]  # (sum of k, PANEL)
    labels: NDArray[np.int32]  # (n_models, PANEL)
    squares: NDArray[Any]  # |x|^2
    norms: NDArray[np.float64]  # |x|
    best: NDArray[Any]  # under one model
    second: NDArray[Any]
    bounds: NDArray[np.float64]


def workspace(tiles: NDArray[Any], prepared: Prepared) -> tuple[Workspace, NDArray[np.int32]]:
    """Return room for a panel's work, and for turned tiles."""
    turned, scores = scratch(prepared.weights, prepared.bias)
    models = len(prepared.offsets) - 1
    labels = np.empty((models, PANEL), np.int32)
    best, second = np.empty((2, PANEL), scores.dtype)
    norms, bounds = np.empty((2, PANEL))
    squares = np.zeros(PANEL, norm_dtype(tiles))
    return Workspace(scores, labels, squares, norms, best, second, bounds), turned


def prepare(
    dtype: np.dtype[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centre: NDArray[np.float64] | None = None,
) -> Prepared:
    """Return a stack ready for the fast path with tiles of a type: weights and bounds.

    Each model's centroids are centred about their mean, or all about one point that is given.
    """
    starts, sizes = offsets[:-1], np.diff(offsets)
    with np.errstate(all="ignore"):
        means = np.add.reduceat(stack, starts) / sizes[:, None]
        if centre is not None:
            means[:] = centre
        centred = -2.0 * (stack - means.repeat(sizes, axis=0))
        bias = np.square(stack).sum(axis=1)
        gamma = _gamma(stack.shape[1] + 4, 2.0**-53)
        # |c|^2 and the final sum take 2 gamma |c|^2, the reference's distance, at most
        # 2 |x|^2 + 2 |c|^2, the rest.
        curve = np.full(len(sizes), _TWICE * 2 * gamma)
        floor = _TWICE * 4 * gamma * np.maximum.reduceat(bias, starts)
        if dtype.itemsize == 1:
            bias -= np.square(means).sum(axis=1).repeat(sizes)
            return _in_integers(peak(dtype), stack, offsets, centred, bias, curve, floor)
        number = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        return _in_floats(number, stack, offsets, centred, bias, curve, floor)


def _in_floats(
    number: np.dtype[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centred: NDArray[np.float64],
    bias: NDArray[np.float64],
    curve: NDArray[np.float64],
    floor: NDArray[np.float64],
) -> Prepared:
    """Return float weights, and what products lose in the bound."""
    d, limits = stack.shape[1], np.finfo(number)
    tiny, largest = float(limits.tiny), float(limits.max) / 8
    # A sum of d products, the weight's own rounding (a difference, a cast), the final sum.
    gamma = _gamma(d + 4, float(limits.eps) / 2)
    longest = np.sqrt(np.maximum.reduceat(np.square(centred).sum(axis=1), offsets[:-1]))
    # `tiny` covers what underflow takes from weights (times x) and from products.
    slope = _TWICE * (gamma * longest + np.sqrt(d) * tiny)
    floor = floor + _TWICE * d * tiny
    reach = np.where(longest < largest, largest / np.maximum(longest, 1.0), 0.0)
    weights = centred.astype(number)
    unit = np.ones(len(offsets) - 1)
    return Prepared(stack, offsets, weights, bias, np.inf, slope, curve, floor, reach, unit)


def _in_integers(
    peak: int,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centred: NDArray[np.float64],
    bias: NDArray[np.float64],
    curve: NDArray[np.float64],
    floor: NDArray[np.float64],
) -> Prepared:
    """Return weights and bias in fixed point, and the bound in the scores' unit.

    The unit of a model is the smallest power of two with which every weight fits 16 bits and every
    score, summed in whatever order, 32.
    """
    d, starts, sizes = stack.shape[1], offsets[:-1], np.diff(offsets)
    sizes_of = np.abs(centred)
    largest = np.maximum.reduceat(sizes_of.max(axis=1), starts)
    highest = np.maximum.reduceat(peak * sizes_of.sum(axis=1) + np.abs(bias), starts)
    # Rounding adds at most 1/2 to each weight and to the bias.
    room = 2.0**31 - peak * d - 2
    usable = np.isfinite(highest) & (room > 0)
    fits = np.minimum((2**15 - 1) / largest, room / highest)
    # |c|^2 is finite, so that no model needs more than this clip allows.
    unit = np.where(usable, np.ldexp(1.0, np.clip(1 - np.frexp(fits)[1], -1000, 1000)), np.nan)
    each = unit.repeat(sizes)
    whole = np.rint(centred / each[:, None])
    lost = np.square(centred - whole * each[:, None]).sum(axis=1)
    lost, longest = (
        np.sqrt(np.maximum.reduceat(squares, starts))
        for squares in (lost, np.square(centred).sum(axis=1))
    )
    # The centred weight's own rounding, and what underflow takes from the squares of what is lost.
    tiny = float(np.finfo(np.float64).tiny)
    slope = _TWICE * (lost + 2 * 2.0**-53 * longest + np.sqrt(d * tiny))
    floor = floor + _TWICE * unit / 2
    weights, bias = pairs(whole.astype(np.int16)), np.rint(bias / each).astype(np.int32)
    worst, reach = np.int32(2**31 - 1), np.where(usable, np.inf, 0.0)
    scaled = (slope / unit, curve / unit, floor / unit)
    return Prepared(stack, offsets, weights, bias, worst, *scaled, reach, unit)


def _gamma(n: int, unit: float) -> float:
    """Return Higham's gamma_n = n u / (1 - n u), or infinity where the theory has no bound."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


@compile_kernel
def _label(tiles: Any, prepared: Any, work: Any, turned: Any, labels: Any) -> None:
    """Label all tiles, a panel at a time."""
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        label_panel(panel, prepared, work, turned)
        for i in range(len(panel)):
            for m in range(labels.shape[1]):
                labels[start + i, m] = work.labels[m, i]


@compile_kernel
def _reduce(tiles: Any, prepared: Any, work: Any, turned: Any, sums: Any, statistics: Any) -> None:
    """Label all tiles and add them up, a panel at a time while it is in cache."""
    # Sums are twice as wide as tiles, so they have room for this many and a panel more.
    most = (1 << 8 * tiles.itemsize) - PANEL
    flushed = np.zeros(len(sums), np.int64)
    for start in range(0, len(tiles), PANEL):
        panel = tiles[start : start + PANEL]
        label_panel(panel, prepared, work, turned)
        _add(panel, work.squares, work.labels, prepared.offsets, sums, statistics)
        _flush(sums, most, flushed, statistics)
    _flush(sums, 0, flushed, statistics)


@compile_kernel
def label_panel(tiles: Any, prepared: Any, work: Any, turned: Any) -> None:
    """Label a panel of tiles: scores, then decisions."""
    # First, because it reads the tiles one after another, as memory is fastest.
    _square(tiles, work.squares)
    score(tiles, prepared.weights, prepared.bias, turned, work.scores)
    _decide(tiles, prepared, work)


@compile_kernel
def _square(tiles: Any, norms: Any) -> None:
    """Write each tile's squared norm: exact in the type of `norms` for integer tiles."""
    number = norms.dtype.type
    for i in range(len(tiles)):
        total = number(0)
        for p in range(tiles.shape[1]):
            value = number(tiles[i, p])
            total = number(total + number(value * value))
        norms[i] = total


@compile_kernel
def _decide(tiles: Any, prepared: Any, work: Any) -> None:
    """Write each tile's label under each model: the reference's, always."""
    n, offsets, stack, worst = len(tiles), prepared.offsets, prepared.stack, prepared.worst
    scores, labels, squares, norms, best, second, bounds = work
    for i in range(PANEL):
        norms[i] = np.sqrt(np.float64(squares[i]))
    for m in range(len(offsets) - 1):
        first, last = offsets[m], offsets[m + 1]
        _rank(scores, first, last, worst, best, second, labels, m)
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
def _rank(
    scores: Any, first: int, last: int, worst: Any, best: Any, second: Any, labels: Any, m: int
) -> None:
    """Write the best two scores of every tile and the centroid of the best.

    They are selected without branches: on real tiles no CPU predicts them, and the misses cost
    more than the products. Neighbouring tiles share a vector, the last panel's idle columns too.
    """
    for i in range(PANEL):
        best[i], second[i], labels[m, i] = scores[first, i], worst, 0
    for j in range(first + 1, last):
        for i in range(PANEL):
            one, so_far = scores[j, i], best[i]
            closer = one < so_far
            loser = so_far if closer else one
            labels[m, i] = np.int32(j - first) if closer else labels[m, i]
            second[i] = min(second[i], loser)
            best[i] = one if closer else so_far


@compile_kernel
def _add(tiles: Any, squares: Any, labels: Any, offsets: Any, sums: Any, statistics: Any) -> None:
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
def _flush(sums: Any, most: int, flushed: Any, statistics: Any) -> None:
    """Move the sums of more than this many tiles into the statistics."""
    d = sums.shape[1]
    for j in range(len(sums)):
        if statistics[j, d] - flushed[j] > most:
            flushed[j] = statistics[j, d]
            for p in range(d):
                statistics[j, p] += sums[j, p]
                sums[j, p] = 0


@compile_kernel
def _add_weighted(
    tiles: Any, norms: Any, weights: Any, labels: Any, offsets: Any, statistics: Any
) -> None:
    """Add tiles to the statistics of their centroids, each as often as its weight says."""
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
def _add_about(
    tiles: Any, weights: Any, labels: Any, offsets: Any, stack: Any, statistics: Any
) -> None:
    """Add tiles to the statistics of their centroids, squared about these.

    Sums are compensated (W. Kahan, Further remarks on reducing truncation errors, Communications of
    the ACM 8, 1965), so that the mean of many equal tiles is that tile but for a few ulp: else
    each of them would seem to lie off its centroid.
    """
    d = tiles.shape[1]
    lost = np.zeros_like(statistics)
    row = np.ones(d + 2)
    for i in range(len(tiles)):
        for p in range(d):
            row[p] = tiles[i, p]
        for m in range(len(offsets) - 1):
            j = offsets[m] + labels[i, m]
            row[d + 1] = _about(tiles[i], stack[j])
            for p in range(d + 2):
                term = weights[i] * row[p] - lost[j, p]
                total = statistics[j, p] + term
                lost[j, p] = (total - statistics[j, p]) - term
                statistics[j, p] = total


@compile_kernel(fastmath={"reassoc", "contract", "nsz"})
def _about(tile: Any, centroid: Any) -> Any:
    """Return a squared distance, in whatever order the compiler likes."""
    total = 0.0
    for p in range(len(tile)):
        difference = np.float64(tile[p]) - centroid[p]
        total += difference * difference
    return total
