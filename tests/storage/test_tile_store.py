"""Test that a store holds the exact pixels of its images, or an error is raised."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
import warnings
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings, strategies as st
from PIL import Image

import daskkm
from daskkm.block_sizes import override
from daskkm.errors import CorruptChunkError, ImageError, StoreError
from daskkm.images import pillow
from daskkm.images.grid import cut, join
from daskkm.images.ingest import choose_chunk_rows
from daskkm.storage import records
from daskkm.storage.labels import choose_part_rows
from daskkm.storage.locations import as_location
from tests.locations import KINDS, new_location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from daskkm.storage.locations import Location


def test_create_store_of_images_holds_all_pixels_in_natural_order(
    images: Path, tmp_path: Path
) -> None:
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8))
    assert [image.name for image in store.images] == ["s_1.png", "s_2.png", "s_10.png"]
    pixels = [np.asarray(Image.open(images / image.name)) for image in store.images]
    expected = np.concatenate([cut(image, (8, 8)) for image in pixels])
    np.testing.assert_array_equal(store.tiles[:], expected)

    X = store.features()
    assert isinstance(X, da.Array)
    assert (X.shape, X.dtype) == ((30, 64), np.uint8)
    np.testing.assert_array_equal(X.compute(), expected.reshape(30, 64))

    provenance = store.provenance()
    for i, (image, row, col) in enumerate(zip(*provenance.values(), strict=True)):
        found = pixels[image][row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        np.testing.assert_array_equal(found, expected[i])


def test_store_in_many_chunks_equals_store_in_one_chunk(images: Path, tmp_path: Path) -> None:
    whole = daskkm.create_store(images, tmp_path / "whole.zarr", tile=(8, 8))
    with override(chunk_bytes=7 * 64, table_rows=2):
        parts = daskkm.create_store(images, tmp_path / "parts.zarr", tile=(8, 8))
    assert parts.features().chunks[0] == (7, 7, 7, 7, 2)
    np.testing.assert_array_equal(parts.tiles[:], whole.tiles[:])
    np.testing.assert_array_equal(parts.features().compute(), whole.features().compute())
    for name, values in whole.provenance().items():
        np.testing.assert_array_equal(parts.provenance()[name], values)
        lazy = parts.provenance_of(name)
        assert lazy.chunks == parts.features().chunks[:1]
        np.testing.assert_array_equal(lazy.compute(), values)


def test_choose_chunk_rows_of_any_tile_has_divisors() -> None:
    for tile_bytes in (1, 9, 256, 400, 576, 640, 768, 784, 3072, 1 << 20, 5 << 20):
        rows = choose_chunk_rows(tile_bytes)
        assert max(1, 0.93 * (4 << 20) / tile_bytes - 1) <= rows <= max(1, (4 << 20) / tile_bytes)
        for k in (1, 5, 256, 3000):
            part = choose_part_rows(rows, 8 * k)
            assert rows % part == 0
            assert part * 8 * k <= 6 << 20
            assert part == rows or part * 8 * k >= 1 << 20


def test_create_store_of_rgb_images_has_bands(tmp_path: Path) -> None:
    folder = tmp_path / "rgb"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    store = daskkm.create_store(folder, tmp_path / "t.zarr", tile=(4, 4))
    assert store.tile == (4, 4, 3)
    assert store.tiles.metadata.dimension_names == ("tile", "y", "x", "band")  # type: ignore[union-attr]
    np.testing.assert_array_equal(join(np.asarray(store.tiles[:]), 3), pixels)


def test_root_of_store_describes_arrays_and_codecs(images: Path, tmp_path: Path) -> None:
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8))
    document = json.loads((tmp_path / "t.zarr" / "zarr.json").read_text())
    assert document["zarr_format"] == 3
    own = document["attributes"]["daskkm"]
    assert own.keys() == {"id", "digest", "format", "kind", "sha256"}
    assert (own["kind"], own["format"], own["digest"]) == ("store", 4, store.digest)
    assert store.tiles.metadata.dimension_names == ("tile", "y", "x")  # type: ignore[union-attr]
    copies = document["consolidated_metadata"]["metadata"]
    assert {"tiles", "images", "images/name", "images/sha256"} <= copies.keys()
    for name, copy in copies.items():
        assert json.loads((tmp_path / "t.zarr" / name / "zarr.json").read_text()) == copy
    assert [codec["name"] for codec in copies["tiles"]["codecs"]] == ["bytes", "crc32c"]


def test_create_store_of_blank_tiles_writes_all_chunks(tmp_path: Path) -> None:
    """Zarr reads a missing chunk as zeros, so a lost chunk would not be noticed."""
    (tmp_path / "blank").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "blank" / "a.png")
    daskkm.create_store(tmp_path / "blank", tmp_path / "t.zarr", tile=(8, 8))
    with override(chunk_bytes=3 * 64):
        store = daskkm.create_store(tmp_path / "blank", tmp_path / "u.zarr", tile=8)
    for i in range(2):
        file = tmp_path / "u.zarr" / "tiles" / "c" / str(i) / "0" / "0"
        assert file.stat().st_size == 3 * 64 + 4
    assert not store.features().compute().any()


def test_create_store_of_ragged_images_crops_with_one_warning(images: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"s_1\.png \(4 at the bottom, 2 at the right\), s_2\.png"):
        store = daskkm.create_store(images, tmp_path / "t.zarr", tile=(10, 10))
    assert [image.cropped for image in store.images] == [(4, 2), (6, 4), (2, 4)]
    assert list(daskkm.open_store(tmp_path / "t.zarr").images) == list(store.images)
    assert len(store) == 6 + 2 + 6


def test_create_store_of_the_same_images_writes_nothing(images: Path, tmp_path: Path) -> None:
    store = tmp_path / "t.zarr"
    daskkm.create_store(images, store, tile=(8, 8))
    written = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    daskkm.create_store(images, store, tile=(8, 8))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == written


def edit(images: Path) -> None:
    Image.new("L", (24, 32), 9).save(images / "s_10.png")


def remove(images: Path) -> None:
    (images / "s_10.png").unlink()


def rename(images: Path) -> None:
    (images / "s_10.png").rename(images / "s_3.png")


def add(images: Path) -> None:
    for i in range(3, 8):
        shutil.copy(images / "s_2.png", images / f"s_{i}.png")


def nothing(_: Path) -> None:
    pass


OTHER_CONTENT: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "edit": (edit, {"tile": 8}, r"1 image changed \(s_10\.png\)\."),
    "remove": (remove, {"tile": 8}, r"1 image removed \(s_10\.png\)\."),
    "rename": (rename, {}, r"1 image added \(s_3\.png\), 1 image removed \(s_10\.png\)\."),
    "add": (add, {}, r"5 images added \(s_3\.png, s_4\.png, s_5\.png, …\)\."),
    "tile": (nothing, {"tile": (8, 4)}, r"content: tiles of 8 x 8, not 8 x 4\."),
    "both": (edit, {"tile": 4}, r"changed \(s_10\.png\), tiles of 8 x 8, not 4 x 4\."),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", OTHER_CONTENT)
def test_ingest_into_a_store_of_other_content_is_refused_until_overwritten(
    images: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, asked, said = OTHER_CONTENT[case]
    path = tmp_path / "t.zarr"
    before = daskkm.create_store(images, path, tile=8)
    token = before.features().name
    for k in (3, 12):
        model = daskkm.fit_sweep(before, [k], n_init=1, random_state=0).models[k]
        before.label(model, distances=k == 12)
    files = contents(path)
    change(images)
    with monkeypatch.context() as patched:
        patched.setattr(pillow, "PillowImage", None)  # no image is decoded
        patched.setattr(pillow, "read_shape", None)
        with pytest.raises(StoreError, match=said) as refused:
            daskkm.create_store(images, path, **asked)
    assert f"{path}: the store has other content" in str(refused.value)
    assert "which deletes its labels/3, labels/12, distances/12" in str(refused.value)
    assert refused.value.options == ("overwrite=True",)
    assert contents(path) == files
    assert [entry.name for entry in tmp_path.iterdir() if "t.zarr" in entry.name] == ["t.zarr"]
    after = daskkm.create_store(images, path, **asked, overwrite=True)
    assert after.tile != before.tile or after.digest != before.digest
    assert after.features().name != token
    fresh = daskkm.create_store(images, tmp_path / "fresh.zarr", tile=after.tile[:2])
    np.testing.assert_array_equal(after.tiles[:], fresh.tiles[:])
    assert not (path / "labels").exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ingest_without_tile_keeps_size_of_the_store(images: Path, tmp_path: Path) -> None:
    daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 4))
    files = contents(tmp_path / "t.zarr")
    assert daskkm.create_store(images, tmp_path / "t.zarr").tile == (8, 4)
    assert contents(tmp_path / "t.zarr") == files
    remove(images)
    assert daskkm.create_store(images, tmp_path / "t.zarr", overwrite=True).tile == (8, 4)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("file", "size"),
    [
        *(("zarr.json", size) for size in (None, 0, 500, -9)),
        *((file, -9) for file in ("tiles/c/0/0/0", "images/size/c/0")),
    ],
)
def test_ingest_into_a_damaged_store_is_refused_until_overwritten(
    images: Path, tmp_path: Path, file: str, size: int | None
) -> None:
    path = tmp_path / "t.zarr"
    store = daskkm.create_store(images, path, tile=8)
    before = store.features().compute()
    store.label(daskkm.fit_sweep(store, [3], n_init=1, random_state=0).models[3])
    damaged = (path / file).read_bytes()[:size]
    if size is None:
        damaged = (path / file).read_bytes().replace(b'"id"', b'"ID"')
    (path / file).write_bytes(damaged)
    (path / ".DS_Store").touch()
    files = contents(path)
    losses = "" if file == "zarr.json" else ", which deletes its labels/3"
    with pytest.raises(StoreError, match=f"or overwrite the store{losses}") as refused:
        daskkm.create_store(images, path, tile=8)
    assert refused.value.options == ("overwrite=True",)
    assert contents(path) == files
    after = daskkm.create_store(images, path, tile=8, overwrite=True)
    np.testing.assert_array_equal(after.features().compute(), before)
    assert after.provenance()["row"].shape == (30,)


@pytest.mark.faults
def test_ingest_during_another_commit_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "t.zarr", tmp_path / "other.zarr"
    daskkm.create_store(images, other, tile=8)
    shape = pillow.read_shape

    def meanwhile(image: Any, state: Any) -> tuple[int, ...]:
        if other.exists():
            other.rename(path)
        return shape(image, state)

    monkeypatch.setattr(pillow, "read_shape", meanwhile)
    with pytest.raises(
        StoreError, match=r"t\.zarr: another run has written a store\. Ingest the images again$"
    ):
        daskkm.create_store(images, path, tile=4)
    assert daskkm.open_store(path).tile == (8, 8)


@pytest.mark.faults
def test_ingest_of_images_in_another_order_returns_the_store(tmp_path: Path) -> None:
    files = []
    for i, name in enumerate(("c.png", "a.png", "bad.png", "z.png")):
        files.append(tmp_path / name)
        if name == "bad.png":
            files[-1].write_text(name)
        else:
            Image.new("L", (16, 16), i + 1).save(files[-1])
    settings: Any = {"tile": 8, "on_bad": "skip"}
    store = daskkm.create_store(files, tmp_path / "t.zarr", **settings)
    before = contents(tmp_path / "t.zarr")
    same = daskkm.create_store(files[::-1], tmp_path / "t.zarr", **settings)
    assert same.digest == store.digest
    assert [image.name for image in same.images] == ["c.png", "a.png", "z.png"]
    assert contents(tmp_path / "t.zarr") == before


def settle(images: Path, seconds: int = 1000) -> None:
    """Set old times, which no later change can have."""
    for path in images.iterdir():
        os.utime(path, (seconds, seconds))


def replace_bytes(path: Path, when: int) -> None:
    """Replace the bytes of a file, keep its size, and set its time in seconds."""
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, (when, when))


@pytest.mark.faults
def test_ingest_of_unchanged_images_reads_no_image(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "text.png").write_text("not an image")
    settle(images)
    settings: Any = {"tile": 8, "on_bad": "skip"}
    daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    read: list[str] = []
    identity = records.read_identity

    def noted(path: Location) -> tuple[int, str]:
        read.append(path.name)
        return identity(path)

    monkeypatch.setattr(records, "read_identity", noted)
    files = contents(tmp_path / "t.zarr")
    daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    assert read == []
    # A file with another time only is read, and is unchanged.
    os.utime(images / "s_2.png", (2000, 2000))
    daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    assert read == ["s_2.png"]
    assert contents(tmp_path / "t.zarr") == files
    # A file of another size is not read.
    (images / "s_2.png").write_bytes(b"")
    with pytest.raises(StoreError, match=r"1 image changed \(s_2\.png\)"):
        daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    assert read == ["s_2.png"]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["s_1.png", "bad.png"])
def test_ingest_of_changed_image_of_same_size_is_refused(
    images: Path, tmp_path: Path, name: str
) -> None:
    (images / "bad.png").write_text("not an image")
    settle(images)
    settings: Any = {"tile": 8, "on_bad": "skip"}
    daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    replace_bytes(images / name, 1001)
    with pytest.raises(StoreError, match=rf"1 image changed \({name}\)"):
        daskkm.create_store(images, tmp_path / "t.zarr", **settings)


@pytest.mark.faults
def test_ingest_of_recent_images_compares_bytes(images: Path, tmp_path: Path) -> None:
    """A file may change again within a tick of the file system clock."""
    now = time.time() + 100  # later than the end of this test
    for path in images.iterdir():
        os.utime(path, (now, now))
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=8)
    assert [image.mtime_ns for image in store.images] == [None] * 3
    daskkm.create_store(images, tmp_path / "t.zarr", tile=8)
    replace_bytes(images / "s_2.png", int(now))
    os.utime(images / "s_2.png", (now, now))
    with pytest.raises(StoreError, match=r"1 image changed \(s_2\.png\)"):
        daskkm.create_store(images, tmp_path / "t.zarr", tile=8)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["frame.bmp", "bad.bmp"])
@pytest.mark.parametrize("seconds", [0, 1000])
def test_ingest_of_other_images_of_same_name_size_and_time_is_refused(
    tmp_path: Path, name: str, seconds: int
) -> None:
    """Archives and copies can keep the modification time."""
    for value, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        Image.new("L", (16, 16), value).save(tmp_path / folder / "frame.bmp")
        (tmp_path / folder / "bad.bmp").write_text(f"text {value * (name == 'bad.bmp')}")
        if name == "bad.bmp":
            Image.new("L", (16, 16)).save(tmp_path / folder / "frame.bmp")
        settle(tmp_path / folder, seconds)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")  # keeps the times
    settings: Any = {"tile": 8, "on_bad": "skip"}
    store = daskkm.create_store(tmp_path / "a", tmp_path / "t.zarr", **settings)
    same = daskkm.create_store(tmp_path / "copy", tmp_path / "t.zarr", **settings)
    assert same.digest == store.digest
    with pytest.raises(StoreError, match=rf"1 image changed \({name}\)"):
        daskkm.create_store(tmp_path / "b", tmp_path / "t.zarr", **settings)


def test_image_record_without_times_compares_bytes(images: Path, tmp_path: Path) -> None:
    settle(images)
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=8)
    assert [image.mtime_ns for image in store.images] == [1000 * 10**9] * 3
    for image in store.images:
        old = dataclasses.replace(image, mtime_ns=None, ctime_ns=None)
        path = as_location(images / image.name)
        assert old == image
        assert old.is_file(path)
        replace_bytes(images / image.name, 1000)
        assert not old.is_file(path)


def test_create_store_of_damaged_image_is_resumed(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    whole = (images / "s_10.png").read_bytes()
    (images / "s_10.png").write_bytes(whole[:500])  # the header is intact
    with pytest.raises(ImageError, match=r"s_10\.png"):
        daskkm.create_store(images, path, tile=(8, 8))
    with pytest.raises(StoreError, match=r"t\.zarr: the store is not complete: an ingest was"):
        daskkm.open_store(path)
    (images / "s_10.png").write_bytes(whole)
    store = daskkm.create_store(images, path)  # keeps the size of tiles
    fresh = daskkm.create_store(images, tmp_path / "fresh.zarr", tile=8)
    assert store.digest == fresh.digest
    assert tiles_and_tables(path) == tiles_and_tables(tmp_path / "fresh.zarr")


def tiles_and_tables(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): content
        for path, content in contents(folder).items()
        if path != folder / "zarr.json"
    }


@pytest.mark.faults
def test_create_store_of_bad_image_keeps_older_store(images: Path, tmp_path: Path) -> None:
    """Headers are checked before the older store is removed."""
    path = tmp_path / "t.zarr"
    daskkm.create_store(images, path, tile=(8, 8))
    before = contents(path)
    (images / "s_10.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"s_10\.png"):
        daskkm.create_store(images, path, tile=(8, 8), overwrite=True)
    assert contents(path) == before


def test_create_store_through_link_keeps_the_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(tmp_path / "disk.zarr")
    daskkm.create_store(images, tmp_path / "link.zarr", tile=(8, 8))
    (images / "s_10.png").unlink()
    assert len(daskkm.create_store(images, tmp_path / "link.zarr", overwrite=True)) == 18
    assert (tmp_path / "link.zarr").is_symlink()
    assert len(daskkm.open_store(tmp_path / "disk.zarr")) == 18


@pytest.mark.parametrize(
    "key",
    [5, -1, (5, 6), slice(5, 5), slice(None, None, -3), ([3, 29, 3],), (slice(2, 9), slice(1, 4))],
)
def test_features_by_any_index_agree_with_numpy(images: Path, tmp_path: Path, key: Any) -> None:
    X = daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8)).features()
    np.testing.assert_array_equal(X[key].compute(), X.compute()[key])


def test_create_store_of_bad_images_writes_nothing(images: Path, tmp_path: Path) -> None:
    store = tmp_path / "t.zarr"

    def refused(match: str, tile: Any = (8, 8)) -> None:
        with pytest.raises(ImageError, match=match):
            daskkm.create_store(images, store, tile)
        assert not store.exists()

    refused(r"s_1\.png: 24 x 32 pixels hold no whole tile of 30 x 8", (30, 8))
    refused("0 x 8 pixels is empty", (0, 8))
    for tile in ("16", (8.5, 8), (8, 8, 3), True, False, (True, 8), (8, np.True_)):
        refused("is not a size. Give height and width in pixels", tile)
    Image.new("RGB", (8, 8)).save(images / "s_3.png")
    refused(r"s_3\.png: RGB, while the other images are greyscale")
    (images / "s_3.png").write_text("text")
    refused(r"s_3\.png: not an image")


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind", ["file", "folder", "group", "model", "more", "dots", "cut", "same names"]
)
def test_create_store_over_other_content_is_refused(
    images: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    elif kind == "group":
        zarr.create_group(path).create_array("a", shape=(3,), dtype="u1")
    elif kind == "model":
        daskkm.KMeans(n_clusters=1, n_init=1).fit([[1.0], [2.0]]).save(path)
    elif kind == "same names":
        for name in ("images", "tiles", "ingest"):
            shutil.copytree(images, path / name)
    elif kind == "dots":
        (path / ".git").mkdir(parents=True)
    else:
        daskkm.create_store(images, path, tile=(8, 8))
        if kind == "cut":
            (path / "zarr.json").write_text("{")
        (path / "notes.txt").write_text("precious")
    before = sorted(path.rglob("*"))
    with pytest.raises(StoreError, match="not a store that daskkm may replace"):
        daskkm.create_store(images, path, tile=4, overwrite=True)
    assert path.exists()
    assert sorted(path.rglob("*")) == before


def test_open_store_of_other_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.zarr: the store does not exist\. Ingest"):
        daskkm.open_store(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match=r"not a store \(no attributes of daskkm\)\. Name a store"):
        daskkm.open_store(tmp_path / "other.zarr")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="metadata cannot be read"):
        daskkm.open_store(tmp_path / "broken.zarr")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        daskkm.open_store(tmp_path / "file")


def test_create_store_in_current_folder_is_done_and_link_loop_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert len(daskkm.create_store(images, ".", tile=8)) == 30
    assert daskkm.open_store(tmp_path / "here").verify() == []
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StoreError, match="Choose another location"):
        daskkm.create_store(images, tmp_path / "loop", tile=8)


def test_sample_images_have_blank_tiles_at_known_places(digits: daskkm.TileStore) -> None:
    assert (len(digits), digits.tile, len(digits.images)) == (5610, (16, 16), 5)
    assert {image.shape for image in digits.images} == {(544, 528)}
    blank = ~digits.features().compute().any(axis=1)
    where = digits.provenance()
    assert blank.sum() == 5 * 22
    assert set(where["col"][blank]) == {32}
    assert set(where["row"][blank]) == set(range(12, 34))


def test_create_store_of_even_images_does_not_warn(images: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8))


def test_features_changed_in_place_are_fitted_after_the_change(
    digits: daskkm.TileStore,
) -> None:
    X = digits.features()
    X[X > 10] = 0
    changed = X.compute()
    assert changed.max() == 10
    starts = changed[::2000] * 1.0
    model = daskkm.fit_sweep(X, [3], init=starts).models[3]
    assert model.inertia_ == daskkm.fit_sweep(changed, [3], init=starts).models[3].inertia_


# Stores at each kind of location, and appends

NEW_TILES = 7  # of a chunk


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Location]:
    """A location of each kind for a store, with chunks of seven tiles."""
    with (
        new_location(request.param) as location,
        override(chunk_bytes=NEW_TILES * 64, remote_chunk_bytes=NEW_TILES * 64, table_rows=2),
    ):
        yield location


def save_images(folder: Path, shapes: Sequence[tuple[int, int]], seed: int = 0) -> list[Path]:
    """Write images of random pixels."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"i_{i}.png" for i in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path, compress_level=1)
    return paths


