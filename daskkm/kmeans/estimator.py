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
from daskkm.kmeans import lloyd
from daskkm.kmeans.model import FittedModel, load_saved
from daskkm.kmeans.sweep import iter_passes
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.passes import arrays, inputs, scheduler
from daskkm.passes.reader import Reader, made_all
from daskkm.passes.tiles import as_tiles

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator

    import dask.array as da
    from numpy.typing import ArrayLike, NDArray

    from daskkm.kmeans.sweep import SweepResult
    from daskkm.parameters import RandomState
    from daskkm.passes.reader import Pass

_ALGORITHMS = ("lloyd", "elkan", "auto")


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """k-means with scikit-learn's interface, for tiles in memory or far beyond it.

    X may be a NumPy array (or what makes one: a list, a data frame), a dask array or data frame, a
    Zarr array, an xarray.DataArray or a `TileStore`. What is in memory, or mapped into it from a
    file, is answered in memory; all else is read block by block, and answered with lazy dask
    arrays. Work is done by the active `distributed.Client` if there is one, else by dask's default
    scheduler.

    For uint8, int8, uint16 and int16 tiles, without weights or with whole ones, a
    `random_state` stands for one result, to the last bit, whatever the chunks, workers and kind
    of array. Other integers, booleans and float16 are converted to float64, a block at a time.

    Parameters
    ----------
    n_clusters : int, default 8
        Clusters, and centroids.
    init : {"k-means++", "k-means||", "random"}, callable or array of shape \
            (n_clusters, n_features), default "k-means++"
        Where to start; how often each reads the tiles is said at `fit_sweep`. A callable is
        called as ``init(X, n_clusters, random_state=RandomState)`` for each restart.
    n_init : "auto" or int, default "auto"
        Restarts, of which the one of least inertia is kept. "auto" is 10 for "random" and for
        callables, else 1.
    max_iter : int, default 300
        Most iterations of a restart.
    tol : float, default 1e-4
        A restart has converged when the squared shifts of its centroids sum to no more than
        this times the mean variance of the features.
    verbose : int or bool, default 0
        Whether to print a line a pass over the tiles, in scikit-learn's words, with the inertia
        of the best restart.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Seed of all draws, or what draws one; None takes one from NumPy's global state.
    copy_x : bool, default True
        Here for scikit-learn's sake: X is never changed, whether or not.
    algorithm : {"lloyd", "elkan", "auto"}, default "lloyd"
        Here for scikit-learn's sake: all are exact, so the result is the same. Which distances
        can be left out is for daskkm to find (`cache`).
    coarse : bool, default True
        Whether restarts with drawn starts are fitted to a sample first, where there are more
        than 32,768 tiles, and only the best to all: see `daskkm.fit_sweep`.
    cache : {"auto", "always", "never"}, default "auto"
        Whether tiles stay in the workers' memory between passes; "auto": if they fit.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float64
        May be assigned, also before a fit: all methods then answer by what was assigned.
        `labels_`, `inertia_` and `n_iter_` stay those of the fit; `save` leaves them out.
    labels_ : ndarray or lazy dask array of shape (n,), int32
        The cluster of each tile, counted from 0.
    inertia_ : float
        Sum of squared distances of the tiles to their centroid, times their weights.
    n_iter_ : int
        Iterations of the restart that was kept.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,), str
        Only where X had names.
    fitted_model : FittedModel
        What the methods answer by, as a sweep returns it, with the tiles in each cluster.

    See Also
    --------
    daskkm.fit_sweep : many k at once, for the price of the slowest in reads.

    Notes
    -----
    Lloyd's algorithm (IEEE Trans. Inf. Theory 28, 1982). ``tol``, ``n_iter_`` and what becomes
    of empty clusters are as in scikit-learn, except that X is not centred first and labels that
    repeat after a relocation do not end a fit. Inertia, centroids and labels belong together.

    float32 tiles are read as they are, but centroids and distances are float64, where
    scikit-learn's are float32: labels, inertia and centroids would not belong together if
    centroids were rounded. So `transform` takes 8 n_clusters bytes a tile, twice as many; where
    that counts, take ``model.transform(X).astype("float32")`` of lazy input, block by block.

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
        """Find the centroids.

        Parameters
        ----------
        X : array-like, dask array, Zarr array or TileStore of shape (n, n_features)
        y : ignored
            Here by convention.
        sample_weight : array-like or dask array of shape (n,), optional
            Not negative; 1 each if not given. Where all are whole numbers, a tile of weight w
            adds to sums exactly what w tiles do.

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
            If X is sparse, or no array of numbers.
        OverflowError
            As `fit_sweep`.

        Warns
        -----
        ConvergenceWarning
            If fewer than `n_clusters` tiles differ.
        RuntimeWarning
            If there is one start, an array, and `n_init` asks for more, or `algorithm` is
            "elkan" for one cluster.
        """
        k = self._checked_parameters()
        X = self._validated(X, reset=True)
        passes = iter_passes(
            X,
            [k],
            n_init=self._restarts(),
            init=self.init,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self._random_state(),
            sample_weight=sample_weight,
            coarse=self.coarse,
            cache=self.cache,
        )
        self._show(made_all(_printed(passes) if self.verbose else passes).models[k])
        self.labels_ = self.fitted_model.predict(X)
        found = np.count_nonzero(self.fitted_model.counts_)
        if found < k:
            msg = (
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({k}). "
                "Possibly due to duplicate points in X."
            )
            warnings.warn(msg, ConvergenceWarning, stacklevel=2)
        return self

    def predict(self, X: Any) -> Any:
        """Return the cluster of each tile: of the nearest centroid, the first of equals.

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
        return self.fitted_model.predict(self._validated(X, reset=False))

    def fit_predict(
        self,
        X: Any,
        y: Any = None,  # noqa: ARG002
        sample_weight: ArrayLike | da.Array | None = None,
    ) -> Any:
        """Find the centroids and return `labels_`. Parameters and errors are those of `fit`.

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
        """Find the centroids and `transform`. Parameters and errors are those of `fit`.

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
            Or the data frame that `set_output` asks for, which is in memory whatever X was; of a
            lazy data frame its index is a new one, from 0.

        Raises
        ------
        ValueError, TypeError, NotFittedError
            As `predict`.
        """
        distances = self.fitted_model.transform(self._validated(X, reset=False))
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
            Here by convention.
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
        tiles = Reader(self._validated(X, reset=False), sample_weight)
        statistics = tiles.measure(centroids, np.array([0, len(centroids)]))
        return -lloyd.inertia(statistics, centroids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a Zarr group, from which `load_model` reads the very same.

        Parameters and all that was fitted are kept, but for `labels_`, which `predict` gives
        again. Nothing is pickled. A saved model that was there is replaced when this one is
        complete, anything else never. Where `cluster_centers_` was assigned, these are saved, and
        the tiles in each cluster, inertia and iterations are not: they are those of other
        centroids.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        ModelError
            If it cannot be written, something else is there, or a parameter is a function or a
            RandomState, which only a pickle could hold.
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
                    f"{path}: the model is not saved, because {name} is {value!r}, "
                    f"which only a pickle could hold; set_params({name}=...) first"
                )
                raise ModelError(msg)
        names = getattr(self, "feature_names_in_", None)
        settings = {"params": params, "feature_names": None if names is None else list(names)}
        fitted.save(path, settings=settings, extra=extra)

    @property
    def fitted_model(self) -> FittedModel:
        """Model that the methods answer by; NotFittedError before there is one."""
        check_is_fitted(self)
        return self._fitted

    @property
    def cluster_centers_(self) -> NDArray[np.float64]:
        """Centroids that the methods answer by; NotFittedError before there are any."""
        return self.fitted_model.cluster_centers_

    @cluster_centers_.setter
    def cluster_centers_(self, centroids: ArrayLike) -> None:
        self._fitted = FittedModel.from_centroids(centroids)
        self._fitted.cluster_centers_.flags.writeable = False
        self.n_features_in_ = self._fitted.cluster_centers_.shape[1]
        if len(getattr(self, "feature_names_in_", ())) not in (0, self.n_features_in_):
            del self.feature_names_in_  # they were of other features

    def __sklearn_is_fitted__(self) -> bool:
        """Return True after a fit, and once centroids were assigned."""
        return "_fitted" in vars(self)

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`, for `get_feature_names_out`."""
        return len(self.cluster_centers_)

    def _show(self, model: FittedModel) -> None:
        """Show what was fitted under scikit-learn's names."""
        self._fitted = model
        # Counts and inertia are of these centroids: others are assigned, not written into them.
        model.cluster_centers_.flags.writeable = False
        if model.dtype is not None:  # else they were assigned, and fitted to no tiles
            self.inertia_ = model.inertia_
            self.n_iter_ = model.n_iter_

    def _validated(self, X: Any, *, reset: bool) -> Any:
        """Return X, recognized or as an array; keep or compare what is known of features."""
        found = inputs.recognize(X)
        _check_numbers(found)
        if inputs.is_lazy(found) or arrays.MappedFile.of(found):  # a check would read all of it
            tiles = as_tiles(found)
            if tiles.shape[0] == 0:
                msg = (
                    f"Found array with 0 sample(s) (shape={tiles.shape}) while a minimum of 1 is "
                    f"required by {type(self).__name__}."
                )
                raise FitError(msg)
            names = inputs.columns(X)  # of which scikit-learn knows those of data frames
            validate_data(
                self, tiles if names is None else names, reset=reset, skip_check_array=True
            )
            return found
        if isinstance(X, np.ndarray) and not X.dtype.isnative:
            X = X.astype(X.dtype.newbyteorder("="))
        # Other numbers become float64 as they are read. Of what is no array yet, the first dtype
        # is what others become.
        is_numeric = isinstance(X, np.ndarray) and X.dtype.kind in "biuf"
        dtypes = None if is_numeric else [np.float64, *SUPPORTED_DTYPES]
        X = validate_data(self, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
        check_finite(X)  # in the words that are used of lazy tiles
        return X

    def _checked_parameters(self) -> int:
        """Return the number of clusters; raise ParameterError if a parameter of ours is wrong.

        Those of `fit_sweep` are checked there.
        """
        k = as_integer("n_clusters", self.n_clusters, 1)
        as_flag("copy_x", self.copy_x)
        as_choice("algorithm", self.algorithm, _ALGORITHMS)
        if not isinstance(self.verbose, bool):
            as_integer("verbose", self.verbose, 0)
        if isinstance(self.init, Mapping):
            msg = "init is a mapping, which is for a sweep of many k; give an array"
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
            # An array is compared with no string: that gives an array.
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
        """Return the random state, or NumPy's global one, which None stands for."""
        if self.random_state is None:
            return check_random_state(None)  # type: ignore[no-any-return]
        return self.random_state


def _check_numbers(X: Any) -> None:
    """Raise an error for complex numbers and times, which scikit-learn would treat otherwise.

    Raises
    ------
    FitError
        For complex numbers.
    DtypeError
        For times.
    """
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype):
        return
    if dtype.kind == "c":
        msg = "Complex data not supported: X has complex numbers. Give real numbers."
        raise FitError(msg)
    if dtype.kind in "mM":
        check_dtype(dtype)


