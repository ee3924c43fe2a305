"""Labels and distances in a store: consistent with the model, complete or missing."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from PIL import Image
from sklearn.exceptions import NotFittedError

import daskkm
from daskkm.block_sizes import override
from daskkm.errors import FitError, ParameterError, StoreError
from daskkm.kernels import distances as kernel
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.locations import LocalLocation
from daskkm.storage.records import read_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daskkm.kmeans.model import FittedModel
    from daskkm.storage.tile_store import TileStore


@pytest.fixture
def store(images: Path, tmp_path: Path) -> Iterator[TileStore]:
    """A store of five chunks, the last one not full, and two of its tiles blank."""
    pixels = np.array(Image.open(images / "s_1.png"))
    pixels[:8, :16] = 0
    Image.fromarray(pixels).save(images / "s_1.png")
    with override(chunk_bytes=7 * 64):
        yield daskkm.create_store(images, tmp_path / "t.zarr", tile=8)


def fit(store: Any, k: int, seed: int = 0) -> FittedModel:
    return daskkm.fit_sweep(store, [k], n_init=1, random_state=seed).models[k]


def test_label_writes_the_labels_that_the_model_predicts(store: TileStore) -> None:
    model = fit(store, 3)
    store.label(model)
    labels = store.labels(3)
    assert isinstance(labels, da.Array)
    assert (labels.dtype, labels.chunks) == (np.int32, ((7, 7, 7, 7, 2),))
    expected = model.predict(store.features()).compute()
    np.testing.assert_array_equal(labels.compute(), expected)
    np.testing.assert_array_equal(labels[5:9].compute(), expected[5:9])
    np.testing.assert_array_equal(np.bincount(expected), model.counts_)
    with pytest.raises(
        StoreError, match=r"t\.zarr: no distances for k = 3\. Label the store with distances first"
    ):
        store.distances(3)
    with pytest.raises(StoreError, match=r"t\.zarr: no labels for k = 4\. Label the store first"):
        store.labels(4)


def test_label_with_distances_writes_those_of_transform(store: TileStore) -> None:
    model = fit(store, 3)
    store.label(model, distances=True)
    distances = store.distances(3)
    assert (distances.dtype, distances.chunks) == (np.float64, ((7, 7, 7, 7, 2), (3,)))
    np.testing.assert_array_equal(distances, model.transform(store).compute())
    np.testing.assert_array_equal(distances.argmin(axis=1), store.labels(3))


def test_label_with_distances_reads_each_tile_once(
    store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, chunks = ChunkedArray._read_chunk, []

    def counted(array: ChunkedArray, i: int) -> Any:
        chunks.append((array.location.name, i))
        return read(array, i)

    model = fit(store, 3)
    monkeypatch.setattr(ChunkedArray, "_read_chunk", counted)
    store.label(model, distances=True)
    assert sorted(chunks) == [("tiles", i) for i in range(5)]


def test_label_writes_attributes_that_name_the_model(store: TileStore) -> None:
    model = fit(store, 2)
    store.label(model, distances=True)
    root: Any = zarr.open_group(store.path, mode="r")
    for name, dimensions in (("labels", ("tile",)), ("distances", ("tile", "cluster"))):
        attributes = dict(root.attrs["daskkm"][name]["2"])
        assert len(attributes.pop("centroids")) == 64
        assert attributes == {"k": 2, "inertia": model.inertia_, "n_tiles": 30}
        assert root[name]["2"].metadata.dimension_names == dimensions
        assert [path.name for path in (store.path / name).iterdir() if path.is_dir()] == ["2"]


def test_label_of_one_cluster_writes_chunks_of_zeros(store: TileStore) -> None:
    store.label(fit(store, 1))
    chunks = sorted((store.path / "labels" / "1" / "c").iterdir())
    assert [chunk.stat().st_size for chunk in chunks] == [4 * 7 + 4] * 5
    assert not store.labels(1).compute().any()


def test_label_again_replaces_labels_of_the_same_k(store: TileStore) -> None:
    before, after = fit(store, 3), fit(store, 3, seed=1)
    store.label(before, distances=True)
    stale = store.labels(3)
    store.label(fit(store, 2), distances=True)
    store.label(after)
    assert store.labels(3).name != stale.name
    np.testing.assert_array_equal(store.labels(3), after.predict(store).compute())
    # Distances of another model would not be consistent with the labels.
    with pytest.raises(StoreError, match="no distances for k = 3"):
        store.distances(3)
    assert store.labels(2).shape == store.distances(2).shape[:1] == (30,)


def test_create_store_over_labels_replaces_them_only_with_the_tiles(
    store: TileStore, images: Path
) -> None:
    store.label(fit(store, 3), distances=True)
    assert len(daskkm.open_store(store.path)) == 30
    assert daskkm.create_store(images, store.path, tile=8).labels(3).shape == (
        30,
    )  # it is left alone
    (images / "s_10.png").unlink()
    replaced = daskkm.create_store(images, store.path, tile=8, overwrite=True)
    assert len(replaced) == 18
    with pytest.raises(StoreError, match="no labels for k = 3"):
        replaced.labels(3)


def test_label_by_a_model_of_other_tiles_is_refused_before_a_write(
    store: TileStore, digits: TileStore
) -> None:
    X = store.features()
    for other, words in (
        (fit(digits, 2), r"uint8 of shape \(8, 8\), but .*uint8 of shape \(16, 16\)"),
        (fit(X.astype("int16"), 2), r"uint8 of shape \(64,\), but .*int16 of shape \(64,\)"),
        (fit(X[:, :60], 2), r"uint8 of shape \(64,\), but .*uint8 of shape \(60,\)"),
        (dataclasses.replace(fit(store, 2), tile=(4, 16)), r"\(8, 8\), but .*\(4, 16\)"),
    ):
        with pytest.raises(FitError, match=rf"t\.zarr: .*{words}\. Fit a model to this store"):
            store.label(other)
    assert not (store.path / "labels").exists()
    store.label(fit(X, 2))  # fitted to features: any tile of as many will do
    assert store.labels(2).shape == (30,)


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
@pytest.mark.parametrize("name", ["labels", "distances"])
def test_labels_with_a_damaged_chunk_name_its_tiles(
    store: TileStore, name: str, damage: str
) -> None:
    store.label(fit(store, 2), distances=True)
    chunk = store.path / name / "2" / "c" / ("2" if name == "labels" else "2/0")
    data = bytearray(chunk.read_bytes())
    if damage == "missing":
        chunk.unlink()
    else:
        data[3] ^= 1
        chunk.write_bytes(bytes(data if damage == "flipped" else data[:-1]))
    lazy = getattr(store, name)(2)
    with pytest.raises(
        StoreError, match=rf"t\.zarr: {name}/2 of tiles 14 to 20 .*Label the tiles again"
    ):
        lazy.compute()
    assert len(lazy[:14].compute()) == 14
    store.check()  # the tiles are all there: no reason to ingest them again
    store.label(fit(store, 2), distances=True)
    assert len(getattr(store, name)(2).compute()) == 30
    assert store.verify() == []


def test_label_that_cannot_read_a_tile_keeps_labels_of_the_same_model(store: TileStore) -> None:
    model = fit(store, 2)
    store.label(model, distances=True)
    before = store.labels(2).compute()
    (store.path / "tiles" / "c" / "3" / "0" / "0").unlink()
    store.label(model, distances=True)  # reads no tile
    np.testing.assert_array_equal(store.labels(2), before)
    other = dataclasses.replace(model, cluster_centers_=model.cluster_centers_[::-1].copy())
    with pytest.raises(StoreError, match="tiles 21 to 27 cannot be read"):
        store.label(other)
    with pytest.raises(StoreError, match="no labels for k = 2"):
        store.labels(2)


def test_label_that_cannot_write_names_no_labels(
    store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, write = fit(store, 2), LocalLocation.write

    def fill_up(self: LocalLocation, *parts: Any) -> None:
        if self.name == "3":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, "write", fill_up)
        with pytest.raises(StoreError, match=r"t\.zarr: the store cannot be written .*No space"):
            store.label(model)
    with pytest.raises(StoreError, match="no labels for k = 2"):
        store.labels(2)
    assert store.verify() == []
    store.label(model)
    np.testing.assert_array_equal(store.labels(2), model.predict(store).compute())


@pytest.mark.parametrize("distances", [False, True])
def test_label_over_other_files_is_refused_before_a_read(
    store: TileStore, monkeypatch: pytest.MonkeyPatch, distances: bool
) -> None:
    model = fit(store, 2)
    (store.path / "distances" / "2").mkdir(parents=True)
    (store.path / "distances" / "2" / "thesis.tex").touch()
    monkeypatch.setattr(ChunkedArray, "stream", None)  # no tile is read
    with pytest.raises(
        StoreError, match=r"distances/2: .*the folder holds thesis\.tex.*Move the folder"
    ):
        store.label(model, distances=distances)
    assert (store.path / "distances" / "2" / "thesis.tex").exists()


@pytest.fixture(params=["local", "memory"])
def growing(request: pytest.FixtureRequest, images: Path, tmp_path: Path) -> Iterator[TileStore]:
    """A store of 18 tiles in three chunks; two images of 12 tiles are in the folder ``more``."""
    (tmp_path / "more").mkdir()
    for name in ("s_10.png", "s_11.png"):
        shutil.copy(images / "s_10.png", tmp_path / "more" / name)
    (images / "s_10.png").unlink()
    path = tmp_path / "t.zarr"
    with override(chunk_bytes=7 * 64, remote_chunk_bytes=7 * 64):
        yield daskkm.create_store(
            images, path if request.param == "local" else f"memory://{path}", tile=8
        )


def list_changed(store: TileStore, before: dict[str, bytes]) -> set[str]:
    """Return the chunks of labels and distances that are new or differ in their version."""
    return {name for name, data in list_chunks(store).items() if before.get(name) != data}


def list_chunks(store: TileStore) -> dict[str, Any]:
    location = store.location
    names = [
        f"{folder}/3/c/{name}"
        for folder in ("labels", "distances")
        for name in (location / folder / "3" / "c").sizes()
    ]
    return {name: read_state(location / name) for name in names}


def test_label_after_append_adds_labels_of_new_tiles(growing: TileStore, tmp_path: Path) -> None:
    model = fit(growing, 3)
    growing.label(model, distances=True)
    old, old_distances = growing.labels(3).compute(), growing.distances(3).compute()
    grown = growing.append(tmp_path / "more")
    before = list_chunks(grown)
    with pytest.warns(UserWarning, match=r"24 of 42 tiles have no labels for k = 3\. Label the"):
        labels = grown.labels(3)
    with pytest.warns(UserWarning, match="24 of 42 tiles have no distances for k = 3"):
        distances = grown.distances(3)
    assert labels.chunks == (grown.features().chunks[0],)
    np.testing.assert_array_equal(labels, [*old, *[-1] * 24])
    np.testing.assert_array_equal(distances[:18], old_distances)
    assert np.isnan(distances[18:]).all()
    assert grown.verify() == []
    grown.label(model, distances=True)
    np.testing.assert_array_equal(grown.labels(3), model.predict(grown).compute())
    np.testing.assert_array_equal(grown.distances(3), model.transform(grown).compute())
    assert grown.verify() == []
    # The third chunk has both labelled and new tiles.
    new = range(2, 6)
    assert list_changed(grown, before) == {
        *(f"labels/3/c/{i}" for i in new),
        *(f"distances/3/c/{i}/0" for i in new),
    }
    before = list_chunks(grown)
    with pytest.raises(StoreError, match=r"more tiles are labelled .*Open the store again"):
        growing.label(model, distances=True)  # a store opened before the append
    grown.label(model, distances=True)
    assert not list_changed(grown, before)
    assert (grown.labels(3).compute() >= 0).all()


def test_label_after_append_by_another_model_labels_all_tiles(
    growing: TileStore, tmp_path: Path
) -> None:
    growing.label(fit(growing, 3), distances=True)
    grown = growing.append(tmp_path / "more")
    model = fit(grown, 3, seed=5)
    before = list_chunks(grown)
    grown.label(model)
    np.testing.assert_array_equal(grown.labels(3), model.predict(grown).compute())
    assert list_changed(grown, before) == {f"labels/3/c/{i}" for i in range(6)}
    with pytest.raises(StoreError, match="no distances for k = 3"):
        grown.distances(3)
    # Distances alone are missing: labels are of this model already.
    grown.label(model, distances=True)
    np.testing.assert_array_equal(grown.distances(3), model.transform(grown).compute())
    assert grown.verify() == []


def test_label_by_anything_but_a_fitted_model_is_refused(store: TileStore) -> None:
    model = fit(store, 2)
    with pytest.raises(NotFittedError, match="This KMeans instance is not fitted yet"):
        store.label(daskkm.KMeans(5))
    with pytest.raises(ParameterError, match=r"distances: 'no' is not valid\. Give True or False"):
        store.label(model, distances="no")  # type: ignore[arg-type]
    for no_model in ("m.zarr", None, model.cluster_centers_):
        with pytest.raises(ParameterError, match=r"is not a model\. .*daskkm\.load_model"):
            store.label(no_model)
    assert not (store.path / "labels").exists()
    for k in ("2", 2.0, True, 0, None):
        for read in (store.labels, store.distances):
            with pytest.raises(ParameterError, match=r"k: .* is not valid. Give an integer"):
                read(k)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"name: 'page' is .*Use one of image, row, col"):
        store.provenance_of("page")


def check_labels_of_one_model(
    store: TileStore, models: list[FittedModel], *, distances: bool
) -> None:
    """Check that labels, and distances if present, are those of the named model."""
    k = len(models[0].cluster_centers_)
    attributes: Any = zarr.open_group(store.path, mode="r").attrs["daskkm"]
    (model,) = (m for m in models if m.inertia_ == attributes["labels"][str(k)]["inertia"])
    np.testing.assert_array_equal(store.labels(k), model.predict(store).compute())
    try:
        found = store.distances(k).compute()
    except StoreError as error:
        # Either run may end last.
        assert re.search("no distances for k", str(error))  # noqa: PT017
    else:
        assert distances
        np.testing.assert_array_equal(found, model.transform(store).compute())


@pytest.mark.parametrize("distances", [False, True])
def test_label_twice_at_once_leaves_the_labels_of_one(store: TileStore, distances: bool) -> None:
    # A run is refused while the other writes; else the later one replaces the labels.
    models = [fit(store, 3), fit(store, 3, seed=1)]
    assert models[0].inertia_ != models[1].inertia_
    start = threading.Barrier(2)

    def label(model: FittedModel, with_distances: bool) -> None:
        start.wait()
        store.label(model, distances=with_distances)

    for _ in range(4):
        with ThreadPoolExecutor(2) as pool:
            runs = [
                pool.submit(label, models[0], distances),
                pool.submit(label, models[1], False),
            ]
        errors = [error for run in runs if (error := run.exception())]
        assert len(errors) < 2
        assert all("another run is labelling for k = 3" in str(e) for e in errors)
        check_labels_of_one_model(store, models, distances=distances)
    assert {path.name for path in (store.path / "labels").iterdir()} == {"zarr.json", "3"}


def test_label_with_many_distances_computes_them_in_parts(
    store: TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For many clusters, the distances of a block of tiles are many times the block.
    model = fit(store, 9)
    # Seven tiles are 504 bytes of distances: too many.
    distances_to_all, lengths = kernel.distances_to_all, []

    def counting(tiles: Any, centroids: Any) -> Any:
        lengths.append(len(tiles))
        return distances_to_all(tiles, centroids)

    with monkeypatch.context() as patch, override(chunk_bytes=100):
        patch.setattr(kernel, "distances_to_all", counting)
        store.label(model, distances=True)
    assert max(lengths) == 1
    assert store.distances(9).chunks[0] == (1,) * 30
    np.testing.assert_array_equal(store.distances(9), model.transform(store).compute())


def test_labels_moved_from_another_store_are_not_labels(store: TileStore, images: Path) -> None:
    store.label(fit(store, 2))
    (images / "s_10.png").unlink()
    other = daskkm.create_store(images, store.path.with_name("other.zarr"), tile=8)
    (store.path / "labels").rename(other.path / "labels")
    with pytest.raises(StoreError, match=r"other\.zarr: no labels for k = 2"):
        other.labels(2)


# Prints a line before the fifth block, and stops there, so that it can be killed in the middle.
_HALF = """
import sys, dask, daskkm
from daskkm.kernels import assign

