"""Make the sample images: handwritten digits 1 to 5, one digit an image.

Run ``python docs/sample/make_images.py``. README.md in the same folder names source and licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES = Path(__file__).parents[2] / "images"
DIGITS = (1, 2, 3, 4, 5)
ROWS, COLUMNS, SIDE = 34, 33, 16
BLANK = 22  # the last tiles of the last column
SEED = 20240229

_SCALE = 8  # digits are drawn at this multiple of the size, then averaged, for smooth edges


def vary_digit(digit: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an 8 x 8 digit as a tile, turned, sheared, scaled and shifted a little."""
    side = SIDE * _SCALE
    turn, shear = rng.normal(0, 0.09), rng.normal(0, 0.12)
    height, width = rng.normal(1.0, 0.06), rng.normal(1.0, 0.08)
    shift = rng.normal(0, 0.35 * _SCALE, 2)
    # Map pixels of the tile to pixels of the digit, about both centres.
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    back = turned @ np.array([[1 / width, shear], [0, 1 / height]]) * (8 / side) * 1.18
    centre = np.array([4.0, 4.0]) - back @ (np.array([side / 2, side / 2]) + shift)
    image = Image.fromarray(np.float32(digit)).transform(
        (side, side),
        Image.Transform.AFFINE,
        (*back[0], centre[0], *back[1], centre[1]),
        Image.Resampling.BICUBIC,
    )
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    # Saturate the ink, which bicubic enlargement leaves grey.
    return np.rint(255 * np.clip((small - 3) / 11, 0, 1)).astype(np.uint8)


def make_image(digits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image of varied digits, with blank tiles at the end of the last column."""
    tiles = np.zeros((ROWS, COLUMNS, SIDE, SIDE), np.uint8)
    blank = np.zeros((ROWS, COLUMNS), bool)
    blank[ROWS - BLANK :, -1] = True
    order = np.concatenate(
        [rng.permutation(len(digits)) for _ in range(-(-ROWS * COLUMNS // len(digits)))]
    )
    for place, source in zip(np.argwhere(~blank), order, strict=False):
        tiles[tuple(place)] = vary_digit(digits[source], rng)
    return tiles.swapaxes(1, 2).reshape(ROWS * SIDE, COLUMNS * SIDE)


def main() -> None:
    """Write the images to images/."""
    source = load_digits()
    for digit in DIGITS:
        rng = np.random.default_rng([SEED, digit])
        pixels = make_image(source.images[source.target == digit], rng)
        Image.fromarray(pixels).save(IMAGES / f"digits_{digit}.png", optimize=True)


if __name__ == "__main__":
    main()