def read_files(location: Location) -> dict[str, bytes]:
    """Return all files of a store but the root, which has random ids."""
    return {
        name: bytes((location / name).read()) for name in location.sizes() if name != "zarr.json"
    }


def test_store_at_any_location_holds_the_same(images: Path, place: Location) -> None:
    with new_location("local") as local:
        expected = daskkm.create_store(images, local, tile=8)
        store = daskkm.create_store(images, place, tile=8)
        assert (store.digest, list(store.images)) == (expected.digest, list(expected.images))
        X = expected.features().compute()
        np.testing.assert_array_equal(store.features().compute(), X)
        np.testing.assert_array_equal(np.reshape(store.tiles[:], X.shape), X)
        assert store.features().chunks[0] == (7, 7, 7, 7, 2)
        model = daskkm.fit_sweep(expected, [3], n_init=1, random_state=0).models[3]
        for each in (store, expected):
            each.label(model, distances=True)
        for name in ("labels", "distances"):
            found, wanted = (getattr(each, name)(3).compute() for each in (store, expected))
            np.testing.assert_array_equal(found, wanted)
        assert daskkm.open_store(place).verify() == []
        assert place.names() == {"zarr.json", "tiles", "images", "labels", "distances"}
        assert place.parent.names() == {"x.zarr"}
        again = daskkm.create_store(images, place)
        assert again.digest == store.digest


