"""``daskkm ingest``: cut images into tiles and write them to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from daskkm.cli import main
from daskkm.cli.progress import Progress
from daskkm.errors import printable
from daskkm.images.ingest import create_store

if TYPE_CHECKING:
    from daskkm.storage.tile_store import TileStore


def say_skipped(store: TileStore) -> None:
    """Print which files were left out of a store, and why."""
    if store.skipped:
        click.echo(f"{main.count(len(store.skipped), 'file')} skipped:")
    for file in store.skipped:
        click.echo(f"  {printable(file.name)}: {file.reason}")


@click.command("ingest", cls=main.Command, context_settings=main.SETTINGS)
@click.argument("images", type=main.LocalPath(), nargs=-1)
@click.option(
    "--store",
    type=main.LocalPath(),
    default=Path("store/tiles.zarr"),
    help="Where to write the Zarr store.",
)
@click.option(
    "--tile",
    type=main.TileSize(),
    help="Pixels of a tile: 16 or 16x24 (height x width).  "
    "[default: those of the store that is there, else 16]",
)
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do where a file is no image, or none that fits.",
)
@main.overwrite_option
@main.quiet_option
def command(
    images: tuple[Path, ...],
    store: Path,
    tile: tuple[int, int] | None,
    on_bad: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Cut the images IMAGES into tiles and write them to a store.

    IMAGES are folders, files or quoted patterns; "images" if none is given. An ingest that was cut
    short goes on where it stopped.
    """
    with Progress(quiet=quiet) as progress, progress.stage("ingest", "images") as advance:
        written = create_store(
            images or "images", store, tile, on_bad=on_bad, overwrite=overwrite, on_image=advance
        )
    height, width = written.tile[:2]
    click.echo(
        f"{printable(str(store))}: {main.count(len(written), 'tile')} of {height} x {width} "
        f"from {main.count(len(written.images), 'image')}"
    )
    say_skipped(written)
