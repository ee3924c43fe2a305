"""``daskkm label``: label the tiles of a store by a saved model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import options
from daskkm.cli.progress import Progress
from daskkm.errors import count, printable
from daskkm.passes import connection

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from daskkm.storage.labels import Target
    from daskkm.storage.locations import Location


@click.command("label", context_settings=options.SETTINGS)
@click.argument("model_path", metavar="MODEL", type=options.LocationType())
@options.store
@click.option("--distances", is_flag=True, help="Write the distances to all centroids too.")
@options.quiet
@options.scheduler
def command(
    model_path: Location,
    store_path: Location,
    distances: bool,
    quiet: bool,
    scheduler_name: str,
    **scheduler_settings: Any,
) -> None:
    """Label the tiles of a store by a saved MODEL, such as centroids/5/model.zarr.

    Write labels/K into the store, and distances/K with --distances.
    """
    from daskkm.kmeans.model import load_saved
    from daskkm.storage.tile_store import open_store

    started = time.perf_counter()
    model, store = load_saved(model_path).model, open_store(store_path)
    model.check_fits(store)  # before a scheduler is started
    with (
        Progress(quiet=quiet) as progress,
        connection.connect(scheduler_name, **scheduler_settings) as client,
    ):
        progress.print_dashboard(client)

        def show_stage(target: Target) -> AbstractContextManager[Any]:
            return progress.stage("label", "chunks", total=target.n_chunks, poll=target.n_written)

        sizes = model.write_labels(store, distances=distances, on_start=show_stage)
    names = ("labels", "distances")[: 1 + distances]
    paths = [store_path / name / str(len(model.cluster_centers_)) for name in names]
    click.echo(
        f"{count(len(store), 'tile')} in clusters of {' '.join(map(str, sizes))}, "
        f"{time.perf_counter() - started:.1f} s; labels are in "
        f"{' and '.join(printable(str(path)) for path in paths)}"
    )
