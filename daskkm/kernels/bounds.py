"""Tiles that stay in memory, with bounds by which most of them keep their label unread.

Beside each tile and model lies a lower bound on the gap: by how much the squared distance to
any other centroid exceeds that to the tile's own. While it is above what the reference rounds,
the label is the reference's still. Let centroids move from c to c', and m be any fixed point. For
a tile x of label a, and another centroid l, the gap changes by

    (p_l - p_a) - 2 (x - m).((c'_l - c_l) - (c'_a - c_a)),   p_j = |c'_j - m|^2 - |c_j - m|^2,

so that a bound survives if it is lowered by A_a + |x - m| B_a, with A_a the largest p_a - p_l and
B_a twice the longest difference of two moves: two numbers a centroid, and one, the radius, that
a tile keeps for good. Only tiles whose bound falls too low are measured again. This is after
G. Hamerly (Making k-means even faster, SDM 2010), with squared distances in place of distances:
there the gap is linear in x, and what one score exceeds another by is all that the kernel gives.

Statistics of integers change by the tiles that change their label, exactly. Nothing drifts,
nothing here is ever needed: a block that comes to another worker, or whose last pass was another
one than it is told, measures all its tiles and returns the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from daskkm.kernels import assign
from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.distances import distances_to_all
from daskkm.kernels.dtypes import checked, peak, read_only
from daskkm.kernels.products import LINE, PANEL, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# Centroids of a model up to which all pairs of moves are compared; above, moves are added up.
_PAIRS = 128

# By how much, relatively, a bound is stored too low: for its rounding to float32, and that of
# lowering it next time. By how much a length is too long, for its own.
_LESS = 2.0**-22
_MORE = 1 + 1e-9
# The gap of a tile that has no other centroid.
_ENDLESS = np.float32(1e38)


def bound_bytes(n: int, d: int, n_models: int, n_centroids: int, n_blocks: int) -> int:
    """Return how many bytes lie beside n tiles that stay, in so many blocks."""
    # A bound and a label of each tile and model, a radius of each tile; in each block a stack, and
    # its statistics.
    return n * (8 * n_models + 4) + n_blocks * n_centroids * 8 * (2 * d + 2)


class Resident:
    """A block of tiles that stays in a worker's memory from pass to pass.

    Parameters
    ----------
    tiles : ndarray of shape (n, d)
    lengths : sequence of int, optional
        Of the pieces that it was read in: sums of floats depend on them.
    """

    def __init__(self, tiles: NDArray[Any], lengths: Sequence[int] = ()) -> None:
        self.tiles = tiles
        self.lengths = lengths or (len(tiles),)
        self._memory: _Memory | None = None

    @classmethod
    def of(cls, block: Any) -> Self:
        """Make one of a block: an array, or what reads itself as one."""
        tiles, lengths = (block, ()) if isinstance(block, np.ndarray) else block.whole()
        # As the kernel takes it: else each pass would make a copy that it does.
        return cls(np.ascontiguousarray(tiles, tiles.dtype.newbyteorder("=")), lengths)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        ends = np.cumsum(self.lengths)
        yield from (self.tiles[end - n : end] for n, end in zip(self.lengths, ends, strict=True))

    def __sizeof__(self) -> int:
        return self.tiles.nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Bounds stay where they are."""
        return {"tiles": self.tiles, "lengths": self.lengths}

    def statistics(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int]
    ) -> NDArray[np.int64]:
        """Return what `daskkm.kernels.assign.block_statistics` does, and remember it.

        Parameters
        ----------
        stack, offsets
            As there.
        models : sequence of int
            By which models are known from pass to pass; no two alike.

        Returns
        -------
        ndarray of shape (sum of k, d + 2), int64
        """
        # Taken away while it is changed: another thread, or one after an error, begins anew.
        memory: _Memory | None = self.__dict__.pop("_memory", None)
        if memory is None or not memory.knows(models, offsets):
            memory = _Memory.of(self.tiles, models, offsets)
        statistics = memory.advance(self.tiles, stack, offsets, models)
        self._memory = memory
        return statistics


