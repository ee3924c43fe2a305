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
    """Options of a fit: parameters of `daskkm.fit_sweep`, with `ks` ascending and distinct."""

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
        """Return the options; raise ParameterError for the first invalid option."""
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
        """Return, by parameter, the options on which the result depends, as JSON."""
        init = self.init if self.is_drawn else f"given {dask.base.tokenize(self.init)}"
        named = vars(self) | {"init": init, "random_state": self.seed}
        return {name: value for name, value in named.items() if name not in ("seed", "cache")}

    def given_centroids(self, d: int) -> Initial:
        """Return initial centroids given as arrays; raise FitError for a wrong shape."""
        given = self.init if isinstance(self.init, Mapping) else dict.fromkeys(self.ks, self.init)
        return {(k, 0): as_centroids(given.get(k), k, d) for k in self.ks}

    def check_fits(self, n: int, d: int) -> None:
        """Raise FitError if n tiles are too few, or given centroids do not have d features."""
        if not self.is_drawn and not callable(self.init):
            self.given_centroids(d)
        if n < self.k_max:
            msg = f"n_samples={n} should be >= n_clusters={self.k_max}. Lower k"
            raise FitError(msg)


def _as_ks(ks: Iterable[int]) -> list[int]:
    """Return the distinct numbers of clusters, ascending."""
    if not np.iterable(ks):
        msg = f"ks: {ks!r} is not iterable. Give numbers of clusters, such as [5]"
        raise ParameterError(msg)
    unique = sorted({as_integer(f"ks[{i}]", k, 1) for i, k in enumerate(ks)})
    if not unique:
        msg = "ks: empty. Give at least one number of clusters"
        raise ParameterError(msg)
    return unique


def _as_init(init: Any) -> Any:
    """Return `init`; raise ParameterError for an unknown method or type."""
    is_given = callable(init) or (np.iterable(init) and not isinstance(init, str))
    if not is_given and init not in METHODS:
        msg = (
            f"init: {init!r} is not valid. Use one of {', '.join(METHODS)}, an array or a function"
        )
        raise ParameterError(msg)
    return init


def as_centroids(values: Any, k: int, d: int) -> NDArray[np.float64]:
    """Return a copy of given initial centroids, (k, d).

    Raises
    ------
    ParameterError
        If `values` is not an array of numbers.
    FitError
        If centroids have another shape, or are not finite.
    """
    inputs.check_unmasked(values, f"init for k = {k}")
    centroids = as_array(f"init for k = {k}", values)
    if centroids.shape != (k, d):
        is_d_wrong = centroids.ndim == 2 and len(centroids) == k
        number = f"features of the data {d}" if is_d_wrong else f"clusters {k}"
        msg = (  # in the words of scikit-learn
            f"The shape of the initial centers {centroids.shape} does not match the number of "
            f"{number}. Give an array of shape {(k, d)}"
        )
        raise FitError(msg)
    if not np.isfinite(centroids).all():
        msg = f"init for k = {k}: NaN or infinity. Give finite centroids"
        raise FitError(msg)
    return centroids
