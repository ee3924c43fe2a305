"""Fit of many models to the tiles of X, in shared passes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from dask.base import tokenize

from daskkm.errors import ParameterError
from daskkm.kmeans.checkpoint import open_checkpoint
from daskkm.kmeans.fitting import fit_models
from daskkm.kmeans.init import initial_centroids, max_models_and_centroids
from daskkm.kmeans.lloyd import best_restarts
from daskkm.kmeans.model import FittedModel
from daskkm.kmeans.options import FitOptions
from daskkm.kmeans.pass_record import Recorder, State
from daskkm.parameters import as_flag, as_seed
from daskkm.passes.runner import PassRunner
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import dask.array as da
    from numpy.typing import ArrayLike

    from daskkm.kernels.statistics import Statistics
    from daskkm.kmeans.checkpoint import Checkpoint
    from daskkm.kmeans.fitting import Steps
    from daskkm.kmeans.options import Init
    from daskkm.kmeans.pass_record import Pass
    from daskkm.parameters import RandomState
    from daskkm.storage.locations import LocationLike


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Result of `fit_sweep`.

    Attributes
    ----------
    models : dict of int to FittedModel
        Best model of each k, by k.
    statistics : dict of int to Statistics
        Statistics of the clusters of each model: fields ``sums`` (k, d), ``counts`` (k,) and
        ``squares`` (k,).
    passes : int
        Passes over the tiles, including those that draw initial centroids and relocate empty
        clusters.
    bytes_read : int
        Bytes of tiles read: in each pass, or once if tiles stay in memory.
    random_state : int
        Seed of all draws.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> result = fit_sweep(tiles, [1, 2], n_init=2, random_state=0)
    >>> result.models[1].inertia_, result.statistics[1].counts.tolist()
    (10004.0, [4])
    >>> result.bytes_read == tiles.nbytes
    True
    """

    models: dict[int, FittedModel]
    statistics: dict[int, Statistics]
    passes: int
    bytes_read: int
    random_state: int


def fit_sweep(
    X: Any,
    ks: Iterable[int],
    *,
    n_init: int = 16,
    init: Init = "k-means++",
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: RandomState = None,
    sample_weight: ArrayLike | da.Array | None = None,
    coarse: bool = True,
    cache: str = "auto",
    checkpoint: LocationLike | None = None,
    fresh: bool = False,
    on_pass: Callable[[Pass], Any] | None = None,
) -> SweepResult:
    """Fit k-means for every k of a sweep, all restarts at once, in shared passes.

    Run on the active `distributed.Client`, or else on dask's default scheduler. For integer tiles
    the result has the same bits on any scheduler, for any chunks.

    Parameters
    ----------
    X : TileStore, or dask, NumPy or Zarr array of shape (n, d)
        Tiles: uint8, int8, uint16, int16, float32 or float64. Other numbers become float64, a block
        at a time. Dask data frames, xarray arrays, and objects that NumPy converts are accepted.
    ks : iterable of int
        Numbers of clusters.
    n_init : int, default 16
        Restarts of each k. The result is the restart of least inertia (the first of equals).
    init : {"k-means++", "k-means||", "random"}, array of shape (k, d), mapping of k to such \
            arrays, or callable
        Initial centroids; see Notes. Arrays make one restart, whatever `n_init`. A callable returns
        the array of a restart: ``init(X, k, random_state)``, with X as an array and a
        numpy.random.RandomState.
    max_iter : int, default 300
        Maximum number of iterations of a model.
    tol : float, default 1e-4
        A model has converged when the sum of the squared shifts of its centroids is at most `tol`
        times the mean variance of the features. 0 runs until the clusters settle.
    random_state : int, numpy.random.RandomState or numpy.random.Generator, optional
        Seed of all draws, or a generator that draws the seed. By default the system draws the seed.
    sample_weight : array of shape (n,), optional
        Weights of the tiles, at least 0; 1 each by default. Whole numbers, of any dtype, with a sum
        below 2**53 are exact: a tile of weight w adds to sums as w tiles do.
    coarse : bool, default True
        Fit from coarse to fine: all restarts to 32,768 tiles, the best of each k to a sample of up
        to 64 MiB, and then to all tiles. Without effect if initial centroids
        are given, for at most 32,768 tiles, and for k above 4,096. `n_iter_` counts iterations over
        all tiles.
    cache : {"auto", "always", "never"}
        Whether tiles stay in the workers' memory after the first read. "auto" keeps tiles that fit
        in half of the memory, less the memory in use and the memory of a pass. Tiles of a
        memory-mapped file stay up to 64 MiB. The result does not depend on the cache.
    checkpoint : path-like, URL or zarr.abc.store.Store, optional
        Folder in which the state of the fit is saved after each pass. A killed fit resumes from the
        folder to the same bits, also with a seed that was drawn. The folder is removed when the fit
        is done.
    fresh : bool, default False
        Start over, without the state in the checkpoint.
    on_pass : callable, optional
        Called after each pass as ``on_pass(done)`` with a `daskkm.Pass`, when the checkpoint of the
        pass is written. An exception in the callable ends the fit.

    Returns
    -------
    SweepResult

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, of other tiles or parameters, locked, or cannot be written.
    ParameterError
        If a parameter is of the wrong type or out of range.
    FitError
        If float tiles are not finite, or too large to square. If weights are negative, not finite
        or all zero. If there are fewer tiles than clusters. If a pass would take more memory than
        a worker has, or X in memory more than workers in other processes have.
    TypeError
        If X is not an array of numbers, or sparse.
    OverflowError
        If sums would not be exact, from 2.1e9 16-bit pixels or large weights on.

    Notes
    -----
    Reads of the tiles before the first iteration (one more for an array of unknown size):

    * ``"k-means++"`` draws greedily with probability proportional to the exact squared distance.
      Up to 32,768 tiles, or from coarse to fine, one read gathers a sample. Otherwise k-means++
      reads the blocks of the first centroids, then makes as many passes as the largest k (none for
      k = 1). All k and restarts share these passes.
    * ``"k-means||"`` reads one block, then makes 6 passes for any k. All k and restarts share the
      candidates: 5 rounds draw candidates, and one pass weights the candidates. There are 10 k
      candidates for the largest k, up to 4,000, but at least 2.5 k. Each candidate is measured
      against all tiles once if memory has room for 12 bytes a tile beside the tiles, else three
      times. Each restart then clusters the candidates. From coarse to fine a read for the sample
      follows. k-means|| suits one restart of a large k, without coarse to fine.
    * ``"random"`` draws from a uniform sample of 32,768 tiles, in one read of its blocks.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> result = fit_sweep(tiles, [1, 2], n_init=2, random_state=0)
    >>> result.models[2].inertia_, sorted(result.models[2].cluster_centers_.ravel().tolist())
    (4.0, [1.0, 101.0])
    """
    if as_flag("fresh", fresh) and checkpoint is None:
        msg = "fresh: True without a checkpoint. Give the folder of the checkpoint"
        raise ParameterError(msg)
    is_drawn = not isinstance(random_state, Integral)
    if is_drawn and random_state is not None:
        # Draw a seed even if the checkpoint has a seed: later draws of the generator then agree.
        random_state = as_seed(random_state)
    opening = nullcontext() if checkpoint is None else open_checkpoint(checkpoint, fresh=fresh)
    with opening as opened:
        if is_drawn and opened is not None and opened.identity:
            random_state = opened.identity["random_state"]
        options = FitOptions.validate(
            ks,
            n_init=n_init,
            init=init,
            max_iter=max_iter,
            tol=tol,
            random_state=random_state,
            coarse=coarse,
            cache=cache,
        )
        result = run_fit(X, options, sample_weight, checkpoint=opened, on_pass=on_pass)
        if opened is not None:
            opened.clear()
    return result