def test_zarr_and_xarray_open_a_store_without_a_warning(
    images: Path, place: Location, tmp_path: Path
) -> None:
    """Each warning is an error."""
    deep = place if place.is_local else place.parent.parent
    (tmp_path / "more").mkdir()
    shutil.copy(images / "s_1.png", tmp_path / "more" / "b.png")
    (tmp_path / "more" / "c.png").write_text("not an image")
    store = daskkm.create_store(images, deep, tile=8)
    model = daskkm.fit_sweep(store, [3], n_init=1, random_state=0).models[3]
    store.label(model, distances=True)
    store = store.append(tmp_path / "more", on_bad="skip")
    X = store.features().compute().reshape(42, 8, 8)
    zarr_store, _ = deep.open_zarr()
    for consolidated in (None, False):
        group: Any = zarr.open_group(zarr_store, mode="r", use_consolidated=consolidated)
        names = {name for name, _ in group.members(None)}
        assert names >= {"tiles", "images/name", "skipped/reason", "labels/3", "distances/3"}
        np.testing.assert_array_equal(group["tiles"][:], X)
        labels = np.asarray(group["labels/3"][:])
        np.testing.assert_array_equal(labels[30:], -1)
        assert np.isnan(group["distances/3"][30:]).all()
    dataset = xr.open_zarr(zarr_store)
    assert dataset["tiles"].dims == ("tile", "y", "x")
    np.testing.assert_array_equal(dataset["tiles"], X)
    opened: Any = zarr_store
    tree: Any = xr.open_datatree(opened, engine="zarr", mask_and_scale=False)
    np.testing.assert_array_equal(tree["labels/3"], labels)
    assert tree["images/size"].values.tolist() == [image.size for image in store.images]
    assert tree["skipped/reason"].dims == ("skipped_reason",)


