"""Run the tests of the installed scikit-learn's KMeans on daskkm's."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sklearn.cluster
from scipy import sparse

from daskkm import KMeans

if TYPE_CHECKING:
    from types import ModuleType

SUITE = "sklearn.cluster.tests.test_k_means"

# Tests of other functions and classes.
NOT_OURS = (
    "minibatch",  # mini-batches
    "kmeans_plusplus",  # scikit-learn's functions, public and private
    "k_means_function",
    "test_relocate_empty_clusters",
    "test_euclidean_distance",
    "test_inertia",
    "test_is_same_clustering",
    # Tests of private attributes: _init_centroids, _n_init.
    "test_sample_weight_init",
    "test_sample_weight_zero",
    "test_n_init_auto",
    "test_kmeans_init_auto",
    # Sparse tiles only.
    "dense_sparse",
    # Centroids of float32 tiles are float64: see `KMeans`.
    "test_float_precision",
)


def load_suite() -> ModuleType:
    """Return scikit-learn's module of tests with our KMeans in place of its own."""
    spec = importlib.util.find_spec(SUITE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.cluster, "KMeans", KMeans)
        spec.loader.exec_module(module)
    return module


def is_ours(value: Any) -> bool:
    """Return True if an argument of a test is neither sparse nor of mini-batches."""
    values = value if isinstance(value, tuple) else [value]
    of_others = (sparse.csr_matrix, sparse.csr_array, sklearn.cluster.MiniBatchKMeans)
    return not any(v in of_others if isinstance(v, type) else sparse.issparse(v) for v in values)


def with_ours(mark: pytest.Mark) -> pytest.Mark:
    """Return a mark with the arguments that `is_ours` selects."""
    if mark.name != "parametrize":
        return mark
    names, values = mark.args
    places = [i for i, value in enumerate(values) if is_ours(value)]
    ids = mark.kwargs.get("ids")
    kept: dict[str, Any] = {"ids": [ids[i] for i in places]} if ids else {}
    return pytest.mark.parametrize(names, [values[i] for i in places], **kept).mark


def suite_tests() -> dict[str, Any]:
    """Return the tests of KMeans, by name."""
    found = {}
    for name, test in vars(load_suite()).items():
        if name.startswith("test_") and not any(part in name for part in NOT_OURS):
            test.pytestmark = [with_ours(mark) for mark in getattr(test, "pytestmark", [])]
            found[name] = test
    assert len(found) > 20, f"{SUITE} has other tests than it had"
    return found


globals().update(suite_tests())


@pytest.fixture
def global_random_seed() -> int:
    return 42


@pytest.fixture(params=[np.float32, np.float64])
def global_dtype(request: pytest.FixtureRequest) -> Any:
    return request.param
