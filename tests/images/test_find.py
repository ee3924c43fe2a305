"""Test the search for image files, and the report of unread entries."""

from __future__ import annotations

import os
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from PIL import Image

import daskkm
from daskkm.cli.ingest import command as ingest_command
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import ImageError
from daskkm.images.find import describe_unread, find_images
from daskkm.storage.locations import as_location

if TYPE_CHECKING:
    from pathlib import Path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(images: Any) -> list[str]:
    return [path.name for path in find_images(images)[0]]


def unread(images: Any, store: Path | None = None) -> str:
    location = None if store is None else as_location(store)
    return describe_unread(find_images(images, location)[1])


def test_find_images_of_folder_returns_images_in_natural_order(tmp_path: Path) -> None:
    wanted = ["a_2.png", "a_10.JPG", "b01.tif", "b1.tif", "b1c2.png", "b1c10.png"]
    touch(tmp_path, *reversed(wanted), "README.md", ".hidden.png", "notes.txt", "folder/x.png")
    assert names(tmp_path) == names(str(tmp_path)) == names([tmp_path]) == wanted


def test_find_images_of_several_paths_keeps_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/10.png", "a/1.png", "z.dat", "c 1.png", "c 3.png", "d[1].png")
    given = ["b", "z.dat", "c *.png", "d[1].png", "a"]
    expected = ["2.png", "10.png", "z.dat", "c 1.png", "c 3.png", "d[1].png", "1.png"]
    assert names(tmp_path / name for name in given) == expected
    assert names(tmp_path / "**" / "*.png") == ["1.png", "2.png", "10.png", *expected[3:6]]


@pytest.mark.parametrize("name", ["missing", "missing/a.png", "missing*.png", "empty"])
def test_find_images_of_path_without_images_raises_image_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError) as found:
        find_images(tmp_path / name)
    assert str(found.value).startswith(f"{tmp_path / name}: no ")
    with pytest.raises(ImageError, match="the list is empty"):
        find_images([])


def test_find_images_of_impossible_path_raises_image_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("x" * 300, "loop/a.png", "loop/*.png"):
        with pytest.raises(ImageError, match=r"cannot be read \(.*\)\. Check path"):
            find_images(tmp_path / name)
    with pytest.raises(ImageError, match="no such file or folder"):
        find_images("a\0b")
    # A pattern may be longer than any file name.
    with pytest.raises(ImageError, match="no file matches this pattern"):
        find_images(tmp_path / f"[{'x' * 300}]")


def test_find_images_with_equal_names_raises_image_error(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    for given in (["a", "b"], ["a", "b/1.png"], ["**/*.png"]):
        with pytest.raises(ImageError, match=r"/1\.png: same name as "):
            find_images([tmp_path / name for name in given])


def test_find_images_with_repeated_path_returns_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "b/1.png", "b/2.png", "b/x.txt"))
    for given in (["b", "b/2.png"], ["b", tmp_path / "b"], ["b/1.png", "./b/1.png", "b"]):
        assert names(given) == ["1.png", "2.png"]
    assert names(["b/2.png", "b"]) == ["2.png", "1.png"]
    assert unread(["b", "b"]) == "b: not read: 1 file (.txt 1)"


@pytest.mark.parametrize("pattern", ["images/**", "images/*", "im*/**/*"])
def test_find_images_of_pattern_with_files_ignores_folders(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "images/1.png", "images/2.png", "images/raw/x.txt")
    found = ["1.png", "2.png", *["x.txt"] * ("**" in pattern)]
    assert names(tmp_path / pattern) == found
    assert unread(tmp_path / pattern) == ""
    # A pattern may match folders.
    assert names(tmp_path / "im*") == ["1.png", "2.png"]


