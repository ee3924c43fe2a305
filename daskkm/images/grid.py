"""Cut images into tiles, and join tiles into images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskkm.storage.records import grid_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cut(image: NDArray[Any], tile: tuple[int, int]) -> NDArray[Any]:
    """Cut an image into whole tiles, row by row; crop pixels at the bottom and the right.

    (H, W[, bands]) becomes (rows * columns, height, width[, bands]).
    """
    (rows, columns), (height, width) = grid_shape(image.shape, tile), tile
    bands = image.shape[2:]
    whole = image[: rows * height, : columns * width]
    return (
        whole.reshape(rows, height, columns, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * columns, height, width, *bands)
    )


def join(tiles: NDArray[Any], columns: int) -> NDArray[Any]:
    """Join tiles into an image with `columns` columns of tiles, the inverse of `cut`."""
    n, height, width, *bands = tiles.shape
    rows = n // columns
    return (
        tiles.reshape(rows, columns, height, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, *bands)
    )
