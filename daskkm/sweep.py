"""Sweep: images to store to centroids for many k. ``python -m daskkm.sweep --help``."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskkm import cli, scheduler
from daskkm.errors import SchedulerError

if TYPE_CHECKING:
    from daskkm.assessment import Assessment
    from daskkm.fit import SweepResult
    from daskkm.quality import Quality
    from daskkm.store import TileStore


_LEAST_MEMORY = 200_000_000

# Options that only a scheduler which is started here can follow.
_FOR_LOCAL = ("workers", "threads_per_worker", "memory_limit", "dashboard_address")


def _scheduler_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return scheduler.check_name(value)
    except SchedulerError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from dask.utils import parse_bytes

        try:
            enough = parse_bytes(value) >= _LEAST_MEMORY
        except (ValueError, OverflowError):
            enough = False
        if not enough:
            msg = f"{value!r} is not a size like 2GB, of at least 200MB, which a worker needs"
            raise click.BadParameter(msg, ctx, param)
    return value


def _address(ctx: click.Context, param: click.Parameter, value: str) -> str:
    port = re.fullmatch(r".*:(\d{1,5})", value)
    if not port or int(port[1]) > 65535:
        msg = f"{value!r} is not an address like 127.0.0.1:8787"
        raise click.BadParameter(msg, ctx, param)
    return value


@click.command("sweep", context_settings={"show_default": True})
@click.option(
    "--scheduler",
    "scheduler_name",
    default="local",
    callback=_scheduler_name,
    metavar="NAME",
    help="local, threads, tcp://host:8786, tls://host:8786 or a scheduler file (.json).",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("images"),
    help="Folder of sheets; ingested first where the store is missing or they have changed. "
    "With --store alone, a store that exists is used as it is.",
)
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    default=Path("store/tiles.zarr"),
    help="The Zarr store of tiles.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("centroids"),
    help="Folder for the results.",
)
@click.option(
    "--k", "ks", type=cli.KList(), default="3-7", help="Numbers of clusters: 3-7 or 2,4,8-12."
)
@click.option(
    "--init",
    type=click.Choice(["k-means++", "random"]),
    default="k-means++",
    help="How starting centroids are drawn.",
)
@click.option(
    "--n-init", type=click.IntRange(1), default=16, help="Restarts of each k; the best is kept."
)
@click.option("--max-iter", type=click.IntRange(1), default=100, help="Most iterations of a model.")
@click.option(
    "--tol",
    type=click.FloatRange(0),
    default=1e-4,
    help="Stop when centroids move by less than this, relative to the variance of the tiles.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of all random draws.")
@click.option(
    "--sheet-classes",
    is_flag=True,
    help="Each sheet holds tiles of one class: report purity, ARI and NMI against the sheets.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Worker processes of a local scheduler.  [default: one worker in this process]",
)
@click.option(
    "--threads-per-worker",
    type=click.IntRange(1),
    help="Threads of each local worker.  [default: its share of the cores]",
)
@click.option(
    "--memory-limit",
    callback=_memory,
    help="Memory of each local worker, as in 2GB.  [default: its share of the machine]",
)
@click.option(
    "--dashboard-address",
    default="127.0.0.1:8787",
    callback=_address,
    help="Where a local scheduler's dashboard listens.",
)
def command(
    scheduler_name: str,
    images: Path,
    store_path: Path,
    out: Path,
    ks: tuple[int, ...],
    init: str,
    n_init: int,
    max_iter: int,
    tol: float,
    seed: int,
    sheet_classes: bool,
    **local: Any,
) -> None:
    """Fit k-means for many k at once to the tiles of a folder of sheets.

    Writes OUT/K/centroidI.png for every k, OUT/contact_sheet.png and OUT/sweep.json.
    """
    from daskkm import progress, results
    from daskkm.assessment import assess_counted
    from daskkm.fit import iter_passes

    started = time.perf_counter()
    _check_local_options(scheduler_name)
    results.check_writable(out, ks)
    store = _open_or_ingest(images, store_path)
    click.echo(f"{store_path}: {len(store)} tiles from {len(store.sheets)} sheets", err=True)
    with scheduler.connect(scheduler_name, **local) as client:
        if client is not None:
            click.echo(f"dashboard: {client.dashboard_link}", err=True)
        result = progress.show_all(
            iter_passes(
                store.features(),
                ks,
                n_init=n_init,
                init=init,
                max_iter=max_iter,
                tol=tol,
                random_state=seed,
            )
        )
        click.echo("two passes more: how good each k is", err=True)
        classes = store.provenance()["sheet"] if sheet_classes else None
        found = assess_counted(store.features(), result.models, classes)
    settings = {"init": init, "n_init": n_init, "max_iter": max_iter, "tol": tol, "seed": seed}
    _save(out, result, found, store, {"store": store_path.as_posix(), "settings": settings})
    click.echo(progress.closing_table(result.models, found.qualities))
    click.echo(
        f"{result.passes + found.passes} passes, "
        f"{(result.bytes_read + found.bytes_read) / 1e6:.1f} MB read, "
        f"{time.perf_counter() - started:.1f} s; look at {out / 'contact_sheet.png'}"
    )


def _open_or_ingest(images: Path, store_path: Path) -> TileStore:
    """Return the store, ingested anew where it is missing or its sheets have changed."""
    from daskkm.ingest import ingest
    from daskkm.store import open_store

    # A store named on its own must not be replaced by whatever lies in ./images.
    alone = _given("store_path") or not images.exists()
    empty = store_path.is_dir() and not any(store_path.iterdir())
    present = store_path.exists() and not empty
    if present and alone and not _given("images"):
        return open_store(store_path)
    tile = open_store(store_path).tile[:2] if present else (16, 16)
    return ingest(images, store_path, tile)


def _check_local_options(scheduler_name: str) -> None:
    """Refuse options that the scheduler would not follow."""
    follows = {"local": _FOR_LOCAL, "threads": ("threads_per_worker",)}.get(scheduler_name, ())
    for name in _FOR_LOCAL:
        if _given(name) and name not in follows:
            flag = f"--{name.replace('_', '-')}"
            msg = f"{flag} has no use with --scheduler {scheduler_name}"
            raise click.UsageError(msg)


def _given(name: str) -> bool:
    """Tell whether an option was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _save(
    out: Path, result: SweepResult, found: Assessment, store: TileStore, said: dict[str, Any]
) -> None:
    """Write the centroids, their contact sheet and sweep.json."""
    from daskkm import quality, report, results

    models = result.models
    pictures = {k: results.to_pixels(m.cluster_centers_, store.tile) for k, m in models.items()}
    counts = {k: m.counts_.tolist() for k, m in models.items()}
    for centroids in pictures.values():
        results.save_centroids(out, centroids)
    results.save_image(out / "contact_sheet.png", report.contact_sheet(pictures, counts))
    content = {
        **said,
        "n_tiles": len(store),
        "n_features": math.prod(store.tile),
        "tile": list(store.tile),
        "passes": result.passes + found.passes,
        "bytes_read": result.bytes_read + found.bytes_read,
        "knee": quality.knee({k: model.inertia_ for k, model in models.items()}),
        "models": [
            {
                "k": k,
                "inertia": model.inertia_,
                "n_iter": model.n_iter_,
                "converged": model.converged_,
                "restart": model.restart_,
                "sizes": counts[k],
                **_figures(found.qualities[k]),
            }
            for k, model in models.items()
        ],
    }
    results.save_json(out / "sweep.json", content)


def _figures(quality: Quality) -> dict[str, float | None]:
    """Return the figures by which to choose k, by name; those of classes if they were given."""
    names = ["calinski_harabasz", "davies_bouldin", "silhouette"]
    if quality.purity is not None:
        names += ["purity", "adjusted_rand", "normalized_mutual_info"]
    return {name: getattr(quality, name) for name in names}


if __name__ == "__main__":
    cli.run(command)
