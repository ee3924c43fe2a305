"""Test that bad and unusual files are converted as documented, refused by name, or skipped."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import daskkm
from daskkm import block_sizes
from daskkm.cli.ingest import command as ingest_command
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import ImageError, StoreError
from daskkm.images import pillow, tasks
from daskkm.storage.locations import LocalLocation
from tests.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location
    from tests.forks import Forks

pytestmark = pytest.mark.faults

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 40), np.uint8)
RGB = RNG.integers(0, 256, (24, 40, 3), np.uint8)
BLACK_WHITE = np.where(GREY > 127, 255, 0).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (64, 3), np.uint8)
INDICES = (GREY // 4).astype(np.uint8)
GREYS = COLOURS[:, :1].repeat(3, axis=1)


def palette(colours: NDArray[np.uint8]) -> Image.Image:
    image = Image.new("P", (40, 24))
    image.putdata(INDICES.ravel().tolist())
    image.putpalette(colours.tobytes())
    return image


def alpha(pixels: NDArray[np.uint8], opacity: int) -> Image.Image:
    """Return an image with the given opacity in one pixel, opaque elsewhere."""
    image = Image.fromarray(pixels).convert("RGBA" if pixels.ndim == 3 else "LA")
    mask = Image.new("L", image.size, 255)
    mask.putpixel((5, 5), opacity)
    image.putalpha(mask)
    return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, size: tuple[int, int] = (40, 24), bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + b"".join(chunks) + png_chunk(b"IEND", b"")


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def save(path: Path, image: Image.Image | NDArray[np.uint8], **settings: object) -> Path:
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    whole.save(path, **settings)  # type: ignore[arg-type]
    return path


def read(path: Path) -> NDArray[np.uint8]:
    location = LocalLocation(path)
    with pillow.configure_pillow():
        image = pillow.PillowImage(location)
        pixels = image.read_window(slice(None), slice(None))
        assert pillow.read_shape(location) == pixels.shape == image.make_record((8, 8)).shape
    assert pixels.dtype == np.uint8
    return pixels


KINDS: dict[str, tuple[Image.Image, NDArray[np.uint8]]] = {
    "grey": (Image.fromarray(GREY), GREY),
    "rgb": (Image.fromarray(RGB), RGB),
    "1-bit": (Image.fromarray(BLACK_WHITE).convert("1"), BLACK_WHITE),
    "palette": (palette(COLOURS), COLOURS[INDICES]),
    "grey palette": (palette(GREYS), GREYS[INDICES][..., 0]),
    "opaque grey": (alpha(GREY, 255), GREY),
    "opaque rgb": (alpha(RGB, 255), RGB),
}
FILES = [(name, kind) for name in ("a.png", "a.tif") for kind in KINDS]
FILES += [("a.gif", kind) for kind in ("grey", "1-bit", "palette", "grey palette")]
FILES += [("a.bmp", kind) for kind in ("grey", "rgb", "1-bit", "palette", "grey palette")]
FILES += [("a.ppm", kind) for kind in ("grey", "rgb", "1-bit")]
FILES += [("a.webp", kind) for kind in ("rgb", "palette", "opaque rgb")]


@pytest.mark.parametrize(("name", "kind"), FILES, ids=[f"{kind} {name}" for name, kind in FILES])
def test_read_image_of_8_bits_returns_every_pixel(tmp_path: Path, name: str, kind: str) -> None:
    image, expected = KINDS[kind]
    settings = {"lossless": True} if name == "a.webp" else {}
    pixels = read(save(tmp_path / name, image, **settings))
    np.testing.assert_array_equal(pixels, expected)


def test_read_image_with_other_suffix_uses_the_content(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", RGB).rename(tmp_path / "a.PNG")
    np.testing.assert_array_equal(read(tmp_path / "a.PNG"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_read_image_with_orientation_rotates_the_pixels(
    tmp_path: Path, name: str, orientation: int
) -> None:
    """EXIF defines which sides of the displayed image are the first row and column."""
    settings = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, RGB, exif=orientation_exif(orientation), **settings)
    rows = RGB if name != "a.jpg" else read(save(tmp_path / "b.jpg", RGB))
    expected = {
        1: rows,
        2: rows[:, ::-1],
        3: rows[::-1, ::-1],
        4: rows[::-1],
        5: rows.swapaxes(0, 1),
        6: rows[::-1].swapaxes(0, 1),
        7: rows[::-1, ::-1].swapaxes(0, 1),
        8: rows.swapaxes(0, 1)[::-1],
    }
    np.testing.assert_array_equal(read(path), expected[orientation])


def late_orientation(orientation: int) -> bytes:
    """Return a PNG with the orientation after the pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    exif = orientation_exif(orientation).tobytes()[6:]
    return png(png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"eXIf", exif))


