"""Passes over tiles, with counts of passes and bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import FitError
from daskkm.kernels.dtypes import check_finite
from daskkm.kernels.statistics import Statistics
from daskkm.passes import draws, memory, reductions, statistics
from daskkm.passes.inputs import check_sums_finite
from daskkm.passes.memory import Work
from daskkm.passes.sampling import first_indices, is_in_memory
from daskkm.passes.scheduler import compute, find_scheduler, is_elsewhere, persist, threads, workers
from daskkm.passes.short_blocks import is_grouped
from daskkm.passes.tiles import Tiles, hide_send_warnings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.kernels.metric_sums import Clusters, Scales
    from daskkm.passes.draws import Outcome, Rounds, Trial
    from daskkm.passes.statistics import FarthestTiles


class PassRunner:
    """Runner of passes over tiles, with counts of passes and bytes.

    Parameters
    ----------
    X : object
        As for `Tiles.of`.
    sample_weight : array of shape (n,), optional
    scheduler : str or distributed.Client, optional
        A scheduler of dask by name; by default the active scheduler.
    cache : {"auto", "always", "never"}
        When tiles stay in the workers' memory from the first pass on.
    bounds : bool
        True if cached tiles may keep bounds on their distances.

    Attributes
    ----------
    tiles : Tiles
    blocks : dask array of shape (n, d)
        Tiles in blocks for passes.
    passes, bytes_read : int
    total : ndarray of shape (d + 2,), int64, or None
        Statistics of all tiles of the last pass, if sums are exact.
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
        self._cache = cache
        self._scheduler = scheduler = find_scheduler(scheduler)
        self._bounds = bounds
        self._is_cached = self._is_bounded = False
        self._room = 0.0  # bytes for notes beside the tiles
        self.total: NDArray[np.int64] | None = None
        tiles = Tiles.of(X).with_known_size(scheduler)
        self.passes, self.bytes_read = tiles.reads, tiles.reads * tiles.nbytes
        self.tiles = tiles = tiles.with_weights(sample_weight, scheduler)
        # Sums of floats depend on the blocks, which then must not depend on the workers.
        self.blocks = tiles.in_blocks(threads(scheduler) if tiles.is_exact else 1)
        self._short_blocks = tiles.array
        self._piece = int(max(tiles.array.chunks[0]) * tiles.shape[1] * tiles.dtype.itemsize)
        if tiles.store is not None and not tiles.store.location.is_local:
            self._piece *= 1 + sizes.fetched_chunks  # in memory at once
        tiles.check_sums()
        if tiles.is_in_memory:
            if is_elsewhere(scheduler):
                memory.check_sent(workers(scheduler), tiles.nbytes)
            self._short_blocks = self.blocks  # not both: tiles would be sent twice
        weights = tiles.weights
        self.weights = None if weights is None else weights.rechunk((self.blocks.chunks[0],))
        with hide_send_warnings(tiles.source, sample_weight):
            # Else each pass would send tiles and weights again, or compute lazy weights anew.
            if isinstance(tiles.source, np.ndarray) or is_grouped(self.blocks):
                (self.blocks,) = persist(self.blocks, scheduler=scheduler)
            if self.weights is not None:
                (self.weights,) = persist(self.weights, scheduler=scheduler)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles, and of features."""
        return self.tiles.shape

    @property
    def in_memory_scheduler(self) -> Any:
        """Scheduler for tiles in memory here: the client, or "threads" without a client."""
        return "threads" if isinstance(self._scheduler, str | None) else self._scheduler

    def prepare(self, n_models: int, n_centroids: int) -> None:
        """Check the memory for passes, and cache tiles if all fit.

        Raises
        ------
        FitError
            If a pass would take more memory than a worker has.
        """
        n_blocks = self.blocks.numblocks[0]
        bounds = self._bound_bytes(n_models, n_centroids)
        work = Work(n_centroids, self.shape[1], self._piece)
        room = math.inf
        if self.tiles.nbytes + bounds + memory.peak(work, n_blocks) > sizes.unchecked_bytes:
            # There are at most as many tasks at a time as blocks.
            limited = [
                worker._replace(threads=min(worker.threads, n_blocks))
                for worker in workers(self._scheduler)
            ]
            memory.check(limited, work)
            room = memory.room(limited, work)
        if self.tiles.file is not None:  # the system caches files by itself
            room = min(room, sizes.unchecked_bytes)
        n_bytes = 0 if self._is_here() else self.tiles.nbytes
        if self._cache == "always" or (self._cache == "auto" and n_bytes <= room):
            (self.blocks,) = persist(
                statistics.cache_blocks(self.blocks), scheduler=self._scheduler
            )
            self.bytes_read += self.tiles.nbytes
            self._is_cached = True
            self._is_bounded = bounds > 0 and n_bytes + bounds <= room
            room -= n_bytes + bounds * self._is_bounded
        self._room = room

    def _is_here(self) -> bool:
        """Return True if cached tiles are the array in memory here, without a copy."""
        tiles = self.tiles
        if not tiles.is_in_memory or is_elsewhere(self._scheduler):
            return False
        return bool(tiles.source.dtype == tiles.dtype and tiles.source.flags.c_contiguous)

    def _bound_bytes(self, n_models: int, n_centroids: int) -> int:
        """Return the bytes of bounds beside the tiles; 0 where bounds are no help."""
        n, d = self.shape
        unweighted = self.weights is None and self.tiles.is_exact
        # Many restarts of few tiles are faster measured together, tile by tile.
        if not self._bounds or not unweighted or is_in_memory(n):
            return 0
        n_bytes = memory.bound_bytes(n, d, n_models, n_centroids, self.blocks.numblocks[0])
        return n_bytes if n_bytes <= self.tiles.nbytes else 0

    def measure(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], models: Sequence[int] = ()
    ) -> Statistics:
        """Make a pass: return the statistics of each centroid."""
        (found,) = self.measure_all([(stack, offsets, models)])
        return found

    def measure_all(
        self,
        stacks: Sequence[tuple[NDArray[np.float64], NDArray[np.intp], Sequence[int]]],
    ) -> list[Statistics]:
        """Make one pass that measures the first stack with weights, other stacks without."""
        (stack, offsets, models), *others = stacks
        models = models if self._is_bounded else ()
        weights = self.weights
        lazy = [statistics.statistics(self.blocks, stack, offsets, weights=weights, models=models)]
        lazy += [statistics.statistics(self.blocks, each, ends) for each, ends, _ in others]
        measured, *rest = map(Statistics, self._compute(*lazy))
        # Bounds or not, the counts of one model add up to the number of tiles.
        first = measured[: offsets[1]]
        self._count(int(first.counts.sum()) if weights is None else self.shape[0])
        check_sums_finite(measured.table)
        self._check_unchanged(first)
        return [measured, *rest]

    def _check_unchanged(self, statistics: Statistics) -> None:
        """Raise FitError if integer tiles have changed since the previous pass."""
        if not statistics.exact:
            return
        total = statistics.total().table[0]
        if self.total is not None and not np.array_equal(total, self.total):
            msg = (
                "X: the tiles changed between two passes. Write to X only after the fit, and start "
                "over with a fresh checkpoint"
            )
            raise FitError(msg, options=("fresh=True",))
        self.total = total

    def find_farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], n_farthest: Sequence[int]
    ) -> Sequence[FarthestTiles]:
        """Make a pass: return the tiles of each model that are farthest from their own centroid."""
        weights = self.weights
        lazy = statistics.find_farthest(self.blocks, stack, offsets, n_farthest, weights=weights)
        return self._make_pass(lazy)  # type: ignore[no-any-return]

    def metric_sums(
        self, clusters: Clusters, scales: Scales, classes: da.Array | None, names: NDArray[Any]
    ) -> NDArray[Any]:
        """Make a pass: return the sums of `daskkm.passes.statistics.metric_sums`."""
        lazy = statistics.metric_sums(self.blocks, clusters, scales, classes, names)
        return self._make_pass(lazy)  # type: ignore[no-any-return]

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Make a pass over some blocks: return the tiles of ascending global indices."""
        X, n_read = self.blocks, reductions.count_tiles_in_blocks(self.blocks, indices)
        # A few tiles in long blocks need only short blocks.
        short = self._short_blocks
        if not self._is_cached:
            fewer = reductions.count_tiles_in_blocks(short, indices)
            if 2 * fewer < n_read:
                X, n_read = short, fewer
        self._count(n_read)
        tiles = np.asarray(*self._compute(reductions.take_tiles(X, indices)))
        check_finite(tiles)
        return tiles

    def take_weights(self, indices: NDArray[np.int64]) -> NDArray[Any] | None:
        """Return the weights of tiles by global index, or None if there are no weights."""
        if self.weights is None:
            return None
        return np.asarray(*self._compute(self.weights[indices]))

    def draw_first(self, n_seedings: int, seed: int) -> NDArray[Any]:
        """Make a pass over some blocks: return the first centroid of each seeding."""
        if self.weights is None:
            indices = first_indices(self.shape[0], n_seedings, seed)
        else:
            (drawn,) = self._compute(draws.draw_by_weight(self.weights, n_seedings, seed))
            indices = np.concatenate([each.indices for each in drawn])
        order = np.unique(indices)
        return self.take(order)[np.searchsorted(order, indices)]

    def try_candidates(
        self, trials: Sequence[Trial], n_draws: int, seed: int, step: int
    ) -> Sequence[Outcome]:
        """Make a pass of k-means++: return the outcome of the trial of each seeding."""
        lazy = draws.try_candidates(self.blocks, trials, n_draws, seed, step, weights=self.weights)
        return self._make_pass(lazy)  # type: ignore[no-any-return]

    def start_rounds(self) -> Rounds:
        """Return the state of the passes of k-means||, with notes if memory allows."""
        n = self.shape[0]
        return draws.Rounds(
            self.blocks,
            self.weights,
            self._scheduler,
            keep=n * draws.NOTE_BYTES <= self._room,
            on_pass=lambda: self._count(n),
        )

    def _make_pass(self, lazy: Any) -> Any:
        """Compute a result from all tiles."""
        self._count(self.shape[0])
        return self._compute(lazy)[0]

    def _compute(self, *lazy: Any) -> tuple[Any, ...]:
        return compute(*lazy, scheduler=self._scheduler)

    def _count(self, n_tiles: int) -> None:
        self.passes += 1
        if not self._is_cached:
            self.bytes_read += n_tiles * self.shape[1] * self.tiles.dtype.itemsize
