"""Ingest: sheets to tiles to a store. ``python -m daskkm.ingest --help``."""

from __future__ import annotations

if __name__ == "__main__":
    from daskkm import interrupts

    interrupts.end_at_once()

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daskkm import cli, tiles
from daskkm.errors import SheetError, StoreError
from daskkm.store import TileStore, create_store, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from daskkm.tiles import Sheet


def ingest(
    images: str | os.PathLike[str],
    store: str | os.PathLike[str],
    tile: int | Sequence[int] = (16, 16),
) -> TileStore:
    """Cut the sheets of a folder into tiles and write them to a store.

    Sheets are taken in natural order and cut row by row. Ragged edges fall off, with one
    warning, and are recorded in the store. A store that already holds these very sheets is
    left as it is; another of daskkm's is replaced.

    Parameters
    ----------
    images : path-like
        Folder of 8-bit sheets, all greyscale or all RGB.
    store : path-like
        Where the Zarr group goes.
    tile : int or (int, int), default (16, 16)
        Height and width of a tile in pixels; a number stands for both.

    Returns
    -------
    TileStore

    Raises
    ------
    SheetError
        If there are no sheets, or one cannot be read, differs in its bands from the others,
        or holds no whole tile. Headers are checked before anything is written.
    StoreError
        If the store cannot be written, or something else is in its place.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "sheet.png")
    >>> store = daskkm.ingest(folder, folder / "tiles.zarr", tile=16)
    >>> len(store), store.tile, store.sheets[0].name
    (12, (16, 16), 'sheet.png')
    >>> store.provenance()["row"].tolist()
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    """
    tile = (tile, tile) if isinstance(tile, int) else (int(tile[0]), int(tile[1]))
    if min(tile) < 1:
        msg = f"a tile of {tile[0]} x {tile[1]} pixels holds nothing; give at least 1 x 1"
        raise SheetError(msg)
    paths = tiles.find_sheets(Path(images))
    present = _if_up_to_date(paths, store, tile)
    if present is not None:
        return present
    shapes = [tiles.sheet_shape(path) for path in paths]
    _check(paths, shapes, tile)
    n_tiles = sum(math.prod(tiles.grid(shape, tile)) for shape in shapes)
    with create_store(store, n_tiles, tile, shapes[0][2:]) as writer:
        for path, shape in zip(paths, shapes, strict=True):
            sheet, pixels = tiles.read_sheet(path, tile)
            if sheet.shape != shape:
                msg = f"{path}: the file changed while it was being ingested; ingest again"
                raise SheetError(msg)
            writer.append(sheet, tiles.cut(pixels, tile))
    written = open_store(store)
    _warn_of_cropping(written.sheets)
    return written


def _if_up_to_date(
    paths: Sequence[Path], store: str | os.PathLike[str], tile: tuple[int, int]
) -> TileStore | None:
    """Return the store if it holds these sheets, cut into such tiles; else None."""
    try:
        present = open_store(store)
        present.check()
    except StoreError:
        return None
    same = len(paths) == len(present.sheets) and all(
        sheet.is_file(path) for sheet, path in zip(present.sheets, paths, strict=True)
    )
    return present if same and present.tile[:2] == tile else None


def _check(paths: Sequence[Path], shapes: Sequence[tuple[int, ...]], tile: tuple[int, int]) -> None:
    """Raise SheetError for the first sheet that does not fit the others or the tiles."""
    kinds = {(): "greyscale", (3,): "RGB"}
    usual = Counter(shape[2:] for shape in shapes).most_common(1)[0][0]
    for path, shape in zip(paths, shapes, strict=True):
        if shape[2:] != usual:
            msg = (
                f"{path}: it is {kinds[shape[2:]]} while the other sheets are {kinds[usual]}; "
                "convert or remove it"
            )
            raise SheetError(msg)
        if not math.prod(tiles.grid(shape, tile)):
            msg = (
                f"{path}: its {shape[0]} x {shape[1]} pixels hold no whole tile of "
                f"{tile[0]} x {tile[1]}; choose smaller tiles or remove it"
            )
            raise SheetError(msg)


def _warn_of_cropping(sheets: Sequence[Sheet]) -> None:
    cropped = [
        f"{sheet.name} ({sheet.cropped[0]} at the bottom, {sheet.cropped[1]} at the right)"
        for sheet in sheets
        if any(sheet.cropped)
    ]
    if cropped:
        more = f" and {len(cropped) - 3} more sheets" if len(cropped) > 3 else ""
        msg = f"pixels that fill no whole tile were cropped: {', '.join(cropped[:3])}{more}"
        warnings.warn(msg, stacklevel=3)


@click.command("ingest", context_settings={"show_default": True})
@click.argument("images", type=click.Path(path_type=Path), default=Path("images"))
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("store/tiles.zarr"),
    help="Where to write the Zarr store.",
)
@click.option(
    "--tile",
    type=cli.TileSize(),
    default="16",
    help="Pixels of a tile: 16 or 16x24 (height x width).",
)
def command(images: Path, store: Path, tile: tuple[int, int]) -> None:
    """Cut the sheets in the folder IMAGES into tiles and write them to a store."""
    written = ingest(images, store, tile)
    click.echo(
        f"{store}: {cli.count(len(written), 'tile')} of {tile[0]} x {tile[1]} "
        f"from {cli.count(len(written.sheets), 'sheet')}"
    )


if __name__ == "__main__":
    cli.run(command)
