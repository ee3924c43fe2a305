"""Cut images into tiles and join tiles into images, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskkm.storage.records import grid

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cut(image: NDArray[Any], tile: tuple[int, int]) -> NDArray[Any]:
    """Cut an image into its whole tiles, row by row; ragged edges fall off.

    Parameters
    ----------
    image : ndarray of shape (H, W) or (H, W, bands)
    tile : tuple of int
        Height and width in pixels.

    Returns
    -------
    ndarray of shape (rows * columns, height, width) or (…, bands)

    See Also
    --------
    join : the exact inverse.
    """
    (rows, columns), (height, width) = grid(image.shape, tile), tile
    bands = image.shape[2:]
    whole = image[: rows * height, : columns * width]
    return (
        whole.reshape(rows, height, columns, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * columns, height, width, *bands)
    )


def join(tiles: NDArray[Any], columns: int) -> NDArray[Any]:
    """Put tiles together into an image, row by row.

    Parameters
    ----------
    tiles : ndarray of shape (rows * columns, height, width) or (…, bands)
    columns : int

    Returns
    -------
    ndarray of shape (rows * height, columns * width) or (…, bands)
    """
    n, height, width, *bands = tiles.shape
    rows = n // columns
    return (
        tiles.reshape(rows, columns, height, width, *bands)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, *bands)
    )
