"""Contact sheet: the centroids of every k in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# In pixels.
_MIN_HEIGHT = 96  # of an enlarged centroid
_GAP, _CAPTION, _MARGIN = 8, 18, 64
_MAX_COLUMNS = 12
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def draw_contact_sheet(
    centroids: Mapping[int, NDArray[np.uint8]], counts: Mapping[int, Sequence[int]]
) -> Image.Image:
    """Draw the centroids of each k, (k, height, width[, 3]), above their numbers of tiles.

    Clusters of one k are ordered from largest to smallest.
    """
    height, width = next(iter(centroids.values())).shape[1:3]
    scale = max(1, _MIN_HEIGHT // height)
    height, width = height * scale, width * scale
    step_x, step_y = width + _GAP, height + _CAPTION + _GAP
    columns = min(_MAX_COLUMNS, max(centroids))
    rows = {k: -(-k // columns) for k in centroids}
    size = (_MARGIN + columns * step_x + _GAP, sum(rows.values()) * step_y + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(18), ImageFont.load_default(12)
    top = _GAP
    for k, pixels in centroids.items():
        draw.text((_GAP, top + height // 2), f"k = {k}", _INK, font, anchor="lm")
        for rank, j in enumerate(np.argsort(counts[k], kind="stable")[::-1]):
            x, y = _MARGIN + rank % columns * step_x, top + rank // columns * step_y
            centroid = Image.fromarray(pixels[j]).convert("RGB")
            sheet.paste(centroid.resize((width, height), Image.Resampling.NEAREST), (x, y))
            draw.text((x, y + height + 2), f"{j + 1}: {counts[k][j]:,}", _FAINT, small)
        top += rows[k] * step_y
    return sheet
