"""Initial centroids of a fit: given, drawn from all tiles, or fitted to a sample of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import FitError
from daskkm.kmeans import kmeans_parallel, kmeans_plusplus
from daskkm.kmeans.fitting import fit_models
from daskkm.kmeans.kmeans_parallel import Candidates
from daskkm.kmeans.lloyd import best_restarts
from daskkm.kmeans.options import as_centroids
from daskkm.passes import arrays, memory
from daskkm.passes.memory import Work
from daskkm.passes.runner import PassRunner
from daskkm.passes.sampling import is_in_memory, sample_indices, sample_size
from daskkm.passes.scheduler import workers
from daskkm.passes.seeds import init_function_state
from daskkm.passes.tiles import hide_send_warnings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from daskkm.kmeans.options import FitOptions, Initial
    from daskkm.kmeans.pass_record import Recorder, Seeding

# Clusters of candidates of k-means|| give initial centroids only, and need not converge.
_CANDIDATES_MAX_ITER, _CANDIDATES_TOL = 30, 1e-3
# A sample with fewer tiles for each cluster may miss clusters.
_TILES_PER_CLUSTER = 8


def initial_centroids(
    runner: PassRunner, options: FitOptions, recorder: Recorder, seeding: Seeding | None = None
) -> Initial:
    """Return the initial centroids of each (k, restart) that is fitted to all tiles.

    From coarse to fine, these are the best restarts of each k. A seeding in passes resumes from the
    state `seeding`. `recorder` records each pass and stage.

    Raises
    ------
    FitError
        If given centroids do not fit, or too few tiles can be drawn.
    """
    if callable(options.init):
        return _from_function(runner, options)
    if not options.is_drawn:
        return options.given_centroids(runner.shape[1])
    if options.init == "k-means||":
        initial = _from_candidates(runner, options, recorder, seeding)
        if not is_coarse(options, runner.shape[0]):
            return initial
        sample = _read_sample(runner, options, recorder, coarse=True)
        return _best_on_sample(runner, sample, options, recorder, initial)
    return _plusplus_or_random(runner, options, recorder, seeding)


def is_coarse(options: FitOptions, n_tiles: int) -> bool:
    """Return True if models are fitted to a sample before all tiles."""
    wanted = options.coarse and options.is_drawn and not is_in_memory(n_tiles)
    return wanted and _TILES_PER_CLUSTER * options.k_max <= sizes.sample_tiles


def max_models_and_centroids(runner: PassRunner, options: FitOptions) -> tuple[int, int]:
    """Return the largest numbers of models and of centroids in a pass over all tiles.

    Raises
    ------
    FitError
        If the fit of all models to a sample would take too much memory.
    """
    (n, d), itemsize = runner.shape, runner.tiles.dtype.itemsize
    coarse = is_coarse(options, n)
    models = options.restarts * len(options.ks)
    centroids = options.restarts * sum(options.ks)
    if coarse:
        piece = sample_size(n, d * itemsize) // sizes.sample_blocks * d * itemsize
        memory.check(workers(runner.in_memory_scheduler), Work(centroids, d, piece))
        # A sample may hold too few tiles with weight. Then all restarts are fitted to all tiles.
        if runner.weights is None:
            models, centroids = len(options.ks), sum(options.ks)
    if not options.is_drawn:
        return models, centroids
    if options.init == "k-means||":
        centroids = max(centroids, kmeans_parallel.n_candidates(options.k_max))
    elif coarse or options.init == "random" or is_in_memory(n):
        here = workers("threads")[0]
        memory.check_sample(here, min(n, sizes.sample_tiles), d, itemsize)
    return models, centroids


def _from_function(runner: PassRunner, options: FitOptions) -> Initial:
    """Return initial centroids by the user's function."""
    initial = {}
    for k in options.ks:
        for restart in range(options.n_init):
            state = init_function_state(options.seed, k, restart)
            given = options.init(runner.tiles.source, k, random_state=state)
            initial[k, restart] = as_centroids(given, k, runner.shape[1])
    return initial


