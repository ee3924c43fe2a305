"""Sweep: images to store to centroids for many k. ``python -m daskkm.sweep --help``."""

from __future__ import annotations

import itertools
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskkm.cli import main
from daskkm.errors import StoreError, printable
from daskkm.passes import scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daskkm.cli.progress import Progress
    from daskkm.kmeans.assessment import Assessment
    from daskkm.kmeans.metrics import Quality
    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.tile_store import TileStore


@click.command("sweep", cls=main.Command, context_settings=main.SETTINGS)
@click.option(
    "--images",
    type=main.LocalPath(),
    multiple=True,
    default=(Path("images"),),
    help="Folder of images, a file, or a quoted pattern; may be given several times. Ingested "
    "first where the store is missing. With --store alone, the store must exist and is used as "
    "it is.",
)
@click.option(
    "--store",
    "store_path",
    type=main.LocalPath(),
    default=Path("store/tiles.zarr"),
    help="The Zarr store of tiles.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do, where images are ingested, with a file that is none, or none that fits.",
)
@main.overwrite_option
@click.option(
    "--out",
    type=main.LocalPath(),
    default=Path("centroids"),
    help="Folder for the results.",
)
@click.option(
    "--k", "ks", type=main.KList(), default="3-7", help="Numbers of clusters: 3-7 or 2,4,8-12."
)
@click.option(
    "--init",
    type=click.Choice(["k-means++", "k-means||", "random"]),
    default="k-means++",
    help="How starting centroids are drawn.",
)
@click.option(
    "--n-init", type=click.IntRange(1), default=16, help="Restarts of each k; the best is kept."
)
@click.option("--max-iter", type=click.IntRange(1), default=300, help="Most iterations of a model.")
@click.option(
    "--tol",
    type=main.Number(),
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
    type=main.LocalPath(),
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
@main.quiet_option
@main.scheduler_options
def command(
    images: tuple[Path, ...],
    store_path: Path,
    on_bad: str,
    overwrite: bool,
    out: Path,
    ks: tuple[int, ...],
    init: str,
    n_init: int,
    max_iter: int,
    tol: float,
    cache: str,
    checkpoint: Path | None,
    fresh: bool,
    seed: int,
    sheet_classes: bool,
    quiet: bool,
    no_quality: bool,
    scheduler_name: str,
    **local: Any,
) -> None:
    """Fit k-means for many k at once to the tiles of a folder of images.

    Writes OUT/K/centroidI.png and OUT/K/model.zarr for every k, OUT/contact_sheet.png and
    OUT/sweep.json. A sweep that was cut short goes on from its last pass when it is run again.
    """
    from daskkm.cli.ingest import say_skipped
    from daskkm.cli.progress import Progress, closing_table, size
    from daskkm.kmeans import model
    from daskkm.kmeans.assessment import Assessment, assess_counted
    from daskkm.kmeans.checkpoint import open_checkpoint
    from daskkm.kmeans.options import FitOptions
    from daskkm.kmeans.sweep import run_fit
    from daskkm.report import results

    if no_quality:
        _refuse("sheet_classes", "--no-quality")
    if main.given("store_path") and not main.given("images"):
        for name in ("on_bad", "overwrite"):
            _refuse(name, "--store alone, which ingests nothing; name --images too")
    started = time.perf_counter()
    options = FitOptions.validate(
        ks,
        n_init=n_init,
        init=init,
        max_iter=max_iter,
        tol=tol,
        random_state=seed,
        cache=cache,
    )
    place = checkpoint or Path(f"{store_path}.checkpoint")
    given = {"--store": store_path, "--out": out, "--checkpoint": place}
    models = {f"the model of k = {k}": _place(out, k) for k in ks}
    for path in images:
        _check_apart({"--images": path, **given}, models)
    alone = _open_alone(images, store_path)
    results.check_writable(out)
    for k in ks:
        model.check_free(_place(out, k))
    # Each of these before an ingest, which may take hours.
    tls = {name: file for name, file in local.items() if name.startswith("tls_")}
    scheduler.check_reachable(scheduler_name, **tls)
    with (
        Progress(quiet=quiet) as progress,
        results.lock_folder(out),
        open_checkpoint(place, fresh=fresh) as saved,
    ):
        store = alone
        if store is None:
            store = _ingest(images, store_path, on_bad, progress, overwrite=overwrite)
        tiles, files = main.count(len(store), "tile"), main.count(len(store.images), "image")
        progress.say(f"{printable(str(store_path))}: {tiles} from {files}")
        if saved.number:
            resumed = f"resuming a sweep that was cut short after pass {saved.number}"
            progress.say(f"{printable(str(place))}: {resumed}")
        with scheduler.connect(scheduler_name, **local) as client:
            if client is not None:
                progress.say(f"dashboard: {client.dashboard_link}")
            with progress.fit() as on_pass:
                result = run_fit(store, options, checkpoint=saved, on_pass=on_pass)
            settings = {"init": init, "n_init": n_init, "max_iter": max_iter, "tol": tol}
            settings["seed"] = seed
            _save_models(out, result.models, store.tile, settings)
            found = Assessment({}, 0, 0)
            if not no_quality:
                with progress.stage("figures"):
                    classes = store.provenance_of("image") if sheet_classes else None
                    found = assess_counted(store, result.models, classes, result)
        source = {"store": store_path.as_posix(), "settings": settings}
        _save_figures(out, result, found, store, source)
        saved.clear()
    table = closing_table(result.models, found.qualities, classes=sheet_classes, quiet=quiet)
    click.echo(table)
    click.echo(
        f"{result.passes + found.passes} passes, "
        f"{size(result.bytes_read + found.bytes_read)} read, "
        f"{time.perf_counter() - started:.1f} s; "
        f"look at {printable(str(out / 'contact_sheet.png'))}"
    )
    say_skipped(store)


def _refuse(name: str, other: str) -> None:
    """Refuse an option, by the name of its parameter, that another leaves without a use."""
    if main.given(name):
        msg = f"--{name.replace('_', '-')} has no use with {other}"
        raise click.UsageError(msg)


def _check_apart(given: Mapping[str, Path], models: Mapping[str, Path]) -> None:
    """Refuse options that name one place, or one where nothing else may be written."""
    for (name, path), (other, its) in itertools.combinations(given.items(), 2):
        if os.path.realpath(path) == os.path.realpath(its):
            msg = f"{name} and {other} are the same place, {path}; choose one for each"
            raise click.UsageError(msg)
    written = {name: path for name, path in given.items() if name != "--images"}
    closed = {name: given[name] for name in ("--store", "--checkpoint")} | dict(models)
    for (name, path), (other, its) in itertools.product(written.items(), closed.items()):
        if name != other and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(its)):
            msg = f"{name}, {path}, is in {other}, {its}; choose another place for it"
            raise click.UsageError(msg)


