"""Save and load models: named arrays with attributes in a Zarr group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr

from daskkm.errors import ModelError
from daskkm.storage import commit, locations, metadata, zarr_nodes
from daskkm.storage.zarr_nodes import Kind

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

MODEL = Kind(
    name="model",
    noun="saved model",
    items="rows",
    members=frozenset({metadata.FILE, "cluster_centers", "counts", "extra"}),
    error=ModelError,
    create="fit and save a model first",
    repair="fit and save the model again",
)
_DIMENSIONS = {"cluster_centers": ("cluster", "feature"), "counts": ("cluster",)}


def save_model(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Write arrays of at least one dimension, and JSON attributes; replace an older saved model."""
    location = locations.as_local_path(path, ModelError)
    with (
        commit.replace_node(location, MODEL) as partial,
        zarr_nodes.translate_write_errors(location, MODEL),
    ):
        zarr_nodes.create_group(partial, MODEL, {})
        for name, values in arrays.items():
            folder, _, last = name.rpartition("/")
            if folder:
                zarr.open_group(partial / folder, mode="a", zarr_format=3)
            axes = tuple(f"{last}_{axis}" for axis in range(values.ndim))
            dimensions = _DIMENSIONS.get(name, axes)
            array = zarr_nodes.create_array(
                partial / name, values.shape, values.dtype, rows=len(values), dimensions=dimensions
            )
            array[:] = values
        zarr_nodes.write_attributes(partial, MODEL, attributes, complete=True)


def load_model_arrays(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and attributes of a saved model."""
    group, attributes = zarr_nodes.open_node(locations.as_local_path(path, ModelError), MODEL)
    arrays = {
        name: zarr_nodes.read_rows(array, 0, array.shape[0], MODEL)
        for name, array in group.members(max_depth=None)
        if isinstance(array, zarr.Array)
    }
    return arrays, attributes
