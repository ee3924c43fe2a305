"""Find image files of which Pillow would decode only a part.

Examples are the first of several pictures, three of four bands, and the upper half of 16 bits.
Smaller copies of the picture (pages and thumbnails marked as reduced, gain maps) are ignored.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Formats that Pillow tries, for any suffix: some other formats would run other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
HEAD_BYTES = 1024  # that hold the header of a plain PNG
MAX_PIXELS = 178_956_970  # default of Pillow
CONVERT = "daskkm reads 8-bit greyscale and RGB. Convert the image"
_REPLACE = "Replace or remove the file"

# Word for one of several pictures; the default is "frame".
_PICTURES = {"TIFF": "page", "MPO": "picture", "PPM": "picture"}
# TIFF tags; colours and bands by photometric interpretation; kinds of numbers by sample format.
_SUBFILE_TYPE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 258, 259, 262, 277
_COLORMAP, _SUB_IFDS, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DEPTH = 320, 330, 338, 339, 32997
_COLOURS = {
    0: ("greyscale", 1),
    1: ("greyscale", 1),
    2: ("RGB", 3),
    3: ("palette", 1),
    5: ("CMYK", 4),
    6: ("YCbCr", 3),
    **dict.fromkeys((8, 9, 10), ("Lab", 3)),
    **dict.fromkeys((32803, 34892), ("raw sensor data", 1)),
}
_NUMBERS = {2: " signed", 3: " float", 5: " complex signed", 6: " complex float"}
_ALPHA = {1, 2, 999}  # 999: Corel Draw
_REDUCED = 1
_MPO_PREVIEW = "Large Thumbnail"
_PNG_COLOURS = {0: "greyscale", 3: "palette", 4: "greyscale with alpha", 6: "RGB with alpha"}
_MODES = {
    **dict.fromkeys(("I", "I;16", "F"), "greyscale"),
    "La": "greyscale with alpha, premultiplied",
    "P": "palette without colours",
    "PA": "palette with alpha",
}
_SMALL_PNG_BYTES = 1 << 17
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bands by bits, colour, compression, filter and interlacing.
_PNG_BANDS: dict[tuple[int, ...], tuple[int, ...]] = {(8, 0, 0, 0, 0): (), (8, 2, 0, 0, 0): (3,)}
# Chunks of a PNG that change neither shape nor pixels.
_PNG_NEUTRAL = {b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"tIME"}
_PNG_PLAIN = {b"IHDR", b"IDAT", b"IEND", *_PNG_NEUTRAL}
# Bits of a BMP's pixels, little-endian, that Pillow does not decode.
_BMP_UNUSED = {
    "BGRX": ("<u4", 0xFF000000),
    "XBGR": ("<u4", 0x000000FF),
    "BGXR": ("<u4", 0x00FF0000),
    "BGR;15": ("<u2", 0x8000),
}
# Formats with the same first bytes, and formats without a plugin in Pillow.
_AMBIGUOUS = {"CUR": "TGA or CUR"}
_OTHER_SIGNATURES = (
    (re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"P7\n"), "PAM"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
)


def find_loss(image: Image.Image, file: IO[bytes]) -> str | None:
    """Return a description of content that decoding would lose, with a hint, or None.

    Such content is several pictures, more bands or bits, and colours other than grey and RGB. The
    image is open but not decoded. `has_unused_bits` completes the check for BMP.
    """
    n = _count_pictures(image, file)
    if n > 1:
        noun = _PICTURES.get(image.format or "", "frame")
        many = "several" if image.format == "PPM" else n
        return f"{many} {noun}s; daskkm reads one per file. Save each {noun} as a separate file"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bands, named, _ = _count_bands(image.tag_v2)
        shown = min(named, len(image.getbands()))
        if bands > shown:
            return f"{bands} bands, of which Pillow decodes {shown}; {CONVERT}"
        if holds := _describe_tiff(image.tag_v2, shown):
            return f"{holds}; {CONVERT}"
    bits, number = _read_depth(image, file)
    plain = image.mode in ("1", "L", "LA", "RGB", "RGBA") or (image.mode == "P" and image.palette)
    if bits > 8 or number or not plain:
        colour = _MODES.get(image.mode, image.mode)
        if image.format == "PNG":
            colour = _PNG_COLOURS.get(_read_png_header(file)[1], colour)
        return f"{bits}-bit{number} {colour}; {CONVERT}"
    return None


def has_unused_bits(image: Image.Image, data: bytes) -> bool:
    """Return True if pixels of a BMP differ in bits that Pillow does not decode.

    The image is open but not decoded; `data` is the content of the file.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "BMP" or not image.tile:
        return False
    _, _, offset, args = image.tile[0]
    if not isinstance(args, tuple) or args[0] not in _BMP_UNUSED:
        return False
    dtype, mask = _BMP_UNUSED[args[0]]
    strides = int(args[1]), np.dtype(dtype).itemsize
    if len(data) < offset + image.height * strides[0]:  # decoding will raise
        return False
    pixels = np.ndarray((image.height, image.width), dtype, data, offset, strides)
    unused = pixels & np.array(mask, dtype)
    return bool(unused.min() != unused.max())


