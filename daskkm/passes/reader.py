"""Passes over the tiles, counted as they are made."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import dask.array as da
import numpy as np

from daskkm.errors import FitError
from daskkm.kernels.bounds import bound_bytes
from daskkm.kernels.dtypes import check_exact, check_finite
from daskkm.kmeans import lloyd, seeding
from daskkm.parameters import as_choice
from daskkm.passes import arrays, draws, inputs, memory, reductions
from daskkm.passes.scheduler import (
    chosen,
    compute,
    compute_chunk_sizes,
    is_elsewhere,
    persist,
    threads,
    workers,
)
from daskkm.passes.tiles import as_tiles, has_recipes, in_blocks, piece_bytes, sending

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from daskkm.kernels.metric_sums import Clusters
    from daskkm.kmeans.lloyd import Step

    Seeding = Sequence[seeding.Trial] | seeding.Pool


T = TypeVar("T")

CACHES = ("auto", "always", "never")

# Bytes, of tiles and of what a pass takes, for which no memory is asked after.
_LITTLE = 64 << 20


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
    seeding : sequence of Trial, or Pool, or None
        What a seeding in passes goes on from.
    bytes_read : int
        Bytes of tiles read so far.
    totals : list of pairs of ndarray
        What the variance of weighted tiles is known by.
    total : ndarray of shape (d + 2,), int64, or None
        Statistics of all tiles, by which others are told from them, where sums are exact.
    stage : str
        Part of the fit that ended: "pass" for a pass over all tiles, "sample" when tiles to start
        from were brought together, "draw" when the starts of a restart were drawn from these or
        from candidates, "sample fit" and "candidate fit" for an iteration over them. Only a "pass"
        has steps, or a seeding to go on from.
    """

    number: int
    seconds: float
    steps: dict[tuple[int, int], Step]
    seeding: Seeding | None = None
    bytes_read: int = 0
    totals: Sequence[tuple[NDArray[Any], NDArray[np.float64]]] = ()
    total: NDArray[np.int64] | None = None
    stage: str = "pass"

    @property
    def reads_tiles(self) -> bool:
        """Return True if the stage is a pass, over all tiles or those of the sample."""
        return self.stage in ("pass", "sample")