def _open_alone(images: tuple[Path, ...], store_path: Path) -> TileStore | None:
    """Return the store if it is to be used as it is; None if it is to be of the images.

    Raises
    ------
    StoreError
        If it was named alone, so that it is not to be made of whatever lies in ./images, and is
        missing or not complete.
    """
    from daskkm.storage.nodes import similar_names
    from daskkm.storage.tile_store import is_partial, is_present, open_store

    if main.given("images"):
        return None
    if main.given("store_path") and not is_present(store_path) and not is_partial(store_path):
        msg = f"{store_path}: there is no store{similar_names(store_path)}. Name one, or its images"
        raise StoreError(msg, options=("images",))
    if main.given("store_path") or (
        not images[0].exists() and (is_present(store_path) or is_partial(store_path))
    ):
        return open_store(store_path)
    return None


def _ingest(
    images: tuple[Path, ...],
    store_path: Path,
    on_bad: str,
    progress: Progress,
    *,
    overwrite: bool,
) -> TileStore:
    """Return the store of the images, ingested if it is not there."""
    from daskkm.images.ingest import create_store
    from daskkm.storage.writer import partial_tile_size

    partial_tile_size(store_path)  # what was begun is not cut anew in tiles of another size
    with progress.stage("ingest", "images") as advance:
        try:
            return create_store(
                images, store_path, on_bad=on_bad, overwrite=overwrite, on_image=advance
            )
        except StoreError as error:
            if not error.options or not _is_usable(store_path):
                raise
            msg = f"{error.with_options(())}; or use the store as it is, with --store alone"
            raise StoreError(msg, options=error.options) from error


def _is_usable(store_path: Path) -> bool:
    """Return True if there is a store that can be opened, with all of its chunks."""
    from daskkm.storage.tile_store import open_store

    try:
        open_store(store_path).check()
    except StoreError:
        return False
    return True


def _place(out: Path, k: int) -> Path:
    return out / str(k) / "model.zarr"


def _save_models(
    out: Path,
    models: Mapping[int, FittedModel],
    tile: tuple[int, ...],
    settings: Mapping[str, Any],
) -> None:
    """Write the models, their centroids as pictures, and the contact sheet."""
    from daskkm.report import contact_sheet, results

    # Those of an earlier sweep would not belong to these models, if this one were cut short.
    for name in ("sweep.json", "contact_sheet.png"):
        results.remove_file(out / name)
    pictures = {k: results.to_pixels(m.cluster_centers_, tile) for k, m in models.items()}
    for k, model in models.items():
        results.save_centroids(out, pictures[k])
        params = {"n_clusters": k, **settings}
        params["random_state"] = params.pop("seed")
        model.save(_place(out, k), settings={"params": params})
    counts = {k: m.counts_.tolist() for k, m in models.items()}
    results.save_image(
        out / "contact_sheet.png", contact_sheet.draw_contact_sheet(pictures, counts)
    )


def _save_figures(
    out: Path, result: SweepResult, found: Assessment, store: TileStore, said: Mapping[str, Any]
) -> None:
    """Write sweep.json."""
    from daskkm.kmeans import metrics
    from daskkm.report import results

    models = result.models
    content = {
        **said,
        "n_tiles": len(store),
        "n_features": math.prod(store.tile),
        "tile": list(store.tile),
        "passes": result.passes + found.passes,
        "bytes_read": result.bytes_read + found.bytes_read,
        "knee": metrics.knee({k: model.inertia_ for k, model in models.items()}),
        "models": [
            {
                "k": k,
                "inertia": model.inertia_,
                "n_iter": model.n_iter_,
                "converged": model.converged_,
                "restart": model.restart_,
                "sizes": model.counts_.tolist(),
                **_figures(found.qualities.get(k)),
            }
            for k, model in models.items()
        ],
    }
    results.save_json(out / "sweep.json", content)


def _figures(quality: Quality | None) -> dict[str, float | None]:
    """Return the figures that were measured, by name; None for one that is not defined."""
    if quality is None:
        return {}
    names = ["calinski_harabasz", "davies_bouldin", "silhouette"]
    if quality.purity is not None:
        names += ["purity", "adjusted_rand", "normalized_mutual_info"]
    return {name: getattr(quality, name) for name in names}
