"""Fitted model: centroids with their counts and inertia, and labels of other tiles."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from daskkm.errors import FitError, ModelError, ParameterError
from daskkm.parameters import as_array
from daskkm.passes import prediction, scheduler
from daskkm.passes.tiles import Tiles, hide_send_warnings
from daskkm.storage import locations

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.storage.labels import Target
    from daskkm.storage.tile_store import TileStore


@dataclass(frozen=True, eq=False)  # arrays have no one answer
class FittedModel:
    """Best restart of one k.

    Centroids, counts, inertia and labels are consistent: counts and inertia are those of the labels
    that `predict` gives the fitted tiles.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (k, d), float64
    counts_ : ndarray of shape (k,), int64 (float64 if there were fractional weights)
        Weight of the tiles of each cluster: their number, unless they had weights. NaN if
        centroids were assigned.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid, times their weights; or NaN.
    n_iter_ : int
        Updates of the centroids.
    converged_ : bool
        True if it stopped by `tol`, not by `max_iter`.
    restart_ : int
        Number of the restart, from 0.
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
        """Return a model of assigned centroids, without counts and inertia.

        Parameters
        ----------
        centroids : array-like of shape (k, d)

        Returns
        -------
        FittedModel

        Raises
        ------
        ParameterError
            If they are not a matrix of finite numbers.
        """
        found = as_array("cluster_centers_", centroids)
        if found.ndim != 2 or not found.size or not np.isfinite(found).all():
            msg = f"cluster_centers_ has shape {found.shape}. Give k rows of d finite numbers"
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
        """Return the label of the nearest centroid for each tile.

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
            If float tiles are not finite: for a dask array, when it is computed.
        """
        tiles = self._tiles(X)
        return _as_given(tiles, prediction.labels(tiles.array, self.cluster_centers_))

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each tile to each centroid.

        Parameters and errors are those of `predict`.

        Returns
        -------
        ndarray of shape (n, k), float64, for tiles in memory; else a lazy dask array
        """
        tiles = self._tiles(X)
        return _as_given(tiles, prediction.distances(tiles.array, self.cluster_centers_))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any] | None = None,
        extra: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write the model to a Zarr group, from which `load_model` reads the very same.

        The group has the arrays ``cluster_centers`` (cluster, feature) and ``counts`` (cluster),
        which xarray opens by these names; its attribute ``daskkm`` has the format (3), the kind
        ("model"), k, inertia, n_iter, converged, restart, the dtype and shape of the tiles, the
        settings, and a SHA-256. A saved model at `path` is replaced when the new one is complete;
        anything else never is.

        Parameters
        ----------
        path : path-like
        settings : mapping of str to JSON, optional
            Saved with the model, and read again by `load_saved`.
        extra : mapping of str to ndarray of numbers, of one or more dimensions, optional
            Likewise; in the group ``extra``.

        Raises
        ------
        ModelError
            If the model is inconsistent or cannot be written, or something else is at `path`.
        """
        # Not at the top: fits and predictions do not need zarr, and importing it takes time.
        from daskkm.storage import models

        path = locations.local(path, ModelError)
        if problem := _problem(self):
            msg = f"{path}: the model is not saved, because {problem}. Fit it again"
            raise ModelError(msg)
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
        models.save_model(path, arrays, attributes)

    def write_labels(
        self,
        store: TileStore,
        *,
        distances: bool = False,
        on_start: Callable[[Target], AbstractContextManager[Any]] = nullcontext,
    ) -> NDArray[np.int64]:
        """Write the label of each tile into a store; return the tiles of each label, (k,).

        See `TileStore.label`. The work is done within ``on_start(target)``, where the target counts
        the chunks that are written.
        """
        self.check_fits(store)
        centroids = self.cluster_centers_
        attributes = {
            "k": len(centroids),
            "inertia": None if self.dtype is None else self.inertia_,
            "centroids": hashlib.sha256(centroids.tobytes()).hexdigest(),
        }
        with (
            store.writing_labels(attributes, distances=distances) as targets,
            on_start(targets[0]),
        ):
            blocks = Tiles.of(store).in_blocks(scheduler.threads())
            counts: NDArray[np.int64]
            (counts,) = scheduler.compute(prediction.write(blocks, centroids, *targets))
        return counts

    def check_fits(self, store: TileStore) -> None:
        """Raise FitError if the model was fitted to tiles unlike those of a store."""
        dtype = np.dtype(store.tiles.dtype)
        # Assigned centroids have no dtype, and features of an array have no shape of a tile.
        own, other = (self.tile, self.dtype or dtype), (store.tile, dtype)
        if self.tile is None:
            own, other = (
                (self.cluster_centers_.shape[1:], self.dtype or dtype),
                ((math.prod(store.tile),), dtype),
            )
        if own != other:
            kinds = [f"{dtype} of shape {shape}" for shape, dtype in (own, other)]
            msg = (
                f"{store.path}: its tiles are {kinds[1]}, but the model was fitted to {kinds[0]}. "
                "Fit a model to this store, or name the store of the model"
            )
            raise FitError(msg)

    def _tiles(self, X: Any) -> Tiles:
        """Return the tiles of X; raise FitError if they have other features than the model."""
        tiles = Tiles.of(X)
        n_features = tiles.array.shape[1]
        if n_features != self.cluster_centers_.shape[1]:
            msg = (
                f"X has {n_features} features but the model was fitted on "
                f"{self.cluster_centers_.shape[1]}. Give it tiles of the same shape"
            )
            raise FitError(msg)
        return tiles