class Reader:
    """Reads the tiles with their weights, and counts what it reads.

    Parameters
    ----------
    X, sample_weight
        As for `daskkm.fit_sweep`.
    scheduler : str or distributed.Client, optional
        One of dask's, by name; by default the one that is active, or dask's default.
    cache : {"auto", "always", "never"}
        Whether tiles stay in the workers' memory from the first pass on.
    bounds : bool
        Whether tiles that stay keep bounds on their distances beside them, where these help.
    """

    def __init__(
        self,
        X: Any,
        sample_weight: ArrayLike | da.Array | None = None,
        *,
        scheduler: Any = None,
        cache: str = "never",
        bounds: bool = True,
    ) -> None:
        self._cache = as_choice("cache", cache, CACHES)
        self._scheduler = scheduler = chosen(scheduler)
        self._bounds = bounds
        self._kept = self._bounded = False
        self.passes = 0
        self.bytes_read = 0
        self._wants_variance = False
        self._room = 0.0  # bytes, for what may lie beside the tiles while they are seeded from
        # Of all tiles without their weights, as statistics about a point, and these points.
        self._totals: list[tuple[NDArray[Any], NDArray[np.float64]]] = []
        self._total: NDArray[np.int64] | None = None
        self._last = time.perf_counter()
        self.given, X = X, inputs.resolve(X)
        self.tiles = as_tiles(X)
        if np.isnan(self.tiles.shape[0]):  # as after a selection: only reading tells
            self.given = self.tiles = compute_chunk_sizes(self.tiles, scheduler)
            self._count(self.shape[0])
        with sending(X, sample_weight):
            self.weights, total = self._checked_weights(sample_weight)
        whole = self.weights is None or self.weights.dtype.kind == "i"
        # Sums of floats depend on the blocks: then these must not depend on the workers.
        exact = whole and self.tiles.dtype.kind != "f"
        self._piece = piece_bytes(self.tiles)
        self.blocks = in_blocks(X, self.tiles, threads(scheduler) if exact else 1)
        if self.weights is not None:
            self.weights = self.weights.rechunk((self.blocks.chunks[0],))
        # Tiles are added up as they are too, for their variance.
        most = max(total, self.shape[0]) if whole else self.shape[0]
        check_exact(most, self.shape[1], self.tiles.dtype)
        # Else each pass would send it to the workers again, and make lazy weights anew.
        in_memory = isinstance(X, np.ndarray)
        self._array = X  # which blocks on their way to a scheduler in this process refer to
        self._is_mapped = arrays.MappedFile.of(X) is not None
        self._is_here = False  # in this process and as the kernel takes them
        if in_memory and not self._is_mapped:
            if is_elsewhere(scheduler):
                memory.check_sent(workers(scheduler), X.size * self.tiles.dtype.itemsize)
            else:
                self._is_here = X.dtype == self.tiles.dtype and X.flags.c_contiguous
            self.tiles = self.blocks  # not both: they would be sent twice
        with sending(X, sample_weight):
            if in_memory or has_recipes(self.blocks):
                (self.blocks,) = persist(self.blocks, scheduler=scheduler)
            if self.weights is not None:
                (self.weights,) = persist(self.weights, scheduler=scheduler)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles, and of features."""
        n, d = self.tiles.shape
        return int(n), int(d)

    @property
    def in_memory_scheduler(self) -> Any:
        """The client if there is one, else "threads": for tiles in this process's memory."""
        return "threads" if isinstance(self._scheduler, str | None) else self._scheduler

    def prepare(self, n_models: int, n_centroids: int) -> None:
        """See that there is memory for passes over so many models, and keep tiles that fit.

        Parameters
        ----------
        n_models, n_centroids : int
            At most so many are measured at once.

        Raises
        ------
        FitError
            If a pass would take more memory than a worker has.
        """
        n, d = self.shape
        n_bytes = n * d * self.tiles.dtype.itemsize
        whole = self.weights is None and self.tiles.dtype.kind != "f"
        # Many restarts of few tiles are sooner measured together, tile by tile.
        bounded = self._bounds and whole and not seeding.few(n)
        beside = bound_bytes(n, d, n_models, n_centroids, self.blocks.numblocks[0])
        # More would lie beside the tiles than they take themselves: bounds of few tiles a block.
        bounded = bounded and beside <= n_bytes
        beside = beside if bounded else 0
        room = math.inf
        needs = n_centroids, d, self._piece
        # No more tasks at a time than there are blocks.
        n_blocks = self.blocks.numblocks[0]
        if n_bytes + beside + memory.peak(*needs, n_blocks) > _LITTLE:
            found = [
                worker._replace(threads=min(worker.threads, n_blocks))
                for worker in workers(self._scheduler)
            ]
            memory.check(found, *needs)
            room = memory.room(found, *needs)
        if self._is_mapped:  # the system keeps the file in memory already, as long as there is room
            room = min(room, _LITTLE)
        more = 0 if self._is_here else n_bytes
        if self._cache == "always" or (self._cache == "auto" and more <= room):
            (self.blocks,) = persist(reductions.resident(self.blocks), scheduler=self._scheduler)
            self.bytes_read += n_bytes
            self._kept = True
            self._bounded = bounded and more + beside <= room
            room -= more + beside * self._bounded
        self._room = room

    def made(
        self,
        steps: Mapping[tuple[int, int], Step] | None = None,
        seeding: Seeding | None = None,
        stage: str = "pass",
    ) -> Pass:
        """Return the pass that was just made, or another stage, which led to these steps."""
        before, self._last = self._last, time.perf_counter()
        return Pass(
            self.passes,
            self._last - before,
            dict(steps or {}),
            seeding,
            self.bytes_read,
            list(self._totals),
            self._total,
            stage,
        )

    def resume(self, after: Pass) -> None:
        """Go on as if this pass had been the last: counts are those of a fit not cut short."""
        self.passes, self.bytes_read = after.number, after.bytes_read
        self._totals, self._total = list(after.totals), after.total

    def iterations(
        self,
        starts: Mapping[tuple[int, int], NDArray[np.float64] | Step],
        max_iter: int,
        tol: float,
    ) -> Generator[Pass, None, dict[tuple[int, int], Step]]:
        """Make the passes of Lloyd's algorithm from the starts of every (k, restart) on.

        Parameters
        ----------
        starts : mapping of (k, restart) to ndarray of shape (k, d), float64, or Step
        max_iter : int
        tol : float

        Yields
        ------
        Pass

        Returns
        -------
        dict of (k, restart) to Step
            The last of each.
        """
        self._wants_variance = tol > 0
        names = list(starts)
        steps = {name: step for name, step in starts.items() if isinstance(step, lloyd.Step)}
        for done in lloyd.iterate(
            list(starts.values()),
            self.measure,
            self.farthest,
            max_iter=max_iter,
            tol=tol,
            variance=self.mean_variance,
        ):
            steps |= {names[i]: step for i, step in done.items()}
            yield self.made(steps)
        return steps

    def measure(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int] = ()
    ) -> NDArray[Any]:
        """Make a pass: the statistics of every centroid."""
        known = models if self._bounded else ()
        lazy = [
            reductions.statistics(self.blocks, stack, offsets, weights=self.weights, models=known)
        ]
        about = self._about(stack)
        if about is not None:
            lazy.append(reductions.statistics(self.blocks, about, np.array([0, 1])))
        statistics, *totals = map(np.asarray, self._compute(*lazy))
        if about is not None:
            self._totals.append((totals[0], about))
        # Every tile is counted under every model, so one model's counts say what was read.
        counted = statistics[: offsets[1], -2].sum() if self.weights is None else self.shape[0]
        self._count(int(counted))
        _check_finite(statistics)
        self._check_same(statistics[: offsets[1]])
        return statistics

    def _check_same(self, statistics: NDArray[Any]) -> None:
        """Raise FitError if these are of other tiles than those of the passes before.

        An array that is read again may have been written to meanwhile. Sums of floats do not tell.
        """
        if statistics.dtype.kind == "f":
            return
        total = statistics.sum(axis=0)
        if self._total is not None and not np.array_equal(total, self._total):
            msg = (
                "the tiles are not those of the passes before: they were written to meanwhile; "
                "start over, with a checkpoint afresh"
            )
            raise FitError(msg, options=("fresh=True",))
        self._total = total

    def _about(self, stack: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the point about which a pass is to measure the tiles without their weights.

        `tol` is relative to their variance. It takes two passes: the squares of floats are only
        as good as the point about which they are taken, and the first pass finds the mean.
        """
        if not self._wants_variance or self.weights is None or len(self._totals) > 1:
            return None
        return lloyd.means(self._totals[0][0]) if self._totals else stack[:1]

    def mean_variance(self, statistics: NDArray[Any], centroids: NDArray[np.float64]) -> float:
        """Return the mean variance of the features of the tiles, without weights."""
        of_all = self._totals[-1] if self._totals else (statistics, centroids)
        return lloyd.mean_variance(*of_all)

    def farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> Sequence[lloyd.Farthest]:
        """Make a pass: the tiles farthest from their centroids."""
        lazy = reductions.farthest(self.blocks, stack, offsets, wanted, weights=self.weights)
        self._count(self.shape[0])
        (found,) = self._compute(lazy)
        return found  # type: ignore[no-any-return]

    def spread(
        self, clusters: Clusters, classes: da.Array | None, names: NDArray[Any]
    ) -> NDArray[Any]:
        """Make a pass: how the tiles of every cluster spread about its mean, as `blocks.spread`."""
        lazy = reductions.spread(self.blocks, clusters, classes, names)
        self._count(self.shape[0])
        return np.asarray(*self._compute(lazy))

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Make a pass over the blocks that hold these tiles, and bring them together."""
        X, read = self.blocks, reductions.beside(self.blocks, indices)
        # Of long blocks a few tiles need only short parts.
        if not self._kept and 2 * (fewer := reductions.beside(self.tiles, indices)) < read:
            X, read = self.tiles, fewer
        self._count(read)
        sample = np.asarray(*self._compute(reductions.taken(X, indices)))
        check_finite(sample)
        return sample

    def take_weights(self, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """Bring the weights of these tiles together."""
        if self.weights is None:
            return None
        return np.asarray(*self._compute(self.weights[indices]))

    def draw_first(self, n_seedings: int, seed: int) -> NDArray[Any]:
        """Draw the first centroid of each seeding, and make a pass over their blocks."""
        if self.weights is None:
            indices = seeding.first_indices(self.shape[0], n_seedings, seed)
        else:
            (drawn,) = self._compute(draws.drawn(self.weights, n_seedings, seed))
            indices = np.concatenate([each.indices for each in drawn])
        order = np.unique(indices)
        return self.take(order)[np.searchsorted(order, indices)]

    def trials(self, seed: int) -> seeding.Try:
        """Return a function that makes a pass of a seeding."""

        def try_all(
            trials: Sequence[seeding.Trial], n_draws: int, step: int
        ) -> Sequence[seeding.Outcome]:
            lazy = draws.trials(self.blocks, trials, n_draws, seed, step, weights=self.weights)
            self._count(self.shape[0])
            (outcomes,) = self._compute(lazy)
            return outcomes  # type: ignore[no-any-return]

        return try_all

    def rounds(self, seed: int) -> tuple[seeding.Draw, Callable[[NDArray[Any]], NDArray[Any]]]:
        """Return two functions that make the passes of k-means||: a draw, and the weights."""
        keep = self.shape[0] * draws.NOTE_BYTES <= self._room
        rounds = draws.Rounds(self.blocks, self.weights, self._scheduler, keep=keep)

        def draw(candidates: NDArray[Any], n_draws: int, step: int) -> seeding.Drawn:
            self._count(self.shape[0])
            return rounds.draw(candidates, n_draws, seed, step)

        def weigh(candidates: NDArray[Any]) -> NDArray[Any]:
            self._count(self.shape[0])
            weights, left = rounds.weigh(candidates)
            _check_finite(left)
            return weights

        return draw, weigh

    def _compute(self, *lazy: Any) -> tuple[Any, ...]:
        return compute(*lazy, scheduler=self._scheduler)

    def _count(self, n_tiles: int) -> None:
        self.passes += 1
        if not self._kept:
            self.bytes_read += n_tiles * self.shape[1] * self.tiles.dtype.itemsize

    def _checked_weights(
        self, sample_weight: ArrayLike | da.Array | None
    ) -> tuple[da.Array | None, int]:
        """Return the weights in the blocks of the tiles, int64 if they are whole, and their sum."""
        n = self.shape[0]
        if sample_weight is None:
            return None, n
        weights: Any = inputs.column(sample_weight, "sample_weight")
        if np.isnan(weights.shape).any():  # of the same selection as the tiles
            weights = compute_chunk_sizes(weights, self._scheduler)
        if weights.ndim == 0:  # as scikit-learn takes it
            weights = np.full(n, weights)
        if weights.shape != (n,) or weights.dtype.kind not in "biuf":
            msg = (
                f"sample_weight has shape {weights.shape} and dtype {weights.dtype}; "
                f"give one number for each of the {n} tiles"
            )
            raise FitError(msg)
        # Once, for three figures.
        weights = da.asarray(weights).rechunk((self.tiles.chunks[0],))
        (weights,) = persist(weights, scheduler=self._scheduler)
        # Scaled down, exactly, lest the sum overflow with a warning.
        least, scaled, whole = self._compute(
            weights.min(), (weights * 2.0**-64).sum(), (weights == da.rint(weights)).all()
        )
        total = float(scaled) * 2.0**64
        if not (least >= 0 and 0 < total < np.inf):
            raise FitError(_weights_problem(float(least), float(scaled)))
        # Beyond 2**53 sums of whole floats are not whole.
        return weights.astype(np.int64 if whole and total < 2**53 else np.float64), int(total)


def made_all(passes: Generator[Pass, None, T]) -> T:
    """Make all passes of a generator, and return its result."""
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def _weights_problem(least: float, scaled: float) -> str:
    """Return what is wrong with weights, by the least of them and their sum, scaled down."""
    if np.isnan(scaled) or np.isinf(scaled):
        return f"Input sample_weight contains {'NaN' if np.isnan(scaled) else 'infinity'}"
    if least < 0:
        return f"sample_weight contains {least}; weights are not negative"
    if scaled == 0:
        return "sample_weight is zero everywhere; give some tiles a weight"
    return seeding.TOO_LARGE


def _check_finite(values: NDArray[Any] | float) -> None:
    if not np.isfinite(values).all():
        raise FitError(seeding.TOO_LARGE)
