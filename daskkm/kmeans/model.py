"""Fitted model: centroids, counts and inertia, with methods to predict, save and label."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from daskkm.errors import FitError, ParameterError
from daskkm.parameters import as_array
from daskkm.passes import prediction, scheduler
from daskkm.passes.tiles import Tiles, hide_send_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.storage.labels import Target
    from daskkm.storage.locations import LocationLike
    from daskkm.storage.tile_store import TileStore


@dataclass(frozen=True, eq=False)  # arrays do not compare to one bool
class FittedModel:
    """Best restart of one k.

    Counts and inertia are those of the labels that `predict` returns for the fitted tiles.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (k, d), float64
    counts_ : ndarray of shape (k,), int64 (float64 for fractional weights)
        Number of tiles in each cluster, or the sum of their weights. NaN if centroids were
        assigned.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid, times their weights. NaN if
        centroids were assigned.
    n_iter_ : int
        Updates of the centroids.
    converged_ : bool
        True if the fit stopped by `tol`, not by `max_iter`.
    restart_ : int
        Index of the restart, from 0.
    dtype : numpy.dtype or None
        Data type of the fitted tiles; None if centroids were assigned.
    tile : tuple of int, or None
        Shape of a tile, (height, width) or (height, width, bands); None for an array of features.

    Examples
    --------
    >>> import daskkm, numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> model = daskkm.fit_sweep(tiles, [2], random_state=0).models[2]
    >>> model.counts_.tolist(), model.converged_, model.dtype
    ([2, 2], True, dtype('uint8'))
    >>> model.transform(tiles).min(axis=1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    cluster_centers_: NDArray[np.float64]
    counts_: NDArray[Any]
    inertia_: float
    n_iter_: int
    converged_: bool
    restart_: int
    dtype: np.dtype[Any] | None
    tile: tuple[int, ...] | None

    @classmethod
    def from_centroids(cls, centroids: ArrayLike) -> Self:
        """Return a model of assigned centroids, (k, d), without counts and inertia.

        Raises
        ------
        ParameterError
            If `centroids` is not a matrix of finite numbers.
        """
        found = as_array("cluster_centers_", centroids)
        if found.ndim != 2 or not found.size or not np.isfinite(found).all():
            msg = f"cluster_centers_: shape {found.shape}. Give k rows of d finite numbers"
            raise ParameterError(msg)
        return cls(
            cluster_centers_=found,
            counts_=np.full(len(found), np.nan),
            inertia_=math.nan,
            n_iter_=0,
            converged_=False,
            restart_=0,
            dtype=None,
            tile=None,
        )

    def predict(self, X: Any) -> Any:
        """Return the index of the nearest centroid of each tile, the lowest of equals.

        Parameters
        ----------
        X : TileStore, or dask, NumPy or Zarr array of shape (n, d)

        Returns
        -------
        ndarray of shape (n,), int32, for tiles in memory; else a lazy dask array

        Raises
        ------
        FitError
            If X does not have d features.
        TypeError
            If X is not an array of numbers, or sparse.
        ValueError
            If float tiles are not finite: for lazy tiles, when labels are computed.
        """
        return self._map_tiles(prediction.labels, X)

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each tile to each centroid.

        Parameters and errors are those of `predict`.

        Returns
        -------
        ndarray of shape (n, k), float64, for tiles in memory; else a lazy dask array
        """
        return self._map_tiles(prediction.distances, X)

    def save(
        self,
        path: LocationLike,
        *,
        storage_options: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write the model to a Zarr group, which `load_model` reads to the last bit.

        xarray opens the arrays ``cluster_centers`` (cluster, feature) and ``counts`` (cluster). An
        older model at `path` is removed first; anything else is not replaced.

        Parameters
        ----------
        path : path-like, URL or zarr.abc.store.Store
        storage_options : mapping, optional
            For a URL, as for `open_store`.
        settings : mapping of str to JSON, optional
            Further attributes.
        extra : mapping of str to ndarray of numbers, of one or more dimensions, optional
            Further arrays, in the group ``extra``.

        Raises
        ------
        ModelError
            If the model cannot be written, or something else is at `path`.
        """
        # Not at the top: fits and predictions do not need zarr, which is slow to import.
        from daskkm.storage import models

        arrays = {"cluster_centers": self.cluster_centers_, "counts": self.counts_}
        arrays |= {f"extra/{name}": values for name, values in (extra or {}).items()}
        attributes = {
            "k": len(self.cluster_centers_),
            "inertia": None if math.isnan(self.inertia_) else float(self.inertia_),
            "n_iter": int(self.n_iter_),
            "converged": bool(self.converged_),
            "restart": int(self.restart_),
            "dtype": self.dtype and self.dtype.str,
            "tile": self.tile,
            "settings": dict(settings or {}),
        }
        models.save_model(path, arrays, attributes, storage_options)

    def write_labels(
        self,
        store: TileStore,
        *,
        distances: bool = False,
        on_start: Callable[[Target], AbstractContextManager[Any]] = nullcontext,
    ) -> NDArray[np.int64]:
        """Write the label of each tile into a store; return the counts of labels, (k,).

        See `TileStore.label`. Labels are computed within the context ``on_start(target)``. The
        target counts the written chunks.
        """
        self.check_fits(store)
        centroids = self.cluster_centers_
        attributes = {
            "k": len(centroids),
            "inertia": None if self.dtype is None else self.inertia_,
            "centroids": hashlib.sha256(centroids.tobytes()).hexdigest(),
        }
        with (
            store.open_label_targets(attributes, distances=distances) as targets,
            on_start(targets[0]),
        ):
            counts = targets[0].count_labels(len(centroids))
            if (first := targets[0].first) < len(store):
                blocks = Tiles.of(store).in_blocks(scheduler.threads(), first)
                counts += scheduler.compute(prediction.write(blocks, centroids, *targets))[0]
        return counts

    def check_fits(self, store: TileStore) -> None:
        """Raise FitError if the model was fitted to tiles of another shape or dtype."""
        # Assigned centroids have no dtype. Features of an array have no shape of a tile.
        dtype = store.dtype
        shape = store.tile if self.tile else (math.prod(store.tile),)
        own_dtype, own_shape = self.dtype or dtype, self.tile or self.cluster_centers_.shape[1:]
        if (own_dtype, own_shape) != (dtype, shape):
            msg = (
                f"{store.path}: tiles are {dtype} of shape {shape}, but the model was fitted to "
                f"{own_dtype} of shape {own_shape}. Fit a model to this store, or name the store "
                "of the model"
            )
            raise FitError(msg)

    def check_features(self, n_features: int) -> None:
        """Raise FitError if the model was fitted to tiles of another number of features."""
        k, d = self.cluster_centers_.shape
        if n_features != d:
            msg = (
                f"X has {n_features} features but the model of k = {k} was fitted on {d}. "
                "Give tiles of the same shape"
            )
            raise FitError(msg)

    def _map_tiles(self, function: Callable[..., da.Array], X: Any) -> Any:
        """Return `function(tiles, centroids)`, computed if the tiles are in memory."""
        tiles = Tiles.of(X)
        self.check_features(tiles.array.shape[1])
        lazy = function(tiles.array, self.cluster_centers_)
        if tiles.is_lazy:
            return lazy
        with hide_send_warnings(tiles.source):
            return scheduler.compute(lazy)[0]


class Saved(NamedTuple):
    """Saved model with its settings and extra arrays."""

    model: FittedModel
    settings: dict[str, Any]
    extra: dict[str, NDArray[Any]]


def load_saved(path: LocationLike, storage_options: Mapping[str, Any] | None = None) -> Saved:
    """Read a saved model, to the last bit.

    Raises
    ------
    ModelError
        If the saved model is missing, damaged, something else, or of another format.
    """
    from daskkm.storage import models  # as in `FittedModel.save`

    arrays, attributes = models.load_model_arrays(path, storage_options)
    dtype, tile, inertia = (attributes[name] for name in ("dtype", "tile", "inertia"))
    model = FittedModel(
        cluster_centers_=arrays.pop("cluster_centers"),
        counts_=arrays.pop("counts"),
        inertia_=math.nan if inertia is None else inertia,
        n_iter_=attributes["n_iter"],
        converged_=attributes["converged"],
        restart_=attributes["restart"],
        dtype=None if dtype is None else np.dtype(dtype),
        tile=None if tile is None else tuple(tile),
    )
    extra = {name.removeprefix("extra/"): values for name, values in arrays.items()}
    return Saved(model, attributes["settings"], extra)


def fitted_model(model: Any) -> FittedModel:
    """Return the fitted model of a KMeans, or a FittedModel itself.

    Raises
    ------
    ParameterError
        If `model` is something else.
    NotFittedError
        If `model` is an estimator that is not fitted.
    """
    found = model.fitted_model if hasattr(type(model), "fitted_model") else model
    if isinstance(found, FittedModel):
        return found
    msg = (
        f"{type(model).__name__} is not a model. Fit a daskkm.KMeans, or read a saved model by "
        "daskkm.load_model"
    )
    raise ParameterError(msg)