def _printed(
    passes: Generator[Pass, None, SweepResult],
) -> Generator[Pass, None, SweepResult]:
    """Print a line for each pass of one k, in scikit-learn's words; return their result."""
    converged: set[int] = set()
    before = 0
    while True:
        try:
            done = next(passes)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        for line in _lines(done, converged, first=not before):
            print(line)  # noqa: T201 (what verbose asks for, where scikit-learn's users look)
        before = len(done.steps)
        yield done


def _lines(done: Pass, converged: set[int], *, first: bool) -> list[str]:
    """Return what is to be printed of a pass, and add the restarts that converged in it."""
    if not done.reads_tiles:
        return []
    if not done.steps:
        return [f"Initialization, pass {done.number}."]
    steps = {restart: step for (_, restart), step in done.steps.items()}
    moving = sum(not step.last for step in steps.values())
    of = f" (best of {len(steps)} restarts, {moving} not done)" if len(steps) > 1 else ""
    iteration = max(step.iteration for step in steps.values()) - 1
    lines = ["Initialization complete"] if first else []
    lines.append(f"Iteration {iteration}, inertia {min(s.inertia for s in steps.values())}{of}.")
    for restart, step in steps.items():
        if step.converged and restart not in converged:
            converged.add(restart)
            how = (
                f"center shift {step.shift} within tolerance"
                if step.shift
                else "strict convergence"
            )
            which = f" (restart {restart})" if len(steps) > 1 else ""
            lines.append(f"Converged at iteration {step.iteration - 1}{which}: {how}.")
    return lines


def load_model(path: str | os.PathLike[str]) -> KMeans:
    """Read a model that `KMeans.save`, `FittedModel.save` or a sweep wrote, to the last bit.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    KMeans
        Fitted; without `labels_`, which `predict` gives again. Parameters that were not saved,
        by `FittedModel.save`, are the defaults.

    Raises
    ------
    ModelError
        If there is none, what is there is something else or of another format, or it is damaged.

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
        msg = f"{path}: the saved model's parameters are none of KMeans ({error}); fit it again"
        raise ModelError(msg) from error
    if not fits:
        msg = f"{path}: the saved model's feature names are not {d}, one a feature; fit it again"
        raise ModelError(msg)
    model._show(saved.model)
    model.n_features_in_ = d
    if names:
        model.feature_names_in_ = np.array(names, object)
    return model


def _plain(value: Any) -> Any:
    """Return a number of NumPy's as Python's, and a list of starting centroids as an array."""
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str) or not np.iterable(value) else np.asarray(value)