@pytest.mark.parametrize("init", ["random", [[0.0, 1.0], [2.0, 3.0]]])
def test_model_in_xarray_has_clusters_and_features(tmp_path: Path, init: Any) -> None:
    X = np.random.default_rng(0).random((9, 2))
    for dtype in (">f8", "<f8"):  # of any byte order
        own = init if init == "random" else np.array(init, dtype)
        model = daskkm.KMeans(n_clusters=2, n_init=1, init=own, random_state=0).fit(X)
        model.save(tmp_path / "m.zarr")
        found = xr.open_zarr(tmp_path / "m.zarr")
        assert dict(found.sizes) == {"cluster": 2, "feature": 2}
        np.testing.assert_array_equal(found["cluster_centers"], model.cluster_centers_)
        np.testing.assert_array_equal(found["counts"], model.fitted_model.counts_)
        tree = xr.open_datatree(tmp_path / "m.zarr", engine="zarr")
        loaded = daskkm.load_model(tmp_path / "m.zarr")
        if init != "random":
            np.testing.assert_array_equal(tree["extra/init"], init)
            np.testing.assert_array_equal(loaded.init, init)
        np.testing.assert_array_equal(loaded.cluster_centers_, model.cluster_centers_)


SHAPES = st.tuples(st.integers(8, 40), st.integers(8, 40))


