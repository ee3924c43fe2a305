"""The starts of a fit: given, drawn from all tiles, or fitted to a sample of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import dask
import numpy as np

from daskkm.errors import FitError, ParameterError
from daskkm.kmeans import lloyd, seeding
from daskkm.parameters import as_array, as_flag, as_integer, as_number, as_seed
from daskkm.passes import arrays, inputs, memory
from daskkm.passes.reader import Pass, Reader
from daskkm.passes.scheduler import workers
from daskkm.passes.tiles import sending

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from daskkm.parameters import RandomState
    from daskkm.passes.reader import Seeding

    Starts = dict[tuple[int, int], NDArray[np.float64]]
    Init = str | ArrayLike | Mapping[int, ArrayLike] | Callable[..., ArrayLike]

T = TypeVar("T")

# How far the candidates of k-means|| are clustered: only starts are wanted.
_POOL_ITER, _POOL_TOL = 30, 1e-3

# Blocks of a sample: sums of floats depend on them, so their number must not on the workers.
_SAMPLE_BLOCKS = 16


@dataclass(frozen=True)
class Settings:
    """What a fit was asked for: see `daskkm.fit_sweep`."""

    ks: list[int]
    n_init: int
    init: Init
    max_iter: int
    tol: float
    seed: int
    coarse: bool

    @classmethod
    def checked(
        cls,
        ks: Iterable[int],
        n_init: int,
        init: Init,
        max_iter: int,
        tol: float,
        random_state: RandomState,
        *,
        coarse: bool,
    ) -> Self:
        """Return the settings with Python's integers, and a seed.

        Raises
        ------
        ParameterError
            If one of them is not what `daskkm.fit_sweep` takes.
        """
        if not np.iterable(ks):
            msg = f"ks is {ks!r}; give a sequence of numbers of clusters, such as [5]"
            raise ParameterError(msg)
        unique = sorted({as_integer(f"ks[{i}]", k, 1) for i, k in enumerate(ks)})
        if not unique:
            msg = "ks is empty; give at least one number of clusters"
            raise ParameterError(msg)
        return cls(
            unique,
            as_integer("n_init", n_init, 1),
            _checked_init(init),
            as_integer("max_iter", max_iter, 1),
            as_number("tol", tol),
            secrets.randbits(32) if random_state is None else as_seed(random_state),
            as_flag("coarse", coarse),
        )

    @property
    def named(self) -> dict[str, Any]:
        """What a result depends on, by the names of the parameters, as JSON has it."""
        init = self.init
        if not isinstance(init, str):
            init = f"one's own {dask.base.tokenize(init)}"
        found = vars(self) | {"init": init, "random_state": self.seed}
        del found["seed"]
        return found

    def given(self, d: int) -> Starts:
        """Return the starting centroids that were given as arrays.

        Raises
        ------
        FitError
            If they are no such centroids.
        """
        init: Any = self.init
        given = init if isinstance(init, Mapping) else dict.fromkeys(self.ks, init)
        return {(k, 0): _start(given.get(k), (k, d)) for k in self.ks}

    def check_fits(self, tiles: Reader) -> None:
        """Raise FitError if there are fewer tiles than clusters, or starts are not of them."""
        if not isinstance(self.init, str) and not callable(self.init):
            self.given(tiles.shape[1])
        n = tiles.shape[0]
        if n < self.ks[-1]:
            msg = f"n_samples={n} should be >= n_clusters={self.ks[-1]}; lower k"
            raise FitError(msg)

    def samples(self, tiles: Reader) -> bool:
        """Tell whether the fit is to go from coarse to fine."""
        wanted = self.coarse and isinstance(self.init, str) and not seeding.few(tiles.shape[0])
        return wanted and seeding.sample_holds(self.ks[-1])

    def most(self, tiles: Reader) -> tuple[int, int]:
        """Return how many models, and how many centroids, a pass over all tiles measures at most.

        Raises
        ------
        FitError
            If the restarts would take more memory than there is where they are fitted to a sample.
        """
        drawn, coarse = isinstance(self.init, str), self.samples(tiles)
        (n, d), itemsize = tiles.shape, tiles.tiles.dtype.itemsize
        restarts = self.n_init if drawn or callable(self.init) else 1
        models, centroids = restarts * len(self.ks), restarts * sum(self.ks)
        if coarse:
            size = seeding.sample_size(n, d * itemsize)
            found = workers(tiles.in_memory_scheduler)
            memory.check(found, centroids, d, size // _SAMPLE_BLOCKS * d * itemsize)
            if tiles.weights is None:  # else, where few of a sample have any, all go on
                models, centroids = len(self.ks), sum(self.ks)
        if drawn and self.init == "k-means||":
            centroids = max(centroids, seeding.pool_size(self.ks[-1]))
        elif drawn and (coarse or self.init == "random" or seeding.few(n)):
            memory.check_sample(workers("threads")[0], seeding.in_memory(n), d, itemsize)
        return models, centroids


def starts(
    tiles: Reader, settings: Settings, after: Seeding | None = None
) -> Generator[Pass, None, Starts]:
    """Make the passes of a seeding.

    Parameters
    ----------
    tiles : Reader
    settings : Settings
    after : sequence of Trial, or Pool, optional
        The `Pass.seeding` from which to go on.

    Yields
    ------
    Pass

    Returns
    -------
    dict of (k, restart) to ndarray of shape (k, d), float64
        The starting centroids; from coarse to fine, of the best restart of each k only.

    Raises
    ------
    FitError
        If what is given are no such centroids, or the tiles drawn from are too few.
    """
    init, ks = settings.init, settings.ks
    if isinstance(init, str):
        return (yield from _drawn(tiles, settings, after))
    if callable(init):
        return {
            (k, restart): _start(
                init(
                    tiles.given, k, random_state=seeding.function_state(settings.seed, k, restart)
                ),
                (k, tiles.shape[1]),
            )
            for k in ks
            for restart in range(settings.n_init)
        }
    return settings.given(tiles.shape[1])


def _drawn(
    tiles: Reader, settings: Settings, after: Seeding | None
) -> Generator[Pass, None, Starts]:
    """Draw starting centroids, and fit them to a sample if that is asked for."""
    coarse = settings.samples(tiles)
    if settings.init == "k-means||":
        found = yield from _from_candidates(tiles, settings, after)
        if not coarse:
            return found
        sample = _sample(tiles, settings, coarse=True)
        yield tiles.made(stage="sample")
        return (yield from _best_on_sample(tiles, sample, settings, found))
    trials = None if isinstance(after, seeding.Pool) else after
    if trials is None and (coarse or settings.init == "random" or seeding.few(tiles.shape[0])):
        sample = _sample(tiles, settings, coarse=coarse)
        yield tiles.made(stage="sample")
        most = settings.ks[-1]
        part = sample.part(settings.seed)
        if not part.holds(most) and settings.init == "random":
            msg = (
                f"only {part.number} of the {len(part.tiles)} tiles that starts are drawn from "
                f"have weight, too few for k = {most}; use k-means++ or k-means||"
            )
            raise FitError(msg)
        if part.holds(most) or seeding.few(tiles.shape[0]):
            found = yield from _drawn_in_memory(tiles, part, settings, str(settings.init))
            if not coarse:
                return found
            return (yield from _best_on_sample(tiles, sample, settings, found))
    if trials is None:
        firsts = tiles.draw_first(settings.n_init, settings.seed).astype(np.float64)
        trials = [seeding.Trial(tile[:0], tile) for tile in firsts[:, None]]
        yield tiles.made(seeding=trials)
    k, try_all = settings.ks[-1], tiles.trials(settings.seed)
    longest = yield from _made(tiles, seeding.kmeans_plusplus_passes(trials, k, try_all))
    return {(k, restart): start[:k] for k in settings.ks for restart, start in enumerate(longest)}


class _Sample(NamedTuple):
    """Tiles that were brought together."""

    tiles: NDArray[Any]
    weights: NDArray[Any] | None

    @property
    def number(self) -> int:
        """How many of them have weight."""
        return len(self.tiles) if self.weights is None else int(np.count_nonzero(self.weights))

    def holds(self, k: int) -> bool:
        """Tell whether k starts can be drawn from it."""
        return self.number >= k

    def part(self, seed: int) -> _Sample:
        """Return 32,768 of them."""
        rows = seeding.sample_indices(len(self.tiles), seed)
        return _Sample(self.tiles[rows], None if self.weights is None else self.weights[rows])


def _sample(tiles: Reader, settings: Settings, *, coarse: bool) -> _Sample:
    """Bring a uniform sample together: all tiles, if they are few."""
    (n, d), itemsize = tiles.shape, tiles.tiles.dtype.itemsize
    size = seeding.sample_size(n, d * itemsize) if coarse else None
    indices = seeding.sample_indices(n, settings.seed, size)
    return _Sample(tiles.take(indices), tiles.take_weights(indices))


def _drawn_in_memory(
    tiles: Reader, sample: _Sample | seeding.Pool, settings: Settings, method: str
) -> Generator[Pass, None, Starts]:
    """Draw the starts of every (k, restart) from tiles that are here."""
    found: Starts = {}
    for drawn in seeding.starts(
        sample.tiles, sample.weights, settings.ks, settings.n_init, method, settings.seed
    ):
        found |= drawn
        yield tiles.made(stage="draw")
    return found


def _best_on_sample(
    tiles: Reader, sample: _Sample, settings: Settings, found: Starts
) -> Generator[Pass, None, Starts]:
    """Fit starts to a part of a sample, then the best of each k to all of it; return these.

    What looks settled on few tiles may still have far to go on more: better there than in passes.
    """
    if not sample.holds(1):
        return found
    part = sample.part(settings.seed)
    if not part.holds(1):
        part = sample
    scheduler = tiles.in_memory_scheduler
    for stage in [part] if len(part.tiles) == len(sample.tiles) else [part, sample]:
        # Workers have the tiles by the graph: lost with a worker, they are sent again.
        length = len(stage.tiles) // _SAMPLE_BLOCKS + 1
        X = arrays.as_arrays(stage.tiles, length * stage.tiles[:1].nbytes)
        with sending(stage.tiles):
            here = Reader(X, stage.weights, scheduler=scheduler, cache="always")
            here.prepare(len(found), sum(map(len, found.values())))
        passes = here.iterations(found, settings.max_iter, settings.tol)
        steps = yield from _shown(tiles, passes, "sample fit")
        found = {(k, restart): step.centroids for k, (restart, step) in lloyd.best(steps).items()}
    return found


def _from_candidates(
    tiles: Reader, settings: Settings, pool: Seeding | None
) -> Generator[Pass, None, Starts]:
    """Draw candidates by k-means||, and cluster them with the weights of their clusters."""
    if not isinstance(pool, seeding.Pool):
        pool = seeding.Pool(tiles.draw_first(1, settings.seed), rounds=0)
        yield tiles.made(seeding=pool)
    if pool.weights is None:
        draw, weigh = tiles.rounds(settings.seed)
        pool = yield from _made(tiles, seeding.candidates(pool, settings.ks[-1], draw))
        pool = pool._replace(weights=weigh(pool.tiles))
        yield tiles.made(seeding=pool)
    drawn = yield from _drawn_in_memory(tiles, pool, settings, "k-means++")
    here = Reader(pool.tiles, pool.weights, scheduler=tiles.in_memory_scheduler)
    passes = here.iterations(drawn, _POOL_ITER, _POOL_TOL)
    steps = yield from _shown(tiles, passes, "candidate fit")
    return {name: step.centroids for name, step in steps.items()}


def _shown(tiles: Reader, passes: Generator[Pass, None, T], stage: str) -> Generator[Pass, None, T]:
    """Make the passes over tiles that are here, of which all tiles' are not; return the result."""
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield tiles.made(stage=stage)


