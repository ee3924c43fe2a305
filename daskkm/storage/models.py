"""Save and load models: named arrays with attributes in a Zarr group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.errors import ModelError
from daskkm.storage import locks, nodes
from daskkm.storage.arrays import ChunkedArray
from daskkm.storage.locations import as_location
from daskkm.storage.nodes import METADATA, Kind, Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from daskkm.storage.locations import LocationLike

MODEL = Kind(
    name="model",
    noun="saved model",
    items="rows",
    members=frozenset({METADATA, "cluster_centers", "counts", "extra"}),
    contents=r".*/zarr\.json|(cluster_centers|counts)/c|extra/\w+",
    error=ModelError,
    create="fit and save a model first",
    repair="fit and save the model again",
)
_DIMENSIONS = {"cluster_centers": ("cluster", "feature"), "counts": ("cluster",)}


def save_model(
    path: LocationLike,
    arrays: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays of at least one dimension, and JSON attributes; replace an older saved model."""
    location = as_location(path, storage_options)
    nodes.check_free(location, MODEL)
    busy = ModelError(f"{location}: another run is writing this model. Wait until the run ends")
    with nodes.translate_write_errors(location, MODEL), locks.lock(location, busy):
        nodes.remove_node(location, MODEL)
        written = {name: _write(location / name, name, values) for name, values in arrays.items()}
        Node(location, MODEL, written, dict(attributes)).write(None)


def _write(location: Any, name: str, values: NDArray[Any]) -> ChunkedArray:
    last = name.rpartition("/")[2]
    axes = tuple(f"{last}_{axis}" for axis in range(values.ndim))
    dimensions = _DIMENSIONS.get(name, axes)
    dtype = values.dtype.newbyteorder("<")
    array = ChunkedArray(location, values.shape, dtype, max(1, len(values)), dimensions)
    array.write(0, values)
    return array


def load_model_arrays(
    path: LocationLike, storage_options: Mapping[str, Any] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and attributes of a saved model."""
    node = nodes.read_node(as_location(path, storage_options), MODEL)
    arrays = {name: np.ascontiguousarray(nodes.read_rows(node, name)) for name in node.arrays}
    return arrays, node.attributes