@pytest.mark.faults
@settings(max_examples=15)
@given(
    st.lists(SHAPES, min_size=1, max_size=7),
    st.lists(st.integers(1, 7), max_size=3),
    st.sampled_from(KINDS),
    st.integers(1, 3),
)
def test_append_of_images_in_any_split_equals_one_ingest(
    shapes: list[tuple[int, int]], cuts: list[int], kind: str, group: int
) -> None:
    with (
        TemporaryDirectory() as home,
        new_location(kind) as whole,
        new_location(kind) as parts,
        override(chunk_bytes=7 * 64, remote_chunk_bytes=7 * 64, table_rows=2),
        override(ingested_images=group),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "pixels that fill no whole tile were cropped")
        paths = save_images(Path(home) / "images", shapes)
        expected = daskkm.create_store(paths, whole, tile=8)
        ends = sorted({min(cut, len(paths)) for cut in cuts} | {len(paths)})
        store = daskkm.create_store(paths[: ends[0]], parts, tile=8)
        for first, last in pairwise(ends):
            store = store.append(paths[first:last])
        assert store.digest == expected.digest
        assert read_files(parts) == read_files(whole)
        pixels = [np.asarray(Image.open(path)) for path in paths]
        tiles = np.concatenate([cut(image, (8, 8)) for image in pixels])
        np.testing.assert_array_equal(store.features().compute(), tiles.reshape(-1, 64))
        assert daskkm.open_store(parts).verify() == []


