"""Test that reading images and cutting tiles is exact, and errors name the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from daskkm.errors import ImageError
from daskkm.images import pillow
from daskkm.images.grid import cut, join
from daskkm.storage.locations import as_location

if TYPE_CHECKING:
    from pathlib import Path


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    bands=st.sampled_from([(), (3,)]),
    ragged=st.tuples(st.integers(0, 6), st.integers(0, 6)),
)
def test_join_of_cut_tiles_gives_the_image(
    rows: int,
    columns: int,
    height: int,
    width: int,
    bands: tuple[int, ...],
    ragged: tuple[int, int],
) -> None:
    shape = (rows * height + ragged[0] % height, columns * width + ragged[1] % width, *bands)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tiles = cut(image, (height, width))
    assert tiles.shape == (rows * columns, height, width, *bands)
    whole = image[: rows * height, : columns * width]
    np.testing.assert_array_equal(join(tiles, columns), whole)
    # Row by row: the second tile is to the right of the first.
    if columns > 1:
        np.testing.assert_array_equal(tiles[1], image[:height, width : 2 * width])


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_read_image_of_png_returns_pixels_and_record(
    tmp_path: Path, mode: str, scheme: str
) -> None:
    bands = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 33, *bands), np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    location = as_location(path if scheme == "file" else f"{scheme}://{path}")
    location.write(data)
    image = pillow.PillowImage(location)
    assert (image.shape, image.dtype) == (pixels.shape, pixels.dtype)
    for window in (slice(None), slice(None)), (slice(3, 9), slice(5, None)):
        np.testing.assert_array_equal(image.read_window(*window), pixels[window])
    record = image.make_record((8, 16))
    assert (record.name, record.size, record.shape) == ("image.png", len(data), pixels.shape)
    assert record.cropped == (4, 1)
    assert pillow.read_shape(location) == pixels.shape
    assert record.is_file(location)
    location.write(data[:-1] + bytes([data[-1] ^ 1]))
    assert not record.is_file(location)


def test_read_image_of_bad_file_raises_error_with_file_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    frames = [Image.fromarray(pixels), Image.fromarray(pixels.T)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:700])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name in ("animated.gif", "truncated.png", "empty.png", "text.png", "folder.png"):
        with pytest.raises(ImageError, match=name):
            pillow.PillowImage(as_location(tmp_path / name)).read_window(slice(1), slice(1))
    with pytest.raises(ImageError, match=r"missing\.png"):
        pillow.read_shape(as_location(tmp_path / "missing.png"))
