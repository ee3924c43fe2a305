"""Blocks of tiles cached in memory, with bounds by which most tiles keep their label unread.

The gap of a tile under a model is the squared distance to the nearest other centroid minus the
squared distance to the tile's own. A block stores a lower bound on each gap. While the bound
exceeds the reference's rounding, the label is still the reference's. Let centroids move from c to
c', and m be any fixed point. For a tile x of label a, and another centroid l, the gap changes by

    (p_l - p_a) - 2 (x - m).((c'_l - c_l) - (c'_a - c_a)),   p_j = |c'_j - m|^2 - |c_j - m|^2.

So a bound lowered by A_a + |x - m| B_a stays valid. A_a is the largest p_a - p_l, and B_a twice
the longest difference of two moves. A and B are two numbers a centroid, the constant radius
|x - m| is one number a tile. Only tiles with bounds that are too low are measured. The method is
from G. Hamerly (Making k-means even faster, SDM 2010), but with squared distances. The gap is then
linear in x, and a difference of the kernel's scores.

Statistics of integers change exactly, by the tiles that change their label. Bounds are only a
cache: a block without bounds measures all tiles and returns the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from daskkm.kernels.assign import Workspace, allocate_workspace, label_panel
from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import distances_to_all
from daskkm.kernels.dtypes import check_shapes, max_magnitude, read_only
from daskkm.kernels.prepared_stack import PreparedStack, prepare_stack
from daskkm.kernels.simd_products import LINE, PANEL, prefetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# Largest k with a comparison of all pairs of moves; above, lengths are added.
_MAX_PAIRWISE = 128

# Relative reduction of a stored bound, for two roundings: to float32, and of the next reduction.
# Relative increase of a length, for the length's own rounding.
_REDUCTION = 2.0**-22
_INCREASE = 1 + 1e-9
# The gap of a tile that has no other centroid.
_LARGEST_GAP = np.float32(1e38)


class CachedBlock:
    """A block of tiles that stays in a worker's memory from pass to pass.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
    lengths : sequence of int, optional
        Lengths of the pieces that the block was read in. Sums of floats depend on the pieces.
    """

    def __init__(self, tiles: NDArray[Any], lengths: Sequence[int] = ()) -> None:
        self.tiles = tiles
        self.lengths = lengths or (len(tiles),)
        self._last_pass: _LastPass | None = None

    @classmethod
    def from_block(cls, block: Any) -> Self:
        """Return a cached block of an array, or of a block with a method `whole`."""
        tiles, lengths = (block, ()) if isinstance(block, np.ndarray) else block.whole()
        # In the kernels' layout, so that passes make no copies.
        return cls(np.ascontiguousarray(tiles, tiles.dtype.newbyteorder("=")), lengths)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        ends = np.cumsum(self.lengths)
        yield from (self.tiles[end - n : end] for n, end in zip(self.lengths, ends, strict=True))

    def __sizeof__(self) -> int:
        return self.tiles.nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Return tiles and lengths, without bounds."""
        return {"tiles": self.tiles, "lengths": self.lengths}

    def statistics(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int]
    ) -> NDArray[np.int64]:
        """Return statistics as `daskkm.kernels.assign.block_statistics`; update bounds.

        `models` are distinct numbers that identify the models from pass to pass.
        """
        # Another thread, or a call after an error, starts without bounds.
        last: _LastPass | None = self.__dict__.pop("_last_pass", None)
        if last is None or not last.has(models, offsets):
            last = _LastPass.empty(self.tiles, models, offsets)
        statistics = last.advance(self.tiles, stack, offsets, models)
        self._last_pass = last
        return statistics