class Saved(NamedTuple):
    """A saved model, with the settings and extra arrays that were saved with it."""

    model: FittedModel
    settings: dict[str, Any]
    extra: dict[str, NDArray[Any]]


def load_saved(path: str | os.PathLike[str]) -> Saved:
    """Read a model and the data saved with it, to the last bit.

    Raises
    ------
    ModelError
        If the saved model is missing, damaged, something else, or of another format.
    """
    from daskkm.storage import models  # as in `FittedModel.save`

    arrays, attributes = models.load_model_arrays(path)
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
    """Return the model that an estimator was fitted to, or a model as it is.

    Parameters
    ----------
    model : FittedModel or KMeans

    Returns
    -------
    FittedModel

    Raises
    ------
    ParameterError
        If it is something else.
    NotFittedError
        If it is an estimator that is not fitted.
    """
    found = model.fitted_model if hasattr(type(model), "fitted_model") else model
    if isinstance(found, FittedModel):
        return found
    msg = (
        f"{type(model).__name__} is not a model. Fit a daskkm.KMeans, or read a saved model by "
        "daskkm.load_model"
    )
    raise ParameterError(msg)


def check_free(path: str | os.PathLike[str]) -> None:
    """Raise ModelError if a model cannot be saved at a path without replacing something else."""
    from daskkm.storage import models  # as in `FittedModel.save`

    models.check_free(path)


def _problem(model: FittedModel) -> str | None:
    """Return a description of the first inconsistency of a model, or None."""
    centroids, counts, tile = model.cluster_centers_, model.counts_, model.tile
    if centroids.ndim != 2 or not centroids.size or centroids.dtype != np.float64:
        return f"its centroids are {centroids.dtype} of shape {centroids.shape}"
    if counts.shape != centroids.shape[:1] or counts.dtype not in (np.int64, np.float64):
        return (
            f"it has {len(centroids)} centroids, and {counts.dtype} counts of shape {counts.shape}"
        )
    if tile is not None and math.prod(tile) != centroids.shape[1]:
        return f"its centroids have {centroids.shape[1]} features, and its tiles the shape {tile}"
    fitted = model.dtype is not None
    if not np.isfinite(centroids).all() or math.isfinite(model.inertia_) != fitted:
        return "its centroids or its inertia are not finite"
    return None


def _as_given(tiles: Tiles, lazy: da.Array) -> Any:
    """Return a result for each tile: in memory if the tiles are."""
    if tiles.is_lazy:
        return lazy
    with hide_send_warnings(tiles.source):
        return scheduler.compute(lazy)[0]