label_block, blocks = assign.label_block, iter(range(100))

def label_some(*args):
    if next(blocks) == 4:
        print("half", flush=True)
        sys.stdin.read()
    return label_block(*args)

store, model = daskkm.open_store(sys.argv[1]), daskkm.load_model(sys.argv[2])
assign.label_block = label_some
with dask.config.set(scheduler="sync"):
    store.label(model, distances=True)
"""


@pytest.mark.parametrize(
    ("ending", "before"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, True)],
)
def test_label_killed_half_way_leaves_no_partial_labels_in_sight(
    store: TileStore, tmp_path: Path, ending: signal.Signals, before: bool
) -> None:
    model, earlier = fit(store, 3), fit(store, 3, seed=1)
    model.save(tmp_path / "m.zarr")
    if before:
        store.label(earlier)
    with subprocess.Popen(
        [sys.executable, "-c", _HALF, str(store.path), str(tmp_path / "m.zarr")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "half\n"
        assert list((store.path / "labels").glob("3/c/*"))  # some are written
        run.send_signal(ending)
    assert run.returncode == -ending
    with pytest.raises(StoreError, match="no labels for k = 3"):
        store.labels(3)
    assert store.verify() == []
    store.label(model)
    np.testing.assert_array_equal(store.labels(3), model.predict(store).compute())
    assert not (store.path / "distances" / "3" / "c").exists()


def test_label_for_two_k_at_once_writes_both(store: TileStore) -> None:
    # Both replace the root of the store, and neither may lose what the other has added.
    of_seeds = [[fit(store, k, seed) for k in (2, 3)] for seed in (0, 1)]
    for models in of_seeds * 6:
        start = threading.Barrier(2)

        def label(model: FittedModel, start: threading.Barrier = start) -> None:
            start.wait()
            store.label(model)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(label, models))
        for model in models:
            labels = store.labels(len(model.cluster_centers_))
            np.testing.assert_array_equal(labels, model.predict(store).compute())