@dataclass
class _LastPass:
    """Results and bounds of a block's last pass."""

    models: list[int]
    offsets: NDArray[np.intp]
    stack: NDArray[np.float64]
    statistics: NDArray[np.int64]
    gaps: NDArray[np.float32]  # (n_models, n): lower bounds
    labels: NDArray[np.int32]  # (n_models, n): -1 before the first pass
    middle: NDArray[np.float64]  # (d,): m
    radii: NDArray[np.float32]  # (n,): upper bounds on |x - m|

    @classmethod
    def empty(cls, tiles: NDArray[Any], models: Sequence[int], offsets: NDArray[np.intp]) -> Self:
        """Return the state before the first pass."""
        (n, d), total = tiles.shape, int(offsets[-1])
        middle = tiles.mean(axis=0, dtype=np.float64) if n else np.zeros(d)
        radii = np.sqrt(distances_to_all(tiles, middle[None])[:, 0])
        shape = len(models), n
        return cls(
            models=list(models),
            offsets=np.asarray(offsets),
            stack=np.zeros((total, d)),
            statistics=np.zeros((total, d + 2), np.int64),
            gaps=np.full(shape, -np.inf, np.float32),
            labels=np.full(shape, -1, np.int32),
            middle=middle,
            # Exceeds any rounding: of the sum, of the root, to float32.
            radii=np.asarray(radii * (1 + 2.0**-22) + 2.0**-100, np.float32),
        )

    def has(self, models: Sequence[int], offsets: NDArray[np.intp]) -> bool:
        """Return True if the last pass measured all these models."""
        sizes = dict(zip(self.models, np.diff(self.offsets), strict=True))
        return bool([sizes.get(model) for model in models] == np.diff(offsets).tolist())

    def advance(
        self,
        tiles: NDArray[Any],
        stack: NDArray[np.float64],
        offsets: NDArray[np.intp],
        models: Sequence[int],
    ) -> NDArray[np.int64]:
        """Measure the next pass and return its statistics."""
        indices = np.array([self.models.index(model) for model in models])
        rows = np.concatenate([np.arange(*self.offsets[index : index + 2]) for index in indices])
        tiles, stack = check_shapes(tiles, stack, offsets)
        decreases = _compute_decreases(self.stack[rows], stack, offsets, self.middle)
        statistics: NDArray[np.int64] = self.statistics[rows]
        prepared = prepare_stack(tiles.dtype, stack, offsets)
        panel = np.empty((PANEL, tiles.shape[1]), tiles.dtype)
        # The view is read-only as tiles are, so that the kernel is compiled once.
        buffers = _Buffers(panel, read_only(panel), *allocate_workspace(tiles, prepared))
        bounds = _Bounds(self.gaps, self.labels, self.radii, *decreases)
        margins = _compute_margins(stack, offsets, tiles.dtype)
        _advance(tiles, prepared, indices, margins, bounds, buffers, statistics)
        self.stack[rows], self.statistics[rows] = stack, statistics
        return statistics


class _Buffers(NamedTuple):
    """Arrays for a panel of tiles to measure."""

    panel: NDArray[Any]
    view: NDArray[Any]  # of the panel
    work: Workspace
    pairs: NDArray[np.int32]


class _Bounds(NamedTuple):
    """Bounds of the last pass, and A and B of each centroid."""

    gaps: NDArray[np.float32]
    labels: NDArray[np.int32]
    radii: NDArray[np.float32]
    constants: NDArray[np.float64]
    slopes: NDArray[np.float64]


