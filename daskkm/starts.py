"""The starts of a fit: given, drawn from all tiles, or fitted to a sample of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Self, TypeVar

import dask.array as da
import numpy as np

from daskkm import lloyd, seeding
from daskkm.errors import FitError
from daskkm.reader import Pass, Reader

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Starts = dict[tuple[int, int], NDArray[np.float64]]
    Init = str | ArrayLike | Mapping[int, ArrayLike] | Callable[..., ArrayLike]

T = TypeVar("T")

# How far the candidates of k-means|| are clustered: only starts are wanted.
_POOL_ITER, _POOL_TOL = 30, 1e-3

# Tiles a block of a sample, which is small enough for the threads of this process.
_SAMPLE_BLOCK = 2048


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
        random_state: int | None,
        *,
        coarse: bool,
    ) -> Self:
        """Return the settings with Python's integers, and a seed, or say what is wrong with them.

        Raises
        ------
        FitError
        """
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
            whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
            if not whole or number < least:
                msg = f"{name} is {number!r}; give an integer of at least {least}"
                raise FitError(msg)
        if not isinstance(tol, Real) or not 0 <= tol < np.inf:
            msg = f"tol is {tol!r}; give a finite number of at least 0"
            raise FitError(msg)
        if isinstance(init, str) and init not in seeding.METHODS:
            known = ", ".join(seeding.METHODS)
            msg = f"init {init!r} is not known; use one of {known} or an array"
            raise FitError(msg)
        unique = sorted({int(k) for k in ks})
        return cls(unique, int(n_init), init, int(max_iter), float(tol), int(seed), bool(coarse))

    def check_fits(self, tiles: Reader) -> None:
        """Raise FitError if there are fewer tiles than clusters."""
        n = tiles.shape[0]
        if n < self.ks[-1]:
            msg = f"there are {n} tiles, too few for k = {self.ks[-1]}; lower k"
            raise FitError(msg)

    def samples(self, tiles: Reader) -> bool:
        """Tell whether the fit is to go from coarse to fine."""
        wanted = self.coarse and isinstance(self.init, str) and not seeding.few(tiles.shape[0])
        return wanted and seeding.sample_holds(self.ks[-1])

    def restarts(self, tiles: Reader) -> int:
        """Return how many models of each k are fitted to all tiles, at most."""
        draws = isinstance(self.init, str) or callable(self.init)
        return self.n_init if draws and not self.samples(tiles) else 1


def starts(tiles: Reader, settings: Settings) -> Generator[Pass, None, Starts]:
    """Make the passes of a seeding.

    Parameters
    ----------
    tiles : Reader
    settings : Settings

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
        return (yield from _drawn(tiles, settings))
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
    given = init if isinstance(init, Mapping) else dict.fromkeys(ks, init)
    return {(k, 0): _start(given.get(k), (k, tiles.shape[1])) for k in ks}


def _drawn(tiles: Reader, settings: Settings) -> Generator[Pass, None, Starts]:
    """Draw starting centroids, and fit them to a sample if that is asked for."""
    coarse = settings.samples(tiles)
    if settings.init == "k-means||":
        found = yield from _from_candidates(tiles, settings)
        return (yield from _best_on_sample(tiles, settings, found)) if coarse else found
    if coarse or settings.init == "random" or seeding.few(tiles.shape[0]):
        return (yield from _best_on_sample(tiles, settings))
    firsts = tiles.draw_first(settings.n_init, settings.seed)
    yield tiles.made()
    k = settings.ks[-1]
    longest = yield from _made(
        tiles, seeding.kmeans_plusplus_passes(firsts, k, tiles.trials(settings.seed))
    )
    return {(k, restart): start[:k] for k in settings.ks for restart, start in enumerate(longest)}


def _best_on_sample(
    tiles: Reader, settings: Settings, found: Starts | None = None
) -> Generator[Pass, None, Starts]:
    """Bring a sample together, draw starts from it if there are none, and fit them to it."""
    indices = seeding.sample_indices(tiles.shape[0], settings.seed)
    sample, weights = tiles.take(indices), tiles.take_weights(indices)
    yield tiles.made()
    if found is None:
        _check_sample(sample, weights, settings.ks[-1])
        method = str(settings.init)
        found = seeding.starts(sample, weights, settings.ks, settings.n_init, method, settings.seed)
    if not settings.samples(tiles) or (weights is not None and not weights.any()):
        return found
    here = Reader(
        da.from_array(sample, chunks=(_SAMPLE_BLOCK, -1)),
        weights,
        scheduler="threads",
        cache="always",
    )
    here.prepare(len(found), sum(map(len, found.values())))
    steps = _last(here.iterations(found, settings.max_iter, settings.tol))
    return {(k, restart): step.centroids for k, (restart, step) in lloyd.best(steps).items()}


def _check_sample(sample: NDArray[Any], weights: NDArray[Any] | None, k: int) -> None:
    few = f"starts are drawn from {len(sample)} tiles, too few for k = {k}"
    none = f"none of the {len(sample)} tiles that starts are drawn from has weight"
    for wrong, why in (
        (len(sample) < k, few),
        (weights is not None and not weights.any(), none),
    ):
        if wrong:
            msg = f"{why}; use k-means++ with coarse=False, or k-means||"
            raise FitError(msg)


def _from_candidates(tiles: Reader, settings: Settings) -> Generator[Pass, None, Starts]:
    """Draw candidates by k-means||, and cluster them with the weights of their clusters."""
    ks, seed = settings.ks, settings.seed
    first = tiles.draw_first(1, seed)
    yield tiles.made()
    pool = yield from _made(tiles, seeding.candidates(first, ks[-1], tiles.trials(seed)))
    weights = tiles.measure(pool.astype(np.float64), np.array([0, len(pool)]))[:, -2]
    yield tiles.made()
    drawn = seeding.starts(pool, weights, ks, settings.n_init, "k-means++", seed)
    # It is small, and here already.
    here = Reader(pool, weights, scheduler="synchronous")
    steps = _last(here.iterations(drawn, _POOL_ITER, _POOL_TOL))
    return {name: step.centroids for name, step in steps.items()}


def _made(tiles: Reader, passes: Generator[None, None, T]) -> Generator[Pass, None, T]:
    """Make the passes of a generator that knows nothing of what a pass is; return its result."""
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        yield tiles.made()


def _last(passes: Generator[Pass, None, T]) -> T:
    """Make all passes of a generator, and return its result."""
    while True:
        try:
            next(passes)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


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
