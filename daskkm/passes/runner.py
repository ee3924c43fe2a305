"""Passes over tiles, made one after another and counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import FitError
from daskkm.kernels.dtypes import check_finite
from daskkm.kernels.statistics import Statistics
from daskkm.passes import draws, memory, reductions, statistics
from daskkm.passes.inputs import check_sums_finite
from daskkm.passes.memory import Work
from daskkm.passes.sampling import Drawn, first_indices, is_in_memory
from daskkm.passes.scheduler import chosen, compute, is_elsewhere, persist, threads, workers
from daskkm.passes.short_blocks import is_grouped
from daskkm.passes.tiles import Tiles, sending
from daskkm.sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.kernels.metric_sums import Clusters, Scales
    from daskkm.passes.draws import Outcome, Rounds, Trial
    from daskkm.passes.statistics import Farthest


class PassRunner:
    """Makes passes over tiles, and counts passes and bytes.

    Parameters
    ----------
    X : object
        As for `Tiles.of`.
    sample_weight : array of shape (n,), optional
    scheduler : str or distributed.Client, optional
        A scheduler of dask by name; by default the active one.
    cache : {"auto", "always", "never"}
        Whether tiles stay in the workers' memory from the first pass on.
    bounds : bool
        True if cached tiles keep bounds on their distances, where these help.

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
        self._scheduler = scheduler = chosen(scheduler)
        self._bounds = bounds
        self._is_cached = self._is_bounded = False
        self._room = 0.0  # bytes for notes beside the tiles
        # Statistics of all tiles, which tell them from other tiles.
        self.total: NDArray[np.int64] | None = None
        tiles = Tiles.of(X).sized(scheduler)
        self.passes, self.bytes_read = tiles.reads, tiles.reads * tiles.nbytes
        self.tiles = tiles = tiles.weighted(sample_weight, scheduler)
        # Sums of floats depend on the blocks, which then must not depend on the workers.
        self.blocks = tiles.in_blocks(threads(scheduler) if tiles.is_exact else 1)
        self._short_blocks = tiles.array
        self._piece = int(max(tiles.array.chunks[0]) * tiles.shape[1] * tiles.dtype.itemsize)
        tiles.check_sums()
        if tiles.is_in_memory:
            if is_elsewhere(scheduler):
                memory.check_sent(workers(scheduler), tiles.nbytes)
            self._short_blocks = self.blocks  # not both: they would be sent twice
        weights = tiles.weights
        self.weights = None if weights is None else weights.rechunk((self.blocks.chunks[0],))
        with sending(tiles.given, sample_weight):
            # Else each pass would send them again, or make lazy weights anew.
            if isinstance(tiles.given, np.ndarray) or is_grouped(self.blocks):
                (self.blocks,) = persist(self.blocks, scheduler=scheduler)
            if self.weights is not None:
                (self.weights,) = persist(self.weights, scheduler=scheduler)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles, and of features."""
        return self.tiles.shape

    @property
    def in_memory_scheduler(self) -> Any:
        """The client if there is one, else "threads": for tiles in this process's memory."""
        return "threads" if isinstance(self._scheduler, str | None) else self._scheduler

    def prepare(self, n_models: int, n_centroids: int) -> None:
        """Check that a pass over so many models fits into memory, and cache tiles if they fit.

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
            # No more tasks at a time than there are blocks.
            limited = [
                worker._replace(threads=min(worker.threads, n_blocks))
                for worker in workers(self._scheduler)
            ]
            memory.check(limited, work)
            room = memory.room(limited, work)
        if self.tiles.file is not None:  # the system caches a file as long as there is room
            room = min(room, sizes.unchecked_bytes)
        n_bytes = 0 if self._is_here() else self.tiles.nbytes
        if self._cache == "always" or (self._cache == "auto" and n_bytes <= room):
            (self.blocks,) = persist(statistics.cached(self.blocks), scheduler=self._scheduler)
            self.bytes_read += self.tiles.nbytes
            self._is_cached = True
            self._is_bounded = bounds > 0 and n_bytes + bounds <= room
            room -= n_bytes + bounds * self._is_bounded
        self._room = room

    def _is_here(self) -> bool:
        """Return True if cached tiles are the array in memory here, without a copy."""
        return self.tiles.is_kernel_ready and not is_elsewhere(self._scheduler)

    def _bound_bytes(self, n_models: int, n_centroids: int) -> int:
        """Return the bytes of bounds beside the tiles; 0 if bounds do not help."""
        n, d = self.shape
        whole = self.weights is None and self.tiles.dtype.kind != "f"
        # Many restarts of few tiles are faster measured together, tile by tile.
        if not self._bounds or not whole or is_in_memory(n):
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
        """Make one pass that measures a stack with weights, and further stacks without."""
        (stack, offsets, models), *others = stacks
        models = models if self._is_bounded else ()
        weights = self.weights
        lazy = [statistics.statistics(self.blocks, stack, offsets, weights=weights, models=models)]
        lazy += [statistics.statistics(self.blocks, each, ends) for each, ends, _ in others]
        measured, *rest = map(Statistics, map(np.asarray, self._compute(*lazy)))
        # Each tile is counted under each model: the counts of one model say how many were read.
        first = measured[: offsets[1]]
        self._count(int(first.counts.sum()) if weights is None else self.shape[0])
        check_sums_finite(measured.table)
        self._check_unchanged(first)
        return [measured, *rest]

    def _check_unchanged(self, statistics: Statistics) -> None:
        """Raise FitError if the tiles are not those of the passes before.

        Someone may have written to an array meanwhile. Sums of floats do not tell.
        """
        if not statistics.exact:
            return
        total = statistics.total().table[0]
        if self.total is not None and not np.array_equal(total, self.total):
            msg = (
                "X: the tiles changed between two passes, someone writes to them. Start over, with "
                "a fresh checkpoint"
            )
            raise FitError(msg, options=("fresh=True",))
        self.total = total

    def farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> Sequence[Farthest]:
        """Make a pass: return the tiles farthest from their own centroid, for each model."""
        lazy = statistics.farthest(self.blocks, stack, offsets, wanted, weights=self.weights)
        self._count(self.shape[0])
        (found,) = self._compute(lazy)
        return found  # type: ignore[no-any-return]

    def metric_sums(
        self, clusters: Clusters, scales: Scales, classes: da.Array | None, names: NDArray[Any]
    ) -> NDArray[Any]:
        """Make a pass: return the sums of `daskkm.passes.statistics.metric_sums`."""
        lazy = statistics.metric_sums(self.blocks, clusters, scales, classes, names)
        self._count(self.shape[0])
        return np.asarray(*self._compute(lazy))

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the tiles of ascending global indices; a pass over the blocks that hold them."""
        X, n_read = self.blocks, reductions.count_tiles_in_blocks(self.blocks, indices)
        # A few tiles of long blocks need only short blocks.
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
        """Return the weights of these tiles, if tiles have weights."""
        if self.weights is None:
            return None
        return np.asarray(*self._compute(self.weights[indices]))

    def draw_first(self, n_seedings: int, seed: int) -> NDArray[Any]:
        """Return the first centroid of each seeding; a pass over the blocks that hold them."""
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
        self._count(self.shape[0])
        (outcomes,) = self._compute(lazy)
        return outcomes  # type: ignore[no-any-return]

    def rounds(self) -> Rounds:
        """Return the state of the passes of k-means||, which keeps notes if there is room."""
        keep = self.shape[0] * draws.NOTE_BYTES <= self._room
        return draws.Rounds(self.blocks, self.weights, self._scheduler, keep=keep)

    def draw(
        self, rounds: Rounds, candidates: NDArray[Any], n_draws: int, seed: int, step: int
    ) -> Drawn:
        """Make a pass of k-means|| that draws tiles."""
        self._count(self.shape[0])
        return rounds.draw(candidates, n_draws, seed, step)

    def weigh(self, rounds: Rounds, candidates: NDArray[Any]) -> NDArray[Any]:
        """Make a pass of k-means||: return the weight of the tiles nearest to each candidate."""
        self._count(self.shape[0])
        weights, potential = rounds.weigh(candidates)
        check_sums_finite(potential)
        return weights

    def _compute(self, *lazy: Any) -> tuple[Any, ...]:
        return compute(*lazy, scheduler=self._scheduler)

    def _count(self, n_tiles: int) -> None:
        self.passes += 1
        if not self._is_cached:
            self.bytes_read += n_tiles * self.shape[1] * self.tiles.dtype.itemsize
