"""``daskkm ingest``: cut images into tiles and write the tiles to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import options
from daskkm.cli.progress import Progress
from daskkm.errors import count, printable
from daskkm.passes import connection

if TYPE_CHECKING:
    from daskkm.storage.locations import Location
    from daskkm.storage.tile_store import TileStore


@click.command("ingest", context_settings=options.SETTINGS)
@click.argument("images", type=options.LocationType(), nargs=-1)
@options.store
@click.option(
    "--tile",
    type=options.parse_tile,
    metavar="SIZE",
    help="Pixels of a tile: 16 or 16x24 (height x width).  "
    "[default: the size in an existing store, else 16]",
)
@click.option("--append", is_flag=True, help="Add the images at the end of an existing store.")
@options.on_bad
@options.overwrite
@options.quiet
@options.scheduler
def command(
    images: tuple[Location, ...],
    store_path: Location,
    tile: tuple[int, int] | None,
    append: bool,
    on_bad: str,
    overwrite: bool,
    quiet: bool,
    scheduler_name: str,
    **scheduler_settings: Any,
) -> None:
    """Cut the images IMAGES into tiles and write the tiles to a store.

    IMAGES are folders, files, quoted patterns or URLs; the default is "images". The command resumes
    an ingest that was cut short.
    """
    from daskkm.images.find import find_images
    from daskkm.images.ingest import create_store
    from daskkm.storage.tile_store import open_store

    for name, given in (("--tile", tile), ("--overwrite", overwrite)):
        if append and given:
            msg = f"{name}: not used with --append"
            raise click.UsageError(msg)
    present = open_store(store_path) if append else None
    paths: Any = images or "images"
    find_images(paths, store_path)  # before a scheduler is started
    with (
        Progress(quiet=quiet) as progress,
        connection.connect(scheduler_name, **scheduler_settings) as client,
    ):
        progress.print_dashboard(client)
        with progress.stage("ingest", "images") as advance:
            if present is not None:
                store = present.append(paths, on_bad=on_bad, on_image=advance)
            else:
                store = create_store(
                    paths, store_path, tile, on_bad=on_bad, overwrite=overwrite, on_image=advance
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
