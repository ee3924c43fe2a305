"""`KMeans`: scikit-learn's estimator, on arrays that do not fit in memory."""

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
from daskkm.kernels.dtypes import SUPPORTED_DTYPES, check_dtype, check_finite
from daskkm.kmeans.model import FittedModel, load_saved
from daskkm.kmeans.options import FitOptions
from daskkm.kmeans.sweep import run_fit
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.passes import inputs, scheduler
from daskkm.passes.arrays import MappedFile
from daskkm.passes.runner import PassRunner
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.kmeans.pass_record import Pass
    from daskkm.parameters import RandomState

_ALGORITHMS = ("lloyd", "elkan", "auto")


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means with scikit-learn's interface, for tiles in memory or far beyond it.

    X may be a NumPy array (a list, a data frame), a dask array or data frame, a Zarr array, an
    xarray.DataArray or a `TileStore`. Results for tiles in memory, or in a memory-mapped file, are
    NumPy arrays. Other tiles are read block by block, and their results are lazy dask arrays. The
    active `distributed.Client` does the work if there is one, else dask's default scheduler.

    For tiles of 8-bit and 16-bit integers, a `random_state` gives one result, to the last bit,
    whatever the chunks, workers and kind of array. Weights must be whole numbers for that. Other
    integers, booleans and float16 become float64, a block at a time.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters.
    init : {"k-means++", "k-means||", "random"}, callable or array of shape \
            (n_clusters, n_features), default "k-means++"
        Initial centroids; `fit_sweep` documents how often each method reads the tiles. A callable
        is called as ``init(X, n_clusters, random_state=RandomState)`` for each restart.
    n_init : "auto" or int, default "auto"
        Restarts; the restart of least inertia is kept. "auto" is 10 for "random" and for callables,
        else 1.
    max_iter : int, default 300
        Maximum number of iterations of a restart.
    tol : float, default 1e-4
        A restart has converged when the squared shifts of its centroids sum to no more than `tol`
        times the mean variance of the features.
    verbose : int or bool, default 0
        Print a line a pass, in scikit-learn's words, with the inertia of the best restart.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Seed of all draws, or a generator that draws one. None draws a seed from NumPy's global
        state.
    copy_x : bool, default True
        Accepted for compatibility with scikit-learn. X is never changed.
    algorithm : {"lloyd", "elkan", "auto"}, default "lloyd"
        Accepted for compatibility with scikit-learn. All are exact and give the same result.
    coarse : bool, default True
        Fit restarts to a sample first, and only the best to all tiles, if initial centroids are
        drawn from more than 32,768 tiles: see `daskkm.fit_sweep`.
    cache : {"auto", "always", "never"}, default "auto"
        Whether tiles stay in the workers' memory between passes; "auto": if they fit.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float64
        May be assigned, also before a fit: all methods then use the assigned centroids.
        `labels_`, `inertia_` and `n_iter_` stay those of the fit; `save` leaves them out.
    labels_ : ndarray or lazy dask array of shape (n,), int32
        Cluster of each tile, counted from 0.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid, times their weights.
    n_iter_ : int
        Iterations of the restart that was kept.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,), str
        Only if X had names.
    fitted_model : FittedModel
        Model that the methods use, as a sweep returns it, with the tiles in each cluster.

    See Also
    --------
    daskkm.fit_sweep : Many k at once, for the reads of the slowest.

    Notes
    -----
    Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982). ``tol``, ``n_iter_`` and the relocation of
    empty clusters are those of scikit-learn, with two exceptions. X is not centred first, and a fit
    does not end when labels repeat after a relocation.

    float32 tiles are read as they are. Centroids and distances are float64, not float32 as in
    scikit-learn: rounded centroids would not be consistent with labels and inertia. So
    `transform` takes 8 n_clusters bytes a tile, twice as many. Lazy input can be converted block by
    block: ``model.transform(X).astype("float32")``.

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
            At least 0; 1 each by default. If all are whole numbers, a tile of weight w adds to sums
            exactly as w tiles do.

        Returns
        -------
        self

        Raises
        ------
        ParameterError
            If a parameter is of the wrong type or out of range: a ValueError and a TypeError.
        ValueError
            If there are fewer tiles than clusters, or tiles or weights are NaN or infinite.
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
        options = FitOptions.validate(
            [k],
            n_init=self._restarts(),
            init=self.init,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self._random_state(),
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
        """Return the cluster of each tile: that of the nearest centroid, the first of equals.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n,), int32

        Raises
        ------
        ValueError, TypeError
            As `fit`; of tiles that are read lazily, when it is computed.
        NotFittedError
            Before `fit`.
        """
        return self.fitted_model.predict(self._as_tiles(X, reset=False))

    def fit_predict(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> Any:
        """Fit the model, and return `labels_`. Parameters and errors are those of `fit`.

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n,), int32
        """
        return self.fit(X, sample_weight=sample_weight).labels_

    def fit_transform(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> Any:
        """Fit the model, and `transform`. Parameters and errors are those of `fit`.

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n, n_clusters), float64
        """
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each tile to each centroid.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)

        Returns
        -------
        ndarray, or lazy dask array where X is not in memory, of shape (n, n_clusters), float64
            Or a data frame, as set by `set_output`: always in memory. For a lazy data frame its
            index counts from 0.

        Raises
        ------
        ValueError, TypeError, NotFittedError
            As `predict`.
        """
        distances = self.fitted_model.transform(self._as_tiles(X, reset=False))
        # Not every library of data frames takes a dask array.
        if (
            inputs.is_lazy(distances)
            and _get_output_config("transform", self)["dense"] != "default"
        ):
            (distances,) = scheduler.compute(distances)
        return distances

    def score(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> float:
        """Return minus the inertia of other tiles, in one pass over them.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)
        y : ignored
            Accepted by convention.
        sample_weight : array-like or dask array of shape (n,), optional

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError, NotFittedError
            As `predict`.
        """
        centroids = self.cluster_centers_
        runner = PassRunner(self._as_tiles(X, reset=False), sample_weight)
        statistics = runner.measure(centroids, np.array([0, len(centroids)]))
        return -statistics.inertia(centroids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a Zarr group, which `load_model` reads to the last bit.

        Parameters and fitted attributes are saved, except `labels_`. Nothing is pickled. A saved
        model at `path` is replaced when the new one is complete; anything else is not replaced. If
        `cluster_centers_` was assigned, counts, inertia and iterations are left out.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        ModelError
            If the model cannot be written, something else is at `path`, or a parameter is a
            function or a generator, which only a pickle could hold.
        NotFittedError
            Before `fit`.
        """
        fitted = self.fitted_model
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
        fitted.save(path, settings=settings, extra=extra)

    @property
    def fitted_model(self) -> FittedModel:
        """Model that the methods use; NotFittedError before there is one."""
        check_is_fitted(self)
        return self._fitted

    @property
    def cluster_centers_(self) -> NDArray[np.float64]:
        """Centroids that the methods use; NotFittedError before there are any."""
        return self.fitted_model.cluster_centers_

    @cluster_centers_.setter
    def cluster_centers_(self, centroids: ArrayLike) -> None:
        self._fitted = FittedModel.from_centroids(centroids)
        self._fitted.cluster_centers_.flags.writeable = False
        self.n_features_in_ = self._fitted.cluster_centers_.shape[1]
        if len(getattr(self, "feature_names_in_", ())) not in (0, self.n_features_in_):
            del self.feature_names_in_  # of other features

    def __sklearn_is_fitted__(self) -> bool:
        """Return True after a fit, or after centroids were assigned."""
        return "_fitted" in vars(self)

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`, for `get_feature_names_out`."""
        return len(self.cluster_centers_)

    def _set_model(self, model: FittedModel) -> None:
        """Keep a fitted model, under scikit-learn's names."""
        self._fitted = model
        # Counts and inertia belong to these centroids: other centroids must be assigned.
        model.cluster_centers_.flags.writeable = False
        if model.dtype is not None:  # else the centroids were assigned
            self.inertia_ = model.inertia_
            self.n_iter_ = model.n_iter_

    def _as_tiles(self, X: Any, *, reset: bool) -> Tiles:
        """Return the tiles of X; keep or compare the number and names of features."""
        array = inputs.recognize(X)
        _check_numbers(array)
        if inputs.is_lazy(array) or MappedFile.of(array):  # scikit-learn's check would read all
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
        if isinstance(X, np.ndarray) and not X.dtype.isnative:
            X = X.astype(X.dtype.newbyteorder("="))
        # Other numbers become float64 as they are read. An object that is not an array yet becomes
        # one of the first of these dtypes, if it has another.
        is_numeric = isinstance(X, np.ndarray) and X.dtype.kind in "biuf"
        dtypes = None if is_numeric else [np.float64, *SUPPORTED_DTYPES]
        X = validate_data(self, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
        check_finite(X)  # with the message of lazy tiles
        return Tiles.of(X)

    def _check_parameters(self) -> int:
        """Return the number of clusters; raise ParameterError for a parameter that does not fit.

        `FitOptions` validates the others.
        """
        k = as_integer("n_clusters", self.n_clusters, 1)
        as_flag("copy_x", self.copy_x)
        as_choice("algorithm", self.algorithm, _ALGORITHMS)
        if not isinstance(self.verbose, bool):
            as_integer("verbose", self.verbose, 0)
        if isinstance(self.init, Mapping):
            msg = "init is a mapping, for fit_sweep only. Give an array"
            raise ParameterError(msg)
        if self.algorithm == "elkan" and k == 1:
            msg = (
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead."
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=3)
        return k

    def _restarts(self) -> int:
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

    def _random_state(self) -> RandomState:
        """Return the random state; NumPy's global state for None."""
        if self.random_state is None:
            return check_random_state(None)  # type: ignore[no-any-return]
        return self.random_state


def _check_numbers(X: Any) -> None:
    """Raise FitError for complex numbers, DtypeError for times."""
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype):
        return
    if dtype.kind == "c":
        msg = "Complex data not supported: X has complex numbers. Give real numbers."
        raise FitError(msg)
    if dtype.kind in "mM":
        check_dtype(dtype)


class _Printer:
    """Prints a line for each pass of a fit of one k, in scikit-learn's words."""

    def __init__(self) -> None:
        self._converged: set[int] = set()
        self._initialized = False

    def __call__(self, done: Pass) -> None:
        for line in self._lines(done):
            print(line)  # noqa: T201 (where users of scikit-learn's `verbose` look)

    def _lines(self, done: Pass) -> list[str]:
        if not done.reads_tiles:
            return []
        if not done.steps:
            return [f"Initialization, pass {done.number}."]
        lines = [] if self._initialized else ["Initialization complete"]
        self._initialized = True
        steps = {restart: step for (_, restart), step in done.steps.items()}
        moving = sum(not step.last for step in steps.values())
        several = len(steps) > 1
        of = f" (best of {len(steps)} restarts, {moving} not done)" if several else ""
        iteration = max(step.iteration for step in steps.values()) - 1
        inertia = min(step.inertia for step in steps.values())
        lines.append(f"Iteration {iteration}, inertia {inertia}{of}.")
        for restart, step in steps.items():
            if step.converged and restart not in self._converged:
                self._converged.add(restart)
                how = (
                    f"center shift {step.shift} within tolerance"
                    if step.shift
                    else "strict convergence"
                )
                which = f" (restart {restart})" if several else ""
                lines.append(f"Converged at iteration {step.iteration - 1}{which}: {how}.")
        return lines


def load_model(path: str | os.PathLike[str]) -> KMeans:
    """Read a saved model of `KMeans.save`, `FittedModel.save` or a sweep, to the last bit.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    KMeans
        Fitted, without `labels_`. Parameters that `FittedModel.save` did not save are defaults.

    Raises
    ------
    ModelError
        If there is none, it is not a saved model or of another format, or it is damaged.

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
    saved = load_saved(path)
    k, d = saved.model.cluster_centers_.shape
    params = saved.settings.get("params", {"n_clusters": k})
    names = saved.settings.get("feature_names")
    try:
        model = KMeans(**{**params, **saved.extra})
        fits = len(names or range(d)) == d
    except TypeError as error:
        msg = f"{path}: unknown KMeans parameters in saved model ({error}). Fit the model again"
        raise ModelError(msg) from error
    if not fits:
        msg = f"{path}: the saved model has not {d} feature names. Fit the model again"
        raise ModelError(msg)
    model._set_model(saved.model)
    model.n_features_in_ = d
    if names:
        model.feature_names_in_ = np.array(names, object)
    return model


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and a list of centroids as an array."""
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str) or not np.iterable(value) else np.asarray(value)
