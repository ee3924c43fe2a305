"""Two passes over the tiles that say how good each model of a sweep is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskkm.errors import FitError, ParameterError
from daskkm.kernels import metric_sums
from daskkm.kernels.metric_sums import Clusters
from daskkm.kmeans import lloyd, metrics
from daskkm.kmeans.metrics import Quality
from daskkm.kmeans.model import fitted_model
from daskkm.passes import inputs, scheduler
from daskkm.passes.reader import Reader
from daskkm.passes.tiles import sending

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.sweep import SweepResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessment:
    """What an assessment found, and what it read.

    Attributes
    ----------
    qualities : dict of int to Quality
        By k.
    passes : int
        Passes over the tiles.
    bytes_read : int
        Bytes of tiles that the blocks of those passes held.
    """

    qualities: dict[int, Quality]
    passes: int
    bytes_read: int


def assess(X: Any, models: Mapping[int, FittedModel], *, classes: Any = None) -> dict[int, Quality]:
    """Say how well each model fits the tiles, in figures by which to choose k.

    Takes two passes over the tiles for all models together: the first sums the clusters, the
    second measures distances to their means, which are not known before. For 8-bit tiles both
    take about as long as three iterations of all models. Tiles whose chunks are of unknown
    sizes take one pass more. Figures are those of the labels that `predict` gives.

    For integer tiles every figure is the same to the last bit whatever the chunks. Distances
    are summed in fixed point for that, to within 2**-21 of a mean distance for 10**9 tiles of
    256 uint8 features and 2**-33 of a mean silhouette, and a bit finer each time the number
    of tiles halves.

    Of more than 8,192 8-bit tiles, distances are to centroids and means that are rounded to 16
    bits a feature: of 256 features, to 1/128 of a grey level or less. That changes a silhouette or
    a Davies-Bouldin index of the sample images by less than 1e-6.
    Inertia, sizes and Calinski-Harabasz are exact, and so are the figures of classes.

    Parameters
    ----------
    X : TileStore, or dask, NumPy or Zarr array of shape (n, d)
        As for `daskkm.fit_sweep`.
    models : mapping of int to FittedModel or KMeans
        As in `SweepResult.models`.
    classes : NumPy or dask array of shape (n,), non-negative integers, optional
        The true class of each tile, for purity, adjusted Rand index and normalized mutual
        information, which are left out, with a warning, where no two tiles share a class. Its
        chunks need not be those of X. Each class that occurs costs a column in the sums of
        every cluster.

    Returns
    -------
    dict of int to Quality
        By the keys of `models`.

    Raises
    ------
    FitError
        If there are no models or no tiles, the tiles are not of the models' shape, float tiles
        are too large to square, or classes are not as said above.
    ValueError
        If float tiles are not finite.
    TypeError
        If X is no array of numbers, or sparse.
    OverflowError
        If there are so many 16-bit pixels (2.1e9 and more) that sums would not be exact.

    References
    ----------
    The simplified silhouette: E. R. Hruschka, L. N. de Castro and R. J. G. B. Campello,
    Evolutionary algorithms for clustering gene-expression data, ICDM (2004); compared with
    others in L. Vendramin, R. J. G. B. Campello and E. R. Hruschka, Relative clustering
    validity criteria, Statistical Analysis and Data Mining 3 (2010). The sources of the others
    are in `daskkm.kmeans.metrics`; their conventions are scikit-learn's.

    Examples
    --------
    >>> import daskkm, numpy as np
    >>> tiles = np.array([[0], [2], [100], [102]], np.uint8)
    >>> models = daskkm.fit_sweep(tiles, [1, 2], n_init=2, random_state=0).models
    >>> found = assess(tiles, models, classes=[7, 7, 8, 8])
    >>> found[2].calinski_harabasz, found[2].davies_bouldin, found[2].purity
    (5000.0, 0.02, 1.0)
    >>> found[1].inertia, found[1].silhouette
    (10004.0, None)
    """
    return assess_counted(X, models, classes).qualities


def assess_counted(
    X: Any, models: Mapping[int, FittedModel], classes: Any, fitted: SweepResult | None = None
) -> Assessment:
    """Assess models as `assess` does, and count what is read.

    Parameters
    ----------
    X, models, classes
        As for `assess`.
    fitted : SweepResult, optional
        What fitted these models to these very tiles: its sums save the first of the passes.

    Returns
    -------
    Assessment

    Raises
    ------
    FitError, ValueError, TypeError, OverflowError
        As `assess`.
    """
    tiles = Reader(X)
    models = _checked(tiles.tiles, models)
    if not tiles.shape[0]:
        msg = "X has no tiles; give it some"
        raise FitError(msg)
    names, classes = _matched(classes, tiles.blocks)
    stack = np.concatenate([model.cluster_centers_ for model in models.values()])
    offsets = np.cumsum([0, *(len(m.cluster_centers_) for m in models.values())], dtype=np.intp)
    if fitted is None:
        statistics = tiles.measure(stack, offsets)
    else:
        statistics = np.concatenate([fitted.statistics[k] for k in models])

    sums = [_Sums(statistics[lo:hi], stack[lo:hi]) for lo, hi in pairwise(offsets)]
    # A cluster without tiles is no other cluster, and no tile's own.
    clusters = Clusters(
        np.concatenate([own.centroids[own.filled] for own in sums]),
        np.concatenate([own.means[own.filled] for own in sums]),
        np.cumsum([0, *(int(own.filled.sum()) for own in sums)], dtype=np.intp),
    )
    found = tiles.spread(clusters, classes, names)
    scales = metric_sums.fixed_point_scales(*tiles.shape, tiles.tiles.dtype)
    qualities = {
        k: own.quality(found[lo:hi, :2] / scales, found[lo:hi, 2], found[lo:hi, 3:].astype(int))
        for k, own, (lo, hi) in zip(models, sums, pairwise(clusters.offsets), strict=True)
    }
    return Assessment(qualities, tiles.passes, tiles.bytes_read)


@dataclass(frozen=True)
class _Sums:
    """What the first pass found of one model."""

    statistics: NDArray[Any]
    centroids: NDArray[np.float64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.asarray(self.statistics[:, -2], np.int64)

    @property
    def filled(self) -> NDArray[np.bool_]:
        return self.sizes > 0

    @property
    def means(self) -> NDArray[np.float64]:
        return lloyd.means(self.statistics)

    def quality(
        self, sums: NDArray[np.float64], squares: NDArray[Any], table: NDArray[np.int64]
    ) -> Quality:
        """Return the figures, given what the second pass summed of each cluster that has tiles."""
        sizes, filled = self.sizes, self.filled
        compared = metrics.are_comparable(sizes)
        spreads = sums[:, 0] / sizes[filled]
        classed = table.shape[1] > 0
        exact = self.statistics.dtype.kind == "i"
        part = self.statistics[filled], self.centroids[filled]
        within = float(sum(lloyd.scatter(*part) if exact else squares))
        return Quality(
            inertia=lloyd.inertia(self.statistics, self.centroids),
            sizes=sizes,
            calinski_harabasz=(
                metrics.calinski_harabasz(sizes[filled], self.means[filled], within)
                if compared
                else None
            ),
            davies_bouldin=(
                metrics.davies_bouldin(self.means[filled], spreads) if compared else None
            ),
            silhouette=float(sums[:, 1].sum() / sizes.sum()) if compared else None,
            purity=metrics.purity(table) if classed else None,
            adjusted_rand=metrics.adjusted_rand(table) if classed else None,
            normalized_mutual_info=metrics.normalized_mutual_info(table) if classed else None,
        )


def _checked(tiles: da.Array, models: Any) -> dict[int, FittedModel]:
    """Return the models, or what estimators among them have fitted, if they are of such tiles."""
    if not isinstance(models, Mapping) or not models:
        msg = f"models are {models!r}; give a mapping of each k to its model, at least one"
        raise ParameterError(msg)
    found = {k: fitted_model(model) for k, model in models.items()}
    for k, model in found.items():
        d = model.cluster_centers_.shape[1]
        if tiles.shape[1] != d:
            msg = (
                f"X has {tiles.shape[1]} features but the model of k = {k} was fitted on {d}; "
                "give it tiles of the same shape"
            )
            raise FitError(msg)
    return found


def _matched(classes: Any, tiles: da.Array) -> tuple[NDArray[Any], da.Array | None]:
    """Return the classes that occur, and those of the tiles in the tiles' chunks.

    None where no two tiles share a class: then each would cost a column of its own, for figures
    that depend on k alone.
    """
    if classes is None:
        return np.empty(0, int), None
    given = classes
    classes = inputs.column(classes, "classes")
    if not isinstance(classes, da.Array):
        classes = da.from_array(classes, chunks=-1)
    if classes.ndim == 1 and np.isnan(classes.shape[0]):
        classes = scheduler.compute_chunk_sizes(classes)
    n = tiles.shape[0]
    if classes.shape != (n,) or classes.dtype.kind not in "iu":
        msg = (
            f"classes are {classes.dtype} of shape {classes.shape} for {n} tiles; "
            "give each tile one integer"
        )
        raise FitError(msg)
    with sending(given):
        (classes,) = scheduler.persist(classes)  # sent once
    names = np.asarray(*scheduler.compute(da.unique(classes)))
    if names[0] < 0:
        msg = f"classes hold {names[0]}; number them from 0"
        raise FitError(msg)
    if len(names) == n > 1:
        _log.warning(
            "classes: each of %d tiles has its own. Purity, ARI and NMI would say nothing, and are "
            "left out.",
            n,
        )
        return np.empty(0, int), None
    return names, classes.rechunk((tiles.chunks[0],))