def test_read_image_of_png_with_late_orientation_rotates_or_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(late_orientation(3))
    np.testing.assert_array_equal(read(path), RGB[::-1, ::-1])
    path.write_bytes(
        late_orientation(3).replace(
            orientation_exif(3).tobytes()[6:], orientation_exif(2).tobytes()[6:]
        )
    )
    with pytest.raises(ImageError, match=r"bad checksum in b'eXIf'"):
        read(path)
    path.write_bytes(late_orientation(6))
    with pytest.raises(
        ImageError, match=r"a\.png: the shape of the pixels differs from the header"
    ):
        read(path)


def bomb() -> bytes:
    """Return a PNG of 4 kB with 60,000 x 60,000 pixels, 10 GB."""
    return png(png_chunk(b"IDAT", zlib.compress(bytes(1 << 20))), size=(60_000, 60_000))


def frames(path: Path, **settings: object) -> Path:
    return save(path, GREY, save_all=True, append_images=[Image.fromarray(GREY[::-1])], **settings)


def sized(path: Path, size: int) -> None:
    path.write_bytes(png(b""))
    os.truncate(path, size)


def raw_tiff(path: Path, planes: NDArray[Any], kind: int = 1) -> None:
    """Write a planar TIFF, which Pillow cannot write."""
    n, height, width = planes.shape
    first = 8 + 2 + 11 * 12 + 4 + 24
    lists = (
        (256, [width]), (257, [height]), (258, [8 * planes.itemsize] * n), (259, [1]),
        (262, [1 if n == 1 else 2]), (273, [first + i * planes[0].nbytes for i in range(n)]),
        (277, [n]), (278, [height]), (279, [planes[0].nbytes] * n), (284, [2]),
        (339, [kind] * n),
    )  # fmt: skip
    entries, more = b"", b""
    for tag, values in lists:
        data = struct.pack(f"<{n if len(values) > 1 else 1}H", *values)
        if len(data) > 4:
            place = struct.pack("<I", first - 24 + len(more))
            more, data = more + data, place
        entries += struct.pack("<HHI4s", tag, 3, len(values), data.ljust(4, b"\0"))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(lists))
    path.write_bytes(head + entries + bytes(4) + more.ljust(24, b"\0") + planes.tobytes())


def raw_png(path: Path, bits: int, colour: int, row: int) -> None:
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(24 * (1 + row))))
    path.write_bytes(png(pixels, bits=bits, colour=colour))