def _made(tiles: Reader, passes: Generator[Seeding, None, T]) -> Generator[Pass, None, T]:
    """Make the passes of a generator that knows nothing of what a pass is; return its result."""
    while True:
        try:
            after = next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield tiles.made(seeding=after)


def _checked_init(init: Any) -> Any:
    """Return `init` if it is a method, function, mapping, or array of numbers.

    Raises
    ------
    ParameterError
        If it is something else.
    """
    if isinstance(init, str) and init not in seeding.METHODS:
        msg = f"init is {init!r}; use one of {', '.join(seeding.METHODS)}, an array or a function"
        raise ParameterError(msg)
    if not (isinstance(init, str | Mapping) or callable(init) or np.iterable(init)):
        msg = f"init is {init!r}; give the name of a method, an array or a function"
        raise ParameterError(msg)
    return init


def _start(given: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return initial centroids that were given, as an array of their own.

    Raises
    ------
    ParameterError
        If they are not an array of numbers.
    FitError
        If they are not (k, d) finite ones.
    """
    k, d = shape
    inputs.check_unmasked(given, f"init for k = {k}")
    start = as_array(f"init for k = {k}", given)
    if start.ndim != 2 or len(start) != k:
        msg = (
            f"The shape of the initial centers {start.shape} does not match the number of "
            f"clusters {k}; give them as {shape}"
        )
        raise FitError(msg)
    if start.shape[1] != d:
        msg = (
            f"The shape of the initial centers {start.shape} does not match the number of "
            f"features of the data {d}; give them as {shape}"
        )
        raise FitError(msg)
    if not np.isfinite(start).all():
        msg = f"The initial centers for k = {k} contain NaN or infinity"
        raise FitError(msg)
    return start
