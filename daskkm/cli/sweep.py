"""``daskkm sweep``: images to a store to centroids for many k."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import options
from daskkm.cli.ingest import print_skipped
from daskkm.cli.progress import Progress
from daskkm.errors import ParameterError, StoreError, count, printable
from daskkm.passes import connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from daskkm.kmeans.assessment import Assessment
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.locations import Location
    from daskkm.storage.tile_store import TileStore


@click.command("sweep", context_settings=options.SETTINGS)
@click.option(
    "--images",
    type=options.LocationType(),
    multiple=True,
    default=("images",),
    help="Folder of images, a file, or a quoted pattern; may be given several times. Ingested "
    "first if the store is missing. With --store alone, the store must exist and stays unchanged.",
)
@options.store
@options.on_bad
@options.overwrite
@click.option(
    "--out",
    type=options.LocationType(),
    default="centroids",
    help="Folder for the results.",
)
@click.option(
    "--k",
    "ks",
    type=options.parse_ks,
    metavar="LIST",
    default="3-7",
    help="Numbers of clusters: 3-7 or 2,4,8-12.",
)
@click.option(
    "--init",
    type=click.Choice(["k-means++", "k-means||", "random"]),
    default="k-means++",
    help="Way to draw initial centroids.",
)
@click.option(
    "--n-init", type=click.IntRange(1), default=16, help="Restarts of each k; the best is kept."
)
@click.option("--max-iter", type=click.IntRange(1), default=300, help="Iterations of a model.")
@click.option(
    "--tol",
    type=click.FloatRange(0),
    default=1e-4,
    help="Stop when centroids move by less than this, relative to the variance of the tiles.",
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Keep tiles in the workers' memory; auto: if there is room.",
)
@click.option(
    "--checkpoint",
    type=options.LocationType(),
    help="Folder for the state of the sweep, to resume from.  [default: STORE.checkpoint]",
)
@click.option("--fresh", is_flag=True, help="Ignore the checkpoint and start over.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of all random draws.")
@click.option(
    "--sheet-classes",
    is_flag=True,
    help="Each image holds tiles of one class: report purity, ARI and NMI against the images.",
)
@click.option(
    "--no-quality",
    is_flag=True,
    help="Leave out the figures for choosing k, which take about as long as two iterations of "
    "all k.",
)
@options.quiet
@options.scheduler
def command(
    images: tuple[Location, ...],
    store_path: Location,
    on_bad: str,
    overwrite: bool,
    out: Location,
    ks: tuple[int, ...],
    cache: str,
    checkpoint: Location | None,
    fresh: bool,
    seed: int,
    sheet_classes: bool,
    quiet: bool,
    no_quality: bool,
    scheduler_name: str,
    **others: Any,
) -> None:
    """Fit k-means for many k at once to the tiles of a folder of images.

    Write OUT/K/centroidI.png and OUT/K/model.zarr for every k, OUT/contact_sheet.png and
    OUT/sweep.json. The next run of a sweep that was cut short resumes after the last pass.
    """
    from rich.filesize import decimal

    from daskkm.images.find import find_images
    from daskkm.kmeans.checkpoint import open_checkpoint
    from daskkm.kmeans.options import FitOptions
    from daskkm.kmeans.sweep import run_fit
    from daskkm.report import results, sweep_results
    from daskkm.report.closing_table import format_table

    started = time.perf_counter()
    settings = {name: others.pop(name) for name in ("init", "n_init", "max_iter", "tol")}
    checkpoint = checkpoint or store_path.parent / f"{store_path.name}.checkpoint"
    _check_usage([*images, store_path, out, checkpoint])
    try:
        fit_options = FitOptions.validate(ks, **settings, random_state=seed, cache=cache)
    except ParameterError as error:
        raise click.UsageError(str(error)) from error
    # Before an ingest and a fit, which may take hours.
    store = None if options.is_given("images") else _open_store(images, store_path)
    if store is None:
        find_images(images, store_path)
    results.check_writable(out)
    connection.check_reachable(scheduler_name, **others)
    with (
        Progress(quiet=quiet) as progress,
        results.lock_folder(out),
        open_checkpoint(checkpoint, fresh=fresh) as state,
    ):
        with connection.connect(scheduler_name, **others) as client:
            progress.print_dashboard(client)
            if store is None:
                with progress.stage("ingest", "images") as advance:
                    store = _ingest(images, store_path, advance, on_bad, overwrite=overwrite)
            size = f"{count(len(store), 'tile')} from {count(len(store.images), 'image')}"
            progress.print_line(f"{printable(str(store_path))}: {size}")
            if state.number:
                where = printable(str(checkpoint))
                progress.print_line(
                    f"{where}: resuming the sweep cut short after pass {state.number}"
                )
            with progress.fit() as on_pass:
                result = run_fit(store, fit_options, checkpoint=state, on_pass=on_pass)
            params = {**settings, "random_state": seed}
            sweep_results.save_models(out, result.models, store.tile, params)
            with progress.stage("figures"):
                figures = _assess(store, result, classes=sheet_classes, skip=no_quality)
        summary = {
            "store": str(store_path),
            "settings": {**settings, "seed": seed},
            **sweep_results.summarize(result, figures, store),
        }
        results.save_json(out / "sweep.json", summary)
        state.clear()
    click.echo(format_table(result.models, figures.qualities, classes=sheet_classes, quiet=quiet))
    click.echo(
        f"{summary['passes']} passes, {decimal(summary['bytes_read'])} read, "
        f"{time.perf_counter() - started:.1f} s; "
        f"look at {printable(str(out / 'contact_sheet.png'))}"
    )
    print_skipped(store)


def _check_usage(paths: list[Location]) -> None:
    """Raise UsageError for options without effect, and for paths of the same folder."""
    if options.is_given("no_quality") and options.is_given("sheet_classes"):
        msg = "--sheet-classes: not used with --no-quality"
        raise click.UsageError(msg)
    if options.is_given("store_path") and not options.is_given("images"):
        for name, flag in (("on_bad", "--on-bad"), ("overwrite", "--overwrite")):
            if options.is_given(name):
                msg = f"{flag}: not used with --store alone. Name the images (--images)"
                raise click.UsageError(msg)
    real = [path.resolve() for path in paths]
    for path, own in zip(paths, real, strict=True):
        if real.count(own) > 1:
            msg = (
                f"{path}: images, store, results and checkpoint cannot share a path. Choose another"
            )
            raise click.UsageError(msg)


def _open_store(images: tuple[Location, ...], store_path: Location) -> TileStore | None:
    """Return the store to use unchanged, or None to ingest the images.

    A store without --images must exist: images that happen to lie in ./images are not ingested.
    """
    from daskkm.storage.nodes import suggest_names
    from daskkm.storage.tile_store import is_partial, is_present, open_store

    exists = is_present(store_path) or is_partial(store_path)
    if options.is_given("store_path") and not exists:
        msg = f"{store_path}: not a store{suggest_names(store_path)}. Name a store, or its images"
        raise StoreError(msg, options=("images",))
    if options.is_given("store_path") or (exists and not images[0].exists()):
        return open_store(store_path)
    return None


def _ingest(
    images: tuple[Location, ...],
    store_path: Location,
    on_image: Callable[[int, int], None],
    on_bad: str,
    *,
    overwrite: bool,
) -> TileStore:
    """Return the store of the images, ingested if missing; append images that are new."""
    from daskkm.images.ingest import create_store, is_grown
    from daskkm.storage.tile_store import open_store

    if not overwrite and is_grown(images, store_path):
        return open_store(store_path).append(images, on_bad=on_bad, on_image=on_image)
    return create_store(images, store_path, on_bad=on_bad, overwrite=overwrite, on_image=on_image)


def _assess(store: TileStore, result: SweepResult, *, classes: bool, skip: bool) -> Assessment:
    """Return the figures for choosing k, with `classes` also against the images."""
    from daskkm.kmeans.assessment import Assessment, assess_counted

    if skip:
        return Assessment({}, 0, 0)
    images = store.provenance_of("image") if classes else None
    return assess_counted(store, result.models, images, result)