@dataclass
class _Memory:
    """What a block knows of its last pass."""

    models: list[int]
    offsets: NDArray[np.intp]
    stack: NDArray[np.float64]
    statistics: NDArray[np.int64]
    gaps: NDArray[np.float32]  # (n_models, n): lower bounds
    labels: NDArray[np.int32]  # (n_models, n): -1 before the first pass
    middle: NDArray[np.float64]  # (d,)
    radii: NDArray[np.float32]  # (n,): upper bounds on the distances to it

    @classmethod
    def of(cls, tiles: NDArray[Any], models: Sequence[int], offsets: NDArray[np.intp]) -> Self:
        """Begin, knowing nothing."""
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
            # More than any rounding: of the sum, of the root, to float32.
            radii=np.asarray(radii * (1 + 2.0**-22) + 2.0**-100, np.float32),
        )

    def knows(self, models: Sequence[int], offsets: NDArray[np.intp]) -> bool:
        """Tell whether it is of these models, and perhaps of others."""
        sizes = dict(zip(self.models, np.diff(self.offsets), strict=True))
        return bool([sizes.get(model) for model in models] == np.diff(offsets).tolist())

    def advance(
        self,
        tiles: NDArray[Any],
        stack: NDArray[np.float64],
        offsets: NDArray[np.intp],
        models: Sequence[int],
    ) -> NDArray[np.int64]:
        """Go on to the next pass, and return its statistics."""
        places = np.array([self.models.index(model) for model in models])
        rows = np.concatenate([np.arange(*self.offsets[place : place + 2]) for place in places])
        tiles, stack = checked(tiles, stack, offsets)
        falls = _falls(self.stack[rows], stack, offsets, self.middle)
        statistics: NDArray[np.int64] = self.statistics[rows]
        prepared = assign.prepare(tiles.dtype, stack, offsets)
        panel = np.empty((PANEL, tiles.shape[1]), tiles.dtype)
        _advance(
            tiles,
            panel,
            read_only(panel),  # as tiles are: else the kernel is compiled for both
            prepared,
            *assign.workspace(tiles, prepared),
            places,
            *falls,
            _margins(stack, offsets, tiles.dtype),
            self.radii,
            self.gaps,
            self.labels,
            statistics,
        )
        self.stack[rows], self.statistics[rows] = stack, statistics
        return statistics