def _plusplus_or_random(
    runner: PassRunner, options: FitOptions, recorder: Recorder, seeding: Seeding | None
) -> Initial:
    """Draw from a sample if possible, else in passes over all tiles."""
    n = runner.shape[0]
    coarse = is_coarse(options, n)
    trials = None if isinstance(seeding, Candidates) else seeding
    if trials is None and (coarse or options.init == "random" or is_in_memory(n)):
        sample = _read_sample(runner, options, recorder, coarse=coarse)
        part = sample.part(options.seed)
        enough = part.n_weighted >= options.k_max
        if not enough and options.init == "random":
            msg = (
                f"sample_weight: only {part.n_weighted} of the {len(part.tiles)} tiles of the "
                f"sample have weight, too few for k = {options.k_max}. Use k-means++ or k-means||"
            )
            raise FitError(msg)
        if enough or is_in_memory(n):
            initial = _draw_in_memory(part, options, str(options.init), recorder)
            if coarse:
                return _best_on_sample(runner, sample, options, recorder, initial)
            return initial
    return kmeans_plusplus.draw_in_passes(runner, options, recorder, trials)


class Sample(NamedTuple):
    """Tiles in memory here, with their weights if tiles have weights."""

    tiles: NDArray[Any]
    weights: NDArray[Any] | None

    @property
    def n_weighted(self) -> int:
        """Number of tiles that have weight."""
        return len(self.tiles) if self.weights is None else int(np.count_nonzero(self.weights))

    def part(self, seed: int) -> Sample:
        """Return a uniform sample of `sizes.sample_tiles` tiles, all tiles if few."""
        rows = sample_indices(len(self.tiles), seed)
        return Sample(self.tiles[rows], None if self.weights is None else self.weights[rows])


def _read_sample(
    runner: PassRunner, options: FitOptions, recorder: Recorder, *, coarse: bool
) -> Sample:
    """Read a uniform sample of tiles into memory here, all tiles if few."""
    (n, d), itemsize = runner.shape, runner.tiles.dtype.itemsize
    size = sample_size(n, d * itemsize) if coarse else None
    indices = sample_indices(n, options.seed, size)
    sample = Sample(runner.take(indices), runner.take_weights(indices))
    recorder.record("sample")
    return sample


def _draw_in_memory(
    tiles: Sample | Candidates, options: FitOptions, method: str, recorder: Recorder
) -> Initial:
    """Draw initial centroids for each (k, restart) from tiles in memory."""
    initial: Initial = {}
    for drawn in kmeans_plusplus.draw_in_memory(
        tiles.tiles, tiles.weights, options.ks, options.n_init, method, options.seed
    ):
        initial |= drawn
        recorder.record("draw")
    return initial


def _best_on_sample(
    runner: PassRunner,
    sample: Sample,
    options: FitOptions,
    recorder: Recorder,
    initial: Mapping[tuple[int, int], NDArray[np.float64]],
) -> Initial:
    """Fit all models to a part of the sample, the best of each k to all of the sample.

    Converged on few tiles, a model may still move far on more tiles. The workers fit in memory,
    where iterations are cheaper than passes over all tiles.
    """
    best = dict(initial)
    part = sample.part(options.seed)
    for stage in [part] if len(part.tiles) == len(sample.tiles) else [part, sample]:
        if not stage.n_weighted:
            continue
        # Sums of floats depend on the number of blocks, which must not depend on the workers.
        # The graph holds the blocks, and sends blocks again that are lost with a worker.
        length = len(stage.tiles) // sizes.sample_blocks + 1
        X = arrays.as_arrays(stage.tiles, length * stage.tiles[:1].nbytes)
        with hide_send_warnings(stage.tiles):
            cached = PassRunner(
                X, stage.weights, scheduler=runner.in_memory_scheduler, cache="always"
            )
            cached.prepare(len(best), sum(map(len, best.values())))
        steps = fit_models(
            cached, best, options.max_iter, options.tol, lambda _: recorder.record("sample fit")
        )
        best = {(k, restart): step.centroids for k, (restart, step) in best_restarts(steps).items()}
    return best


def _from_candidates(
    runner: PassRunner, options: FitOptions, recorder: Recorder, seeding: Seeding | None
) -> Initial:
    """Draw candidates by k-means||, and cluster these weighted candidates."""
    earlier = seeding if isinstance(seeding, Candidates) else None
    candidates = kmeans_parallel.draw_candidates(runner, options, recorder, earlier)
    drawn = _draw_in_memory(candidates, options, "k-means++", recorder)
    here = PassRunner(candidates.tiles, candidates.weights, scheduler=runner.in_memory_scheduler)
    steps = fit_models(
        here,
        drawn,
        _CANDIDATES_MAX_ITER,
        _CANDIDATES_TOL,
        lambda _: recorder.record("candidate fit"),
    )
    return {name: step.centroids for name, step in steps.items()}