def _compute_decreases(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    offsets: NDArray[np.intp],
    middle: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return A and B of each centroid, (sum of k,) each, enlarged by their rounding."""
    constant, slope = np.zeros((2, len(after)))
    with np.errstate(all="ignore"):  # centroids so large that no bound holds
        moves = after - before
        changes = (moves * (after + before - 2 * middle)).sum(axis=1)
        # Magnitudes of the terms: sums may cancel, rounding errors do not.
        arms = np.abs(after) + np.abs(before) + 2 * np.abs(middle)
        lengths, reaches = (np.sqrt(np.square(a).sum(axis=1)) for a in (moves, arms))
        rounding = 4 * (after.shape[1] + 8) * 2.0**-53 * lengths * reaches
        for lo, hi in pairwise(offsets):
            own = slice(lo, hi)
            if not np.isfinite([lengths[own], changes[own], rounding[own]]).all():
                constant[own] = np.inf
                continue
            arrays = (moves, lengths, changes, rounding, constant, slope)
            _write_decreases(*(array[own] for array in arrays))
    return constant, slope


@compile_kernel(fastmath={"reassoc", "contract"})
def _write_decreases(
    moves: Any, lengths: Any, changes: Any, rounding: Any, constant: Any, slope: Any
) -> None:
    """Write A and B of the centroids of one model; 0 if k = 1."""
    k, d = moves.shape
    for a in range(k):
        highest, longest = -np.inf, 0.0
        for other in range(k):
            if other == a:
                continue
            length = lengths[a] + lengths[other]
            if k <= _MAX_PAIRWISE:
                square = 0.0
                for p in range(d):
                    difference = moves[other, p] - moves[a, p]
                    square += difference * difference
                length = np.sqrt(square)
            # Two nearly equal moves differ mostly by rounding.
            longest = max(longest, length + (lengths[a] + lengths[other]) * 2.0**-51)
            decrease = changes[a] - changes[other] + rounding[a] + rounding[other]
            highest = max(highest, decrease)
        if k > 1:
            constant[a], slope[a] = highest, 2 * longest * _INCREASE


def _compute_margins(
    stack: NDArray[np.float64], offsets: NDArray[np.intp], dtype: np.dtype[Any]
) -> NDArray[np.float64]:
    """Return each model's largest gap that rounding of the reference could hide, (n_models,)."""
    d = stack.shape[1]
    with np.errstate(over="ignore"):
        longest = np.maximum.reduceat(np.square(stack).sum(axis=1), offsets[:-1])
    # Either distance is at most 2 |x|^2 + 2 |c|^2, and its relative error gamma.
    return np.asarray(8 * (d + 8) * 2.0**-53 * (d * float(max_magnitude(dtype)) ** 2 + longest))


@compile_kernel
def _advance(
    tiles: Any,
    prepared: Any,
    indices: Any,
    margins: Any,
    bounds: Any,
    buffers: Any,
    statistics: Any,
) -> None:
    """Lower all bounds, and measure tiles with bounds that are too low, model by model."""
    n, d = tiles.shape
    step = LINE // tiles.itemsize
    rows = np.empty(PANEL, np.intp)
    radii, constants, slopes = bounds.radii, bounds.constants, bounds.slopes
    for m in range(len(indices)):
        own = _one_model(prepared, m)
        first, gap, label = prepared.offsets[m], bounds.gaps[indices[m]], bounds.labels[indices[m]]
        count = 0
        for i in range(n):
            a = label[i]
            if a >= 0:
                bound = np.float64(gap[i])
                bound -= constants[first + a] + np.float64(radii[i]) * slopes[first + a]
                bound -= abs(bound) * _REDUCTION
                gap[i] = np.float32(bound)
                if bound > margins[m]:
                    continue
            # The hardware does not prefetch tiles that are not neighbours.
            for p in range(0, d, step):
                prefetch(tiles, i, p)
            rows[count] = i
            count += 1
            if count == PANEL:
                _measure(tiles, rows, own, buffers, gap, label, first, statistics)
                count = 0
        if count:
            _measure(tiles, rows[:count], own, buffers, gap, label, first, statistics)


@compile_kernel
def _one_model(prepared: Any, m: int) -> Any:
    """Return one model of a prepared stack."""
    lo, hi = prepared.offsets[m], prepared.offsets[m + 1]
    return PreparedStack(
        prepared.stack[lo:hi],
        np.array([0, hi - lo]),
        prepared.weights[lo:hi],
        prepared.bias[lo:hi],
        prepared.worst_score,
        prepared.slope[m : m + 1],
        prepared.curve[m : m + 1],
        prepared.floor[m : m + 1],
        prepared.reach[m : m + 1],
        prepared.unit[m : m + 1],
    )


@compile_kernel
def _measure(
    tiles: Any, rows: Any, own: Any, buffers: Any, gap: Any, label: Any, first: int, statistics: Any
) -> None:
    """Write labels and bounds of the tiles `rows`; update statistics if a label changes."""
    panel, view, work, pairs = buffers
    for r in range(len(rows)):
        i = rows[r]  # read once: for numba the panel could overlap the rows
        for p in range(tiles.shape[1]):
            panel[r, p] = tiles[i, p]
    label_panel(view[: len(rows)], own, work, pairs)
    single, d = len(own.stack) == 1, tiles.shape[1]
    for r in range(len(rows)):
        i = rows[r]
        lead = np.float64(work.second[r]) - np.float64(work.best[r]) - work.bounds[r]
        # If the reference decided, the gap may be less, even below 0.
        bound = lead * own.unit[0] if lead > 0 else -np.inf
        gap[i] = _LARGEST_GAP if single else np.float32(bound - abs(bound) * _REDUCTION)
        before, after = label[i], work.labels[0, r]
        if before == after:
            continue
        label[i] = after
        square = np.int64(work.squares[r])
        if before >= 0:
            for p in range(d):
                statistics[first + before, p] -= np.int64(panel[r, p])
            statistics[first + before, d] -= 1
            statistics[first + before, d + 1] -= square
        for p in range(d):
            statistics[first + after, p] += np.int64(panel[r, p])
        statistics[first + after, d] += 1
        statistics[first + after, d + 1] += square
