"""Test that a store holds the exact pixels of its images, or an error is raised."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from PIL import Image

import daskkm
from daskkm.block_sizes import override
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import ImageError, StoreError
from daskkm.images import pillow
from daskkm.images.grid import cut, join
from daskkm.storage import records, writer as writer_module, zarr_nodes
from daskkm.storage.labels import choose_part_rows
from daskkm.storage.records import ImageRecord
from daskkm.storage.tile_store import STORE
from daskkm.storage.writer import open_writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    with override(chunk_bytes=7 * 64, provenance_rows=4):
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
        rows = writer_module.choose_chunk_rows(tile_bytes)
        assert max(1, 0.93 * (4 << 20) / tile_bytes - 1) <= rows <= max(1, (4 << 20) / tile_bytes)
        for k in (1, 5, 256, 3000):
            part = choose_part_rows(rows, 8 * k, alone=False)
            assert rows % part == 0
            assert part * 8 * k <= 6 << 20
            assert part == rows or part * 8 * k >= 1 << 20
    # The rows of a single task may be prime.
    assert [choose_part_rows(16_381, 8 * k, alone=True) for k in (5, 1000)] == [16_381, 524]


def test_create_store_of_rgb_images_has_bands(tmp_path: Path) -> None:
    folder = tmp_path / "rgb"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    store = daskkm.create_store(folder, tmp_path / "t.zarr", tile=(4, 4))
    assert store.tile == (4, 4, 3)
    assert store.tiles.metadata.dimension_names == ("tile", "y", "x", "band")  # type: ignore[union-attr]
    np.testing.assert_array_equal(join(np.asarray(store.tiles[:]), 3), pixels)


def test_store_attributes_describe_images_and_arrays(images: Path, tmp_path: Path) -> None:
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8))
    said = json.loads((tmp_path / "t.zarr" / "zarr.json").read_text())
    assert said["zarr_format"] == 3
    ours = said["attributes"]["daskkm"]
    assert ours["complete"] is True
    names = {"name", "size", "sha256", "mtime_ns", "ctime_ns", "shape", "cropped"}
    assert ours["images"][0].keys() == names
    assert store.tiles.metadata.dimension_names == ("tile", "y", "x")  # type: ignore[union-attr]
    for name in ("tiles", "image", "row", "col"):
        array = json.loads((tmp_path / "t.zarr" / name / "zarr.json").read_text())
        assert [codec["name"] for codec in array["codecs"]] == ["bytes", "crc32c"]


def test_create_store_of_blank_tiles_writes_all_chunks(tmp_path: Path) -> None:
    """Zarr reads a missing chunk as zeros, so a lost chunk would not be noticed."""
    (tmp_path / "blank").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "blank" / "a.png")
    daskkm.create_store(tmp_path / "blank", tmp_path / "t.zarr", tile=(8, 8))
    assert (tmp_path / "t.zarr" / "tiles" / "c" / "0" / "0" / "0").stat().st_size == 4 * 64 + 4


def test_create_store_of_ragged_images_crops_with_one_warning(images: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"s_1\.png \(4 at the bottom, 2 at the right\), s_2\.png"):
        store = daskkm.create_store(images, tmp_path / "t.zarr", tile=(10, 10))
    assert [image.cropped for image in store.images] == [(4, 2), (6, 4), (2, 4)]
    assert daskkm.open_store(tmp_path / "t.zarr").images == store.images
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
        patched.setattr(pillow, "read_image", None)  # no image is decoded
        patched.setattr(pillow, "read_shape", None)
        with pytest.raises(StoreError, match=said) as refused:
            daskkm.create_store(images, path, **asked)
    assert f"{path}: the store has other content" in str(refused.value)
    assert "which deletes its labels/3, labels/12, distances/12" in str(refused.value)
    assert refused.value.options == ("overwrite=True",)
    assert contents(path) == files
    assert [entry.name for entry in tmp_path.iterdir() if "t.zarr" in entry.name] == ["t.zarr"]
    after = daskkm.create_store(images, path, **asked, overwrite=True)
    assert (after.images, after.tile) != (before.images, before.tile)
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
        *((file, -9) for file in ("tiles/c/0/0/0", "row/c/0")),
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
        damaged = (path / file).read_bytes().replace(b"s_10.png", b"s_11.png")
    (path / file).write_bytes(damaged)
    (path / ".DS_Store").touch()
    files = contents(path)
    with pytest.raises(
        StoreError, match="or overwrite the store, which deletes its labels/3"
    ) as refused:
        daskkm.create_store(images, path, tile=8)
    assert refused.value.options == ("overwrite=True",)
    assert contents(path) == files
    if file == "zarr.json":
        said = r"t\.zarr: .*size of tiles is unknown\. Ingest the images with a given size of tiles"
        with pytest.raises(StoreError, match=said) as refused:
            daskkm.create_store(images, path, overwrite=True)
        assert refused.value.options == ("tile",)
        flags = ["--images", str(images), "--store", str(path), "--out", str(tmp_path / "out")]
        with pytest.raises(StoreError, match=rf"{said}, or remove the store"):
            sweep_command.main([*flags, "--overwrite"], standalone_mode=False)
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

    def meanwhile(image: Path) -> tuple[int, ...]:
        if other.exists():
            other.rename(path)
        return shape(image)

    monkeypatch.setattr(pillow, "read_shape", meanwhile)
    with pytest.raises(
        StoreError, match=r"t\.zarr: another run has written a store\. Ingest the images again$"
    ):
        daskkm.create_store(images, path, tile=4)
    assert daskkm.open_store(path).tile == (8, 8)


@pytest.mark.faults
@pytest.mark.parametrize("state", ["complete", "partial"])
@pytest.mark.parametrize("order", [(1, 0, 2, 3), (1, 2, 0, 3), (0, 1, 3, 2)])
@override(chunk_bytes=64)
def test_ingest_of_images_in_another_order_is_refused_until_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, order: tuple[int, ...]
) -> None:
    """The order of skipped files matters too."""
    monkeypatch.setattr(writer_module, "_MAX_SAVES", 1000)
    names = ["c.png", "a.png", "bad.png", "also_bad.png"]
    for i, name in enumerate(names):
        if i < 2:
            Image.new("L", (16, 16), i + 1).save(tmp_path / name)
        else:
            (tmp_path / name).write_text(name)
    Image.new("L", (16, 16), 9).save(tmp_path / "z.png")
    settings: Any = {"tile": 8, "on_bad": "skip"}
    path, last = tmp_path / "t.zarr", tmp_path / "z.png"

    def stop(done: int, _: int) -> None:
        if done == 5 and state == "partial":
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        files = [tmp_path / name for name in names]
        daskkm.create_store([*files, last], path, **settings, on_image=stop)
    others = [*(files[i] for i in order), last]
    with pytest.raises(StoreError, match=r" images in another order \(.*a") as refused:
        daskkm.create_store(others, path, **settings)
    assert refused.type is StoreError
    assert refused.value.options == ("overwrite=True",)
    after = daskkm.create_store(others, path, **settings, overwrite=True)
    fresh = daskkm.create_store(others, tmp_path / "fresh.zarr", **settings)
    assert (after.images, after.skipped) == (fresh.images, fresh.skipped)
    np.testing.assert_array_equal(after.tiles[:], fresh.tiles[:])
    # The order among images, and among skipped files, decides.
    among = [others[2], *others[:2], *others[3:]] if order[2:] == (2, 3) else others
    assert daskkm.create_store(among, path, **settings).digest == after.digest


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

    def noted(path: Path) -> tuple[int, str]:
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
@pytest.mark.parametrize("state", ["complete", "partial"])
@override(chunk_bytes=64)
def test_ingest_of_changed_image_of_same_size_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, state: str
) -> None:
    (images / "bad.png").write_text("not an image")
    settle(images)
    settings: Any = {"tile": 8, "on_bad": "skip"}
    read_image = pillow.read_image

    def interrupted(path: Path, tile: tuple[int, int]) -> Any:
        if path.name == "s_10.png" and state == "partial":
            raise KeyboardInterrupt
        return read_image(path, tile)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(pillow, "read_image", interrupted)
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
        old = ImageRecord.from_json(image.content)  # a record without times
        assert old == image
        assert (old.mtime_ns, old.ctime_ns) == (None, None)
        assert old.is_file(images / image.name)
        replace_bytes(images / image.name, 1000)
        assert not old.is_file(images / image.name)


def test_create_store_of_damaged_image_keeps_older_store(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    before = daskkm.create_store(images, path, tile=(8, 8)).features().compute()
    whole = (images / "s_10.png").read_bytes()
    (images / "s_10.png").write_bytes(whole[:500])  # the header is intact
    for place in (path, tmp_path / "new.zarr"):
        with pytest.raises(ImageError, match=r"s_10\.png"):
            daskkm.create_store(images, place, tile=(8, 8), overwrite=True)
    np.testing.assert_array_equal(daskkm.open_store(path).features().compute(), before)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("new.zarr.partial", "pictures", "t.zarr", "t.zarr.partial")
    ]
    (images / "s_10.png").write_bytes(whole)
    assert len(daskkm.create_store(images, tmp_path / "new.zarr", tile=(8, 8))) == 30


def test_open_store_of_incomplete_store_is_refused(images: Path, tmp_path: Path) -> None:
    daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8))
    zarr_nodes.write_attributes(tmp_path / "t.zarr", STORE, {}, complete=False)
    with pytest.raises(StoreError, match=r"not complete\. Ingest the images again"):
        daskkm.open_store(tmp_path / "t.zarr")
    assert len(daskkm.create_store(images, tmp_path / "t.zarr", tile=(8, 8), overwrite=True)) == 30


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
@pytest.mark.parametrize("kind", ["file", "folder", "group", "model", "more", "dots", "cut"])
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


def test_create_store_over_new_file_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.zarr"
    path.mkdir()
    read = pillow.read_image

    def meanwhile(image: Path, tile: tuple[int, int]) -> Any:
        (path / "thesis.tex").write_text("precious")
        return read(image, tile)

    monkeypatch.setattr(pillow, "read_image", meanwhile)
    with pytest.raises(StoreError, match=r"the folder holds thesis\.tex"):
        daskkm.create_store(images, path, tile=8)
    assert [entry.name for entry in path.iterdir()] == ["thesis.tex"]
    (path / "thesis.tex").unlink()
    monkeypatch.setattr(pillow, "read_image", None)  # the partial store is complete
    assert len(daskkm.create_store(images, path, tile=8)) == 30
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pictures", "t.zarr"]


def test_create_store_in_current_folder_or_link_loop_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StoreError, match="the current folder"):
        daskkm.create_store(images, ".", tile=8)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StoreError, match="Choose another location"):
        daskkm.create_store(images, tmp_path / "loop", tile=8)


def test_open_writer_of_fewer_tiles_commits_a_smaller_store(tmp_path: Path) -> None:
    image = ImageRecord("a", 1, "", (8, 8), (0, 0))
    with open_writer(tmp_path / "t.zarr", 2, (8, 8), ()) as writer:
        writer.append(image, np.full((1, 8, 8), 7, np.uint8))
    store = daskkm.open_store(tmp_path / "t.zarr")
    assert store.features().compute().tolist() == [[7] * 64]
    assert store.provenance()["image"].tolist() == [0]


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
