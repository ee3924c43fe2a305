"""`KMeans`: scikit-learn's estimator for arrays that do not fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from daskkm.errors import FitError, ModelError, ParameterError
from daskkm.kernels.dtypes import SUPPORTED_DTYPES, check_finite
from daskkm.kmeans.model import FittedModel, load_saved
from daskkm.kmeans.options import FitOptions
from daskkm.kmeans.sweep import run_fit
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.passes import inputs, scheduler
from daskkm.passes.arrays import MappedFile
from daskkm.passes.runner import PassRunner
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.kmeans.pass_record import Pass
    from daskkm.parameters import RandomState
    from daskkm.storage.locations import LocationLike

_ALGORITHMS = ("lloyd", "elkan", "auto")


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means with scikit-learn's interface, for tiles in memory or larger than memory.

    X may be a NumPy array (a list, a data frame), a dask array or data frame, a Zarr array, an
    xarray.DataArray or a `TileStore`. Results for tiles in memory, or in a memory-mapped file, are
    NumPy arrays. Other tiles are read block by block, and their results are lazy dask arrays.
    Computations run on the active `distributed.Client`, or else on dask's default scheduler.

    For tiles of 8-bit and 16-bit integers, a `random_state` gives one result, to the last bit, for
    any chunks, workers and kind of array. Fractional weights are the exception. Other integers,
    booleans and float16 become float64, a block at a time.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters.
    init : {"k-means++", "k-means||", "random"}, callable or array of shape \
            (n_clusters, n_features), default "k-means++"
        Initial centroids; `fit_sweep` documents how often each method reads the tiles. A callable
        is called as ``init(X, n_clusters, random_state=RandomState)`` for each restart.
    n_init : "auto" or int, default "auto"
        Number of restarts; the result is the restart of least inertia. "auto" is 10 for "random"
        and for callables, else 1.
    max_iter : int, default 300
        Maximum number of iterations of a restart.
    tol : float, default 1e-4
        A restart has converged when the squared shifts of its centroids sum to no more than `tol`
        times the mean variance of the features.
    verbose : int or bool, default 0
        Print a line for each pass, with the inertia of the best restart.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Seed of all draws, or a generator that draws the seed. None stands for NumPy's global
        generator.
    copy_x : bool, default True
        Accepted for compatibility with scikit-learn. X is never changed.
    algorithm : {"lloyd", "elkan", "auto"}, default "lloyd"
        Accepted for compatibility with scikit-learn. The result is the same for each.
    coarse : bool, default True
        Fit restarts to a sample first, and only the best restart to all tiles, if initial centroids
        are drawn from more than 32,768 tiles: see `daskkm.fit_sweep`.
    cache : {"auto", "always", "never"}, default "auto"
        Whether tiles stay in the workers' memory between passes; "auto": if the tiles fit.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float64
        May be assigned, also before a fit: all methods then use the assigned centroids.
        `labels_`, `inertia_` and `n_iter_` stay those of the fit, and are not saved.
    labels_ : ndarray or lazy dask array of shape (n,), int32
        Cluster of each tile, counted from 0.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid, times their weights.
    n_iter_ : int
        Number of iterations of the best restart.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,), str
        Only if X had names.
    fitted_model : FittedModel
        Model that the methods use, with the number of tiles in each cluster.

    See Also
    --------
    daskkm.fit_sweep : Fit many k in shared passes.

    Notes
    -----
    Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982). ``tol``, ``n_iter_`` and the relocation of
    empty clusters are those of scikit-learn, with two exceptions. X is not centred first, and a fit
    does not end when labels repeat after a relocation.

    Centroids and distances are float64, also for float32 tiles: rounded centroids would not be
    consistent with labels and inertia. Lazy distances can be converted block by block:
    ``model.transform(X).astype("float32")``.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[0, 1], [0, 3], [9, 8], [9, 6]], np.uint8)
    >>> model = KMeans(n_clusters=2, random_state=0).fit(tiles)
    >>> sorted(model.cluster_centers_.tolist()), model.inertia_
    ([[0.0, 2.0], [9.0, 7.0]], 4.0)
    >>> model.labels_[0] == model.labels_[1] != model.labels_[2]
    np.True_

    Lazily, block by block:

    >>> import dask.array as da
    >>> lazy = KMeans(n_clusters=2, random_state=0).fit(da.from_array(tiles, chunks=(1, 2)))
    >>> lazy.predict(da.from_array(tiles, chunks=(1, 2)))
    dask.array<labels, shape=(4,), dtype=int32, chunksize=(1,), chunktype=numpy.ndarray>
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike | Callable[..., ArrayLike] = "k-means++",
        n_init: str | int = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int | bool = 0,
        random_state: RandomState = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        coarse: bool = True,
        cache: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.coarse = coarse
        self.cache = cache

    def fit(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> Self:
        """Fit the model to the tiles of X.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)
        y : ignored
            Accepted by convention.
        sample_weight : array-like or dask array of shape (n,), optional
            At least 0; 1 each by default. If all weights are whole numbers, a tile of weight w adds
            to sums exactly as w tiles do.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            If a parameter is of the wrong type or out of range: a ValueError and a TypeError.
        ValueError
            If there are fewer tiles than clusters, or if tiles or weights are NaN or infinite.
        TypeError
            If X is sparse, or not an array of numbers.
        OverflowError
            As `fit_sweep`.

        Warns
        -----
        ConvergenceWarning
            If fewer than `n_clusters` tiles differ.
        RuntimeWarning
            If initial centroids are an array and `n_init` is above 1, or `algorithm` is "elkan" for
            one cluster.
        """
        k = self._check_parameters()
        tiles = self._as_tiles(X, reset=True)
        random_state = check_random_state(None) if self.random_state is None else self.random_state
        options = FitOptions.validate(
            [k],
            n_init=self._restarts(),
            init=self.init,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=random_state,
            coarse=self.coarse,
            cache=self.cache,
        )
        on_pass = _Printer() if self.verbose else None
        self._set_model(run_fit(tiles, options, sample_weight, on_pass=on_pass).models[k])
        self.labels_ = self.fitted_model.predict(tiles)
        found = np.count_nonzero(self.fitted_model.counts_)
        if found < k:
            msg = (
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({k}). "
                "Possibly due to duplicate points in X."
            )
            warnings.warn(msg, ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, X: Any) -> Any:
        """Return the index of the nearest centroid of each tile, the lowest of equals.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n,), int32

        Raises
        ------
        ValueError, TypeError
            As `fit`; for tiles that are read lazily, when labels are computed.
        NotFittedError
            Before `fit`.
        """
        return self.fitted_model.predict(self._as_tiles(X, reset=False))

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each tile to each centroid.

        Parameters and errors are those of `predict`.

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n, n_clusters), float64
            Or a data frame in memory, by `set_output`. The index counts from 0 for a lazy data
            frame.
        """
        distances = self.fitted_model.transform(self._as_tiles(X, reset=False))
        is_framed = _get_output_config("transform", self)["dense"] != "default"
        if is_framed and inputs.is_lazy(distances):  # polars does not accept dask arrays
            (distances,) = scheduler.compute(distances)
        return distances

    def score(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> float:
        """Return minus the inertia of other tiles, in one pass over these tiles.

        Parameters are those of `fit`, errors those of `predict`.
        """
        centroids = self.cluster_centers_
        runner = PassRunner(self._as_tiles(X, reset=False), sample_weight)
        statistics = runner.measure(centroids, np.array([0, len(centroids)]))
        return -statistics.inertia(centroids)

    def save(self, path: LocationLike, *, storage_options: Mapping[str, Any] | None = None) -> None:
        """Write the fitted model to a Zarr group, which `load_model` reads to the last bit.

        Parameters and fitted attributes are saved, except `labels_`. Nothing is pickled. An older
        model at `path` is removed first; anything else is not replaced.

        Parameters
        ----------
        path : path-like, URL or zarr.abc.store.Store
        storage_options : mapping, optional
            For a URL, as for `open_store`.

        Raises
        ------
        ModelError
            If the model cannot be written, or something else is at `path`. If a parameter is a
            function or a generator, which only a pickle could hold.
        NotFittedError
            Before `fit`.
        """
        params = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        extra = {}
        if isinstance(params["init"], np.ndarray):
            extra["init"] = params.pop("init")
        for name, value in params.items():
            if not isinstance(value, (int, float, str, type(None))):
                msg = (
                    f"{path}: the model cannot be saved, because only a pickle could hold {name} "
                    f"({value!r}). Use set_params({name}=...) first"
                )
                raise ModelError(msg)
        names = getattr(self, "feature_names_in_", None)
        settings = {"params": params, "feature_names": None if names is None else list(names)}
        self.fitted_model.save(
            path, storage_options=storage_options, settings=settings, extra=extra
        )

    @property
    def fitted_model(self) -> FittedModel:
        """Model that the methods use; NotFittedError before a fit."""
        check_is_fitted(self)
        return self._fitted

    @property
    def cluster_centers_(self) -> NDArray[np.float64]:
        """Centroids that the methods use; NotFittedError before a fit."""
        return self.fitted_model.cluster_centers_

    @cluster_centers_.setter
    def cluster_centers_(self, centroids: ArrayLike) -> None:
        self._fitted = FittedModel.from_centroids(centroids)
        self._fitted.cluster_centers_.flags.writeable = False
        self.n_features_in_ = self._fitted.cluster_centers_.shape[1]
        if len(getattr(self, "feature_names_in_", ())) not in (0, self.n_features_in_):
            del self.feature_names_in_  # of other features

    def __sklearn_is_fitted__(self) -> bool:
        """Return True if the model was fitted or centroids were assigned."""
        return "_fitted" in vars(self)

    @property
    def _n_features_out(self) -> int:
        """Count the columns of `transform`, for `get_feature_names_out`."""
        return len(self.cluster_centers_)

    def _set_model(self, model: FittedModel) -> None:
        """Set the attributes of a fitted model."""
        self._fitted = model
        # Counts and inertia belong to these centroids: other centroids must be assigned.
        model.cluster_centers_.flags.writeable = False
        if model.dtype is not None:  # else the centroids were assigned
            self.inertia_ = model.inertia_
            self.n_iter_ = model.n_iter_

    def _as_tiles(self, X: Any, *, reset: bool) -> Tiles:
        """Return the tiles of X; set or compare the number and names of features."""
        array = inputs.recognize(X)
        if getattr(getattr(array, "dtype", None), "kind", "") == "c":
            msg = "Complex data not supported: X has complex numbers. Give real numbers."
            raise FitError(msg)
        if inputs.is_lazy(array) or MappedFile.of(array):  # scikit-learn's check reads all tiles
            tiles = Tiles.of(array)
            if tiles.array.shape[0] == 0:
                msg = (
                    f"Found array with 0 sample(s) (shape={tiles.array.shape}) while a minimum of "
                    f"1 is required by {type(self).__name__}."
                )
                raise FitError(msg)
            names = inputs.empty_frame(X)  # scikit-learn knows those of data frames
            known = tiles.array if names is None else names
            validate_data(self, known, reset=reset, skip_check_array=True)
            return tiles
        # Tiles converts other numbers to float64, block by block. scikit-learn converts lists and
        # data frames to the first of these dtypes, unless their dtype is among them.
        is_typed = isinstance(X, np.ndarray) and X.dtype.kind in "biufmM"
        dtypes = None if is_typed else [np.float64, *SUPPORTED_DTYPES]
        X = validate_data(self, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
        check_finite(X)  # for the same message as for lazy tiles
        return Tiles.of(X)

    def _check_parameters(self) -> int:
        """Return the number of clusters; check parameters that `FitOptions` does not check."""
        k = as_integer("n_clusters", self.n_clusters, 1)
        as_flag("copy_x", self.copy_x)
        as_choice("algorithm", self.algorithm, _ALGORITHMS)
        if not isinstance(self.verbose, bool):
            as_integer("verbose", self.verbose, 0)
        if isinstance(self.init, Mapping):
            msg = "init: a mapping is for fit_sweep only. Give an array"
            raise ParameterError(msg)
        if self.algorithm == "elkan" and k == 1:
            msg = (
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=3)
        return k

    def _restarts(self) -> int:
        """Return the number of restarts."""
        drawn = isinstance(self.init, str) or callable(self.init)
        if isinstance(self.n_init, str) and self.n_init == "auto":
            # isinstance first: comparing an array with a string gives an array.
            return 10 if drawn and self.init not in ("k-means++", "k-means||") else 1
        restarts = as_integer("n_init", self.n_init, 1)
        if not drawn and restarts != 1:
            msg = (
                "Explicit initial center position passed: performing only one init in "
                f"{type(self).__name__} instead of n_init={self.n_init}."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=3)
        return restarts


class _Printer:
    """Callback that prints a line for each pass of a fit of one k, in scikit-learn's words."""

    def __init__(self) -> None:
        self._converged: set[int] | None = None

    def __call__(self, done: Pass) -> None:
        """Print the lines of a pass."""
        for line in self._lines(done):
            print(line)  # noqa: T201 (`verbose` of scikit-learn prints)

    def _lines(self, done: Pass) -> Iterator[str]:
        if not done.reads_tiles:
            return
        if not done.steps:
            yield f"Initialization, pass {done.number}."
            return
        if self._converged is None:
            self._converged = set()
            yield "Initialization complete"
        steps = done.steps.values()
        iteration = max(step.iteration for step in steps) - 1
        inertia = min(step.inertia for step in steps)
        moving = sum(not step.last for step in steps)
        several = len(steps) > 1
        restarts = f", {moving} of {len(steps)} restarts moving" if several else ""
        yield f"Iteration {iteration}, inertia {inertia}{restarts}."
        for (_, restart), step in done.steps.items():
            if step.converged and restart not in self._converged:
                self._converged.add(restart)
                tolerance = f"center shift {step.shift} within tolerance"
                how = tolerance if step.shift else "strict convergence"
                which = f" (restart {restart})" if several else ""
                yield f"Converged at iteration {step.iteration - 1}{which}: {how}."


def load_model(path: LocationLike, *, storage_options: Mapping[str, Any] | None = None) -> KMeans:
    """Read a model that `KMeans.save`, `FittedModel.save` or a sweep saved, to the last bit.

    Parameters
    ----------
    path : path-like, URL or zarr.abc.store.Store
    storage_options : mapping, optional
        For a URL, as for `open_store`.

    Returns
    -------
    KMeans
        Fitted, without `labels_`. Parameters that `FittedModel.save` did not save are defaults.

    Raises
    ------
    ModelError
        If the saved model is missing, damaged, something else, or of another format.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> tiles = np.array([[0, 1], [0, 3], [9, 8], [9, 6]], np.uint8)
    >>> model = KMeans(n_clusters=2, random_state=0).fit(tiles)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(pathlib.Path(folder) / "model.zarr")
    ...     again = load_model(pathlib.Path(folder) / "model.zarr")
    >>> np.array_equal(again.predict(tiles), model.labels_)
    True
    """
    saved = load_saved(path, storage_options)
    k, d = saved.model.cluster_centers_.shape
    params = saved.settings.get("params", {"n_clusters": k})
    try:
        model = KMeans(**{**params, **saved.extra})
    except TypeError as error:
        msg = f"{path}: unknown KMeans parameters in saved model ({error}). Fit the model again"
        raise ModelError(msg) from error
    model._set_model(saved.model)
    model.n_features_in_ = d
    if names := saved.settings.get("feature_names"):
        model.feature_names_in_ = np.array(names, object)
    return model


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and a list of centroids as an array."""
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str) or not np.iterable(value) else np.asarray(value)
