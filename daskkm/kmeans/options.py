"""Options of a fit, validated once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import dask
import numpy as np
from numpy.typing import ArrayLike

from daskkm.errors import FitError, ParameterError
from daskkm.parameters import as_array, as_choice, as_flag, as_integer, as_number, as_seed
from daskkm.passes import inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskkm.parameters import RandomState

METHODS = ("k-means++", "k-means||", "random")
CACHES = ("auto", "always", "never")

Init = str | ArrayLike | Mapping[int, ArrayLike] | Callable[..., ArrayLike]
#: Initial centroids of each (k, restart): ndarray of shape (k, d), float64.
Initial = dict[tuple[int, int], "NDArray[np.float64]"]


@dataclass(frozen=True, eq=False)
class FitOptions:
    """Options of a fit, as `daskkm.fit_sweep` documents them; `ks` ascending, each once."""

    ks: list[int]
    n_init: int
    init: Any
    max_iter: int
    tol: float
    seed: int
    coarse: bool
    cache: str

    @classmethod
    def validate(
        cls,
        ks: Iterable[int],
        *,
        n_init: int = 16,
        init: Init = "k-means++",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: RandomState = None,
        coarse: bool = True,
        cache: str = "auto",
    ) -> Self:
        """Return the options; raise ParameterError for the first that does not fit."""
        return cls(
            _as_ks(ks),
            as_integer("n_init", n_init, 1),
            _as_init(init),
            as_integer("max_iter", max_iter, 1),
            as_number("tol", tol),
            secrets.randbits(32) if random_state is None else as_seed(random_state),
            as_flag("coarse", coarse),
            as_choice("cache", cache, CACHES),
        )

    @property
    def k_max(self) -> int:
        """Largest number of clusters."""
        return self.ks[-1]

    @property
    def is_drawn(self) -> bool:
        """True if initial centroids are drawn by one of `METHODS`."""
        return isinstance(self.init, str)

    @property
    def restarts(self) -> int:
        """Models of each k."""
        return self.n_init if self.is_drawn or callable(self.init) else 1

    def identity(self) -> dict[str, Any]:
        """Return the options that the result depends on, by parameter, as JSON has them."""
        init = self.init if self.is_drawn else f"given {dask.base.tokenize(self.init)}"
        named = vars(self) | {"init": init, "random_state": self.seed}
        return {name: value for name, value in named.items() if name not in ("seed", "cache")}

    def given_centroids(self, d: int) -> Initial:
        """Return initial centroids that were given as arrays; FitError if they do not fit."""
        given = self.init if isinstance(self.init, Mapping) else dict.fromkeys(self.ks, self.init)
        return {(k, 0): as_centroids(given.get(k), k, d) for k in self.ks}

    def check_fits(self, n: int, d: int) -> None:
        """Raise FitError if n tiles of d features are too few, or given centroids do not fit."""
        if not self.is_drawn and not callable(self.init):
            self.given_centroids(d)
        if n < self.k_max:
            msg = f"n_samples={n} should be >= n_clusters={self.k_max}. Lower k"
            raise FitError(msg)


def _as_ks(ks: Iterable[int]) -> list[int]:
    if not np.iterable(ks):
        msg = f"ks: {ks!r} is not a sequence. Give numbers of clusters, such as [5]"
        raise ParameterError(msg)
    unique = sorted({as_integer(f"ks[{i}]", k, 1) for i, k in enumerate(ks)})
    if not unique:
        msg = "ks: empty. Give at least one number of clusters"
        raise ParameterError(msg)
    return unique


def _as_init(init: Any) -> Any:
    """Return `init` if it is a method, function, mapping or array of numbers."""
    if isinstance(init, str) and init not in METHODS:
        msg = f"init is {init!r}. Use one of {', '.join(METHODS)}, an array or a function"
        raise ParameterError(msg)
    if not (isinstance(init, str | Mapping) or callable(init) or np.iterable(init)):
        msg = f"init is {init!r}. Give the name of a method, an array or a function"
        raise ParameterError(msg)
    return init


def as_centroids(values: Any, k: int, d: int) -> NDArray[np.float64]:
    """Return given initial centroids as a new array of shape (k, d).

    Raises
    ------
    ParameterError
        If they are not an array of numbers.
    FitError
        If they are of another shape, or not finite.
    """
    inputs.check_unmasked(values, f"init for k = {k}")
    centroids = as_array(f"init for k = {k}", values)
    if centroids.ndim != 2 or len(centroids) != k:
        msg = (
            f"The shape of the initial centers {centroids.shape} does not match the number of "
            f"clusters {k}. Give them as {(k, d)}"
        )
        raise FitError(msg)
    if centroids.shape[1] != d:
        msg = (
            f"The shape of the initial centers {centroids.shape} does not match the number of "
            f"features of the data {d}. Give them as {(k, d)}"
        )
        raise FitError(msg)
    if not np.isfinite(centroids).all():
        msg = f"The initial centers for k = {k} contain NaN or infinity"
        raise FitError(msg)
    return centroids
