"""Cut images into tiles, and join tiles into images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.storage.records import grid_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cut(image: NDArray[Any], tile: tuple[int, int]) -> NDArray[Any]:
    """Cut an image into whole tiles, row by row; crop pixels at the bottom and the right.

    (H, W[, bands]) becomes (rows * columns, height, width[, bands]).
    """
    n = math.prod(grid_shape(image.shape, tile))
    tiles = np.empty((n, *tile, *image.shape[2:]), image.dtype)
    copy_tiles(image, tile, 0, tiles)
    return tiles


def copy_tiles(image: NDArray[Any], tile: tuple[int, int], first: int, out: NDArray[Any]) -> None:
    """Copy consecutive tiles of an image, from tile `first` on, into `out`, C-contiguous."""
    (rows, columns), (height, width) = grid_shape(image.shape, tile), tile
    whole = image[: rows * height, : columns * width].reshape(rows * height, -1)
    # One item for the pixels of a tile in one row: NumPy copies items of some bytes far faster
    # than as many bytes one by one.
    item = np.dtype((np.void, whole.itemsize * whole.shape[1] // columns))
    source = whole.view(item).reshape(rows, height, columns).swapaxes(1, 2)
    target = out.reshape(-1).view(item).reshape(-1, height)
    done = 0
    while done < len(target):
        row, column = divmod(first + done, columns)
        n_rows = 0 if column else (len(target) - done) // columns
        if n_rows:
            n = n_rows * columns
            grid = target[done : done + n].reshape(n_rows, columns, height)
            grid[:] = source[row : row + n_rows]
        else:
            n = min(columns - column, len(target) - done)
            target[done : done + n] = source[row, column : column + n]
        done += n


def join(tiles: NDArray[Any], columns: int) -> NDArray[Any]:
    """Join tiles into an image with `columns` columns of tiles, the inverse of `cut`."""
    n, height, width, *bands = tiles.shape
    rows = n // columns
    return (
        tiles.reshape(rows, columns, height, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, *bands)
    )