CONVERT = "daskkm reads 8-bit greyscale and RGB. Convert the image"
UNREAD = "not an image of a known format. Replace or remove the file"
FRAMES = "2 frames; daskkm reads one per file. Save each frame as a separate file"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.png": (Path.touch, UNREAD),
    "text.jpg": (lambda path: path.write_text("not an image"), UNREAD),
    "zeros.tif": (lambda path: path.write_bytes(bytes(1000)), UNREAD),
    # Pillow would run Ghostscript.
    "postscript.png": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"),
        "EPS image; dask",
    ),
    "folder.png": (Path.mkdir, "not a regular file. Remove the entry"),
    "pipe.png": (os.mkfifo, "not a regular file. Remove the entry"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "loop.png": (lambda path: path.symlink_to(path), "symbolic links"),
    "bomb.png": (
        lambda path: path.write_bytes(bomb()),
        "the image has more than 178956970 pixels. Split",
    ),
    "big.png": (lambda path: sized(path, (1 << 30) + 1), "1073741825 bytes, more than"),
    "animated.gif": (frames, FRAMES),
    "animated.png": (frames, FRAMES),
    "animated.webp": (lambda path: frames(path, lossless=True), FRAMES),
    "pages.tif": (frames, "2 pages; daskkm reads one per file. Save each page as a separate file"),
    "deep.png": (lambda path: save(path, GREY.astype(np.uint16)), f"16-bit greyscale; {CONVERT}"),
    "deep.tif": (lambda path: save(path, GREY.astype(np.uint16)), f"16-bit greyscale; {CONVERT}"),
    "deep.pgm": (lambda path: path.write_bytes(b"P5 9 9 65535\n" + bytes(162)), "16-bit greyscale"),
    # Pillow silently reads the upper 8 of 16 bits.
    "deep_rgb.png": (lambda path: raw_png(path, 16, 2, 240), f"16-bit RGB; {CONVERT}"),
    "deep_alpha.png": (
        lambda path: raw_png(path, 16, 4, 160),
        f"16-bit greyscale with alpha; {CONVERT}",
    ),
    "deep_rgb.ppm": (lambda path: path.write_bytes(b"P6 9 9 999\n" + bytes(486)), "16-bit RGB"),
    "deep_planes.tif": (
        lambda path: raw_tiff(path, np.full((3, 8, 8), 257, "<u2")),
        f"16-bit RGB; {CONVERT}",
    ),
    "signed.tif": (lambda path: raw_tiff(path, GREY[None, :8, :8], 2), "8-bit signed greyscale"),
    "float.tif": (lambda path: save(path, GREY.astype(np.float32)), "32-bit float greyscale"),
    "cmyk.jpg": (lambda path: save(path, Image.fromarray(RGB).convert("CMYK")), "8-bit CMYK"),
    "lab.tif": (lambda path: save(path, Image.new("LAB", (16, 16))), f"8-bit Lab; {CONVERT}"),
}
BAD_PIXELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.png": (lambda path: cut_off(path, GREY, 300), "the image cannot be read"),
    "truncated.jpg": (lambda path: cut_off(path, GREY, 300), "the image cannot be read"),
    "truncated.tif": (lambda path: cut_off(path, RGB, 300), "the image cannot be read"),
    "truncated.bmp": (lambda path: cut_off(path, RGB, 300), "the image cannot be read"),
    "alpha.png": (lambda path: save(path, alpha(RGB, 254)), "some pixels are transparent"),
    "alpha.tif": (lambda path: save(path, alpha(GREY, 0)), "some pixels are transparent"),
    "key.png": (
        lambda path: save(path, GREY, transparency=int(GREY[3, 3])),
        "some pixels are transparent. Save the image without transparency",
    ),
    "index.gif": (
        lambda path: save(path, palette(COLOURS), transparency=int(INDICES[3, 3])),
        "some pixels are transparent. Save the image without transparency",
    ),
}


def cut_off(path: Path, pixels: NDArray[np.uint8], n: int) -> None:
    save(path, pixels)
    os.truncate(path, path.stat().st_size - n)


@pytest.mark.parametrize("name", [*BAD, *BAD_PIXELS])
def test_read_image_of_bad_file_raises_one_line_with_file_name(tmp_path: Path, name: str) -> None:
    make, why = (BAD | BAD_PIXELS)[name]
    make(tmp_path / name)
    with pytest.raises(ImageError, match=f"{name}: .*{re.escape(why)}") as found:
        read(tmp_path / name)
    assert "\n" not in str(found.value)
    location = LocalLocation(tmp_path / name)
    if name in BAD:  # the header gives the error
        with pytest.raises(ImageError) as again, pillow.configure_pillow():
            pillow.read_shape(location)
        assert str(again.value) == str(found.value)
    else:
        with pillow.configure_pillow():
            pillow.read_shape(location)


