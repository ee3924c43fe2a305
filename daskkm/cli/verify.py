"""``daskkm verify``: check each chunk of a store."""

from __future__ import annotations

import time
from pathlib import Path

import click

from daskkm.cli import main
from daskkm.cli.progress import Progress, size
from daskkm.errors import StoreError, printable
from daskkm.storage.verification import iter_checked


@click.command("verify", cls=main.Command, context_settings=main.SETTINGS)
@click.argument("store", type=main.LocalPath(), default=Path("store/tiles.zarr"))
@main.quiet_option
def command(store: Path, quiet: bool) -> None:
    """Check all of a STORE: its metadata, and every chunk of tiles, provenance and labels.

    Prints what is wrong, a line each.
    """
    started = time.perf_counter()
    n_errors, n_chunks, n_bytes, total = 0, 0, 0, 0
    with Progress(quiet=quiet) as progress, progress.stage("verify", "chunks") as advance:
        for found in iter_checked(store):
            for error in found.errors:
                click.echo(error)
            n_errors += len(found.errors)
            n_chunks += found.chunks
            n_bytes += found.bytes
            total += found.total
            advance(n_chunks, total)
    read = (
        f"{main.count(n_chunks, 'chunk')}, {size(n_bytes)} read, "
        f"{time.perf_counter() - started:.1f} s"
    )
    if n_errors:
        msg = f"{store}: {main.count(n_errors, 'error')} in {read}; do what is said above"
        raise StoreError(msg)
    click.echo(f"{printable(str(store))}: {read}; all of it is as it was written")
