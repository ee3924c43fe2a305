"""Fitted models: transform, and save and load to the last bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr

import daskkm
from daskkm.errors import ModelError
from daskkm.kmeans.model import load_saved
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from daskkm.kmeans.model import FittedModel
    from daskkm.storage.tile_store import TileStore


@pytest.fixture(scope="module")
def model(digits: TileStore) -> FittedModel:
    return daskkm.fit_sweep(digits, [3], n_init=2, max_iter=4, random_state=0).models[3]


@pytest.fixture
def saved(model: FittedModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "model.zarr")
    return tmp_path / "model.zarr"


def assert_same(one: FittedModel, other: FittedModel) -> None:
    for field in dataclasses.fields(one):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if isinstance(here, np.ndarray):
            assert (here.dtype, here.shape, here.tobytes()) == (
                there.dtype,
                there.shape,
                there.tobytes(),
            )
        else:
            assert (here, type(here)) == (there, type(there)), field.name


def test_transform_of_tiles_is_the_definition(model: FittedModel, digits: TileStore) -> None:
    lazy = model.transform(digits)
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype) == ((5610, 3), np.float64)
    rows = digits.features().compute()
    expected = np.sqrt(((rows[:, None] - model.cluster_centers_) ** 2).sum(axis=2))
    found = model.transform(rows)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(lazy.compute(), found)
    np.testing.assert_array_equal(found.argmin(axis=1), model.predict(rows))


def test_load_saved_model_is_the_same_to_the_last_bit(
    model: FittedModel, saved: Path, digits: TileStore
) -> None:
    loaded = load_saved(saved).model
    assert_same(loaded, model)
    assert loaded.tile == (16, 16)
    np.testing.assert_array_equal(loaded.predict(digits).compute(), model.predict(digits).compute())


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">i2", "float32", "float64"])
def test_load_saved_model_of_any_dtype_is_the_same(dtype: str, tmp_path: Path) -> None:
    odd = dataclasses.replace(
        daskkm.fit_sweep(np.arange(12.0).reshape(4, 3), [2], n_init=1, random_state=0).models[2],
        cluster_centers_=np.array([[-0.0, 5e-324, 1 / 3], [1e308, -1e-308, 0.1]]),
        inertia_=0.1 + 0.2,
        dtype=np.dtype(dtype),
    )
    odd.save(tmp_path / "m.zarr")
    assert_same(load_saved(tmp_path / "m.zarr").model, odd)
    assert np.signbit(load_saved(tmp_path / "m.zarr").model.cluster_centers_[0, 0])


def test_save_of_blank_centroids_writes_their_chunk(tmp_path: Path) -> None:
    blank = daskkm.fit_sweep(np.zeros((4, 3), np.uint8), [1], n_init=1, random_state=0).models[1]
    blank.save(tmp_path / "m.zarr")
    assert_same(load_saved(tmp_path / "m.zarr").model, blank)


def test_saved_model_attributes_describe_the_fit(model: FittedModel, saved: Path) -> None:
    attributes = json.loads((saved / "zarr.json").read_text())["attributes"]["daskkm"]
    assert len(attributes.pop("sha256")) == 64
    assert attributes == {
        "format": 4,
        "kind": "model",
        "k": 3,
        "inertia": model.inertia_,
        "n_iter": model.n_iter_,
        "converged": model.converged_,
        "restart": model.restart_,
        "dtype": "|u1",
        "tile": [16, 16],
        "settings": {},
    }
    for name in ("cluster_centers", "counts"):
        array = json.loads((saved / name / "zarr.json").read_text())
        assert [codec["name"] for codec in array["codecs"]] == ["bytes", "crc32c"]


def test_save_with_settings_and_extra_arrays_keeps_them(model: FittedModel, saved: Path) -> None:
    settings = {"tol": 1e-4, "init": "k-means++"}
    extra: dict[str, NDArray[Any]] = {
        "labels": np.arange(5, dtype=np.int32),
        "none": np.empty((0, 2)),
    }
    model.save(saved, settings=settings, extra=extra)
    found = load_saved(saved)
    assert_same(found.model, model)
    assert found.settings == settings
    assert found.extra.keys() == extra.keys()
    for name, values in extra.items():
        np.testing.assert_array_equal(found.extra[name], values, strict=True)
    # A model with more is a saved model too, to be read and replaced as any.
    assert_same(load_saved(saved).model, model)
    model.save(saved)
    assert load_saved(saved).extra == {}


def test_save_over_other_content_is_refused(
    model: FittedModel, saved: Path, digits: TileStore, tmp_path: Path
) -> None:
    other = daskkm.fit_sweep(digits, [2], n_init=1, max_iter=1, random_state=0).models[2]
    other.save(saved)
    assert_same(load_saved(saved).model, other)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    shutil.copytree(digits.path, tmp_path / "store.zarr")
    shutil.copytree(saved, tmp_path / "more.zarr")
    (tmp_path / "more.zarr" / "notes.txt").touch()
    for name in ("file", "folder", "store.zarr", "more.zarr"):
        before = sorted((tmp_path / name).rglob("*"))
        with pytest.raises(ModelError, match=rf"{name}: .*Choose another location"):
            model.save(tmp_path / name)
        assert sorted((tmp_path / name).rglob("*")) == before
    with pytest.raises(ModelError, match=r"m\.zarr: .*[Cc]hoose another location"):
        model.save(tmp_path / "file" / "m.zarr")
    # And the other way round, a saved model is no store to be replaced.
    with pytest.raises(daskkm.StoreError, match="not a store that daskkm may replace"):
        daskkm.create_store(ROOT / "images", saved)


def test_save_on_a_full_disk_leaves_no_model_and_is_repeated(
    model: FittedModel, saved: Path
) -> None:
    code = (
        "import resource, signal, sys; from daskkm.kmeans.model import load_saved;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "model = load_saved(sys.argv[1]).model;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500));"
        "model.save(sys.argv[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=False
    )
    assert "model.zarr: the saved model cannot be written" in run.stderr
    assert [path.name for path in saved.parent.iterdir()] == ["model.zarr"]
    with pytest.raises(ModelError, match=r"model\.zarr: not a saved model"):
        load_saved(saved)
    model.save(saved)
    assert_same(load_saved(saved).model, model)


def test_load_saved_of_something_else_is_refused(digits: TileStore, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.zarr: the saved model does not exist\. Fit"):
        load_saved(tmp_path / "none.zarr")
    with pytest.raises(ModelError, match=r"not a saved model .*kind is store, not model"):
        load_saved(digits.path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ModelError, match="not a saved model"):
        load_saved(tmp_path / "file")
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="u1")
    with pytest.raises(ModelError, match="no attributes of daskkm"):
        load_saved(tmp_path / "array")


@pytest.mark.parametrize("kind", ["URL", "Zarr store"])
def test_save_to_any_location_is_loaded_to_the_last_bit(
    model: FittedModel, tmp_path: Path, kind: str
) -> None:
    location: Any = f"memory://{tmp_path}/m.zarr" if kind == "URL" else zarr.storage.MemoryStore()
    model.save(location, extra={"more": np.arange(3)})
    model.save(location)  # replaces
    assert_same(load_saved(location).model, model)
    assert load_saved(location).extra == {}


@pytest.mark.parametrize("name", ["cluster_centers", "counts", "extra/more"])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "gone"])
def test_load_saved_with_a_damaged_chunk_names_it(
    model: FittedModel, saved: Path, name: str, damage: str
) -> None:
    model.save(saved, extra={"more": np.arange(3)})
    (chunk,) = (path for path in (saved / name / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    if damage == "missing":
        chunk.unlink()
    elif damage == "gone":
        shutil.rmtree(saved / name)
    else:
        data[3] ^= 1
        chunk.write_bytes(bytes(data if damage == "flipped" else data[:-1]))
    with pytest.raises(ModelError, match=rf"model\.zarr: .*{name}") as caught:
        load_saved(saved)
    assert "again" in str(caught.value)
