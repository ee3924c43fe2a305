"""The fit of many models to one dask array, to convergence.

Every pass reads each block once for all models that are still moving.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm import blocks, kernel, lloyd, seeding
from daskkm.blocks import as_tiles, tile_shape
from daskkm.errors import FitError
from daskkm.model import FittedModel

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.lloyd import Step

    Init = str | ArrayLike | Mapping[int, ArrayLike]


# Tiles enough to find out about where float tiles lie.
_FEW = 1000


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes
    ----------
    models : dict of int to FittedModel
        The best model of each k, by k.
    passes : int
        Passes over the tiles, counted as they were made: the seeding's, the iterations' and
        those that relocated empty clusters.
    bytes_read : int
        Bytes of tiles that the blocks of those passes held, counted likewise.
    random_state : int
        The seed; the one that was drawn if none was given.
    """

    models: dict[int, FittedModel]
    passes: int
    bytes_read: int
    random_state: int


@dataclass(frozen=True)
class Pass:
    """One pass of a sweep's iterations.

    Attributes
    ----------
    number : int
        Passes so far, from the seeding's on.
    seconds : float
        Wall time of this round, its update included.
    steps : dict of (k, restart) to Step
        The last step of every model, those that are done included.
    """

    number: int
    seconds: float
    steps: dict[tuple[int, int], Step]


def fit_sweep(
    X: Any,
    ks: Iterable[int],
    *,
    n_init: int = 16,
    init: Init = "k-means++",
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: int | None = None,
) -> SweepResult:
    """Fit k-means for every k of a sweep, all restarts at once, in shared passes.

    Runs on the active `distributed.Client` if there is one, else on dask's default scheduler.
    For integer tiles the result is the same to the last bit on either, whatever the chunks.

    Parameters
    ----------
    X : TileStore, or dask, NumPy or Zarr array of shape (n, d)
        Tiles: uint8, int8, uint16, int16, float32 or float64.
    ks : iterable of int
        Numbers of clusters.
    n_init : int, default 16
        Restarts of each k; the one of least inertia is returned (the first of equals).
    init : {"k-means++", "random"}, array of shape (k, d), or mapping of k to such arrays
        Where to start. With arrays there is one restart and `n_init` is ignored.
    max_iter : int, default 300
        Most iterations of a model.
    tol : float, default 1e-4
        A model has converged when the squared shifts of its centroids sum to no more than
        this times the mean variance of the features; 0 runs until the clusters settle.
    random_state : int, optional
        Seed of all draws; one is drawn if none is given.

    Returns
    -------
    SweepResult

    Raises
    ------
    FitError
        If a parameter is out of range, or there are fewer tiles than clusters.
    ValueError
        If float tiles are not finite, or too large to square.
    TypeError
        If the dtype of X is not supported.
    OverflowError
        If there are so many 16-bit pixels (2.1e9 and more) that sums would not be exact.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> result = fit_sweep(tiles, [1, 2], n_init=2, random_state=0)
    >>> result.models[2].inertia_, sorted(result.models[2].cluster_centers_.ravel().tolist())
    (4.0, [1.0, 101.0])
    """
    passes = iter_passes(
        X, ks, n_init=n_init, init=init, max_iter=max_iter, tol=tol, random_state=random_state
    )
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def iter_passes(
    X: Any,
    ks: Iterable[int],
    *,
    n_init: int,
    init: Init,
    max_iter: int,
    tol: float,
    random_state: int | None,
) -> Generator[Pass, None, SweepResult]:
    """Make the passes of `fit_sweep` one by one; the generator returns its result.

    Parameters are those of `fit_sweep`. Nothing is read before the first `next`.

    Yields
    ------
    Pass

    Raises
    ------
    FitError, ValueError, TypeError, OverflowError
        As `fit_sweep`.
    """
    ks, n_init, max_iter, seed = _checked(ks, n_init, max_iter, tol, random_state)
    tiles = _Reader(as_tiles(X))
    _check_size(tiles.shape[0], ks)
    kernel.check_exact(*tiles.shape, tiles.tiles.dtype)
    started = time.perf_counter()
    starts = _starts(tiles, ks, n_init, init, seed)
    if tiles.tiles.dtype.kind == "f":
        tiles.origin = np.median(tiles.take(np.arange(min(tiles.shape[0], _FEW))), axis=0)
    names = list(starts)
    steps: dict[tuple[int, int], Step] = {}
    for done in lloyd.iterate(
        list(starts.values()),
        tiles.measure,
        tiles.farthest,
        max_iter=max_iter,
        tol=tol,
        origin=0 if tiles.origin is None else tiles.origin,
    ):
        steps |= {names[i]: step for i, step in done.items()}
        yield Pass(tiles.passes, time.perf_counter() - started, dict(steps))
        started = time.perf_counter()
    models = _best(steps, tiles.tiles.dtype, tile_shape(X))
    return SweepResult(models, tiles.passes, tiles.bytes_read, seed)


