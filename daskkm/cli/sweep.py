"""``daskkm sweep``: images to a store to centroids for many k."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import options
from daskkm.cli.ingest import print_skipped
from daskkm.cli.progress import Progress
from daskkm.errors import ParameterError, StoreError, count, printable
from daskkm.passes import connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from daskkm.kmeans.assessment import Assessment
    from daskkm.kmeans.metrics import Quality
    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.tile_store import TileStore


@click.command("sweep", context_settings=options.SETTINGS)
@click.option(
    "--images",
    type=options.LocalPath(),
    multiple=True,
    default=(Path("images"),),
    help="Folder of images, a file, or a quoted pattern; may be given several times. Ingested "
    "first where the store is missing. With --store alone, the store must exist and is used as "
    "it is.",
)
@options.store
@options.on_bad
@options.overwrite
@click.option(
    "--out",
    type=options.LocalPath(),
    default=Path("centroids"),
    help="Folder for the results.",
)
@click.option(
    "--k",
    "ks",
    type=options.k_list,
    metavar="LIST",
    default="3-7",
    help="Numbers of clusters: 3-7 or 2,4,8-12.",
)
@click.option(
    "--init",
    type=click.Choice(["k-means++", "k-means||", "random"]),
    default="k-means++",
    help="How initial centroids are drawn.",
)
@click.option(
    "--n-init", type=click.IntRange(1), default=16, help="Restarts of each k; the best is kept."
)
@click.option("--max-iter", type=click.IntRange(1), default=300, help="Most iterations of a model.")
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
    help="Whether tiles stay in the workers' memory; auto: if they fit.",
)
@click.option(
    "--checkpoint",
    type=options.LocalPath(),
    help="Folder that holds where the sweep stands, to go on from.  [default: STORE.checkpoint]",
)
@click.option("--fresh", is_flag=True, help="Start over, whatever the checkpoint holds.")
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
    images: tuple[Path, ...],
    store_path: Path,
    on_bad: str,
    overwrite: bool,
    out: Path,
    ks: tuple[int, ...],
    cache: str,
    checkpoint: Path | None,
    fresh: bool,
    seed: int,
    sheet_classes: bool,
    quiet: bool,
    no_quality: bool,
    scheduler_name: str,
    **others: Any,
) -> None:
    """Fit k-means for many k at once to the tiles of a folder of images.

    Writes OUT/K/centroidI.png and OUT/K/model.zarr for every k, OUT/contact_sheet.png and
    OUT/sweep.json. A sweep that was cut short resumes after its last pass when it is run again.
    """
    from daskkm.cli.table import closing_table
    from daskkm.kmeans.checkpoint import open_checkpoint
    from daskkm.kmeans.options import FitOptions
    from daskkm.kmeans.sweep import run_fit
    from daskkm.report import results

    started = time.perf_counter()
    settings = {name: others.pop(name) for name in ("init", "n_init", "max_iter", "tol")}
    place = checkpoint or Path(f"{store_path}.checkpoint")
    _check_usage([*images, store_path, out, place])
    try:
        fit_options = FitOptions.validate(ks, **settings, random_state=seed, cache=cache)
    except ParameterError as error:
        raise click.UsageError(str(error)) from error
    # Before an ingest and a fit, which may take hours.
    store = None if options.is_given("images") else _open_store(images, store_path)
    results.check_writable(out)
    connection.check_reachable(scheduler_name, **others)
    with (
        Progress(quiet=quiet) as progress,
        results.lock_folder(out),
        open_checkpoint(place, fresh=fresh) as saved,
    ):
        if store is None:
            with progress.stage("ingest", "images") as advance:
                store = _ingest(images, store_path, advance, on_bad, overwrite=overwrite)
        progress.say(f"{printable(str(store_path))}: {_describe(store)}")
        if saved.number:
            where = printable(str(place))
            progress.say(f"{where}: resuming the sweep cut short after pass {saved.number}")
        with connection.connect(scheduler_name, **others) as client:
            progress.say_dashboard(client)
            with progress.fit() as on_pass:
                result = run_fit(store, fit_options, checkpoint=saved, on_pass=on_pass)
            _save_models(out, result.models, store.tile, {**settings, "random_state": seed})
            with progress.stage("figures"):
                figures = _assess(store, result, classes=sheet_classes, skip=no_quality)
        source = {"store": store_path.as_posix(), "settings": {**settings, "seed": seed}}
        results.save_json(out / "sweep.json", source | _summarize(result, figures, store))
        saved.clear()
    click.echo(closing_table(result.models, figures.qualities, classes=sheet_classes, quiet=quiet))
    click.echo(
        f"{_describe_work(result, figures)}, {time.perf_counter() - started:.1f} s; "
        f"look at {printable(str(out / 'contact_sheet.png'))}"
    )
    print_skipped(store)


def _check_usage(paths: list[Path]) -> None:
    """Refuse options that have no use with others, and paths that name the same folder."""
    if options.is_given("no_quality") and options.is_given("sheet_classes"):
        msg = "--sheet-classes has no use with --no-quality"
        raise click.UsageError(msg)
    if options.is_given("store_path") and not options.is_given("images"):
        for name, flag in (("on_bad", "--on-bad"), ("overwrite", "--overwrite")):
            if options.is_given(name):
                msg = f"{flag} has no use with --store alone, which ingests nothing; name --images"
                raise click.UsageError(msg)
    real = [path.resolve() for path in paths]
    for path in paths:
        if real.count(path.resolve()) > 1:
            msg = f"images, store, results and checkpoint cannot share {path}; choose another"
            raise click.UsageError(msg)


def _open_store(images: tuple[Path, ...], store_path: Path) -> TileStore | None:
    """Return the store if it is to be used as it is; None if it is to be made of the images.

    Named alone, it must be there: it is never made of the images that happen to lie in ./images.
    """
    from daskkm.storage.tile_store import is_partial, is_present, open_store
    from daskkm.storage.zarr_nodes import suggest_names

    exists = is_present(store_path) or is_partial(store_path)
    if options.is_given("store_path") and not exists:
        msg = f"{store_path}: not a store{suggest_names(store_path)}. Name a store, or its images"
        raise StoreError(msg, options=("images",))
    if options.is_given("store_path") or (exists and not images[0].exists()):
        return open_store(store_path)
    return None


def _ingest(
    images: tuple[Path, ...],
    store_path: Path,
    on_image: Callable[[int, int], None],
    on_bad: str,
    *,
    overwrite: bool,
) -> TileStore:
    """Return the store of the images, ingested if it is not there."""
    from daskkm.images.ingest import create_store
    from daskkm.storage.writer import read_partial_tile_size

    read_partial_tile_size(store_path)  # a partial store is not cut anew in tiles of another size
    return create_store(images, store_path, on_bad=on_bad, overwrite=overwrite, on_image=on_image)


def _describe(store: TileStore) -> str:
    return f"{count(len(store), 'tile')} from {count(len(store.images), 'image')}"


def _assess(store: TileStore, result: SweepResult, *, classes: bool, skip: bool) -> Assessment:
    """Return the figures for choosing k, against images as classes if asked to."""
    from daskkm.kmeans.assessment import Assessment, assess_counted

    if skip:
        return Assessment({}, 0, 0)
    of_tiles = store.provenance_of("image") if classes else None
    return assess_counted(store, result.models, of_tiles, result)


def _describe_work(result: SweepResult, figures: Assessment) -> str:
    """Return the passes and bytes read of a sweep, in words."""
    from rich.filesize import decimal

    n_bytes = decimal(result.bytes_read + figures.bytes_read)
    return f"{result.passes + figures.passes} passes, {n_bytes} read"


def _save_models(
    out: Path,
    models: Mapping[int, FittedModel],
    tile: tuple[int, ...],
    params: Mapping[str, Any],
) -> None:
    """Write the models, their centroids as pictures, and the contact sheet."""
    from daskkm.report import contact_sheet, results

    # Files of an earlier sweep would not belong to these models if this sweep were cut short.
    for name in ("sweep.json", "contact_sheet.png"):
        results.remove_file(out / name)
    pictures = {k: results.to_pixels(m.cluster_centers_, tile) for k, m in models.items()}
    for k, model in models.items():
        results.save_centroids(out, pictures[k])
        settings = {"params": {"n_clusters": k, **params}}
        model.save(out / str(k) / "model.zarr", settings=settings)
    counts = {k: m.counts_.tolist() for k, m in models.items()}
    results.save_image(
        out / "contact_sheet.png", contact_sheet.draw_contact_sheet(pictures, counts)
    )


def _summarize(result: SweepResult, figures: Assessment, store: TileStore) -> dict[str, Any]:
    """Return the content of sweep.json that the fit and the figures give."""
    from daskkm.kmeans import metrics

    models = result.models
    return {
        "n_tiles": len(store),
        "n_features": math.prod(store.tile),
        "tile": list(store.tile),
        "passes": result.passes + figures.passes,
        "bytes_read": result.bytes_read + figures.bytes_read,
        "knee": metrics.knee({k: model.inertia_ for k, model in models.items()}),
        "models": [
            {
                "k": k,
                "inertia": model.inertia_,
                "n_iter": model.n_iter_,
                "converged": model.converged_,
                "restart": model.restart_,
                "sizes": model.counts_.tolist(),
                **_figures(figures.qualities.get(k)),
            }
            for k, model in models.items()
        ],
    }


def _figures(quality: Quality | None) -> dict[str, float | None]:
    """Return the figures that were measured, by name; None for one that is not defined."""
    if quality is None:
        return {}
    names = ["calinski_harabasz", "davies_bouldin", "silhouette"]
    if quality.purity is not None:
        names += ["purity", "adjusted_rand", "normalized_mutual_info"]
    return {name: getattr(quality, name) for name in names}
