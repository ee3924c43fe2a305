"""Test files of which Pillow decodes only a part: an error, or all pixels."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from daskkm.errors import ImageError
from daskkm.images import pillow
from daskkm.storage.locations import LocalLocation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (32, 48), np.uint8)
RGB = RNG.integers(0, 256, (32, 48, 3), np.uint8)
CONVERT = "; daskkm reads 8-bit greyscale and RGB. Convert the image"


def decode(path: Path) -> NDArray[np.uint8]:
    with pillow.configure_pillow():
        return pillow.PillowImage(LocalLocation(path)).read_window(slice(None), slice(None))


def read_shape(path: Path) -> tuple[int, ...]:
    with pillow.configure_pillow():
        return pillow.read_shape(LocalLocation(path))


def refusal(path: Path, *, header: bool = True) -> str:
    """Return the error message of a bad file, which `read_shape` repeats if `header`."""
    with pytest.raises(ImageError) as found:
        decode(path)
    if header:
        with pytest.raises(ImageError) as again:
            read_shape(path)
        assert str(again.value) == str(found.value)
    return str(found.value).removeprefix(f"{path}: ")


def read(path: Path) -> NDArray[np.uint8]:
    pixels = decode(path)
    assert read_shape(path) == pixels.shape
    return pixels


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tiff(path: Path, pixels: NDArray[Any], **settings: Any) -> Path:
    settings.setdefault("photometric", "rgb" if pixels.shape[-1] == 3 else "minisblack")
    tifffile.imwrite(path, pixels, **settings)
    return path


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("photometric", "extra"),
    [
        ("rgb", (0,)),
        ("rgb", (0, 0)),
        ("rgb", (2, 0)),
        ("rgb", (1, 0)),
        ("rgb", (0,) * 9),
        ("minisblack", (0,)),
        ("minisblack", (0, 0)),
        ("minisblack", (0,) * 19),
    ],
)
def test_read_image_of_tiff_with_dropped_bands_raises_image_error(
    tmp_path: Path, photometric: str, extra: tuple[int, ...], planar: str
) -> None:
    bands = len(extra) + (3 if photometric == "rgb" else 1)
    pixels = RNG.integers(0, 256, (32, 48, bands), np.uint8)
    pixels = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0).copy()
    path = tmp_path / "a.tif"
    tiff(path, pixels, photometric=photometric, extrasamples=extra, planarconfig=planar)
    assert refusal(path).startswith((f"{bands} bands, of which Pillow", f"{bands} bands of 8 bits"))


@given(
    bands=st.integers(1, 7),
    dtype=st.sampled_from(["uint8", "uint8", "uint16", "int16", "float16", "float32"]),
    separate=st.booleans(),
    rgb=st.booleans(),
    extra=st.sampled_from([0, 1, 2]),
    pages=st.integers(1, 3),
    byteorder=st.sampled_from("<>"),
    opaque=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_read_image_of_any_tiff_is_complete_or_raises(
    tmp_path: Path,
    bands: int,
    dtype: str,
    separate: bool,
    rgb: bool,
    extra: int,
    pages: int,
    byteorder: str,
    opaque: bool,
) -> None:
    """All values are read, except an opaque alpha."""
    colours = 3 if rgb and bands >= 3 else 1
    pixels = np.random.default_rng(0).integers(0, 100, (pages, 16, 24, bands)).astype(dtype)
    if opaque:
        pixels[..., colours:] = 255
    settings: dict[str, Any] = {"byteorder": byteorder, "metadata": None}
    settings["photometric"] = "rgb" if colours == 3 else "minisblack"
    if bands > colours:
        settings["extrasamples"] = (extra, *[0] * (bands - colours - 1))
    if bands > 1:
        settings["planarconfig"] = "separate" if separate else "contig"
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=settings.pop("byteorder")) as writer:
        for page in pixels:
            rows = np.moveaxis(page, -1, 0) if separate else page
            writer.write(rows if bands > 1 else page[..., 0], **settings)
    alphas = {
        (3, 1, False),
        (3, 2, False),
        (3, 2, True),
        (1, 2, False),
    }  # layouts that Pillow decodes
    alpha = bands == colours + 1 and opaque and (colours, extra, separate) in alphas
    if dtype == "uint8" and pages == 1 and (bands == colours or alpha):
        np.testing.assert_array_equal(read(path), np.squeeze(pixels[0, ..., :colours]))
    else:
        assert "not an image" not in refusal(path, header=False)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("uint16", "16-bit {}"),
        ("int16", "16-bit signed {}"),
        ("uint32", "32-bit {}"),
        ("float16", "16-bit float {}"),
        ("float32", "32-bit float {}"),
        ("float64", "64-bit float {}"),
        ("int8", "8-bit signed {}"),
        ("complex64", "64-bit complex float {}"),
    ],
)
@pytest.mark.parametrize("colour", ["greyscale", "RGB"])
def test_read_image_of_tiff_with_other_numbers_names_the_numbers(
    tmp_path: Path, dtype: str, name: str, colour: str
) -> None:
    pixels = (GREY if colour == "greyscale" else RGB).astype(dtype)
    assert refusal(tiff(tmp_path / "a.tif", pixels)) == name.format(colour) + CONVERT


def test_read_image_of_tiff_with_other_colours_names_the_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert refusal(tiff(path, np.dstack([RGB, GREY]), photometric="separated")).startswith(
        "8-bit C"
    )
    Image.new("LAB", (16, 16)).save(path)
    assert refusal(path) == f"8-bit Lab{CONVERT}"
    Image.new("PA", (16, 16)).save(path)
    assert refusal(path) == f"8-bit palette with alpha{CONVERT}"
    tiff(path, GREY)
    data = path.read_bytes()
    entry = struct.pack("<HHI", 259, 3, 1)
    path.write_bytes(data.replace(entry + struct.pack("<I", 1), entry + struct.pack("<I", 33003)))
    assert refusal(path).startswith("TIFF of compression 33003, which Pillow does not read;")


def test_read_image_of_tiff_palette_reads_8_bits_only(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    for factor in (256, 257):
        tiff(path, GREY, photometric="palette", colormap=colours * np.uint16(factor))
        np.testing.assert_array_equal(read(path), colours.T[GREY])
    tiff(path, GREY, photometric="palette", colormap=colours * np.uint16(256) + np.uint16(7))
    assert refusal(path) == f"palette of 16 bits a band{CONVERT}"


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("within", [False, True], ids=["pages", "sub-pages"])
@pytest.mark.parametrize(
    ("first", "others", "whole"),
    [(0, 1, True), (0, 0, False), (1, 0, False), (1, 1, False), (0, 2, False)],
)
def test_read_image_of_tiff_with_pages_ignores_reduced_copies_only(
    tmp_path: Path, first: int, others: int, whole: bool, within: bool, big: bool
) -> None:
    path = tmp_path / "a.tif"
    common: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        writer.write(RGB, subfiletype=first, subifds=2 if within else None, **common)
        writer.write(RGB[::2, ::2], subfiletype=others, **common)
        writer.write(RGB[::4, ::4], subfiletype=others, **common)
    if whole:
        np.testing.assert_array_equal(read(path), RGB)
    else:
        assert refusal(path).startswith("3 pages; daskkm reads one per file.")


def test_read_image_of_tiff_with_several_planes_raises_image_error(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (4, 32, 48), np.uint8)
    path = tiff(tmp_path / "a.tif", pixels, volumetric=True, tile=(4, 16, 16))
    assert refusal(path).startswith("4 pages;")


@pytest.mark.parametrize(
    ("kind", "whole"),
    [(0x010001, True), (0x010002, True), (0x020002, False), (0x000000, False)],
)
def test_read_image_of_jpeg_with_second_picture_ignores_previews_only(
    tmp_path: Path, kind: int, whole: bool
) -> None:
    alone = Image.fromarray(RGB)
    alone.save(tmp_path / "alone.jpg")
    stream = io.BytesIO()
    alone.save(stream, "MPO", save_all=True, append_images=[alone.resize((24, 16))])
    data = bytearray(stream.getvalue())
    directory = 4 + 8 + 2 + 3 * 12 + 4  # name, TIFF header, directory of three tags
    second = data.index(struct.pack("<I", 0x030000), data.index(b"MPF\0") + directory) + 16
    struct.pack_into("<I", data, second, kind)
    path = write(tmp_path / "a.jpg", bytes(data))
    if whole:
        np.testing.assert_array_equal(read(path), read(tmp_path / "alone.jpg"))
    else:
        assert refusal(path).startswith("2 pictures; daskkm reads one per file.")


@pytest.mark.parametrize(
    "one",
    [
        b"P4 9 8\n" + bytes(16),
        b"P5 9 8 255\n" + bytes(72),
        b"P6 9 8 100\n" + bytes(216),
        b"P2 8 8 255\n" + b"7 " * 64 + b"\n",
    ],
)
def test_read_image_of_netpbm_with_several_images_raises_image_error(
    tmp_path: Path, one: bytes
) -> None:
    whole = read(write(tmp_path / "one.ppm", one))
    np.testing.assert_array_equal(read(write(tmp_path / "line.ppm", one + b"\n")), whole)
    for n in (2, 3):
        assert refusal(write(tmp_path / "a.ppm", one * n)).startswith("several pictures; dask")


def bmp(path: Path, pixels: NDArray[Any], bits: int, masks: tuple[int, ...] = ()) -> Path:
    """Write rows to a BMP, the bottom row first."""
    height, width = pixels.shape[:2]
    extra = struct.pack(f"<{len(masks)}I", *masks)
    start = 54 + len(extra)
    head = struct.pack("<2sIHHI", b"BM", start + pixels.nbytes, 0, 0, start)
    info = (40, width, height, 1, bits, 3 if masks else 0, pixels.nbytes, 0, 0, 0, 0)
    return write(path, head + struct.pack("<IiiHHIIiiII", *info) + extra + pixels.tobytes())


@pytest.mark.parametrize("masks", [(), (0xFF0000, 0xFF00, 0xFF), (0xFF000000, 0xFF0000, 0xFF00)])
def test_read_image_of_bmp_with_fourth_band_requires_constant_band(
    tmp_path: Path, masks: tuple[int, ...]
) -> None:
    unused = 0 if masks and masks[-1] == 0xFF00 else 3
    pixels = RNG.integers(0, 256, (32, 48, 4), np.uint8)
    refused = refusal(bmp(tmp_path / "a.bmp", pixels, 32, masks), header=False)
    assert refused == f"4 bands, of which Pillow decodes 3{CONVERT}"
    for opacity in (0, 255):
        pixels[..., unused] = opacity
        found = read(bmp(tmp_path / "a.bmp", pixels, 32, masks))
        np.testing.assert_array_equal(found, np.delete(pixels, unused, -1)[::-1, :, ::-1])


def test_read_image_of_bmp_with_16th_bit_requires_constant_bit(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 1 << 16, (32, 48), np.uint16)
    assert "4 bands" in refusal(bmp(tmp_path / "a.bmp", pixels, 16), header=False)
    assert read(bmp(tmp_path / "a.bmp", pixels & 0x7FFF, 16)).shape == (32, 48, 3)
    cut = bmp(tmp_path / "a.bmp", pixels & 0x7FFF, 16)
    cut.write_bytes(cut.read_bytes()[:-300])
    assert "truncated" in refusal(cut, header=False)


def test_read_image_of_animated_png_with_picture_raises_image_error(tmp_path: Path) -> None:
    other = Image.fromarray(GREY[::-1])
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path, save_all=True, append_images=[other], default_image=True)
    assert refusal(path).startswith("2 frames;")


def test_read_image_of_unsupported_jpeg_names_the_format(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG")
    data = stream.getvalue()
    at = data.index(b"\xff\xc0")
    message = "JPEG image that Pillow cannot read. Replace or remove the file"
    assert refusal(write(tmp_path / "a.jpg", data[: at + 4] + b"\x0c" + data[at + 5 :])) == message
    assert refusal(write(tmp_path / "a.jpg", data[:5])) == message


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("JPEG2000", b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a"),
        ("ICO", b"\0\0\1\0\1\0"),
        ("PCX", b"\x0a\x05\1\x08"),
        ("DDS", b"DDS |\0\0\0"),
        ("HEIC", b"\0\0\0\x18ftypheic"),
        ("JPEG XL", b"\xff\x0a"),
        ("PAM", b"P7\nWIDTH 4\n"),
        ("TGA or CUR", b"\0\0\2\0"),
    ],
)
def test_read_image_of_other_format_names_the_format(
    tmp_path: Path, name: str, start: bytes
) -> None:
    path = write(tmp_path / "a.png", start + bytes(100))
    expected = f"{name} image; daskkm does not read this format. Convert the image to PNG or TIFF"
    assert refusal(path) == expected


@pytest.mark.parametrize("data", [b"", b"x", b"not an image", bytes(1000), b"II*\0", b"%PDF-1.7"])
def test_read_image_of_other_file_describes_the_file(tmp_path: Path, data: bytes) -> None:
    message = refusal(write(tmp_path / "a.png", data))
    assert (
        "not an image of a known format. Replace or remove the file" in message or "TIFF" in message
    )
