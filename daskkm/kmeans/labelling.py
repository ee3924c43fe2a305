"""Labels of the tiles of a store, written block by block by the workers."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from daskkm.errors import FitError
from daskkm.passes import memory, scheduler

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from daskkm.kmeans.model import FittedModel
    from daskkm.storage.labels import Target
    from daskkm.storage.tile_store import TileStore


def write_labels(
    store: TileStore,
    model: FittedModel,
    *,
    distances: bool,
    showing: Callable[[Target], AbstractContextManager[Any]] = nullcontext,
) -> NDArray[Any]:
    """Write labels as `TileStore.label` does, and return how many tiles each was given.

    The work is done in the context that `showing` returns for what the labels are written to.
    """
    from daskkm.passes import reductions

    check_fits(store, model)
    centroids = model.cluster_centers_
    said = {
        "k": len(centroids),
        "inertia": None if model.dtype is None else model.inertia_,
        "centroids": hashlib.sha256(centroids.tobytes()).hexdigest(),
    }
    with store.writing_labels(said, distances=distances) as targets, showing(targets[0]):
        n_bytes = len(store) * math.prod(store.tile)
        blocks = store.streamed(memory.block_bytes(n_bytes, scheduler.threads()))
        lazy = reductions.write_labels(blocks, centroids, *targets)
        sizes: NDArray[Any]
        (sizes,) = scheduler.compute(lazy)
    return sizes


def check_fits(store: TileStore, model: FittedModel) -> None:
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