def test_describe_unread_of_folders_counts_entries(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", "1.png", "a.txt", "b.TXT", "c.xml", "LICENSE")
    assert unread(folder) == f"{folder}: not read: 4 files (.txt 2, .xml 1, no suffix 1)"
    touch(folder / "raw", *(f"{i}.png" for i in range(11)), "deep/er/1.jpg", ".hidden")
    counted = f"{folder}: not read: 4 files (.txt 2, .xml 1, no suffix 1), 1 folder (raw, 12 files)"
    assert unread(folder) == counted
    touch(folder, "d.a", "e.b", "f.c", "s1/x", "s2/x", "s3/.x")
    assert unread(folder) == (
        f"{folder}: not read: 7 files (.txt 2, .xml 1, .a 1, 3 more), "
        "4 folders (raw, 12 files; s1, 1 file; s2, 1 file; 1 more)"
    )
    # One line has a count for each folder.
    others = [touch(tmp_path / f"o{i}", f"o{i}.png", "x.csv") for i in range(4)]
    line = unread([tmp_path / "photos", *others])
    assert line.endswith(f"; {others[1]}: not read: 1 file (.csv 1); 2 more folders")
    assert unread([folder / "1.png", *(other / f"{other.name}.png" for other in others)]) == ""


def test_describe_unread_with_system_files_is_empty(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".git/x", "__MACOSX/1.png")
    touch(tmp_path, "t.zarr/zarr.json", "t.zarr.lock", "t.zarr.checkpoint/state")
    assert unread(tmp_path, tmp_path / "t.zarr") == ""
    assert unread(tmp_path, tmp_path / "u.zarr").startswith(f"{tmp_path}: not read: 1 file (.lock")


def test_describe_unread_of_large_sub_folder_stops_at_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskkm.images.find._MAX_COUNT", 3)
    touch(tmp_path, "1.png", "a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "b/4", "b/5")
    touch(tmp_path, "a/.git/1", "a/c/.git/d/1", "a/__MACOSX/1", "a/@eaDir/1", "a/.1")
    assert unread(tmp_path).endswith("2 folders (a, 3 files; b, more than 3 files)")


@pytest.mark.parametrize(
    ("entries", "description"),
    [
        (["a.txt", "b.txt", "c.jp2"], "only 3 files (.txt 2, .jp2 1). Add images (.bmp, "),
        (["cats/1.png", "dogs/1.txt"], "only 2 folders (cats, 1 file; dogs, 1 file). Name the fol"),
        ([".DS_Store"], "which is empty. Add images (.bmp, "),
    ],
)
def test_find_images_of_folder_without_images_describes_the_folder(
    tmp_path: Path, entries: list[str], description: str
) -> None:
    touch(tmp_path, *entries)
    with pytest.raises(ImageError) as found:
        find_images(tmp_path)
    assert str(found.value).startswith(f"{tmp_path}: no images in this folder, {description}")
    assert ("such as" in str(found.value)) == (f"'{tmp_path}/**/*.png'" in str(found.value))
    if "such as" in str(found.value):
        assert names(tmp_path / "**" / "*.png") == ["1.png"]


def test_create_store_of_folder_warns_once_of_unread_entries(images: Path, tmp_path: Path) -> None:
    files = [images / f"s_{i}.png" for i in (1, 2, 10)]
    alone = daskkm.create_store(files, tmp_path / "a.zarr", tile=8)
    touch(images, "notes\n.txt", "raw/1.png")
    warning = r"pictures: not read: 1 file \(\.txt 1\), 1 folder \(raw, 1 file\)$"
    for _ in range(2):  # the second time the store is complete
        with pytest.warns(UserWarning, match=warning) as found:
            store = daskkm.create_store(images, tmp_path / "b.zarr", tile=8)
        assert [each.filename for each in found] == [__file__]
    assert list(store.images) == list(alone.images)
    assert store.digest == alone.digest
    one = daskkm.create_store(images / "s_2.png", tmp_path / "c.zarr", tile=8)
    assert [image.name for image in one.images] == ["s_2.png"]


def test_create_store_with_bad_file_names_the_folder(images: Path, tmp_path: Path) -> None:
    touch(tmp_path / "more", "bad.png")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"more/bad\.png: not an image"):
            daskkm.create_store([images, tmp_path / "more"], tmp_path / "t.zarr", tile=8)
        daskkm.create_store([images, tmp_path / "more"], tmp_path / "t.zarr", tile=8, on_bad="skip")


def test_commands_with_several_paths_read_all_images(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = tmp_path / "more"
    more.mkdir()
    for i in range(2):
        Image.fromarray(np.full((16, 16), 90 * i, np.uint8)).save(more / f"m_{i}.png")
    flags = ["--store", "t.zarr", "--tile", "8", "--scheduler", "threads"]
    ingest_command.main(["pictures", "more/*.png", *flags], standalone_mode=False)
    assert "38 tiles of 8 x 8 from 5 images" in capsys.readouterr().out
    paths = ["--images", "pictures", "--images", "more"]
    fit = ["--store", "t.zarr", "--k", "2", "--n-init", "1", "--scheduler", "threads"]
    sweep_command.main([*paths, *fit], standalone_mode=False)
    assert "38 tiles from 5 images" in capsys.readouterr().err
    store = daskkm.open_store("t.zarr")
    assert [image.name for image in store.images][-2:] == ["m_0.png", "m_1.png"]
    with pytest.raises(click.UsageError, match="cannot share"):
        sweep_command.main([*paths, *fit, "--out", "more"], standalone_mode=False)


def test_ingest_command_without_paths_reads_the_folder_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(images, "images")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ingest_command.main(["--tile", "8", "--scheduler", "threads"], standalone_mode=False)
    assert len(daskkm.open_store(os.path.join("store", "tiles.zarr"))) == 30  # noqa: PTH118
