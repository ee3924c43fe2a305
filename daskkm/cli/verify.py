"""``daskkm verify``: check each chunk of a store."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from daskkm.cli import options
from daskkm.cli.progress import Progress
from daskkm.errors import StoreError, count, printable

if TYPE_CHECKING:
    from daskkm.storage.locations import Location


@click.command("verify", context_settings=options.SETTINGS)
@click.argument("store", type=options.LocationType(), default="store/tiles.zarr")
@options.quiet
def command(store: Location, quiet: bool) -> None:
    """Check the metadata of a STORE, and every chunk of tiles, provenance and labels.

    Print a line for each error.
    """
    from rich.filesize import decimal

    from daskkm.storage.verification import iter_findings

    started = time.perf_counter()
    n_errors, n_chunks, n_bytes, total = 0, 0, 0, 0
    with Progress(quiet=quiet) as progress, progress.stage("verify", "chunks") as advance:
        for checked in iter_findings(store):
            for error in checked.errors:
                click.echo(error, file=sys.stdout)  # `file`: above the display
            n_errors += len(checked.errors)
            n_chunks += checked.chunks
            n_bytes += checked.bytes
            total += checked.total
            advance(n_chunks, total)
    seconds = time.perf_counter() - started
    work = f"{count(n_chunks, 'chunk')}, {decimal(n_bytes)} read, {seconds:.1f} s"
    if n_errors:
        msg = f"{store}: {count(n_errors, 'error')} in {work} (listed above)"
        raise StoreError(msg)
    click.echo(f"{printable(str(store))}: {work}; no errors")
