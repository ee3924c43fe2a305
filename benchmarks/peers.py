"""The peers, each in its fastest exact setting, behind one interface.

What is ready beforehand (float32 in memory) is not timed; conversions that a peer makes at every
iteration are.
"""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.cluster._k_means_lloyd import lloyd_iter_chunked_dense
from threadpoolctl import ThreadpoolController

from benchmarks.schedulers import native
from benchmarks.timing import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from benchmarks.timing import Work

    Starts = Mapping[int, NDArray[np.float64]]


def missing(*modules: str) -> list[str]:
    """Return a line for each peer that is not installed."""
    return [f"{name} is not installed" for name in modules if find_spec(name) is None]


def sklearn_iterations(
    X: NDArray[np.float32], starts: Sequence[NDArray[np.float64]], threads: int
) -> Work:
    """Return one of scikit-learn's Lloyd iterations from each start.

    BLAS is to have one thread, as within scikit-learn's own.
    """
    narrow = [start.astype(np.float32) for start in starts]

    def work() -> Outcome:
        return Outcome([_sklearn_iteration(X, start, threads) for start in narrow])

    return work


def _sklearn_iteration(
    X: NDArray[np.float32], centroids: NDArray[np.float32], threads: int
) -> NDArray[np.float32]:
    k = len(centroids)
    new, weights, shift = np.zeros_like(centroids), np.zeros(k, np.float32), np.zeros(k, np.float32)
    ones, labels = np.ones(len(X), np.float32), np.zeros(len(X), np.int32)
    lloyd_iter_chunked_dense(X, ones, centroids, new, weights, labels, shift, threads)
    return new


def sklearn_fit(
    X: NDArray[np.float32],
    start: NDArray[np.float64],
    algorithm: str,
    threads: int,
    **stop: Any,
) -> Work:
    """Return a whole fit by scikit-learn: its tol means what daskkm's means."""
    model = KMeans(len(start), init=start.astype(np.float32), n_init=1, algorithm=algorithm, **stop)

    def work() -> Outcome:
        with native(threads):
            model.fit(X)
        return Outcome([model.cluster_centers_], {"iterations": int(model.n_iter_)})

    return work


def minibatch_sweep(X: da.Array, starts: Starts, threads: int) -> Work:
    """Return one read of the tiles by scikit-learn's mini-batches, block by block, for every k."""

    def work() -> Outcome:
        models = [
            MiniBatchKMeans(len(start), init=start.astype(np.float32), n_init=1, random_state=0)
            for start in starts.values()
        ]
        with native(threads):
            for block in X.blocks:
                rows = block.compute().astype(np.float32)
                for model in models:
                    model.partial_fit(rows)
        return Outcome([model.cluster_centers_ for model in models], {"passes": 1})

    return work


def faiss_iteration(X: NDArray[np.float32], start: NDArray[np.float64], threads: int) -> Work:
    """Return one iteration by faiss, assignment and update, with every tile and no checks."""
    import faiss

    narrow = np.ascontiguousarray(start, np.float32)
    settings = {
        "niter": 1,
        # Else it fits a sample of 256 tiles a centroid.
        "max_points_per_centroid": len(X),
        "min_points_per_centroid": 1,  # and warns below 39
        "check_input_data_for_NaNs": False,
    }

    loaded = ThreadpoolController()  # finding libraries takes milliseconds

    def work() -> Outcome:
        # BLAS does its products, its own OpenMP the rest.
        faiss.omp_set_num_threads(threads)
        with loaded.limit(limits=threads):
            kmeans = faiss.Kmeans(X.shape[1], len(narrow), **settings)
            kmeans.train(X, init_centroids=narrow)
        return Outcome([kmeans.centroids])

    return work


def dask_ml_iteration(X: da.Array, start: NDArray[np.float64]) -> Work:
    """Return one of dask-ml's Lloyd iterations.

    In float32 both, which is the fastest of what it takes: beside float64 centroids
    scikit-learn, which measures its distances, would widen every block to float64.
    """
    from dask_ml.cluster.k_means import _kmeans_single_lloyd

    wide, narrow = X.astype(np.float32), start.astype(np.float32)

    def work() -> Outcome:
        # The labels that it returns are lazy: they cost nothing.
        _, _, centroids, _ = _kmeans_single_lloyd(
            wide, len(narrow), max_iter=1, init=narrow, tol=0.0
        )
        return Outcome([centroids])

    return work


def dask_ml_sweep(
    X: da.Array, starts: Starts, *, max_iter: int, tol: float, limit: float = np.inf
) -> Work:
    """Return dask-ml's fits of every k, one after another; after so many seconds no other begins.

    Its `tol` is the sum of the squared shifts itself, not relative to the variance: whoever calls
    multiplies. It takes uint8 too, but would return centroids cut to whole numbers.
    """
    from dask_ml.cluster import KMeans as DaskKMeans

    wide = X.astype(np.float32)

    def work() -> Outcome:
        started, ends = time.perf_counter(), [0.0]
        fits: list[Any] = []
        for k, start in starts.items():
            if fits and time.perf_counter() - started > limit:
                break
            with _Counting(f"dask-ml, k = {k}"):
                model = DaskKMeans(k, init=start.astype(np.float32), tol=tol, max_iter=max_iter)
                fits.append(model.fit(wide))
            ends.append(time.perf_counter() - started)
        said = {
            "k": list(starts)[: len(fits)],
            "iterations": [fit.n_iter_ for fit in fits],
            "seconds": np.diff(ends).tolist(),
        }
        return Outcome([fit.cluster_centers_ for fit in fits], said)

    return work


class _Counting(logging.Handler):
    """Says how far dask-ml's slow fits have come, from what it logs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._count, self._last = name, 0, time.perf_counter()
        self._logger = logging.getLogger("dask_ml.cluster.k_means")

    def emit(self, record: logging.LogRecord) -> None:
        """Count an iteration, and say so every half minute."""
        self._count += record.getMessage().startswith("Shift")
        if time.perf_counter() - self._last > 30:
            self._last = time.perf_counter()
            print(f"  {self._name}: iteration {self._count}", flush=True)

    def __enter__(self) -> None:
        self._level, self._up = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self._logger.propagate = self._up
