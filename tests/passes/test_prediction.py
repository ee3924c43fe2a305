"""Labels and distances of tiles, returned lazily or written: the definitions, in any blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest

from daskkm.errors import FitError
from daskkm.passes import prediction
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNKINGS = [300, 7, (100, 0, 150, 50), (0, 0, 299, 1)]


@pytest.fixture(params=["uint8", "float32"])
def tiles(request: pytest.FixtureRequest) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 9))[rng.integers(0, 40, 300)].astype(request.param)


class Target:
    """An array that is written in parts of so many rows."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, rows: int = 300) -> None:
        self.values = np.full(shape, -1, dtype)
        self.rows = rows
        self.written: list[int] = []

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self.written.append(len(values))
        self.values[rows] = values


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_labels_and_distances_in_any_blocks_are_those_of_the_definition(
    tiles: NDArray[Any], chunks: Any
) -> None:
    centroids = tiles[:5] * 0.75
    X = da.from_array(tiles, chunks=(chunks, -1))
    labels, distances = prediction.labels(X, centroids), prediction.distances(X, centroids)
    assert (labels.shape, labels.dtype, labels.chunks) == ((300,), np.int32, X.chunks[:1])
    assert (distances.shape, distances.chunks) == ((300, 5), (X.chunks[0], (5,)))
    expected = reference.labels(tiles, centroids, np.array([0, 5]))[:, 0]
    np.testing.assert_array_equal(labels.compute(scheduler="sync"), expected)
    np.testing.assert_allclose(
        distances.compute(scheduler="sync") ** 2, reference.distances(tiles, centroids), rtol=1e-13
    )


@pytest.mark.parametrize("with_distances", [False, True])
@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_write_in_any_blocks_fills_its_targets_and_counts(
    tiles: NDArray[Any], chunks: Any, with_distances: bool
) -> None:
    centroids = tiles[:5] * 0.75
    X = da.from_array(tiles, chunks=(chunks, -1))
    labels = Target((300,), np.int32)
    distances = Target((300, 5), np.float64, rows=50) if with_distances else None
    counts = prediction.write(X, centroids, labels, distances).compute(scheduler="sync")
    expected = prediction.labels(X, centroids).compute(scheduler="sync")
    np.testing.assert_array_equal(labels.values, expected)
    assert counts.tolist() == np.bincount(expected, minlength=5).tolist()
    if distances is not None:
        assert max(distances.written) <= 50
        expected = prediction.distances(X, centroids).compute(scheduler="sync")
        np.testing.assert_array_equal(distances.values, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_distances_of_values_that_have_none_are_refused_when_computed(value: float) -> None:
    X = da.from_array(np.array([[0.0, 1.0], [value, 1.0]]), chunks=1)
    lazy = prediction.distances(X.rechunk((1, 2)), np.zeros((2, 2)))
    with pytest.raises(FitError, match=r"contains|too large to square"):
        lazy.compute(scheduler="sync")
