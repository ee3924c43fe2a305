"""Read a store: tiles in a Zarr group, with the records of their images, and labels.

A chunk holds whole tiles; every write covers whole chunks. `daskkm.images.ingest` writes stores,
and `daskkm.storage.labels` writes labels.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask import delayed
from dask.array.core import normalize_chunks

from daskkm.errors import CorruptChunkError, ParameterError, StoreError
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.storage import image_table, labels, lazy_arrays, nodes
from daskkm.storage.labels import DISTANCES, LABELS
from daskkm.storage.locations import LocalLocation, as_location
from daskkm.storage.nodes import METADATA, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import xarray
    import zarr
    from numpy.typing import NDArray

    from daskkm.storage.image_table import ImageTable
    from daskkm.storage.labels import Target
    from daskkm.storage.locations import Location, LocationLike
    from daskkm.storage.nodes import Node
    from daskkm.storage.records import SkippedFile

PARTIAL = "ingest"  # folder for the state of an ingest, in a store or before there is a store

STORE = Kind(
    name="store",
    noun="store",
    items="tiles",
    members=frozenset({METADATA, "tiles", "images", "skipped", LABELS, DISTANCES, PARTIAL}),
    contents=(
        rf".*/zarr\.json|tiles/c|(images|skipped)/({'|'.join(image_table.COLUMNS)})"
        rf"|({LABELS}|{DISTANCES})/\d+|{PARTIAL}/(tile|\d+-\d+)\.json"
    ),
    error=StoreError,
    create="ingest images first",
    repair="ingest the images again",
    chunk_error=CorruptChunkError,
    folder_repairs=(
        (LABELS, "Label the tiles again"),
        (DISTANCES, "Label the tiles again, with distances"),
    ),
)


class TileStore:
    """Store of tiles, opened for reading by `open_store` or `create_store`.

    Attributes
    ----------
    path : Path, or str for a URL
        Folder of the store.

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

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def location(self) -> Location:
        """Location of the store."""
        return self._node.location

    @property
    def path(self) -> Any:
        """Path of the store as a Path, or its URL as a str."""
        location = self.location
        return location.path if isinstance(location, LocalLocation) else str(location)

    @cached_property
    def tiles(self) -> zarr.Array[Any]:
        """Tiles, (n, height, width) or (n, height, width, bands), uint8, as a Zarr array."""
        return self._node.arrays["tiles"].open_zarr()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the tiles."""
        return self._node.arrays["tiles"].dtype

    @property
    def chunk_rows(self) -> int:
        """Number of tiles of a chunk."""
        return self._node.arrays["tiles"].rows

    @cached_property
    def images(self) -> ImageTable:
        """Records of the images, in the order of their tiles."""
        return image_table.read_images(self._node)

    @cached_property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Files that were left out, each with the reason."""
        return image_table.read_skipped(self._node)

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile: (height, width) or (height, width, bands), in pixels."""
        return self._node.arrays["tiles"].shape[1:]

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the records of the images and the shape of a tile."""
        return str(self._node.attributes["digest"])

    def __len__(self) -> int:
        return len(self._node.arrays["tiles"])

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
        return lazy_arrays.StoreArray(self, lazy_arrays.build_lazy_array(self._node, "tiles", row))

    def stream(self, block_bytes: int, first: int = 0) -> da.Array:
        """Return the tiles in long blocks that are read chunk by chunk.

        Parameters
        ----------
        block_bytes : int
            Size of a block, rounded up to whole chunks.
        first : int, default 0
            First tile, the first of a chunk.

        Returns
        -------
        dask array of shape (n_tiles - first, n_features), uint8
            Each block is a `Chunks`, not an array.
        """
        return lazy_arrays.build_stream_array(self._node, "tiles", block_bytes, first)

    def labels(self, k: int) -> da.Array:
        """Return the labels that `label` wrote for k clusters, lazily.

        Tiles that were appended after `label` have the label -1, and a warning counts them. A
        computation raises CorruptChunkError if a chunk is missing or damaged.

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
        return self._open_labels(LABELS, k, ())

    def distances(self, k: int) -> da.Array:
        """Return the distances that ``label(model, distances=True)`` wrote for k clusters, lazily.

        Tiles that were appended after `label` have NaN, and a warning counts them.

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
            If the store has no distances for k.
        ParameterError
            If `k` is not an integer of at least 1.
        """
        return self._open_labels(DISTANCES, k, (k,))

    def _open_labels(self, folder: str, k: int, row: tuple[int, ...]) -> da.Array:
        k = as_integer("k", k, 1)
        node, n = self.read_again(), len(self)
        n_labelled = labels.find(node, folder, k)["n_tiles"]
        if n_labelled < n:
            msg = f"{self.path}: {n - n_labelled} of {n} tiles have no {folder} for k = {k}"
            warnings.warn(f"{msg}. Label the store again", stacklevel=3)
        name = f"{folder}/{k}"
        node = node.resize({name: n})
        return lazy_arrays.build_lazy_array(node, name, row, min(n, n_labelled))

    def read_again(self) -> Node:
        """Return the store as it is now, with the tiles of this object.

        Raise StoreError if the store was replaced.
        """
        node = nodes.read_node(self.location, STORE)
        if node.attributes["id"] != self._node.attributes["id"]:
            msg = f"{self.path}: replaced since it was opened. Open the store again"
            raise StoreError(msg)
        return node

    @contextmanager
    def open_label_targets(
        self, attributes: Mapping[str, Any], *, distances: bool
    ) -> Iterator[tuple[Target, Target | None]]:
        """Yield targets for labels, and for distances or None, as `labels.open_label_targets`."""
        with labels.open_label_targets(
            self.read_again(), len(self), attributes, distances=distances
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

        return verify_store(self.location)

    def check(self) -> None:
        """Check presence and size of each chunk of tiles, without reading chunks.

        Raises
        ------
        CorruptChunkError
            If a chunk is missing or has another size.
        """
        with nodes.translate_read_errors(self._node, "tiles", 0, len(self)):
            self._node.arrays["tiles"].check_sizes()

    def provenance(self) -> dict[str, NDArray[np.int32]]:
        """Return the provenance of each tile.

        Returns
        -------
        dict of str to ndarray of shape (n_tiles,), int32
            ``image`` (index into `images`), ``row`` and ``col`` (in tiles, within the image).
        """
        return self.images.locate(0, len(self))

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
        name = as_choice("name", name, ("image", "row", "col"))
        return da.map_blocks(
            _locate,
            images=delayed(self.images, pure=True),
            column=name,
            chunks=normalize_chunks((self.chunk_rows,), (len(self),)),
            dtype=np.int32,
            meta=np.empty(0, np.int32),
            token=f"{name}-of-tiles",
        )

    def to_xarray(self) -> xarray.Dataset:
        """Return the store as an xarray.Dataset, lazily.

        Returns
        -------
        xarray.Dataset
            ``tiles`` (tile, y, x[, band]), ``image_name`` (image), for each tile ``image``, ``row``
            and ``col``, and ``labels_K`` for each k with labels.
        """
        import xarray

        tiles = self.features().reshape(len(self), *self.tile)
        axes = ("tile", "y", "x", "band")[: tiles.ndim]
        columns: dict[str, Any] = {
            name: ("tile", values) for name, values in self.provenance().items()
        }
        names = np.array([image.name for image in self.images], dtype=object)
        for k in labels.list_ks(self.read_again(), LABELS):
            columns[f"labels_{k}"] = ("tile", self.labels(k))
        columns |= {"tiles": (axes, tiles), "image_name": ("image_index", names)}
        return xarray.Dataset(columns)

    def append(
        self,
        images: LocationLike | Iterable[LocationLike],
        *,
        on_bad: str = "fail",
        on_image: Callable[[int, int], None] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> TileStore:
        """Add images at the end of the store; return the longer store.

        Images that the store holds unchanged are not read. Labels of the present tiles stay, and
        `label` adds labels of new tiles. Readers of the shorter store are not disturbed.

        Parameters
        ----------
        images, on_bad, on_image, storage_options
            As for `create_store`.

        Returns
        -------
        TileStore

        Raises
        ------
        ImageError
            As for `create_store`.
        StoreError
            If an image of a name in the store has changed, the store cannot be written, or another
            run writes the store.
        """
        from daskkm.images.ingest import append_images

        return append_images(
            self, images, on_bad=on_bad, on_image=on_image, storage_options=storage_options
        )


def _locate(images: ImageTable, column: str, block_info: Any = None) -> NDArray[np.int32]:
    """Return the provenance of the tiles of one block."""
    ((first, last),) = block_info[None]["array-location"]
    return images.locate(first, last)[column]


def open_store(
    path: LocationLike, *, storage_options: Mapping[str, Any] | None = None
) -> TileStore:
    """Open an ingested store.

    Parameters
    ----------
    path : path-like, URL or zarr.abc.store.Store
        Folder of the store: a local path, or s3://, gs://, az://, http(s):// or memory:// with the
        extra ``daskkm[cloud]``.
    storage_options : mapping, optional
        Keyword arguments of ``obstore.store.from_url``, such as ``region``. Without it, credentials
        and endpoints are those of the environment.

    Returns
    -------
    TileStore

    Raises
    ------
    StoreError
        If the path is not a complete, intact store of daskkm.
    ParameterError
        If the URL has an unknown scheme, or obstore is not installed.

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
    location = as_location(path, storage_options)
    try:
        node = nodes.read_node(location, STORE)
    except StoreError as error:
        if is_partial(location):
            msg = (
                f"{location}: the store is not complete: an ingest was interrupted, or is running. "
                "To resume the ingest, ingest the same images again"
            )
            raise StoreError(msg) from error
        raise
    if isinstance(location, LocalLocation):
        links = sorted(name for name in location.names() if (location.path / name).is_symlink())
        if links:
            msg = f"{location}: the store holds a link, {links[0]}. Remove the link"
            raise StoreError(msg)
    return TileStore(node)


def is_present(location: Location) -> bool:
    """Return True if there is a store, damaged or not."""
    return (location / METADATA).is_file()


def is_partial(location: Location) -> bool:
    """Return True if there is no store, but the state of an ingest."""
    with suppress(OSError):  # a server without lists
        return not is_present(location) and PARTIAL in location.names()
    return False
