"""``daskkm label``: label the tiles of a store by a saved model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import main
from daskkm.errors import printable
from daskkm.passes import scheduler

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from daskkm.storage.labels import Target


@click.command("label", cls=main.Command, context_settings=main.SETTINGS)
@click.argument("model_path", metavar="MODEL", type=main.LocalPath())
@click.option(
    "--store",
    "store_path",
    type=main.LocalPath(),
    default=Path("store/tiles.zarr"),
    help="The Zarr store of tiles, into which the labels go.",
)
@click.option("--distances", is_flag=True, help="Write the distances to all centroids too.")
@main.quiet_option
@main.scheduler_options
def command(
    model_path: Path,
    store_path: Path,
    distances: bool,
    quiet: bool,
    scheduler_name: str,
    **local: Any,
) -> None:
    """Label the tiles of a store by a saved MODEL, such as centroids/5/model.zarr.

    Writes labels/K, and distances/K if asked to, into the store.
    """
    from daskkm.cli.progress import Progress
    from daskkm.kmeans.model import load_saved
    from daskkm.storage.tile_store import open_store

    started = time.perf_counter()
    model, store = load_saved(model_path).model, open_store(store_path)
    model.check_fits(store)  # before a scheduler is started
    k = len(model.cluster_centers_)
    with (
        Progress(quiet=quiet) as progress,
        scheduler.connect(scheduler_name, **local) as client,
    ):
        if client is not None:
            progress.say(f"dashboard: {client.dashboard_link}")

        def showing(target: Target) -> AbstractContextManager[Any]:
            return progress.stage(
                "label", "chunks", total=target.array.cdata_shape[0], poll=target.n_written
            )

        sizes = model.write_labels(store, distances=distances, on_start=showing)
    places = [store_path / name / str(k) for name in ("labels", "distances")[: 1 + distances]]
    click.echo(
        f"{main.count(len(store), 'tile')} in clusters of {' '.join(map(str, sizes))}, "
        f"{time.perf_counter() - started:.1f} s; labels are in "
        f"{' and '.join(printable(str(place)) for place in places)}"
    )
