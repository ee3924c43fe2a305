"""Passes over the tiles, counted as they are made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from daskkm import blocks, kernel, lloyd, seeding
from daskkm.blocks import as_tiles
from daskkm.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from daskkm.lloyd import Step

# Tiles enough to find out about where float tiles lie.
_FEW = 1000


@dataclass(frozen=True)
class Pass:
    """One pass of a sweep.

    Attributes
    ----------
    number : int
        Passes so far.
    seconds : float
        Wall time since the one before, the work between them included.
    steps : dict of (k, restart) to Step
        The last step of every model, those that are done included; none while seeding.
    """

    number: int
    seconds: float
    steps: dict[tuple[int, int], Step]


class Reader:
    """Reads the tiles with their weights, and counts what it reads."""

    def __init__(self, X: Any, sample_weight: ArrayLike | da.Array | None = None) -> None:
        self.given = X
        self.tiles = as_tiles(X)
        self.origin: NDArray[np.float64] | int = 0
        self.passes = 0
        self.bytes_read = 0
        self._totals: NDArray[Any] | None = None
        self._last = time.perf_counter()
        if np.isnan(self.tiles.shape[0]):  # as after a selection: only reading tells
            # On a copy: the sizes are written into the array itself.
            self.tiles = self.tiles.copy().compute_chunk_sizes()
            self._count(self.shape[0])
        self.weights, total = _checked_weights(sample_weight, self.tiles)
        if self.exact:
            kernel.check_exact(total, self.shape[1], self.tiles.dtype)
        if isinstance(X, np.ndarray):
            # Else each pass would send it to the workers again.
            with blocks.sending(X):
                self.tiles = self.tiles.persist()

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles, and of features."""
        n, d = self.tiles.shape
        return int(n), int(d)

    @property
    def exact(self) -> bool:
        """Whether statistics are sums of integers."""
        weights = None if self.weights is None else self.weights.dtype
        return kernel.statistics_dtype(self.tiles.dtype, weights) == np.int64

    def made(self, steps: Mapping[tuple[int, int], Step] | None = None) -> Pass:
        """Return the pass that was just made, which led to these steps."""
        before, self._last = self._last, time.perf_counter()
        return Pass(self.passes, self._last - before, dict(steps or {}))

    def find_origin(self) -> None:
        """Let float statistics be taken about somewhere amid the tiles."""
        if not self.exact:
            few = self.take(np.arange(min(self.shape[0], _FEW)))
            # In float64, or float32 tiles would be rounded where it is subtracted from them.
            self.origin = np.median(few.astype(np.float64), axis=0)

    def measure(self, stack: NDArray[np.float64], offsets: NDArray[np.intp]) -> NDArray[Any]:
        """Make a pass: the statistics of every centroid."""
        lazy = [
            blocks.statistics(self.tiles, stack, offsets, origin=self.origin, weights=self.weights)
        ]
        if self.weights is not None and self._totals is None:
            # `tol` is relative to the variance of the tiles without their weights.
            one = np.zeros((1, self.shape[1])), np.array([0, 1])
            lazy.append(blocks.statistics(self.tiles, *one, origin=self.origin))
        statistics, *totals = map(np.asarray, dask.compute(*lazy))
        if self.weights is None:
            # Every tile is counted under every model, so one model's counts say what was read.
            self._count(int(statistics[: offsets[1], -2].sum()))
        else:
            self._count(self.shape[0])
        for totals_ in totals:
            self._totals = totals_
        _check_finite(statistics)
        return statistics

    def mean_variance(self, statistics: NDArray[Any]) -> float:
        """Return the mean variance of the features of the tiles, without weights."""
        return lloyd.mean_variance(statistics if self._totals is None else self._totals)

    def farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> Sequence[lloyd.Farthest]:
        """Make a pass: the tiles farthest from their centroids."""
        lazy = blocks.farthest(self.tiles, stack, offsets, wanted, weights=self.weights)
        self._count(self.shape[0])
        found: tuple[lloyd.Farthest, ...] = lazy.compute()
        return found

    def spread(
        self,
        stack: NDArray[np.float64],
        offsets: NDArray[np.intp],
        means: NDArray[np.float64],
        filled: NDArray[np.bool_],
        classes: da.Array | None,
        names: NDArray[Any],
    ) -> tuple[NDArray[Any], tuple[float, float]]:
        """Make a pass: how tiles spread about the means, in units of 1 / scales."""
        scales = blocks.spread_scales(*self.shape, self.tiles.dtype)
        lazy = blocks.spread(self.tiles, stack, offsets, means, filled, scales, classes, names)
        self._count(self.shape[0])
        return np.asarray(lazy.compute()), scales

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Make a pass over the blocks that hold these tiles, and bring them together."""
        ends = np.cumsum(self.tiles.chunks[0])
        touched = np.unique(np.searchsorted(ends, indices, side="right"))
        self._count(int(np.asarray(self.tiles.chunks[0])[touched].sum()))
        sample = np.asarray(self.tiles[indices].compute())
        _check_finite(sample)
        return sample

    def take_weights(self, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """Bring the weights of these tiles together."""
        return None if self.weights is None else np.asarray(self.weights[indices].compute())

    def draw_first(self, n_seedings: int, seed: int) -> NDArray[Any]:
        """Draw the first centroid of each seeding, and make a pass over their blocks."""
        if self.weights is None:
            indices = seeding.first_indices(self.shape[0], n_seedings, seed)
        else:
            drawn = blocks.drawn(self.weights, n_seedings, seed).compute()
            indices = np.concatenate([each.indices for each in drawn])
        order = np.unique(indices)
        return self.take(order)[np.searchsorted(order, indices)]

    def trials(self, seed: int) -> seeding.Try:
        """Return a function that makes a pass of a seeding."""

        def try_all(
            trials: Sequence[seeding.Trial], n_draws: int, step: int
        ) -> Sequence[seeding.Outcome]:
            lazy = blocks.trials(self.tiles, trials, n_draws, seed, step, weights=self.weights)
            self._count(self.shape[0])
            outcomes: tuple[seeding.Outcome, ...] = lazy.compute()
            return outcomes

        return try_all

    def _count(self, n_tiles: int) -> None:
        self.passes += 1
        self.bytes_read += n_tiles * self.shape[1] * self.tiles.dtype.itemsize


def _checked_weights(
    sample_weight: ArrayLike | da.Array | None, tiles: da.Array
) -> tuple[da.Array | None, int]:
    """Return the weights in the blocks of the tiles, int64 if they are whole, and their sum."""
    n = int(tiles.shape[0])
    if sample_weight is None:
        return None, n
    given = isinstance(sample_weight, da.Array)
    weights: Any = sample_weight if given else np.asarray(sample_weight)
    if np.isnan(weights.shape).any():  # of the same selection as the tiles
        weights = weights.copy().compute_chunk_sizes()
    if weights.shape != (n,) or weights.dtype.kind not in "biuf":
        msg = (
            f"sample_weight has shape {weights.shape} and dtype {weights.dtype}; "
            f"give one number for each of the {n} tiles"
        )
        raise FitError(msg)
    weights = da.asarray(weights).rechunk((tiles.chunks[0],))
    least, total, whole = dask.compute(
        weights.min(), weights.sum(dtype=np.float64), (weights == da.rint(weights)).all()
    )
    if not (least >= 0 and 0 < total < np.inf):
        msg = "sample_weight is negative or not finite somewhere, or zero everywhere; mend it"
        raise FitError(msg)
    return weights.astype(np.int64 if whole else np.float64), int(total)


def _check_finite(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        msg = "the tiles hold NaN, infinity or values too large to square; mend them"
        raise FitError(msg)
