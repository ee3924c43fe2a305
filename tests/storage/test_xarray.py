"""Test that xarray and zarr open stores and models, with dimension names, without a warning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

import daskkm
from daskkm.storage import metadata

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["L", "RGB"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> daskkm.TileStore:
    """Return a store of twelve tiles with labels and distances."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).convert(request.param).save(tmp_path / "images" / "a.png")
    found = daskkm.create_store(tmp_path / "images", tmp_path / "t.zarr", tile=8)
    model = daskkm.fit_sweep(found, [3], n_init=1, random_state=0).models[3]
    found.label(model, distances=True)
    return found


def test_store_in_xarray_has_tiles_and_provenance(store: daskkm.TileStore) -> None:
    for found in (xr.open_zarr(store.path), xr.open_datatree(store.path, engine="zarr").dataset):
        assert set(found) == {"tiles", "image", "row", "col"}
        assert found["tiles"].dims == ("tile", "y", "x", "band")[: store.tiles.ndim]
        assert found["tiles"].dtype == np.uint8
        np.testing.assert_array_equal(found["tiles"], store.tiles[:])
        for name, values in store.provenance().items():
            np.testing.assert_array_equal(found[name], values)


def test_labels_in_zarr_without_consolidated_metadata_are_found(store: daskkm.TileStore) -> None:
    group = zarr.open_group(store.path, mode="r", use_consolidated=False)
    labels = group["labels/3"]
    assert isinstance(labels, zarr.Array)
    np.testing.assert_array_equal(labels[:], store.labels(3).compute())


@pytest.mark.parametrize("init", ["random", [[0.0, 1.0], [2.0, 3.0]]])
def test_model_in_xarray_has_clusters_and_features(
    tmp_path: Path, init: str | list[list[float]]
) -> None:
    X = np.random.default_rng(0).random((9, 2))
    model = daskkm.KMeans(n_clusters=2, n_init=1, init=init, random_state=0).fit(X)
    model.save(tmp_path / "m.zarr")
    found = xr.open_zarr(tmp_path / "m.zarr")
    assert dict(found.sizes) == {"cluster": 2, "feature": 2}
    np.testing.assert_array_equal(found["cluster_centers"], model.cluster_centers_)
    np.testing.assert_array_equal(found["counts"], model.fitted_model.counts_)
    tree = xr.open_datatree(tmp_path / "m.zarr", engine="zarr")
    if init != "random":
        np.testing.assert_array_equal(tree["extra/init"], init)
    np.testing.assert_array_equal(
        daskkm.load_model(tmp_path / "m.zarr").cluster_centers_, model.cluster_centers_
    )


def test_consolidated_metadata_of_store_matches_arrays(store: daskkm.TileStore) -> None:
    document = json.loads((store.path / "zarr.json").read_bytes())
    copies = document[metadata.CONSOLIDATED]["metadata"]
    assert set(copies) == {"tiles", "image", "row", "col"}
    for name, copy in copies.items():
        assert copy == json.loads((store.path / name / "zarr.json").read_bytes())
