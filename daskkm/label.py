"""Label: a saved model and a store to labels in the store. ``python -m daskkm.label --help``."""

from __future__ import annotations

if __name__ == "__main__":
    from daskkm import interrupts

    interrupts.end_at_once()
    from daskkm import cli

    cli.run_module("label")

import hashlib
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskkm import cli, scheduler
from daskkm.errors import FitError, StoreError, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from daskkm.estimator import KMeans
    from daskkm.model import FittedModel
    from daskkm.store import Target, TileStore


def label(store: TileStore, model: FittedModel | KMeans, *, distances: bool = False) -> None:
    """Write the label of every tile into the store, for `TileStore.labels` to read.

    Labels go block by block from the kernel into ``labels/K`` in the store, on the active
    `distributed.Client` if there is one, else on dask's default scheduler; none pass through
    this process on their way. They take their place when all are written, and that of labels
    of the same k; distances of the same k that were there before go with these. Of two runs at
    once for the same k, the labels of the one that ends last stay.

    Parameters
    ----------
    store : TileStore
    model : FittedModel or KMeans
    distances : bool, default False
        Whether to write Euclidean distances to all k centroids too, into ``distances/K``: 8 k
        bytes a tile.

    Raises
    ------
    FitError
        If the model was fitted to tiles of another shape or dtype.
    ParameterError
        If the model is no model, or `distances` is not a bool.
    NotFittedError
        If the model is an estimator that is not fitted.
    StoreError
        If the store is none, a tile cannot be read, or labels cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "sheet.png")
    >>> store = daskkm.ingest(folder, folder / "tiles.zarr")
    >>> model = daskkm.KMeans(n_clusters=3, random_state=0).fit(store)
    >>> label(store, model)
    >>> bool((store.labels(3) == model.labels_).all())
    True
    """
    from daskkm.model import fitted_model
    from daskkm.parameters import as_flag

    _check_store(store)
    distances = as_flag("distances", distances)
    _write(store, fitted_model(model), distances=distances)


def _write(
    store: TileStore,
    model: FittedModel,
    *,
    distances: bool,
    showing: Callable[[Target], AbstractContextManager[Any]] = nullcontext,
) -> NDArray[Any]:
    """Write labels as `label` does, and return how many tiles each was given.

    The work is done in the context that `showing` returns for what the labels are written to.
    """
    from daskkm import blocks

    _check_fits(store, model)
    centroids = model.cluster_centers_
    said = {
        "k": len(centroids),
        "inertia": None if model.dtype is None else model.inertia_,
        "centroids": hashlib.sha256(centroids.tobytes()).hexdigest(),
    }
    with store.writing_labels(said, distances=distances) as targets, showing(targets[0]):
        lazy = blocks.write_labels(store.streamed(scheduler.threads()), centroids, *targets)
        sizes: NDArray[Any]
        (sizes,) = scheduler.compute(lazy)
    return sizes


def _check_store(store: Any) -> None:
    from daskkm.store import TileStore

    if not isinstance(store, TileStore):
        msg = (
            f"labels go into a TileStore, which {type(store).__name__} is not; "
            "get one from daskkm.open_store or daskkm.ingest"
        )
        raise StoreError(msg)


def _check_fits(store: TileStore, model: FittedModel) -> None:
    """Raise FitError if the model was fitted to tiles unlike those of the store."""
    X = store.features()
    # Centroids that were given are of no dtype, and arrays have tiles of no shape.
    dtype = model.dtype or X.dtype
    here: tuple[Any, ...] = (store.tile, X.dtype)
    there: tuple[Any, ...] = (model.tile, dtype)
    if model.tile is None:
        here, there = ((X.shape[1],), X.dtype), (model.cluster_centers_.shape[1:], dtype)
    if here != there:
        kinds = [f"{dtype} of shape {shape}" for shape, dtype in (there, here)]
        msg = (
            f"{store.path}: the model was fitted to tiles that are {kinds[0]}, but those of the "
            f"store are {kinds[1]}; fit a model to this store, or name the store that it is of"
        )
        raise FitError(msg)


@click.command("label", cls=cli.Command, context_settings=cli.SETTINGS)
@click.argument("model_path", metavar="MODEL", type=cli.LocalPath())
@click.option(
    "--store",
    "store_path",
    type=cli.LocalPath(),
    default=Path("store/tiles.zarr"),
    help="The Zarr store of tiles, into which the labels go.",
)
@click.option("--distances", is_flag=True, help="Write the distances to all centroids too.")
@cli.quiet_option
@cli.scheduler_options
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
    from daskkm.model import load_saved
    from daskkm.progress import Progress
    from daskkm.store import open_store

    started = time.perf_counter()
    model, store = load_saved(model_path).model, open_store(store_path)
    _check_fits(store, model)  # before a scheduler is started
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

        sizes = _write(store, model, distances=distances, showing=showing)
    places = [store_path / name / str(k) for name in ("labels", "distances")[: 1 + distances]]
    click.echo(
        f"{cli.count(len(store), 'tile')} in clusters of {' '.join(map(str, sizes))}, "
        f"{time.perf_counter() - started:.1f} s; labels are in "
        f"{' and '.join(printable(str(place)) for place in places)}"
    )