@dataclass
class _Reader:
    """Reads the tiles, and counts what it reads."""

    tiles: da.Array
    origin: NDArray[np.float64] | None = None
    passes: int = field(default=0, init=False)
    bytes_read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if np.isnan(self.tiles.shape[0]):  # as after a selection: only reading tells
            # On a copy: the sizes are written into the array itself.
            self.tiles = self.tiles.copy().compute_chunk_sizes()
            self._count(self.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.tiles.shape
        return int(n), int(d)

    def measure(self, stack: NDArray[np.float64], offsets: NDArray[np.intp]) -> NDArray[Any]:
        """Make a pass: the statistics of every centroid."""
        statistics = np.asarray(
            blocks.statistics(self.tiles, stack, offsets, self.origin).compute()
        )
        # Every tile is counted under every model, so one model's counts say what was read.
        self._count(int(statistics[: offsets[1], -2].sum()))
        _check_finite(statistics)
        return statistics

    def farthest(
        self, stack: NDArray[np.float64], offsets: NDArray[np.intp], wanted: Sequence[int]
    ) -> list[lloyd.Farthest]:
        """Make a pass: the tiles farthest from their centroids."""
        found: list[lloyd.Farthest] = blocks.farthest(self.tiles, stack, offsets, wanted).compute()
        self._count(self.shape[0])
        return found

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Make a pass over the blocks that hold these tiles, and bring them together."""
        ends = np.cumsum(self.tiles.chunks[0])
        touched = np.unique(np.searchsorted(ends, indices, side="right"))
        self._count(int(np.asarray(self.tiles.chunks[0])[touched].sum()))
        sample = np.asarray(self.tiles[indices].compute())
        _check_finite(sample)
        return sample

    def _count(self, n_tiles: int) -> None:
        self.passes += 1
        self.bytes_read += n_tiles * self.shape[1] * self.tiles.dtype.itemsize


def _checked(
    ks: Iterable[int], n_init: int, max_iter: int, tol: float, random_state: int | None
) -> tuple[list[int], int, int, int]:
    """Return the settings as Python's integers, and a seed, or say what is wrong with them."""
    if not np.iterable(ks):
        msg = f"ks is {ks!r}; give a sequence of numbers of clusters, such as [{ks!r}]"
        raise FitError(msg)
    ks = list(ks)
    seed = secrets.randbits(32) if random_state is None else random_state
    numbers: dict[str, Any] = {f"ks[{i}]": k for i, k in enumerate(ks)}
    if not numbers:
        msg = "ks is empty; give at least one number of clusters"
        raise FitError(msg)
    numbers |= {"n_init": n_init, "max_iter": max_iter, "random_state": seed}
    for name, number in numbers.items():
        least = 0 if name == "random_state" else 1
        if not isinstance(number, (int, np.integer)) or number < least:
            msg = f"{name} is {number!r}; give an integer of at least {least}"
            raise FitError(msg)
    if not isinstance(tol, Real) or not 0 <= tol < np.inf:
        msg = f"tol is {tol!r}; give a finite number of at least 0"
        raise FitError(msg)
    return sorted({int(k) for k in ks}), int(n_init), int(max_iter), int(seed)


def _check_size(n_tiles: int, ks: Sequence[int]) -> None:
    if n_tiles < ks[-1]:
        msg = f"there are {n_tiles} tiles, too few for k = {ks[-1]}; lower k"
        raise FitError(msg)


def _check_finite(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        msg = "the tiles hold NaN, infinity or values too large to square; mend them"
        raise FitError(msg)


def _starts(
    tiles: _Reader, ks: Sequence[int], n_init: int, init: Init, seed: int
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Return the starting centroids of every (k, restart)."""
    if isinstance(init, str):
        if init not in seeding.METHODS:
            msg = f"init {init!r} is not known; use one of {', '.join(seeding.METHODS)} or an array"
            raise FitError(msg)
        sample = tiles.take(seeding.sample_indices(tiles.shape[0], seed))
        if len(sample) < ks[-1]:
            msg = (
                f"starts are drawn from {len(sample)} tiles, too few for k = {ks[-1]}; give arrays"
            )
            raise FitError(msg)
        return seeding.starts(sample, ks, n_init, init, seed)
    given = init if isinstance(init, Mapping) else dict.fromkeys(ks, init)
    return {(k, 0): _start(given.get(k), (k, tiles.shape[1])) for k in ks}


def _start(given: ArrayLike | None, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return starting centroids that were given, as an array of their own."""
    try:
        start = np.array(given, np.float64, order="C")
    except (TypeError, ValueError) as error:
        msg = f"the starting centroids for k = {shape[0]} are no array of numbers ({error})"
        raise FitError(msg) from error
    if start.shape != shape or not np.isfinite(start).all():
        msg = (
            f"the starting centroids for k = {shape[0]} have shape {start.shape}; "
            f"give finite numbers of shape {shape}"
        )
        raise FitError(msg)
    return start


def _best(
    steps: dict[tuple[int, int], Step], dtype: np.dtype[Any], tile: tuple[int, ...] | None
) -> dict[int, FittedModel]:
    """Return the restart of least inertia for each k, the first of equals."""
    best: dict[int, FittedModel] = {}
    for (k, restart), step in steps.items():
        if k not in best or step.inertia < best[k].inertia_:
            best[k] = FittedModel(
                cluster_centers_=step.centroids,
                counts_=step.counts,
                inertia_=step.inertia,
                n_iter_=step.iteration,
                converged_=step.converged,
                restart_=restart,
                dtype=dtype,
                tile=tile,
            )
    return dict(sorted(best.items()))
