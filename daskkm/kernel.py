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

from daskkm.compilation import compile_kernel
from daskkm.errors import DtypeError, FitError, SumOverflowError
from daskkm.products import LANES, PANEL, add_vectors, aligned, pairs, score, scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPORTED_DTYPES = tuple(
    np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "float32", "float64")
)

# Tiles whose distances to all centroids are summed side by side, and features that go into
# each sum between its load and its store. 64 to 256 tiles measure alike.
_LANES = 128
_FEATURES = 8

_CHECKED_BYTES = 1 << 20  # of tiles that are looked at together for NaN

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


def statistics_dtype(
    tiles: np.dtype[Any], weights: np.dtype[Any] | None = None
) -> np.dtype[np.int64] | np.dtype[np.float64]:
    """Return the dtype of the statistics of such tiles: int64 where they are exact."""
    whole = tiles.kind != "f" and (weights is None or weights.kind != "f")
    return np.dtype(np.int64) if whole else np.dtype(np.float64)


def squared_distances(
    tiles: NDArray[Any], centroids: NDArray[np.float64], labels: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return each tile's squared distance to its own centroid, by the reference.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        Any dtype that `label_block` takes.
    centroids : ndarray of shape (k, d), float64
    labels : ndarray of shape (n,), int32

    Returns
    -------
    ndarray of shape (n,), float64
    """
    distances = np.empty(len(tiles))
    if _same_type(tiles.dtype, centroids):
        own = (read_only(tiles), read_only(centroids.astype(tiles.dtype)), labels)
        _own_whole_distances(*own, distance_dtype(tiles)(0), distances)
        return distances
    _squared_distances(read_only(tiles), read_only(centroids), labels, distances)
    return distances


def distances_to_all(tiles: NDArray[Any], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return every tile's squared distance to every centroid, by the reference.

    Bit for bit what `squared_distances` gives, several times faster: each distance is summed
    in the reference's order, and the vectors of the CPU run across the tiles.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
        Any dtype that `label_block` takes; n may be 0. Floats need not be finite.
    centroids : ndarray of shape (k, d), float64
        k is at least 1.

    Returns
    -------
    ndarray of shape (n, k), float64

    Raises
    ------
    TypeError
        If the dtype of the tiles is not supported.
    ValueError
        If the shapes do not fit together.
    """
    tiles, centroids = checked(tiles, centroids, np.array([0, len(centroids)]))
    if _same_type(tiles.dtype, centroids):
        distances = np.empty((len(tiles), len(centroids)))
        whole = read_only(centroids.astype(tiles.dtype))
        _whole_distances(tiles, whole, distance_dtype(tiles)(0), distances)
        return distances
    # A feature more that is 0 in both adds +0.0 to a sum: it changes no bit.
    features = -(-tiles.shape[1] // _FEATURES) * _FEATURES
    padded = np.zeros((len(centroids), features))
    padded[:, : tiles.shape[1]] = centroids
    distances = np.empty((len(tiles), len(centroids)))
    _distances_to_all(tiles, read_only(padded), distances)
    return distances


def nearest_two(
    distances: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return each tile's label, its distance to that centroid, and that to the next.

    Parameters
    ----------
    distances : ndarray of shape (n, k), float64
        As `distances_to_all` gives them; finite.

    Returns
    -------
    labels : ndarray of shape (n,), int32
        The first of the nearest: the definition of a label.
    own, other : ndarray of shape (n,), float64
        Distances of the kind that was given; the other is infinite if there is none.
    """
    labels = np.empty(len(distances), np.int32)
    own, other = np.empty(len(distances)), np.empty(len(distances))
    _nearest_two(distances, labels, own, other)
    return labels, own, other


def check_finite(tiles: NDArray[Any]) -> None:
    """Raise FitError if float tiles hold NaN or infinity."""
    rows = max(1, _CHECKED_BYTES // max(1, tiles[:1].nbytes))  # few, for the sake of memory
    pieces = (tiles[first : first + rows] for first in range(0, len(tiles), rows))
    if tiles.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in pieces):
        what = "NaN" if np.isnan(tiles).any() else "infinity"
        msg = f"Input X contains {what}; drop such tiles, or replace the values"
        raise FitError(msg)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise DtypeError, a TypeError, if tiles of this dtype are not supported."""
    if dtype.newbyteorder("=") not in SUPPORTED_DTYPES:
        names = ", ".join(map(str, SUPPORTED_DTYPES))
        msg = f"tiles of dtype {dtype} are not supported; convert them to one of {names}"
        raise DtypeError(msg)


def check_exact(n: int, d: int, dtype: np.dtype[Any]) -> None:
    """Raise SumOverflowError if statistics of n tiles of d features could exceed int64.

    With weights n is their sum. Without, only 16-bit tiles can get there: 2**63 / 65535**2 is
    2.1e9 pixels, while 8-bit tiles would need 1.4e14. Squared distances between tiles, which
    seedings sum, are as large.
    """
    if dtype.kind != "f" and n * d * span(dtype) ** 2 >= 2**63:
        msg = (
            f"{n} tiles (weights added up) of {d} {dtype} features could overflow the exact 64-bit "
            f"sums of squares; use at most {(2**63 - 1) // (d * span(dtype) ** 2)}, "
            "or scale tiles to 8 bits"
        )
        raise SumOverflowError(msg)


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
    squares = np.zeros(PANEL, _norm_dtype(tiles))
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
                        distance = _squared_distance(tiles[i], stack[j])
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
def _squared_distance(tile: Any, centroid: Any) -> Any:
    """Return the reference: float64, in index order, neither FMA nor reassociation."""
    total = 0.0
    for p in range(len(tile)):
        difference = np.float64(tile[p]) - centroid[p]
        total += difference * difference
    return total


@compile_kernel
def _squared_distances(tiles: Any, centroids: Any, labels: Any, distances: Any) -> None:
    """Write each tile's distance to its own centroid, eight tiles at a time.

    A sum in order waits for each addition; eight wait together. Squares, which need not wait, are
    made by vectors first, some features of every tile.
    """
    n, d = tiles.shape
    squares = np.zeros((8, 8 * _FEATURES))
    for i in range(0, n, 8):
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = 0.0
        for first in range(0, d, squares.shape[1]):
            last = min(first + squares.shape[1], d)
            for r in range(min(8, n - i)):
                tile, centroid = tiles[i + r, first:last], centroids[labels[i + r], first:last]
                for p in range(last - first):
                    difference = np.float64(tile[p]) - centroid[p]
                    squares[r, p] = difference * difference
            for p in range(last - first):
                t0, t1 = t0 + squares[0, p], t1 + squares[1, p]
                t2, t3 = t2 + squares[2, p], t3 + squares[3, p]
                t4, t5 = t4 + squares[4, p], t5 + squares[5, p]
                t6, t7 = t6 + squares[6, p], t7 + squares[7, p]
        totals = t0, t1, t2, t3, t4, t5, t6, t7
        for r in range(min(8, n - i)):
            distances[i + r] = totals[r]


@compile_kernel
def _whole_distances(tiles: Any, centroids: Any, zero: Any, distances: Any) -> None:
    """Write all distances between tiles and tiles, in integers."""
    for i in range(len(tiles)):
        for j in range(len(centroids)):
            distances[i, j] = _whole_distance(tiles[i], centroids[j], zero)


@compile_kernel
def _own_whole_distances(
    tiles: Any, centroids: Any, labels: Any, zero: Any, distances: Any
) -> None:
    for i in range(len(tiles)):
        distances[i] = _whole_distance(tiles[i], centroids[labels[i]], zero)


@compile_kernel
def _whole_distance(tile: Any, centroid: Any, zero: Any) -> Any:
    """Return the distance in integers, which may be added in any order.

    As long as it is below 2**53, the reference does not round either.
    """
    number = type(zero)
    total = zero
    for p in range(len(tile)):
        difference = number(tile[p]) - number(centroid[p])
        total += difference * difference
    return total


@compile_kernel
def _distances_to_all(tiles: Any, centroids: Any, distances: Any) -> None:
    """Write all distances, a panel of tiles and a few features of it at a time.

    The features are widened and turned first, so that tiles lie side by side; they stay in L1
    while all centroids go by.
    """
    d, k = tiles.shape[1], len(centroids)
    wide = np.zeros((_FEATURES, _LANES))
    sums = np.empty((k, _LANES))
    for start in range(0, len(tiles), _LANES):
        panel = tiles[start : start + _LANES]
        m = len(panel)
        sums[:] = 0.0
        for first in range(0, centroids.shape[1], _FEATURES):
            for q in range(_FEATURES):
                for i in range(m):
                    wide[q, i] = np.float64(panel[i, first + q]) if first + q < d else 0.0
            _add_squares(wide, centroids[:, first : first + _FEATURES], sums, m)
        for i in range(m):
            for j in range(k):
                distances[start + i, j] = sums[j, i]


@compile_kernel
def _add_squares(wide: Any, centroids: Any, sums: Any, m: int) -> None:
    """Add a few features' squared differences, one after another, to m tiles' sums.

    Eight additions, in order, share a load and a store of the sum, and neighbouring tiles share
    a vector. Compiled without fast maths: nothing is fused or reassociated.
    """
    x0, x1, x2, x3 = wide[0], wide[1], wide[2], wide[3]
    x4, x5, x6, x7 = wide[4], wide[5], wide[6], wide[7]
    for j in range(len(centroids)):
        c0, c1, c2, c3 = centroids[j, 0], centroids[j, 1], centroids[j, 2], centroids[j, 3]
        c4, c5, c6, c7 = centroids[j, 4], centroids[j, 5], centroids[j, 6], centroids[j, 7]
        row = sums[j]
        for i in range(m):
            total = row[i]
            total += (x0[i] - c0) * (x0[i] - c0)
            total += (x1[i] - c1) * (x1[i] - c1)
            total += (x2[i] - c2) * (x2[i] - c2)
            total += (x3[i] - c3) * (x3[i] - c3)
            total += (x4[i] - c4) * (x4[i] - c4)
            total += (x5[i] - c5) * (x5[i] - c5)
            total += (x6[i] - c6) * (x6[i] - c6)
            total += (x7[i] - c7) * (x7[i] - c7)
            row[i] = total


@compile_kernel
def _nearest_two(distances: Any, labels: Any, own: Any, other: Any) -> None:
    for i in range(len(distances)):
        row = distances[i]
        label, least, second = 0, row[0], np.inf
        for j in range(1, len(row)):
            one = row[j]
            second = min(second, max(one, least))
            label = j if one < least else label
            least = min(least, one)
        labels[i], own[i], other[i] = label, least, second


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


def peak(dtype: np.dtype[Any]) -> int:
    """Return the largest magnitude of an integer type."""
    limits = np.iinfo(dtype)
    return max(int(limits.max), -int(limits.min))


def _norm_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds a tile's squared norm exactly."""
    if tiles.dtype.kind == "f":
        return np.float64
    return np.int32 if tiles.shape[1] * peak(tiles.dtype) ** 2 < 2**31 else np.int64


def span(dtype: np.dtype[Any]) -> int:
    """Return the largest difference between numbers of an integer type."""
    limits = np.iinfo(dtype)
    return int(limits.max) - int(limits.min)


def distance_dtype(tiles: NDArray[Any]) -> type[np.generic]:
    """Return the narrowest type that holds any squared distance between tiles."""
    return np.int32 if tiles.shape[1] * span(tiles.dtype) ** 2 < 2**31 else np.int64


def _same_type(dtype: np.dtype[Any], centroids: NDArray[np.float64]) -> bool:
    """Tell whether centroids could be tiles of an integer type, as those are that were drawn."""
    if dtype.kind == "f":
        return False
    if centroids.shape[1] * span(dtype) ** 2 >= 2**53:
        return False
    limits = np.iinfo(dtype)
    inside = (centroids >= limits.min) & (centroids <= limits.max)
    return bool((inside & (centroids == np.floor(centroids))).all())


def checked(
    tiles: NDArray[Any], stack: NDArray[np.float64], offsets: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return tiles and stack as the compiled functions take them, if they fit together."""
    check_dtype(tiles.dtype)
    if tiles.ndim != 2 or stack.ndim != 2 or tiles.shape[1] != stack.shape[1]:
        msg = f"tiles of shape {tiles.shape} do not fit centroids of shape {stack.shape}"
        raise ValueError(msg)
    if offsets[0] != 0 or offsets[-1] != len(stack) or np.any(np.diff(offsets) < 1):
        msg = f"offsets {offsets.tolist()} do not divide {len(stack)} centroids into models"
        raise ValueError(msg)
    return read_only(tiles), read_only(stack)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view, so that numba compiles one version and not four."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view()
    array.flags.writeable = False
    return array