def test_read_image_without_permission_raises_error_with_file_name(images: Path) -> None:
    """Root may read every file, so a root test runs as another user."""
    code = """if True:
        import os, sys
        from pathlib import Path
        from PIL import Image
        from daskkm import errors
        from daskkm.images import find, pillow
        from daskkm.storage.locations import LocalLocation
        Image.init()  # the other user may be unable to import later
        folder = Path(sys.argv[1])
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        for function, path in (
            (pillow.read_shape, LocalLocation(folder / "s_2.png")),
            (pillow.PillowImage, LocalLocation(folder / "s_2.png")),
            (find.find_images, folder / "closed"),
        ):
            try:
                function(path)
            except errors.ImageError as error:
                print(error)
    """
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's folders are closed to other users
    try:
        folder.chmod(0o755)
        shutil.copy(images / "s_2.png", folder)
        (folder / "s_2.png").chmod(0o000)
        (folder / "closed").mkdir(0o000)
        with Process("-c", code, folder) as child:
            assert child.wait() == 0, child.lines
    finally:
        (folder / "closed").chmod(0o755)
        shutil.rmtree(folder)
    unread = "the image cannot be read (Permission denied). Replace or remove the file"
    assert child.output == [
        *[f"{folder}/s_2.png: {unread}"] * 2,
        f"{folder}/closed: cannot be read (Permission denied). Check path and permissions",
    ]


def test_create_store_with_unreadable_file_skips_the_file_until_readable(forked: Forks) -> None:
    """The store stays unchanged until the file is readable."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's folders are closed to other users
    try:
        (folder / "pictures").mkdir()
        for name in ("s_1.png", "s_2.png"):
            save(folder / "pictures" / name, GREY)
        (folder / "pictures" / "s_2.png").chmod(0o000)
        for entry in (folder, folder / "pictures"):
            entry.chmod(0o777)
        flags = ("--store", "t.zarr", "--tile", "8", "--on-bad", "skip", "--overwrite")
        # Modules of a local scheduler may be closed to the other user.
        args = ("ingest", "pictures", *flags, "--scheduler", "threads")
        nobody = {"user": 65534} if os.getuid() == 0 else {}  # root may read everything
        written = []
        for mode in (0o000, 0o000, 0o644):
            (folder / "pictures" / "s_2.png").chmod(mode)
            done = forked.run(*args, cwd=folder, **nobody)
            assert done.status == 0, done.lines
            store = daskkm.open_store(folder / "t.zarr")
            assert [file.name for file in store.skipped] == ([] if mode else ["s_2.png"])
            written.append((folder / "t.zarr" / "zarr.json").stat().st_ino)
        assert written[0] == written[1]
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_create_store_after_transient_error_reads_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "pictures").mkdir()
    for i in (1, 2):
        save(tmp_path / "pictures" / f"s_{i}.bmp", GREY[8 * i - 8 :])
    bad = (tmp_path / "pictures" / "s_2.bmp").read_bytes()
    open_image = Image.open

    def fail(file: Any, **settings: Any) -> Image.Image:
        if isinstance(file, io.BytesIO) and file.getvalue() == bad:
            raise error
        return open_image(file, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fail)
        store = daskkm.create_store(
            tmp_path / "pictures", tmp_path / "t.zarr", tile=8, on_bad="skip"
        )
        assert [file.name for file in store.skipped] == ["s_2.bmp"]
    settings: Any = {"tile": 8, "on_bad": "skip", "overwrite": True}
    store = daskkm.create_store(tmp_path / "pictures", tmp_path / "t.zarr", **settings)
    assert len(store.images) == 2
    assert not store.skipped


def test_create_store_with_incomplete_file_reads_the_file_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store must not record the error of the incomplete file for the complete file."""
    whole = (images / "s_2.png").read_bytes()
    (images / "s_2.png").write_bytes(b"")
    decode_group = tasks.decode_group

    def complete(*args: Any, **options: Any) -> Any:
        (images / "s_2.png").write_bytes(whole)
        return decode_group(*args, **options)

    settings: Any = {"tile": 8, "on_bad": "skip"}
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "decode_group", complete)
        first = daskkm.create_store(images, tmp_path / "t.zarr", **settings).skipped
    with pytest.raises(StoreError, match=r"1 image changed \(s_2\.png\)"):
        daskkm.create_store(images, tmp_path / "t.zarr", **settings)
    again = daskkm.create_store(images, tmp_path / "t.zarr", **settings, overwrite=True)
    assert [file.name for file in first] == ["s_2.png"]
    assert "s_2.png" in {image.name for image in again.images}
    assert not again.skipped


def test_create_store_with_many_bad_files_uses_little_memory(tmp_path: Path) -> None:
    profile = bytes(500_000)
    for i in range(20):
        save(tmp_path / f"{i}.jpg", Image.new("CMYK", (16, 16)), icc_profile=profile)
    save(tmp_path / "good.png", GREY)
    tracemalloc.start()
    try:
        with block_sizes.override(chunk_bytes=1 << 12):
            store = daskkm.create_store(tmp_path, tmp_path / "t.zarr", tile=8, on_bad="skip")
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()
    assert len(store.skipped) == 20