@pytest.mark.faults
def test_append_does_not_disturb_readers_and_labels(tmp_path: Path, place: Location) -> None:
    paths = save_images(tmp_path / "images", [(24, 32), (16, 24), (32, 24)])
    store = daskkm.create_store(paths[:2], place, tile=8)
    model = daskkm.fit_sweep(store, [3], n_init=1, random_state=0).models[3]
    store.label(model, distances=True)
    X, labels = store.features(), store.labels(3)
    before, old_labels = X.compute(), labels.compute()
    found = []

    def read(*_: int) -> None:
        found.append((X.compute(scheduler="sync"), labels.compute(scheduler="sync")))

    longer = store.append(paths[2], on_image=read)
    read()
    for tiles, own in found:
        np.testing.assert_array_equal(tiles, before)
        np.testing.assert_array_equal(own, old_labels)
    assert len(found) > 1
    assert (len(store), len(longer)) == (18, 30)
    np.testing.assert_array_equal(store.labels(3).compute(), old_labels)
    with pytest.warns(UserWarning, match="12 of 30 tiles have no labels for k = 3. Label the"):
        grown = longer.labels(3).compute()
    np.testing.assert_array_equal(grown, [*old_labels, *[-1] * 12])
    with pytest.warns(UserWarning, match="12 of 30 tiles have no distances for k = 3"):
        assert np.isnan(longer.distances(3).compute()[18:]).all()
    assert daskkm.open_store(place).verify() == []
    longer.label(model, distances=True)
    np.testing.assert_array_equal(longer.labels(3).compute(), model.predict(longer).compute())
    np.testing.assert_array_equal(longer.labels(3).compute()[:18], old_labels)
    np.testing.assert_array_equal(store.labels(3).compute(), old_labels)
    with pytest.raises(StoreError, match="Open the store again"):
        store.label(model)  # would remove labels of new tiles
    assert daskkm.open_store(place).verify() == []


