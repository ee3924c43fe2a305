"""A stack of centroids prepared for the fast path: weights, and bounds on the errors of scores.

The label of a tile is *defined* by the reference, `daskkm.kernels.distances.squared_distance`: the
first centroid of the model that minimises the squared Euclidean distance, summed in float64 in
index order, with neither fused multiply-add nor reassociation. The reference is slow, so it decides
only the tiles that need it. For all others the fast path is proved to agree:

* Scores drop the terms that all centroids of a model share. With mu the mean of a model's
  centroids, ``|x - c|^2 = (|x|^2 - 2 x.mu) + (|c|^2 - 2 x.(c - mu))`` and only the second
  bracket depends on c. Centring makes the products, and so their rounding errors, small.
* Products of 8-bit tiles are exact integers: a model's weights ``w = -2 (c - mu)`` are
  rounded to 16-bit multiples q u of a unit u, a power of two so large that no sum of 32 bits can
  overflow in any order. Only this rounding counts, ``|x.w - x.(q u)| <= |x| |w - q u|``
  (Cauchy-Schwarz), and |w - q u| is known. The sum starts with ``|c|^2 - |mu|^2``, rounded to
  a multiple of u, an error of at most u / 2.
* Products of other tiles are summed in float32 (float64 for 16-bit and float64 tiles, whose
  offsets would drown in float32's error) in the order that the compiler chooses;
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

from daskkm.kernels.dtypes import max_magnitude

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two scores are compared; 1 % is far more than the bound's own rounding.
_TWICE = 2 * 1.01


class PreparedStack(NamedTuple):
    """A stack of centroids as the fast path takes it: rows are centroids or models."""

    stack: NDArray[np.float64]
    offsets: NDArray[np.intp]
    weights: NDArray[Any]  # (sum of k, d): -2 (c - mu), packed as `products.score` takes them
    bias: NDArray[Any]  # (sum of k,): |c|^2 but for the terms that a model's centroids share
    worst_score: Any  # no score is above it
    # Twice the bound on a score's error is slope |x| + curve |x|^2 + floor, per model, while
    # |x| < reach, in the unit of the model's scores. Beyond, a product might overflow: all
    # centroids go to the reference.
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
            peak = max_magnitude(dtype)
            return _prepare_integers(peak, stack, offsets, centred, bias, curve, floor)
        number = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        return _prepare_floats(number, stack, offsets, centred, bias, curve, floor)


def _prepare_floats(
    number: np.dtype[Any],
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centred: NDArray[np.float64],
    bias: NDArray[np.float64],
    curve: NDArray[np.float64],
    floor: NDArray[np.float64],
) -> PreparedStack:
    """Return float weights, with the rounding of products added to the bound."""
    d, limits = stack.shape[1], np.finfo(number)
    tiny, largest = float(limits.tiny), float(limits.max) / 8
    # A sum of d products, the weight's own rounding (a difference, a cast), the final sum.
    gamma = _gamma(d + 4, float(limits.eps) / 2)
    longest = np.sqrt(np.maximum.reduceat(np.square(centred).sum(axis=1), offsets[:-1]))
    # `tiny` covers the underflow of weights (times x) and of products.
    slope = _TWICE * (gamma * longest + np.sqrt(d) * tiny)
    floor = floor + _TWICE * d * tiny
    reach = np.where(longest < largest, largest / np.maximum(longest, 1.0), 0.0)
    weights = centred.astype(number)
    unit = np.ones(len(offsets) - 1)
    return PreparedStack(stack, offsets, weights, bias, np.inf, slope, curve, floor, reach, unit)


def _prepare_integers(
    peak: int,
    stack: NDArray[np.float64],
    offsets: NDArray[np.intp],
    centred: NDArray[np.float64],
    bias: NDArray[np.float64],
    curve: NDArray[np.float64],
    floor: NDArray[np.float64],
) -> PreparedStack:
    """Return weights and bias in fixed point, and the bound in the unit of scores.

    The unit of a model is the smallest power of two with which every weight fits 16 bits and every
    score, summed in any order, 32.
    """
    d, starts, sizes = stack.shape[1], offsets[:-1], np.diff(offsets)
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
    rounding = np.square(centred - whole * units[:, None]).sum(axis=1)
    rounding, longest = (
        np.sqrt(np.maximum.reduceat(squares, starts))
        for squares in (rounding, np.square(centred).sum(axis=1))
    )
    # The centred weight's own rounding, and the underflow of squares of roundings.
    tiny = float(np.finfo(np.float64).tiny)
    slope = _TWICE * (rounding + 2 * 2.0**-53 * longest + np.sqrt(d * tiny))
    floor = floor + _TWICE * unit / 2
    weights, bias = pack_pairs(whole.astype(np.int16)), np.rint(bias / units).astype(np.int32)
    worst, reach = np.int32(2**31 - 1), np.where(usable, np.inf, 0.0)
    scaled = (slope / unit, curve / unit, floor / unit)
    return PreparedStack(stack, offsets, weights, bias, worst, *scaled, reach, unit)


def _gamma(n: int, unit: float) -> float:
    """Return Higham's gamma_n = n u / (1 - n u), or infinity where the theory has no bound."""
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


def pack_pairs(weights: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return 16-bit weights, two features (or one and a 0) in 32 bits, as `score` takes them."""
    k, d = weights.shape
    even = np.zeros((k, d + d % 2), np.int16)
    even[:, :d] = weights
    return even.view(np.int32)


def unpack_pairs(packed: NDArray[np.int32], d: int) -> NDArray[np.int16]:
    """Return the 16-bit weights of d features that were packed, (k, d)."""
    return np.ascontiguousarray(packed.view(np.int16)[:, :d])
