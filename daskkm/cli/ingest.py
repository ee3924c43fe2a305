"""``daskkm ingest``: cut images into tiles and write the tiles to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daskkm.cli import options
from daskkm.cli.progress import Progress
from daskkm.errors import count, printable

if TYPE_CHECKING:
    from pathlib import Path

    from daskkm.storage.tile_store import TileStore


@click.command("ingest", context_settings=options.SETTINGS)
@click.argument("images", type=options.LocalPath(), nargs=-1)
@options.store
@click.option(
    "--tile",
    type=options.parse_tile,
    metavar="SIZE",
    help="Pixels of a tile: 16 or 16x24 (height x width).  "
    "[default: the size in an existing store, else 16]",
)
@options.on_bad
@options.overwrite
@options.quiet
def command(
    images: tuple[Path, ...],
    store_path: Path,
    tile: tuple[int, int] | None,
    on_bad: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Cut the images IMAGES into tiles and write the tiles to a store.

    IMAGES are folders, files or quoted patterns; the default is "images". The command resumes an
    ingest that was cut short.
    """
    from daskkm.images.ingest import create_store

    with Progress(quiet=quiet) as progress, progress.stage("ingest", "images") as advance:
        store = create_store(
            images or "images",
            store_path,
            tile,
            on_bad=on_bad,
            overwrite=overwrite,
            on_image=advance,
        )
    height, width = store.tile[:2]
    click.echo(
        f"{printable(str(store_path))}: {count(len(store), 'tile')} of {height} x {width} "
        f"from {count(len(store.images), 'image')}"
    )
    print_skipped(store)


def print_skipped(store: TileStore) -> None:
    """Print the skipped files of a store, with reasons."""
    if store.skipped:
        click.echo(f"{count(len(store.skipped), 'file')} skipped:")
    for file in store.skipped:
        click.echo(f"  {printable(file.name)}: {file.reason}")