def describe_unopened(file: IO[bytes]) -> str:
    """Return a description, with a hint, of a file that Pillow cannot open as one of `FORMATS`."""
    file.seek(0)
    head = file.read(32)
    with suppress(Exception):  # the code below describes a damaged TIFF
        tags = _read_tags(file)
        if holds := _describe_tiff(tags, _count_bands(tags)[2]):
            return f"{holds}; {CONVERT}"
    names = _list_formats(head)
    for name in FORMATS:
        if name in names:
            return f"{name} image that Pillow cannot read. {_REPLACE}"
    if names:
        return (
            f"{names[0]} image; daskkm does not read this format. Convert the image to PNG or TIFF"
        )
    return f"not an image of a known format. {_REPLACE}"


def _list_formats(head: bytes) -> list[str]:
    """Return the possible formats of a file by its first bytes."""
    Image.init()
    names = [name for pattern, name in _OTHER_SIGNATURES if pattern.match(head)]
    for name, (_, accept) in Image.OPEN.items():
        with suppress(struct.error, IndexError):  # a file shorter than the signature
            if accept and accept(head[:16]):
                names.append(_AMBIGUOUS.get(name, name))
    return names


def _count_pictures(image: Image.Image, file: IO[bytes]) -> int:
    """Return the number of pictures in a file, without smaller copies of the first picture."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        reduced = [_REDUCED & kind for kind in _read_subfile_types(file)]
        copies = sum(map(bool, reduced[1:])) if not reduced[0] else 0
        return (len(reduced) - copies) * int(image.tag_v2.get(_DEPTH, 1))
    if image.format == "MPO":
        entries: list[Any] = vars(image)["mpinfo"][0xB002]
        kinds = [entry["Attribute"]["MPType"] for entry in entries]
        return 1 + sum(not kind.startswith(_MPO_PREVIEW) for kind in kinds[1:])
    if isinstance(image, ImageFile.ImageFile) and image.format == "PPM":
        return 1 + _has_second_netpbm(image, file)
    return int(getattr(image, "n_frames", 1))


def _has_second_netpbm(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    """Return True if another image follows the pixels of a PBM, PGM or PPM."""
    decoder, _, offset, _ = image.tile[0]
    if decoder == "ppm_plain":  # pixels are digits
        file.seek(offset)
        return re.search(rb"^P[1-7]\s", file.read(), re.MULTILINE) is not None
    bits = 16 if _read_depth(image, file)[0] > 8 else 1 if image.mode == "1" else 8
    row = -(-image.width * len(image.getbands()) * bits // 8)
    file.seek(offset + image.height * row)
    return re.match(rb"\s*P[1-7f]\s", file.read(1024)) is not None


def _read_depth(image: Image.Image, file: IO[bytes]) -> tuple[int, str]:
    """Return the bits per band, at least 8, and the kind of numbers."""
    if image.format == "PNG":
        return max(8, _read_png_header(file)[0]), ""
    if image.mode == "F":
        return 32, " float"
    if isinstance(image, ImageFile.ImageFile) and image.format == "PPM" and image.tile:
        args = image.tile[0].args  # the last argument is a maximum other than 255
        if isinstance(args, tuple) and int(args[-1]) > 255:
            return 16, ""
    return 16 if image.mode.startswith("I") else 8, ""


def _read_png_header(file: IO[bytes]) -> tuple[int, int]:
    """Return bits per band and colour type of a PNG."""
    file.seek(24)
    bits, colour = file.read(2)
    return bits, colour


def read_plain_png(head: bytes) -> tuple[int, ...] | None:
    """Return the shape of a PNG of 8-bit greyscale or RGB by its first bytes, or None for others.

    Pillow takes several times as long to open a file.
    """
    if head[:8] != _PNG_SIGNATURE or head[12:16] != b"IHDR" or len(head) < 33:
        return None
    width, height, *encoding = struct.unpack(">IIBBBBB", head[16:29])
    checksum, start = int.from_bytes(head[29:33]), 33
    while head[start + 4 : start + 8] in _PNG_NEUTRAL:
        start += 12 + int.from_bytes(head[start : start + 4])
    is_plain = head[start + 4 : start + 8] == b"IDAT" and zlib.crc32(head[12:29]) == checksum
    bands = _PNG_BANDS.get(tuple(encoding))
    if not is_plain or bands is None or not 0 < width * height <= MAX_PIXELS:
        return None
    return height, width, *bands


def find_png_pixels(data: bytes) -> bytes | None:
    """Return the compressed pixels of a small PNG of 8-bit greyscale or RGB, or None for others.

    None too if chunks behind the pixels change them. For any PNG, raise ValueError if a checksum
    is wrong: decoding ignores the checksums of pixels.
    """
    if data[:8] != _PNG_SIGNATURE:
        return None
    names, pixels, view = set(), [], memoryview(data)
    start = len(_PNG_SIGNATURE)
    while b"IEND" not in names:
        end = start + 8 + int.from_bytes(data[start : start + 4])
        name = data[start + 4 : start + 8]
        if end + 4 > len(data):
            msg = "the file is cut short"
            raise ValueError(msg)
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            msg = f"bad checksum in {name!r}"
            raise ValueError(msg)
        if name == b"IDAT":
            pixels.append(view[start + 8 : end])
        names.add(name)
        start = end + 4
    is_plain = names <= _PNG_PLAIN and read_plain_png(data[:HEAD_BYTES])
    return b"".join(pixels) if is_plain and len(data) <= _SMALL_PNG_BYTES else None


def _count_bands(tags: Mapping[int, Any]) -> tuple[int, int, int]:
    """Return the numbers of bands, of colours with alpha, and of colours of a TIFF."""
    extra = tags.get(_EXTRA_SAMPLES, ())
    jpeg = tags.get(_COMPRESSION, 1) == 6  # old JPEG: Pillow assumes three bands
    _, colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 0), ("", 1))
    bands = int(tags.get(_SAMPLES, colours if jpeg else 1))
    return bands, colours + (not extra or extra[0] in _ALPHA), colours


def _describe_tiff(tags: Mapping[int, Any], n_decoded: int) -> str | None:
    """Return a description of a TIFF, or None for 8-bit greyscale or RGB of `n_decoded` bands."""
    compression = tags.get(_COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"TIFF of compression {compression}, which Pillow does not read"
    bands, _, colours = _count_bands(tags)
    colour, _ = _COLOURS.get(tags.get(_PHOTOMETRIC, 0), ("pixels of unknown colours", 1))
    bits = max(8, int(np.max(tags.get(_BITS, 1))))
    kinds = {_NUMBERS.get(kind, "") for kind in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)).tolist()}
    number = kinds.pop() if len(kinds) == 1 else " mixed"
    if bands > n_decoded:
        return f"{bands} bands of {bits}{number} bits"
    if bits > 8 or number or colour not in ("greyscale", "RGB", "palette", "YCbCr"):
        with_alpha = " with alpha" if bands > colours else ""
        return f"{bits}-bit{number} {colour}{with_alpha}"
    # 8-bit colours times 256 or 257 are allowed.
    high, low = np.divmod(tags.get(_COLORMAP, 0), 256)
    if colour == "palette" and not ((low == 0) | (low == high)).all():
        return "palette of 16 bits a band"
    return None


def _read_tags(file: IO[bytes]) -> Mapping[int, Any]:
    """Return the tags of the first page of a TIFF."""
    file.seek(0)
    head = file.read(8)
    head += file.read(8) if head[2] == 43 else b""
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _read_subfile_types(file: IO[bytes]) -> list[int]:
    """Return the subfile type of each page of a TIFF, in order, sub-pages included.

    Pillow would read all tags of each page, and would refuse pages of unknown types.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"\x2b\0", b"\0\x2b")
    number, count = ("Q", "Q") if big else ("I", "H")
    size = struct.calcsize(number)
    offsets = list(struct.unpack_from(order + number, head, 8 if big else 4))
    types: dict[int, int] = {}
    while offsets:
        offset = offsets.pop(0)
        if not offset or offset in types:
            continue
        types[offset] = 0
        file.seek(offset)
        (n,) = _read_numbers(file, order + count)
        entries = [_read_numbers(file, f"{order}HH{number}{size}s") for _ in range(n)]
        (next_offset,) = _read_numbers(file, order + number)
        for tag, kind, length, data in entries:
            if tag in (_SUBFILE_TYPE, _SUB_IFDS):
                values = list(_read_values(file, order, kind, length, data, number))
                if tag == _SUBFILE_TYPE:
                    types[offset] = values[0] if values else 0
                else:
                    offsets += values
        offsets.append(next_offset)
    return list(types.values())


def _read_values(
    file: IO[bytes], order: str, kind: int, n: int, data: bytes, number: str
) -> Iterator[int]:
    """Yield the integers of a tag, from the entry or from the offset in the entry."""
    letter = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
    if letter is None:
        return
    if struct.calcsize(letter) * n > len(data):
        file.seek(*struct.unpack(order + number, data))
        data = file.read(struct.calcsize(letter) * n)
    for (value,) in struct.iter_unpack(order + letter, data[: struct.calcsize(letter) * n]):
        yield value


def _read_numbers(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    """Read numbers from the current position of a file."""
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