def test_append_of_present_images_reads_and_writes_nothing(
    images: Path, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(images)
    store = daskkm.create_store(images, place, tile=8)
    before = read_files(place)
    monkeypatch.setattr(pillow, "read_shape", None)
    same = store.append(images)
    assert same.digest == store.digest
    assert read_files(place) == before
    replace_bytes(images / "s_2.png", 1001)
    with pytest.raises(StoreError, match=r"1 image changed \(s_2\.png\) since the store was"):
        store.append(images)


def test_append_of_bad_images_keeps_the_store(images: Path, place: Location) -> None:
    store = daskkm.create_store(images, place, tile=8)
    before = read_files(place)
    Image.new("RGB", (8, 8)).save(images / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: RGB, while the other images are greyscale"):
        store.append(images)
    (images / "a.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"a\.png: not an image"):
        store.append(images)
    assert read_files(place) == before
    assert daskkm.open_store(place).digest == store.digest


@pytest.mark.faults
def test_append_to_a_damaged_chunk_is_refused(images: Path, place: Location) -> None:
    """The new tiles would share the last chunk."""
    store = daskkm.create_store(images, place, tile=8)
    shutil.copy(images / "s_1.png", images / "b.png")
    chunk = place / "tiles" / "c" / "4" / "0" / "0"
    whole = bytes(chunk.read())
    chunk.write(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CorruptChunkError, match=r"tiles 28 to 29 cannot be read .*checksum"):
        store.append(images)
    chunk.write(whole)
    assert len(store.append(images)) == 42


@pytest.mark.faults
def test_append_to_a_replaced_store_is_refused(images: Path, place: Location) -> None:
    store = daskkm.create_store(images, place, tile=8)
    other = daskkm.create_store(images, place, tile=4, overwrite=True)
    with pytest.raises(StoreError, match=r"replaced since it was opened\. Open the store again"):
        store.append(images)
    assert daskkm.open_store(place).digest == other.digest