def run_fit(
    X: Any,
    options: FitOptions,
    sample_weight: ArrayLike | da.Array | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    on_pass: Callable[[Pass], Any] | None = None,
) -> SweepResult:
    """Fit models with validated options, from the state of a checkpoint if present."""
    tiles = Tiles.of(X)
    runner = PassRunner(tiles, sample_weight, cache=options.cache)
    options.check_fits(*runner.shape)
    save, state = None, State()
    if checkpoint is not None:
        identity = {"X": tiles.identity(), **options.identity()}
        if sample_weight is not None:
            identity["sample_weight"] = tokenize(sample_weight)
        state = checkpoint.begin(identity) or state
        save = checkpoint.save
    recorder = Recorder(runner, save, on_pass)
    steps = _fit_from(runner, options, recorder, state)
    best = best_restarts(steps)
    models = {
        k: FittedModel(
            cluster_centers_=step.centroids,
            counts_=step.counts,
            inertia_=step.inertia,
            n_iter_=step.iteration,
            converged_=step.converged,
            restart_=restart,
            dtype=tiles.dtype.newbyteorder("="),
            tile=tiles.tile,
        )
        for k, (restart, step) in best.items()
    }
    statistics = {k: step.statistics for k, (_, step) in best.items()}
    return SweepResult(models, statistics, runner.passes, runner.bytes_read, options.seed)


def _fit_from(runner: PassRunner, options: FitOptions, recorder: Recorder, state: State) -> Steps:
    """Make the passes after a state; return the last step of each model."""
    initial: Mapping[tuple[int, int], Any] = dict(state.steps)
    if not initial or not all(step.last for step in initial.values()):
        runner.prepare(*max_models_and_centroids(runner, options))
    if state.number:
        recorder.resume(state)
    if not initial:
        initial = initial_centroids(runner, options, recorder, state.seeding)
    return fit_models(
        runner,
        initial,
        options.max_iter,
        options.tol,
        lambda steps: recorder.record(steps=steps),
        recorder.references,
    )
