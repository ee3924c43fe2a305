"""A stack of centroids prepared for the fast path: weights, and bounds on the errors of scores.

The label of a tile is *defined* by the reference, `daskkm.kernels.distances.squared_distance`: the
first centroid of the model that minimises the squared Euclidean distance, summed in float64 in
index order, with neither fused multiply-add nor reassociation. The reference is slow, and decides
only tiles in doubt. For all others the fast path is proved to agree:

* Scores drop the terms that all centroids of a model share. With mu the mean of a model's
  centroids, ``|x - c|^2 = (|x|^2 - 2 x.mu) + (|c|^2 - 2 x.(c - mu))`` and only the second
  bracket depends on c. Centring makes the products, and so the rounding errors, small.
* Products of 8-bit tiles are exact integers: a model's weights ``w = -2 (c - mu)`` are
  rounded to 16-bit multiples q u of a unit u, a power of two. No sum of 32 bits can overflow in
  any order. Only this rounding counts, ``|x.w - x.(q u)| <= |x| |w - q u|`` (Cauchy-Schwarz), and
  |w - q u| is known. The sum starts with ``|c|^2 - |mu|^2``, rounded to a multiple of u, an error
  of at most u / 2.
* Products of other tiles are summed in any order: in float32 for float32 tiles, in float64 for
  16-bit and float64 tiles. ``|fl(x.w) - x.w| <= gamma_d |x| |w|`` holds for every order, with or
  without FMA (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1, with
  Cauchy-Schwarz).
* If a tile's best score leads the second by more than twice the bound, its label is the
  reference's. The bound includes the reference's own rounding. Otherwise the reference decides
  among the centroids within the bound.

Hence the labels are the reference's, bit for bit, on every CPU and at every vector width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.kernels.dtypes import max_magnitude

if TYPE_CHECKING:
    from numpy.typing import NDArray

# For two scores; 1 % is far more than the bound's own rounding.
_TWICE = 2 * 1.01


class PreparedStack(NamedTuple):
    """A stack of centroids for the fast path: rows are centroids or models."""

    stack: NDArray[np.float64]
    offsets: NDArray[np.intp]
    weights: NDArray[Any]  # (sum of k, d): -2 (c - mu), packed for `simd_products.score`
    bias: NDArray[Any]  # (sum of k,): |c|^2 but for the terms that a model's centroids share
    worst_score: Any  # the largest score of all
    # Twice the bound on a score's error is slope |x| + curve |x|^2 + floor, per model, in the unit
    # of the scores. If |x| >= reach, a product might overflow: the reference decides.
    slope: NDArray[np.float64]
    curve: NDArray[np.float64]
    floor: NDArray[np.float64]
    reach: NDArray[np.float64]
    unit: NDArray[np.float64]  # of the model's scores


def prepare_stack(
    dtype: np.dtype[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centre: NDArray[np.float64] | None = None,
) -> PreparedStack:
    """Compute weights and bounds of a stack for tiles of a dtype.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the tiles.
    stack : ndarray of shape (sum of k, d), float64
    offsets : ndarray of shape (n_models + 1,), intp
    centre : ndarray of shape (d,), float64, optional
        Point about which all models are centred; the mean of each model's centroids if not given.
    """
    # Read-only, as the tiles: numba compiles kernels again for arrays that can be written to.
    stack = stack.view()
    stack.flags.writeable = False
    starts, sizes = offsets[:-1], np.diff(offsets)
    with np.errstate(all="ignore"):
        means = np.add.reduceat(stack, starts) / sizes[:, None]
        if centre is not None:
            means[:] = centre
        centred = -2.0 * (stack - means.repeat(sizes, axis=0))
        longest = np.sqrt(np.maximum.reduceat(np.square(centred).sum(axis=1), starts))
        bias = np.square(stack).sum(axis=1)
        gamma = _gamma(stack.shape[1] + 4, 2.0**-53)
        # |c|^2 and the final sum take 2 gamma |c|^2. The reference's distance is at most
        # 2 |x|^2 + 2 |c|^2 and takes the rest.
        curve = np.full(len(sizes), _TWICE * 2 * gamma)
        floor = _TWICE * 4 * gamma * np.maximum.reduceat(bias, starts)
        if dtype.itemsize == 1:
            bias -= np.square(means).sum(axis=1).repeat(sizes)
            found = _prepare_integers(max_magnitude(dtype), centred, longest, bias, offsets)
        else:
            number = np.dtype(np.float32 if dtype == np.float32 else np.float64)
            found = _prepare_floats(number, centred, longest, bias)
        weights, bias, worst, slope, rounding, reach, unit = found
        bounds = slope / unit, curve / unit, (floor + rounding) / unit
        return PreparedStack(stack, offsets, weights, bias, worst, *bounds, reach, unit)


def _prepare_floats(
    number: np.dtype[Any],
    centred: NDArray[np.float64],
    longest: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> tuple[Any, ...]:
    """Return float weights, bias, worst score, slope, addend of the floor, reach and unit."""
    d, limits = centred.shape[1], np.finfo(number)
    tiny, largest = float(limits.tiny), float(limits.max) / 8
    # A sum of d products, the weight's own rounding (a difference, a cast), the final sum.
    gamma = _gamma(d + 4, float(limits.eps) / 2)
    # `tiny` covers the underflow of weights (times x) and of products.
    slope = _TWICE * (gamma * longest + np.sqrt(d) * tiny)
    reach = np.where(longest < largest, largest / np.maximum(longest, 1.0), 0.0)
    unit = np.ones(len(longest))
    return centred.astype(number), bias, np.inf, slope, _TWICE * d * tiny, reach, unit


def _prepare_integers(
    peak: int,
    centred: NDArray[np.float64],
    longest: NDArray[np.float64],
    bias: NDArray[np.float64],
    offsets: NDArray[np.intp],
) -> tuple[Any, ...]:
    """Return the values that `_prepare_floats` returns, with weights and bias in fixed point.

    The unit of a model is a power of two: the smallest with weights of 16 bits and scores, summed
    in any order, of 32.
    """
    d, starts, sizes = centred.shape[1], offsets[:-1], np.diff(offsets)
    magnitudes = np.abs(centred)
    largest = np.maximum.reduceat(magnitudes.max(axis=1), starts)
    highest = np.maximum.reduceat(peak * magnitudes.sum(axis=1) + np.abs(bias), starts)
    # Rounding adds at most 1/2 to each weight and to the bias.
    room = 2.0**31 - peak * d - 2
    usable = np.isfinite(highest) & (room > 0)
    fits = np.minimum((2**15 - 1) / largest, room / highest)
    # |c|^2 is finite, so that no model needs more than this clip allows.
    unit = np.where(usable, np.ldexp(1.0, np.clip(1 - np.frexp(fits)[1], -1000, 1000)), np.nan)
    units = unit.repeat(sizes)  # of each centroid
    whole = np.rint(centred / units[:, None])
    squares = np.square(centred - whole * units[:, None]).sum(axis=1)
    rounding = np.sqrt(np.maximum.reduceat(squares, starts))
    # The centred weight's own rounding, and the underflow of squares of roundings.
    tiny = float(np.finfo(np.float64).tiny)
    slope = _TWICE * (rounding + 2 * 2.0**-53 * longest + np.sqrt(d * tiny))
    weights, bias = pack_pairs(whole.astype(np.int16)), np.rint(bias / units).astype(np.int32)
    worst, reach = np.int32(2**31 - 1), np.where(usable, np.inf, 0.0)
    return weights, bias, worst, slope, _TWICE * unit / 2, reach, unit


def _gamma(n: int, unit: float) -> float:
    """Return Higham's gamma_n = n u / (1 - n u), or infinity without a bound."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


def pack_pairs(weights: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return 16-bit weights for `score`, padded to pairs of features in 32 bits."""
    k, d = weights.shape
    even = np.zeros((k, d + d % 2), np.int16)
    even[:, :d] = weights
    return even.view(np.int32)


def unpack_pairs(pairs: NDArray[np.int32], d: int) -> NDArray[np.int16]:
    """Return the weights that `pack_pairs` packed, (k, d)."""
    return np.ascontiguousarray(pairs.view(np.int16)[:, :d])
