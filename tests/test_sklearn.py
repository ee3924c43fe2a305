"""The same answers as scikit-learn's Lloyd, from the same start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.cluster import KMeans

from daskkm import fit_sweep
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_case(seed: int, dtype: str, empties: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Tiles, and starting centroids of which some are so far away that they stay empty."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(40, 210, (9, 12))
    tiles = centres[rng.integers(0, 9, 700)] + rng.normal(0, 18, (700, 12))
    tiles = np.clip(tiles, 0, 255).astype(dtype)
    start = tiles[rng.choice(700, 7, replace=False)] + rng.normal(0, 0.01, (7, 12))
    start[rng.choice(7, empties, replace=False)] += 1e5
    return tiles, start


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("empties", [0, 1])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize(
    ("tol", "max_iter"), [(0, 300), (1e-4, 300), (1e-2, 300), (0, 3), (1e-4, 1)]
)
def test_labels_centroids_inertia_and_iterations(
    seed: int, empties: int, dtype: str, tol: float, max_iter: int
) -> None:
    tiles, start = make_case(seed, dtype, empties)
    peer = KMeans(7, init=start, n_init=1, max_iter=max_iter, tol=tol, algorithm="lloyd")
    peer.fit(tiles.astype(np.float64))
    model = fit_sweep(tiles, [7], init=start, max_iter=max_iter, tol=tol).models[7]

    assert model.n_iter_ == peer.n_iter_
    np.testing.assert_array_equal(model.predict(tiles), peer.labels_)
    np.testing.assert_array_equal(model.counts_, np.bincount(peer.labels_, minlength=7))
    np.testing.assert_allclose(model.cluster_centers_, peer.cluster_centers_, rtol=1e-9)
    assert model.inertia_ == pytest.approx(peer.inertia_, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_and_the_notebooks(seed: int) -> None:
    tiles, start = make_case(seed, "uint8", 0)
    expected, labels = reference.notebook(tiles, start, 100)
    model = fit_sweep(tiles, [7], init=start, tol=0).models[7]
    np.testing.assert_array_equal(model.cluster_centers_, expected)
    np.testing.assert_array_equal(model.predict(tiles), labels)
