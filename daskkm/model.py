"""A fitted model: what a fit leaves, and what it makes of other tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskkm import blocks
from daskkm.blocks import as_tiles, is_lazy
from daskkm.errors import FitError

if TYPE_CHECKING:
    import dask.array as da
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FittedModel:
    """The best of the restarts of one k.

    Centroids, counts, inertia and labels belong to one another: the labels that `predict`
    gives the fitted tiles are those that the counts count and the inertia sums.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (k, d), float64
    counts_ : ndarray of shape (k,), int64
        Tiles a cluster.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid.
    n_iter_ : int
        Updates of the centroids.
    converged_ : bool
        Whether it stopped by itself, not by `max_iter`.
    restart_ : int
        Which of the restarts it was, from 0.
    dtype : numpy.dtype
        Of the tiles that it was fitted to.
    tile : tuple of int, or None
        Shape of a tile, (height, width) or (height, width, bands); None if it was fitted to an
        array of features.
    """

    cluster_centers_: NDArray[np.float64]
    counts_: NDArray[np.int64]
    inertia_: float
    n_iter_: int
    converged_: bool
    restart_: int
    dtype: np.dtype[Any]
    tile: tuple[int, ...] | None

    def predict(self, X: Any) -> Any:
        """Return the label of the nearest centroid for every tile.

        Parameters
        ----------
        X : TileStore, or dask, NumPy or Zarr array of shape (n, d)

        Returns
        -------
        ndarray of shape (n,), int32, for a NumPy array; else a dask array (lazy)

        Raises
        ------
        FitError
            If X does not have d features.
        TypeError
            If the dtype of X is not supported.
        ValueError
            If float tiles are not finite: for a dask array, when it is computed.
        """
        return _as_given(X, blocks.labels(self._fitting(X), self.cluster_centers_))

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of every tile to every centroid.

        Parameters
        ----------
        X : TileStore, or dask, NumPy or Zarr array of shape (n, d)

        Returns
        -------
        ndarray of shape (n, k), float64, for a NumPy array; else a dask array (lazy)

        Raises
        ------
        FitError, TypeError
            As `predict`.
        """
        return _as_given(X, blocks.distances(self._fitting(X), self.cluster_centers_))

    def _fitting(self, X: Any) -> da.Array:
        """Return X as tiles, if the model was fitted on such."""
        tiles = as_tiles(X)
        if tiles.shape[1] != self.cluster_centers_.shape[1]:
            msg = (
                f"X has {tiles.shape[1]} features but the model was fitted on "
                f"{self.cluster_centers_.shape[1]}; give it tiles of the same shape"
            )
            raise FitError(msg)
        return tiles


def _as_given(X: Any, lazy: da.Array) -> Any:
    """Return what was asked for of X: in memory if X was."""
    return lazy if is_lazy(X) else lazy.compute()
