"""Pictures for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_PICTURE = 96  # least height of an enlarged centroid, in pixels
_GAP = 8
_CAPTION = 18
_PER_ROW = 12
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def contact_sheet(
    centroids: Mapping[int, NDArray[np.uint8]], counts: Mapping[int, Sequence[int]]
) -> Image.Image:
    """Draw the centroids of every k, enlarged, with the tiles in each cluster below.

    Parameters
    ----------
    centroids : mapping of k to ndarray of shape (k, height, width) or (k, height, width, 3)
        uint8.
    counts : mapping of k to sequence of int

    Returns
    -------
    PIL.Image.Image
        RGB; one band of rows a k, biggest cluster first.
    """
    height, width = next(iter(centroids.values())).shape[1:3]
    scale = max(1, _PICTURE // height)
    cell = (width * scale + _GAP, height * scale + _CAPTION + _GAP)
    columns = min(_PER_ROW, max(centroids))
    rows = {k: -(-k // columns) for k in centroids}
    margin = 64
    size = (margin + columns * cell[0] + _GAP, sum(rows.values()) * cell[1] + _GAP)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(18), ImageFont.load_default(12)
    top = _GAP
    for k, pictures in centroids.items():
        draw.text((_GAP, top + height * scale // 2), f"k = {k}", _INK, font, anchor="lm")
        for place, j in enumerate(np.argsort(counts[k], kind="stable")[::-1]):
            x = margin + place % columns * cell[0]
            y = top + place // columns * cell[1]
            picture = Image.fromarray(pictures[j]).convert("RGB")
            image.paste(
                picture.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y)
            )
            caption = f"{j + 1}: {counts[k][j]:,}"
            draw.text((x, y + height * scale + 2), caption, _FAINT, small)
        top += rows[k] * cell[1]
    return image