def test_configure_pillow_with_warning_of_other_code_does_not_raise(tmp_path: Path) -> None:
    """Another thread may warn while an image is read."""
    path = save(tmp_path / "a.png", GREY)
    with pillow.configure_pillow(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
    np.testing.assert_array_equal(read(path), GREY)


def test_read_image_of_planar_tiff_interleaves_bands(tmp_path: Path) -> None:
    planes = RNG.integers(0, 256, (3, 8, 8), np.uint8)
    raw_tiff(tmp_path / "planes.tif", planes)
    np.testing.assert_array_equal(read(tmp_path / "planes.tif"), planes.transpose(1, 2, 0))


def test_read_image_with_other_pillow_settings_ignores_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("truncated.png", "truncated.jpg", "bomb.png"):
        (BAD | BAD_PIXELS)[name][0](tmp_path / name)
    whole = save(tmp_path / "whole.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("truncated.png", "truncated.jpg", "bomb.png"):
        with pytest.raises(ImageError, match=name):
            read(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    np.testing.assert_array_equal(read(whole), GREY)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, True)


NAMES = [
    *("line\nbreak.png", "'quotes\".png", "-dash.png", "\N{GRINNING FACE}.png", "tab\t.png"),
    *("$(echo).png", "back\\slash.png", os.fsdecode(b"bytes\xff\xfe.png"), "%s{0}.png", "ü.png"),
]


def test_create_store_with_unusual_file_names_works(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"images\n\xff")
    folder.mkdir()
    for i, name in enumerate(NAMES):
        save(folder / name, np.full((8, 9), i, np.uint8))
    with Process(
        *("-m", "daskkm.ingest", folder, "--store", folder / "t.zarr", "--tile", "8"),
        *("--scheduler", "threads"),
    ) as made:
        assert made.wait() == 0, made.lines
    assert len(made.lines) == len(made.output) == 1  # the warning of cropped pixels
    store = daskkm.open_store(folder / "t.zarr")
    assert sorted(image.name for image in store.images) == sorted(NAMES)
    values = store.features().compute()[:, 0].tolist()
    assert values == [NAMES.index(image.name) for image in store.images]
    before = (folder / "t.zarr" / "zarr.json").stat().st_mtime_ns
    daskkm.create_store(folder, folder / "t.zarr", tile=8)
    assert (folder / "t.zarr" / "zarr.json").stat().st_mtime_ns == before
    for name in NAMES:
        (folder / name).write_text("not an image")
        with pytest.raises(ImageError, match="not an image") as bad:
            daskkm.create_store(folder, folder / "t.zarr", tile=8, overwrite=True)
        assert str(bad.value).isprintable()
        with pytest.raises(StoreError, match=r"images? changed") as found:
            daskkm.create_store(folder, folder / "t.zarr", tile=8)
        assert str(found.value).isprintable()
        (folder / name).unlink()
        if name != NAMES[-1]:
            save(folder / "last.png", np.zeros((8, 8), np.uint8))


@pytest.fixture
def mixed(images: Path) -> Path:
    """Return a folder with three images and every bad file."""
    for name, (make, _) in (BAD | BAD_PIXELS).items():
        make(images / name)
    save(images / "colour.png", RGB)
    save(images / "small.png", GREY[:5])
    for path in images.iterdir():
        if path.is_file():
            os.utime(path, (1, 1))  # old enough for the store to record the times
    return images


def test_create_store_with_on_bad_skip_lists_bad_files(mixed: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zarr"
    with pytest.raises(ImageError, match=r"alpha|animated"):
        daskkm.create_store(mixed, path, tile=8)
    assert not path.exists()
    with Process(
        *("-m", "daskkm.ingest", mixed, "--store", path, "--tile", "8", "--on-bad", "skip"),
        *("--scheduler", "threads"),
    ) as made:
        assert made.wait() == 0, made.lines
    bad = {**BAD, **BAD_PIXELS, "colour.png": (None, "RGB, while"), "small.png": (None, "no whole")}
    assert made.lines == []
    assert made.output[0].endswith("t.zarr: 30 tiles of 8 x 8 from 3 images")
    assert made.output[1] == f"{len(bad)} files skipped:"
    store = daskkm.open_store(path)
    assert [image.name for image in store.images] == ["s_1.png", "s_2.png", "s_10.png"]
    assert {file.name for file in store.skipped} == set(bad)
    for file, line in zip(store.skipped, made.output[2:], strict=True):
        assert line == f"  {file.name}: {file.reason}"
        assert bad[file.name][1] in file.reason or "RGB, while" in file.reason
        assert str(mixed) not in line
    # Apart from these files the store equals that of the good images alone.
    good = tmp_path / "good"
    good.mkdir()
    for image in store.images:
        shutil.copy(mixed / image.name, good)
    alone = daskkm.create_store(good, tmp_path / "alone.zarr", tile=8)
    assert list(alone.images) == list(store.images)
    np.testing.assert_array_equal(alone.tiles[:], store.tiles[:])
    for name, values in alone.provenance().items():
        np.testing.assert_array_equal(values, store.provenance()[name])


def test_create_store_with_skipped_files_is_unchanged_until_one_changes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.zarr"
    for name in ("text.jpg", "folder.png", "truncated.png"):
        (BAD | BAD_PIXELS)[name][0](images / name)
    flags = ("--tile", "8", "--store", str(path), "--scheduler", "threads")
    ingest_command.main([str(images), *flags, "--on-bad", "skip"], standalone_mode=False)
    written = {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")}
    capsys.readouterr()
    ingest_command.main([str(images), *flags, "--on-bad", "skip"], standalone_mode=False)
    assert {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")} == written
    assert "3 files skipped:" in capsys.readouterr().out
    # With on_bad="fail" the first skipped file is an error.
    with pytest.raises(
        ImageError, match=r"pictures/folder\.png: not a regular file\. Remove the entry"
    ):
        daskkm.create_store(images, path, tile=8)
    out = tmp_path / "out"
    settings = ["--k", "2", "--n-init", "1", "--scheduler", "threads", "--out", str(out)]
    sweeping = ["--images", str(images), "--store", str(path), *settings]
    with pytest.raises(ImageError, match=r"folder\.png"):
        sweep_command.main(sweeping, standalone_mode=False)
    sweep_command.main([*sweeping, "--on-bad", "skip"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "3 files skipped:"
    assert {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")} == written
    # A repaired file is an image.
    (images / "folder.png").rmdir()
    save(images / "folder.png", GREY)
    store = daskkm.create_store(images, path, tile=8, on_bad="skip", overwrite=True)
    assert len(store) == 30 + 15
    assert [file.name for file in store.skipped] == ["text.jpg", "truncated.png"]


def test_create_store_after_interrupt_with_skipped_files_resumes(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = ""

    def interrupt(path: Location, state: tuple[int, ...]) -> pillow.PillowImage:
        if path.name == last:
            raise KeyboardInterrupt
        return pillow.PillowImage(path, state)

    monkeypatch.setattr(
        tasks, "pillow", SimpleNamespace(**vars(pillow) | {"PillowImage": interrupt})
    )
    place = tmp_path / "t.zarr"
    with block_sizes.override(chunk_bytes=7 * 64, ingested_images=1):
        whole = daskkm.create_store(mixed, tmp_path / "whole.zarr", tile=8, on_bad="skip")
        for name in ("s_10.png", "truncated.png"):
            last = name
            with pytest.raises(KeyboardInterrupt):
                daskkm.create_store(mixed, place, tile=8, on_bad="skip")
        last = ""
        again = daskkm.create_store(mixed, place, tile=8, on_bad="skip")
    assert (list(again.images), again.skipped) == (list(whole.images), whole.skipped)
    assert again.digest == whole.digest
    names = {path.relative_to(whole.path) for path in whole.path.rglob("*") if path.is_file()}
    assert {path.relative_to(place) for path in place.rglob("*") if path.is_file()} == names
    for name in names - {Path("zarr.json")}:  # the root has a random id
        assert (whole.path / name).read_bytes() == (place / name).read_bytes()


@pytest.mark.parametrize("name", ["text.jpg", "truncated.png"])
def test_create_store_of_bad_files_only_raises_image_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (BAD | BAD_PIXELS)[name][0](folder / name)
    with pytest.raises(ImageError, match=name):
        daskkm.create_store(folder, tmp_path / "t.zarr", tile=8, on_bad="skip")
    with pytest.raises(StoreError):
        daskkm.open_store(tmp_path / "t.zarr")
    with pytest.raises(daskkm.ParameterError, match=r"on_bad: 'ignore' is not valid. Use one of"):
        daskkm.create_store(folder, tmp_path / "t.zarr", tile=8, on_bad="ignore")
    with pytest.raises(daskkm.ParameterError, match=r"overwrite: 'no' is not valid"):
        daskkm.create_store(folder, tmp_path / "t.zarr", tile=8, overwrite="no")  # type: ignore[arg-type]


FUZZ = """if True:
    import hashlib, json, resource, sys
    from pathlib import Path
    from PIL import Image
    from daskkm.images import pillow
    from daskkm.errors import ImageError
    from daskkm.storage.locations import LocalLocation
    Image.init()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        found = None
        try:
            with pillow.configure_pillow():
                image = pillow.PillowImage(LocalLocation(path))
                pixels = image.read_window(slice(None), slice(None))
                found = [list(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest()]
                assert pillow.read_shape(LocalLocation(path)) == pixels.shape
        except ImageError as error:
            assert str(error).isprintable() and path.name in str(error), error
        print(json.dumps([path.name, found]))
"""


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with random flips, overwrites, deletions, repetitions and truncations."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(found)))
        n = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at : at + n] = rng.bytes(n)
            case 2:
                found[at : at + n] = b"\xff" * n
            case 3:
                del found[at : at + n]
            case 4:
                found[at:at] = found[at : at + n]
            case _:
                del found[at + 1 :]
    return bytes(found)


def originals() -> dict[str, bytes]:
    made = {}
    for kind in ("grey", "rgb", "1-bit", "palette", "opaque rgb"):
        compression = "tiff_lzw" if kind == "palette" else "raw"
        formats: dict[str, dict[str, Any]] = {
            "png": {},
            "jpg": {"exif": orientation_exif(6)},
            "tif": {"compression": compression},
        }
        for suffix, settings in formats.items():
            image = KINDS[kind][0]
            image = image.convert("RGB") if suffix == "jpg" and kind != "grey" else image
            stream = io.BytesIO()
            image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, "PNG"), **settings)
            made[f"{kind}.{suffix}".replace(" ", "_")] = stream.getvalue()
    return made


def other_originals() -> dict[str, bytes]:
    made = {}
    for kind in ("grey", "rgb"):
        for suffix in ("gif", "webp", "bmp", "ppm"):
            stream = io.BytesIO()
            KINDS[kind][0].save(stream, suffix, **({"lossless": True} if suffix == "webp" else {}))
            made[f"{kind}.{suffix}"] = stream.getvalue()
    return made


@pytest.mark.parametrize(
    ("originals", "n"), [(originals, 500), (other_originals, 200)], ids=["usual", "other"]
)
def test_read_image_of_damaged_file_raises_or_returns_pixels(
    tmp_path: Path, originals: Callable[[], dict[str, bytes]], n: int
) -> None:
    """No crash, no hang, little memory; no wrong pixels in formats with checksums."""
    rng = np.random.default_rng(17)
    whole = originals()
    for name, data in whole.items():
        (tmp_path / f"whole_{name}").write_bytes(data)
    for i in range(n):
        name = list(whole)[i % len(whole)]
        (tmp_path / f"{i}_{name}").write_bytes(mutate(whole[name], rng))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FUZZ, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(found) == n + len(whole)
    accepted: Counter[str] = Counter()
    for file, pixels in found.items():
        number, name = file.split("_", 1)
        assert pixels is not None or number != "whole"
        if pixels is None or number == "whole":
            continue
        accepted[name.partition(".")[2]] += 1
        if name.endswith("png"):
            assert pixels == found[f"whole_{name}"], file
    # Formats without checksums accept some damage, so that the test covers decoding.
    for suffix in {"jpg", "tif", "bmp", "ppm"} & {name.partition(".")[2] for name in whole}:
        assert accepted[suffix] > 10
    assert accepted["png"] < 20