def _falls(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    offsets: NDArray[np.intp],
    middle: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return A and B of each centroid, with what their own rounding may hide."""
    constant, slope = np.zeros((2, len(after)))
    with np.errstate(all="ignore"):  # of wild centroids, for which no bound holds
        moves = after - before
        changes = (moves * (after + before - 2 * middle)).sum(axis=1)
        # What those are sums of: the sums themselves may have cancelled, their rounding has not.
        arms = np.abs(after) + np.abs(before) + 2 * np.abs(middle)
        lengths, reaches = (np.sqrt(np.square(a).sum(axis=1)) for a in (moves, arms))
        lost = 4 * (after.shape[1] + 8) * 2.0**-53 * lengths * reaches
        for lo, hi in pairwise(offsets):
            own = slice(lo, hi)
            if not np.isfinite([lengths[own], changes[own], lost[own]]).all():
                constant[own] = np.inf
                continue
            _fall(moves[own], lengths[own], changes[own], lost[own], constant[own], slope[own])
    return constant, slope


@compile_kernel(fastmath={"reassoc", "contract"})
def _fall(moves: Any, lengths: Any, changes: Any, lost: Any, constant: Any, slope: Any) -> None:
    """Write A and B of the centroids of one model; 0 for a single one."""
    k, d = moves.shape
    for a in range(k):
        highest, longest = -np.inf, 0.0
        for other in range(k):
            if other == a:
                continue
            length = lengths[a] + lengths[other]
            if k <= _PAIRS:
                square = 0.0
                for p in range(d):
                    difference = moves[other, p] - moves[a, p]
                    square += difference * difference
                length = np.sqrt(square)
            # Where two moves are nearly one, what is between them is that of their rounding.
            longest = max(longest, length + (lengths[a] + lengths[other]) * 2.0**-51)
            fall = changes[a] - changes[other] + lost[a] + lost[other]
            highest = max(highest, fall)
        if k > 1:
            constant[a], slope[a] = highest, 2 * longest * _MORE


def _margins(
    stack: NDArray[np.float64], offsets: NDArray[np.intp], dtype: np.dtype[Any]
) -> NDArray[np.float64]:
    """Return by how much a gap must exceed 0 that the reference, which rounds, cannot miss it."""
    d = stack.shape[1]
    with np.errstate(over="ignore"):
        longest = np.maximum.reduceat(np.square(stack).sum(axis=1), offsets[:-1])
    # Either distance is at most 2 |x|^2 + 2 |c|^2, and off by gamma times that.
    return np.asarray(8 * (d + 8) * 2.0**-53 * (d * float(peak(dtype)) ** 2 + longest))


@compile_kernel
def _advance(
    tiles: Any,
    panel: Any,
    panel_view: Any,
    prepared: Any,
    work: Any,
    turned: Any,
    places: Any,
    constants: Any,
    slopes: Any,
    margins: Any,
    radii: Any,
    gaps: Any,
    labels: Any,
    statistics: Any,
) -> None:
    """Lower all bounds, and measure the tiles anew whose bounds are too low, model by model."""
    n, d = tiles.shape
    step = LINE // tiles.itemsize
    rows = np.empty(PANEL, np.intp)
    for m in range(len(places)):
        own = _one_model(prepared, m)
        first, gap, label = prepared.offsets[m], gaps[places[m]], labels[places[m]]
        found = 0
        for i in range(n):
            a = label[i]
            if a >= 0:
                bound = np.float64(gap[i])
                bound -= constants[first + a] + np.float64(radii[i]) * slopes[first + a]
                bound -= abs(bound) * _LESS
                gap[i] = np.float32(bound)
                if bound > margins[m]:
                    continue
            # Neighbours are seldom measured together, and memory is slow to find them alone.
            for p in range(0, d, step):
                fetch(tiles, i, p)
            rows[found] = i
            found += 1
            if found == PANEL:
                _measure(
                    tiles, rows, panel, panel_view, own, work, turned, gap, label, first, statistics
                )
                found = 0
        if found:
            left = rows[:found]
            _measure(
                tiles, left, panel, panel_view, own, work, turned, gap, label, first, statistics
            )


@compile_kernel
def _one_model(prepared: Any, m: int) -> Any:
    """Return what is prepared of one model of a stack."""
    lo, hi = prepared.offsets[m], prepared.offsets[m + 1]
    return assign.Prepared(
        prepared.stack[lo:hi],
        np.array([0, hi - lo]),
        prepared.weights[lo:hi],
        prepared.bias[lo:hi],
        prepared.worst,
        prepared.slope[m : m + 1],
        prepared.curve[m : m + 1],
        prepared.floor[m : m + 1],
        prepared.reach[m : m + 1],
        prepared.unit[m : m + 1],
    )


@compile_kernel
def _measure(
    tiles: Any,
    rows: Any,
    panel: Any,
    panel_view: Any,
    own: Any,
    work: Any,
    turned: Any,
    gap: Any,
    label: Any,
    first: int,
    statistics: Any,
) -> None:
    """Label some tiles anew, with new bounds, and move those that leave their cluster."""
    for r in range(len(rows)):
        i = rows[r]  # once: for all that numba knows, the panel's memory could be the rows'
        for p in range(tiles.shape[1]):
            panel[r, p] = tiles[i, p]
    assign.label_panel(panel_view[: len(rows)], own, work, turned)
    single, d = len(own.stack) == 1, tiles.shape[1]
    for r in range(len(rows)):
        i = rows[r]
        lead = np.float64(work.second[r]) - np.float64(work.best[r]) - work.bounds[r]
        # Where the reference decided, the gap may be less: even below 0.
        bound = lead * own.unit[0] if lead > 0 else -np.inf
        gap[i] = _ENDLESS if single else np.float32(bound - abs(bound) * _LESS)
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
