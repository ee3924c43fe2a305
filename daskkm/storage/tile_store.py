"""Read a store: tiles in a Zarr group, with their provenance and labels.

A chunk holds whole tiles, about 4 MiB; every write covers whole chunks. `daskkm.storage.writer`
writes stores, and `daskkm.storage.labels` writes labels.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.array.core import normalize_chunks

from daskkm.errors import CorruptChunkError, ParameterError, StoreError
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.storage import commit, labels, lazy_arrays, locations, metadata, zarr_nodes
from daskkm.storage.labels import DISTANCES, LABELS
from daskkm.storage.records import ImageRecord, SkippedFile
from daskkm.storage.versions import Version
from daskkm.storage.zarr_nodes import Kind

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import dask.array as da
    import numpy as np
    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.labels import Target

PROVENANCE = ("image", "row", "col")

STORE = Kind(
    name="store",
    noun="store",
    items="tiles",
    members=frozenset({metadata.FILE, "tiles", *PROVENANCE, "labels", "distances"}),
    error=StoreError,
    create="ingest images first",
    repair="ingest the images again",
    chunk_error=CorruptChunkError,
)


class TileStore:
    """Store of tiles, opened for reading by `open_store` or `create_store`.

    Attributes
    ----------
    path : Path
        Folder of the store.
    tiles : zarr.Array of shape (n, height, width) or (n, height, width, bands), uint8
    images : tuple of ImageRecord
        In the order of their tiles.
    skipped : tuple of SkippedFile
        Files that were left out, each with the reason.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
    >>> store = daskkm.create_store(folder, folder / "tiles.zarr")
    >>> store.features()
    dask.array<tiles, shape=(12, 256), dtype=uint8, chunksize=(12, 256), chunktype=numpy.ndarray>
    >>> store.check()
    """

    def __init__(
        self, path: Path, group: Any, attributes: Mapping[str, Any], version: Version
    ) -> None:
        self.path = path
        self._version = version
        self.tiles: zarr.Array[Any] = group["tiles"]
        self._provenance = {name: group[name] for name in PROVENANCE}
        self.images = tuple(map(ImageRecord.from_json, attributes["images"]))
        self.skipped = tuple(SkippedFile(**record) for record in attributes["skipped"])

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile: (height, width) or (height, width, bands), in pixels."""
        return self.tiles.shape[1:]

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the records of the images and the shape of a tile."""
        content = [image.content for image in self.images], self.tile
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return self.tiles.shape[0]

    def __repr__(self) -> str:
        return f"<TileStore {self.path}: {len(self)} tiles of {self.tile}>"

    def features(self) -> da.Array:
        """Return the tiles as rows of features, lazily.

        A computation raises CorruptChunkError if a chunk is missing or damaged, and StoreError if
        the store was replaced.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            One block for each chunk of the store.
        """
        row = (math.prod(self.tile),)
        return lazy_arrays.StoreArray(
            self, lazy_arrays.build_lazy_array(self.tiles, STORE, self._version, row)
        )

    def stream(self, block_bytes: int) -> da.Array:
        """Return the tiles in long blocks that are read chunk by chunk.

        Parameters
        ----------
        block_bytes : int
            Size of a block, rounded up to whole chunks.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            Each block is a `Chunks`, not an array.
        """
        return lazy_arrays.build_stream_array(self.tiles, STORE, self._version, block_bytes)

    def labels(self, k: int) -> da.Array:
        """Return the labels that `label` wrote for k clusters, lazily.

        A computation raises CorruptChunkError if a chunk is missing or damaged.

        Parameters
        ----------
        k : int

        Returns
        -------
        dask array of shape (n_tiles,), int32
            The blocks match the blocks of `features`.

        Raises
        ------
        StoreError
            If the store has no labels for k.
        ParameterError
            If `k` is not an integer of at least 1.
        """
        k = as_integer("k", k, 1)
        version = self._version.extend(labels.get_path(self.path, LABELS, k))
        array = labels.open_labels(self.path, k, len(self))
        return lazy_arrays.build_lazy_array(array, LABELS, version)

    def distances(self, k: int) -> da.Array:
        """Return the distances that ``label(model, distances=True)`` wrote for k clusters, lazily.

        Parameters
        ----------
        k : int

        Returns
        -------
        dask array of shape (n_tiles, k), float64
            Euclidean. A block of tiles has one or several blocks of distances.

        Raises
        ------
        StoreError
            If the store has no distances for k, or distances and labels are from different models.
        ParameterError
            If `k` is not an integer of at least 1.
        """
        k = as_integer("k", k, 1)
        version = self._version.extend(labels.get_path(self.path, DISTANCES, k))
        array = labels.open_distances(self.path, k, len(self))
        return lazy_arrays.build_lazy_array(array, DISTANCES, version, (k,))

    @contextmanager
    def open_label_targets(
        self, attributes: Mapping[str, Any], *, distances: bool
    ) -> Iterator[tuple[Target, Target | None]]:
        """Yield targets for labels, and for distances or None, as `labels.open_label_targets`."""
        self._version.check()
        with labels.open_label_targets(
            self.path, self.tiles, attributes, distances=distances
        ) as targets:
            yield targets

    def label(self, model: Any, *, distances: bool = False) -> None:
        """Label each tile, and write the labels into the store.

        Tasks write labels block by block into ``labels/K``, on the active `distributed.Client` or
        dask's default scheduler. Complete labels replace labels and distances of the same k. A
        second run at the same time for the same k is refused.

        Parameters
        ----------
        model : FittedModel or KMeans
        distances : bool, default False
            Also write Euclidean distances to all k centroids into ``distances/K``: 8 k bytes a
            tile.

        Raises
        ------
        FitError
            If the model was fitted to tiles of another shape or dtype.
        ParameterError
            If `model` is not a model, or `distances` is not a bool.
        NotFittedError
            If the model is an estimator that is not fitted.
        StoreError
            If a tile cannot be read, or labels cannot be written, or another run writes labels for
            the same k.
        """
        if hasattr(type(model), "fitted_model"):  # an estimator
            model = model.fitted_model
        if not hasattr(model, "write_labels"):
            msg = (
                f"{type(model).__name__} is not a model. Fit a daskkm.KMeans, or load a saved "
                "model by daskkm.load_model"
            )
            raise ParameterError(msg)
        model.write_labels(self, distances=as_flag("distances", distances))

    def verify(self) -> list[StoreError]:
        """Check metadata, and presence, size and checksum of each chunk.

        Returns
        -------
        list of StoreError
            One error for each problem, a `CorruptChunkError` for each bad chunk; empty if the store
            is intact.
        """
        from daskkm.storage.verification import verify_store

        return verify_store(self.path)

    def check(self) -> None:
        """Check presence and size of each chunk of tiles and provenance, without reading chunks.

        Raises
        ------
        CorruptChunkError
            If a chunk is missing or has another size.
        """
        for array in (self.tiles, *self._provenance.values()):
            zarr_nodes.check_chunks(array, STORE)

    def provenance(self) -> dict[str, NDArray[np.int32]]:
        """Return the provenance of each tile.

        Returns
        -------
        dict of str to ndarray of shape (n_tiles,), int32
            ``image`` (index into `images`), ``row`` and ``col`` (in tiles, within the image).

        Raises
        ------
        CorruptChunkError
            If a chunk is missing or damaged.
        """
        with self._version.guard_read():
            return {
                name: zarr_nodes.read_rows(array, 0, len(self), STORE)
                for name, array in self._provenance.items()
            }

    def provenance_of(self, name: str) -> da.Array:
        """Return one array of the provenance of each tile, lazily.

        Parameters
        ----------
        name : {"image", "row", "col"}
            As in `provenance`.

        Returns
        -------
        dask array of shape (n_tiles,), int32
            The blocks match the blocks of `features`.

        Raises
        ------
        ParameterError
            If `name` is unknown.
        """
        name = as_choice("name", name, self._provenance)
        lazy = lazy_arrays.build_lazy_array(self._provenance[name], STORE, self._version)
        return lazy.rechunk(normalize_chunks(self.tiles.chunks[:1], (len(self),)))


def open_store(path: str | os.PathLike[str]) -> TileStore:
    """Open an ingested store.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    TileStore

    Raises
    ------
    StoreError
        If the path is not a complete, intact store of daskkm.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import daskkm
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
    >>> made = daskkm.create_store(folder, folder / "tiles.zarr", tile=(24, 32))
    >>> store = open_store(folder / "tiles.zarr")
    >>> len(store), store.tile
    (4, (24, 32))
    """
    # Absolute, because workers have other working directories.
    path = locations.as_local_path(path, StoreError).absolute()
    if is_partial(path):
        msg = (
            f"{path}: the store is not complete: an ingest was interrupted, or is running. To "
            "resume the ingest, ingest the same images again"
        )
        raise StoreError(msg)
    version = Version().extend(path)
    store = TileStore(path, *zarr_nodes.open_node(path, STORE), version)
    if link := next((entry for entry in path.iterdir() if entry.is_symlink()), None):
        msg = f"{path}: the store holds a link, {link.name}. Remove the link"
        raise StoreError(msg)
    version.check()
    return store


def is_present(path: str | os.PathLike[str]) -> bool:
    """Return True if a path exists and is not an empty folder."""
    location = Path(path)
    return location.exists() and not (location.is_dir() and commit.is_empty(location))


def is_partial(path: str | os.PathLike[str]) -> bool:
    """Return True if a path is missing, but a partial store exists beside the path."""
    with suppress(OSError):
        return not Path(path).exists() and commit.partial_path(path).exists()
    return False
