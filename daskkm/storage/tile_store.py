"""The store: tiles in a Zarr group, where they came from, and the labels they were given.

Chunks are about 4 MiB, whole tiles; every write covers whole chunks. Labels and distances lie in
``labels/K``, in chunks of as many tiles, and ``distances/K``, in chunks of about 4 MiB of which a
whole number goes into as many tiles, if there are more: so whoever has a chunk of tiles writes all
that is of them.
Metadata is checked when a store is opened, a chunk whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Self

import dask.array as da
import numpy as np
import zarr
from dask.array.core import normalize_chunks
from dask.base import tokenize
from zarr.errors import ContainsGroupError

from daskkm.errors import CorruptChunkError, ParameterError, StoreError
from daskkm.parameters import as_choice, as_flag, as_integer
from daskkm.storage import commit, locations, metadata, nodes
from daskkm.storage.nodes import Kind
from daskkm.storage.records import File, ImageRecord, Skipped, grid

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_CHUNK_BYTES = 4 << 20

PROVENANCE = ("image", "row", "col")

STORE = Kind(
    name="store",
    noun="store",
    rows="tiles",
    members=frozenset({"zarr.json", "tiles", *PROVENANCE, "labels", "distances"}),
    error=StoreError,
    make="ingest images first",
    mend="ingest the images again",
    names=(("labels", "[0-9]+"), ("distances", "[0-9]+")),
    corrupt=CorruptChunkError,
)
LABELS = Kind(
    name="labels",
    noun="set of labels",
    rows="tiles",
    members=frozenset({"zarr.json", "c"}),
    error=StoreError,
    make="label the store first",
    mend="label the tiles again",
    placed=False,
    corrupt=CorruptChunkError,
)
DISTANCES = Kind(
    name="distances",
    noun="set of distances",
    rows="tiles",
    members=LABELS.members,
    error=StoreError,
    make="label the store with distances first",
    mend="label the tiles again, with distances",
    placed=False,
    corrupt=CorruptChunkError,
)


class TileStore:
    """An ingested store, for reading. Get one from `open_store` or `ingest`.

    Attributes
    ----------
    path : Path
        The store's folder.
    tiles : zarr.Array of shape (n, height, width) or (n, height, width, bands), uint8
    images : tuple of ImageRecord
        In the order of their tiles.
    skipped : tuple of Skipped
        The files beside them that were left out, each with the reason.

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
        self, path: Path, group: zarr.Group, said: Mapping[str, Any], version: Version
    ) -> None:
        self.path = path
        self.tiles = nodes.member(group, "tiles", STORE)
        self._version = version
        self._where = {name: nodes.member(group, name, STORE) for name in PROVENANCE}
        try:
            self.images = tuple(map(ImageRecord.from_json, said["images"]))
            self.skipped = tuple(Skipped(**record) for record in said["skipped"])
            problem = _problem(self.tiles, self._where, self.images, self.skipped)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"its attributes are not those of a store ({error!r})"
        if problem:
            msg = f"{path}: the store is damaged: {problem}; remove it and {STORE.mend}"
            raise StoreError(msg)

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile: (height, width) or (height, width, bands), in pixels."""
        return self.tiles.shape[1:]

    @property
    def digest(self) -> str:
        """Hexadecimal digest of which tiles these are: of the images, and the shape of a tile."""
        of = [image.content for image in self.images], self.tile
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def __len__(self) -> int:
        return self.tiles.shape[0]

    def __repr__(self) -> str:
        return f"<TileStore {self.path}: {len(self)} tiles of {self.tile}>"

    def features(self) -> da.Array:
        """Return the tiles as rows of features, lazily.

        Computing it raises CorruptChunkError if a chunk is missing or damaged, and StoreError if
        another store has taken the place of this one.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            One block a chunk of the store.
        """
        features = self._rows(self.tiles, (math.prod(self.tile),), STORE, self.tile)
        return StoreArray(self, features)

    def streamed(self, block_bytes: int) -> da.Array:
        """Return the tiles for passes over them: in long blocks that are read chunk by chunk.

        Parameters
        ----------
        block_bytes : int
            Bytes of a block, rounded up to whole chunks.

        Returns
        -------
        dask array of shape (n_tiles, n_features), uint8
            Of `Chunks` in place of arrays: for functions that know what these are.
        """
        n, d = len(self), math.prod(self.tile)
        rows = self.tiles.chunks[0]
        rows *= -(-block_bytes // (rows * d))
        return da.map_blocks(
            Chunks,
            array=self.tiles,
            rows=rows,
            version=self._version,
            chunks=normalize_chunks((rows, d), (n, d)),
            dtype=self.tiles.dtype,
            meta=np.empty((0, 0), self.tiles.dtype),
            name=f"chunks-{tokenize(str(self.path), self._version.digest, rows)}",
        )

    def labels(self, k: int) -> da.Array:
        """Return the label of every tile under the model of k clusters, lazily.

        `label` writes them. Computing it raises CorruptChunkError if a chunk is missing or
        damaged.

        Parameters
        ----------
        k : int

        Returns
        -------
        dask array of shape (n_tiles,), int32
            In blocks of the same tiles as those of `features`.

        Raises
        ------
        StoreError
            If there are none.
        ParameterError
            If `k` is not an integer of at least 1.
        """
        return self._learnt(LABELS, as_integer("k", k, 1), (), "int32")

    def distances(self, k: int) -> da.Array:
        """Return the distances of every tile to the centroids of a model, lazily.

        `label` writes them when it is asked to. As for `labels`, but for what is returned.

        Returns
        -------
        dask array of shape (n_tiles, k), float64
            Euclidean. A block of tiles has one block of them or several.

        Raises
        ------
        StoreError
            If there are none, or they are of another model than the labels.
        ParameterError
            If `k` is not an integer of at least 1.
        """
        k = as_integer("k", k, 1)
        found = self._learnt(DISTANCES, k, (k,), "float64")
        of, labels_of = (self._said(kind, k) for kind in (DISTANCES, LABELS))
        if of != labels_of:  # two runs took their places at once
            msg = (
                f"{self._place(DISTANCES, k)}: the distances are of another model than the "
                f"labels; {DISTANCES.mend}"
            )
            raise StoreError(msg)
        return found

    @contextmanager
    def writing_labels(
        self, said: Mapping[str, Any], *, distances: bool
    ) -> Iterator[tuple[Target, Target | None]]:
        """Yield what takes the place of the labels of the model of k clusters, and the distances.

        That is when the body is done, with all tiles written. Distances that were there go in
        any case: they may be of another model.

        Parameters
        ----------
        said : mapping of str to Any
            What they are to say of the model, its ``k`` at least, as JSON has it.
        distances : bool
            Whether distances are written too.

        Yields
        ------
        tuple of Target, and of Target or None
            For labels, of shape (n_tiles,), int32, and for distances, of shape (n_tiles, k),
            float64. Each write is of whole chunks, or the last one; any worker may do it.

        Raises
        ------
        StoreError
            If they cannot be written, or something else is in their place.
        """
        k, n = said["k"], len(self)
        self._version.check()
        nodes.refuse_links(self.path, f"{DISTANCES.name}/{k}", DISTANCES)
        stale = commit.check_free(self._place(DISTANCES, k), DISTANCES)
        with ExitStack() as stack:
            if stale.parent.exists():  # what killed writers of distances have left there goes too
                stack.enter_context(commit.held(stale, DISTANCES))
            # Chunks of whole tiles, of which the last block may have fewer.
            rows = min(self.tiles.chunks[0], n)
            labels = stack.enter_context(self._new(LABELS, k, (n,), "int32", rows))
            own = None
            if distances:
                part = _part(rows, 8 * k, alone=n == rows)
                own = stack.enter_context(self._new(DISTANCES, k, (n, k), "float64", part))
            yield labels, own
            for target in filter(None, (labels, own)):
                target.complete(said)
            # Whenever this is cut short, a reader has distances of these labels or none.
            with nodes.write_errors_named(stale, DISTANCES), commit.set_aside(stale, DISTANCES):
                labels.put()
            if own is not None:
                own.put()

    def label(self, model: Any, *, distances: bool = False) -> None:
        """Write the label of each tile into the store, for `labels` to read.

        Labels go block by block from the kernel into ``labels/K`` in the store, on the active
        `distributed.Client` if there is one, else on dask's default scheduler; none pass through
        this process on their way. They take their place when all are written, and that of labels
        of the same k; distances of the same k that were there before go with these. Of two runs at
        once for the same k, the labels of the one that ends last stay.

        Parameters
        ----------
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
            If a tile cannot be read, or labels cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import daskkm
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.linear_gradient("L").resize((64, 48)).save(folder / "image.png")
        >>> store = daskkm.create_store(folder, folder / "tiles.zarr")
        >>> model = daskkm.KMeans(n_clusters=3, random_state=0).fit(store)
        >>> store.label(model)
        >>> bool((store.labels(3) == model.labels_).all())
        True
        """
        if hasattr(type(model), "fitted_model"):  # an estimator
            model = model.fitted_model
        if not hasattr(model, "write_labels"):
            msg = (
                f"{type(model).__name__} is not a model; fit a daskkm.KMeans, or read a saved "
                "model by daskkm.load_model"
            )
            raise ParameterError(msg)
        model.write_labels(self, distances=as_flag("distances", distances))

    def verify(self) -> list[StoreError]:
        """Check metadata, and presence, size and checksum of each chunk.

        Returns
        -------
        list of StoreError
            An error for each problem, a `CorruptChunkError` for each bad chunk; empty if all of
            the store is as it was written.
        """
        from daskkm.storage.verification import verify_store

        return verify_store(self.path)

    def check(self) -> None:
        """Find out whether all chunks are there and whole, without reading them.

        Raises
        ------
        CorruptChunkError
            If a chunk is missing or short.
        """
        for array in (self.tiles, *self._where.values()):
            nodes.check(array, STORE)

    def provenance(self) -> dict[str, NDArray[np.int32]]:
        """Read where each tile came from.

        Returns
        -------
        dict of str to ndarray of shape (n_tiles,), int32
            ``image`` (place in `images`), ``row`` and ``col`` (in tiles, within the image).

        Raises
        ------
        CorruptChunkError
            If a chunk is missing or damaged.
        """
        with self._version.reading():
            return {
                name: nodes.read(array, 0, len(self), STORE) for name, array in self._where.items()
            }

    def provenance_of(self, name: str) -> da.Array:
        """Return where each tile came from in one respect, lazily.

        Parameters
        ----------
        name : {"image", "row", "col"}
            As in `provenance`.

        Returns
        -------
        dask array of shape (n_tiles,), int32
            In blocks of the same tiles as those of `features`.

        Raises
        ------
        ParameterError
            If `name` is none of the three.
        """
        name = as_choice("name", name, self._where)
        blocks = normalize_chunks(self.tiles.chunks[:1], (len(self),))
        return self._rows(self._where[name], (), STORE, name).rechunk(blocks)

    def _said(self, kind: Kind, k: int) -> dict[str, Any]:
        """Return what labels or distances say of their model."""
        said: dict[str, Any] = nodes.open_node(self._place(kind, k), kind, self.path)[1]
        return said

    def _place(self, kind: Kind, k: int) -> Path:
        return self.path / kind.name / str(k)

    def _learnt(self, kind: Kind, k: int, row: tuple[int, ...], dtype: str) -> da.Array:
        place = self._place(kind, k)
        version = Version.of(place, self._version)
        array, said = nodes.open_node(place, kind, self.path)
        is_, expected = (array.shape, array.dtype, said.get("k")), ((len(self), *row), dtype, k)
        if is_ != expected:
            what = "{1} of shape {0} for k = {2}"
            msg = (
                f"{place}: it is not of the tiles of this store "
                f"({what.format(*is_)}, not {what.format(*expected)}); {kind.mend}"
            )
            raise StoreError(msg)
        version.check()
        return self._rows(array, row, kind, said, version)

    def _rows(
        self,
        array: zarr.Array[Any],
        row: tuple[int, ...],
        kind: Kind,
        identity: Any,
        version: Version | None = None,
    ) -> da.Array:
        """Return an array lazily, one block a chunk, each of its items in the shape of a row."""
        shape = (len(self), *row)
        token = tokenize(str(self.path), self._version.digest, identity)
        return da.map_blocks(
            _read_rows,
            array=array,
            row=row,
            kind=kind,
            version=version or self._version,
            chunks=normalize_chunks((array.chunks[0], *row), shape),
            dtype=array.dtype,
            meta=np.empty((0,) * len(shape), array.dtype),
            name=f"{array.path or kind.name}-{token}",
        )

    @contextmanager
    def _new(
        self, kind: Kind, k: int, shape: tuple[int, ...], dtype: str, rows: int
    ) -> Iterator[Target]:
        """Yield new labels or distances of k, to be put in their place."""
        path = self._place(kind, k)
        nodes.refuse_links(self.path, f"{kind.name}/{k}", kind)
        # Another run may make it between the question whether it is there and the making.
        with nodes.write_errors_named(path, kind), suppress(ContainsGroupError):
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            group.require_group(kind.name)
        with commit.beside(path, kind) as partial:
            with nodes.write_errors_named(path, kind):
                array = nodes.create_array(
                    partial,
                    None,
                    shape,
                    dtype,
                    kind,
                    rows=rows,
                    dimensions=("tile", "cluster")[: len(shape)],
                )
            yield Target(array, path, partial, kind)


class StoreArray(da.Array):  # type: ignore[misc]
    """All tiles of a store as a dask array that remembers the store.

    Operations on it give plain dask arrays.
    """

    def __new__(cls, store: TileStore, tiles: da.Array) -> Self:  # noqa: D102
        array: Self = super().__new__(cls, tiles.dask, tiles.name, tiles.chunks, meta=tiles._meta)
        array._tile_store, array._store_name = store, tiles.name
        return array

    @property
    def tile_store(self) -> TileStore | None:
        """The store of which this array is all tiles; None once it was changed in place."""
        return self._tile_store if self.name == self._store_name else None


class Chunks:
    """A run of tiles that is read chunk by chunk, whenever it is iterated.

    Parameters
    ----------
    array : zarr.Array of shape (n, ...)
        The tiles of a store.
    rows : int
        Of a run: a whole number of chunks.
    version : Version
        Of the store.
    block_id : tuple of int
        Which run it is, first.
    """

    def __init__(
        self, array: zarr.Array[Any], rows: int, version: Version, block_id: tuple[int, ...]
    ) -> None:
        self._array = array
        self._version = version
        self._first = block_id[0] * rows
        self._last = min(self._first + rows, array.shape[0])

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Read chunk after chunk, (m, n_features), each into the memory of the one before."""
        with self._version.reading():
            for chunk in nodes.stream(self._array, self._first, self._last, STORE):
                self._version.check()
                yield chunk.reshape(len(chunk), -1)

    def whole(self) -> tuple[NDArray[Any], list[int]]:
        """Read all of it, (n, n_features), and say how many tiles are in each piece."""
        with self._version.reading():
            found = nodes.read(self._array, self._first, self._last, STORE)
        rows = self._array.chunks[0]
        starts = range(0, len(found), rows)
        return found.reshape(len(found), -1), [min(rows, len(found) - start) for start in starts]


@dataclass(frozen=True)
class Version:
    """Which store, or labels, are read from a place, where others may be put meanwhile.

    What is opened by its name, a chunk at a time and on any machine, could be of either.

    Attributes
    ----------
    path : Path
    digest : str
        Of what it says of itself: a store its images, with their digests, and the size of a tile.
    store : Version, optional
        Of that in which labels are.
    """

    path: Path
    digest: str
    store: Version | None = None

    @classmethod
    def of(cls, path: Path, store: Version | None = None) -> Version:
        """Return what is in a place now."""
        return cls(path, _digest(path), store)

    def check(self) -> None:
        """Raise StoreError if it is another now."""
        if self.store is not None:
            self.store.check()
        if not self.is_there():
            raise self.replaced()

    def is_there(self) -> bool:
        """Tell whether it is the same still."""
        return _digest(self.path) == self.digest

    def replaced(self) -> StoreError:
        """Return the error that it is not."""
        return StoreError(f"{self.path}: it was replaced while it was being read; run this again")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise StoreError if what is read may be of another, or if it cannot be."""
        try:
            yield
        except StoreError:
            if self.path.exists():  # else this machine does not have it
                self.check()  # what is wrong may only be that
            raise
        self.check()


def _digest(path: Path) -> str:
    with suppress(OSError):
        found = (path / "zarr.json").lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= metadata.NODE_BYTES:
            return _digest_of(path, found.st_ino, found.st_mtime_ns, found.st_size)
    return ""  # no store's, as opening it says


@lru_cache(maxsize=64)
def _digest_of(path: Path, *_: int) -> str:
    """Return the digest, from one read as long as the file is the same."""
    with (path / "zarr.json").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Target:
    """Labels or distances being written, on whichever worker: there an error is named best."""

    array: zarr.Array[Any]
    path: Path
    partial: Path
    kind: Kind

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        return self.array.chunks[0]

    def __setitem__(self, key: Any, rows: NDArray[Any]) -> None:
        with nodes.write_errors_named(self.path, self.kind):
            # Zarr would make the folder again that another task's failure has removed.
            (self.partial / "zarr.json").stat()
            self.array[key] = rows

    def n_written(self) -> int:
        """Return the number of chunks that are written so far, wherever that is done."""
        with suppress(OSError):
            return sum(1 for _ in (self.partial / "c").iterdir())
        return 0

    def complete(self, said: Mapping[str, Any]) -> None:
        """Find out whether all was written, and say so in it."""
        nodes.check(self.array, self.kind)
        with nodes.write_errors_named(self.path, self.kind):
            nodes.complete(self.array, self.kind, said)

    def put(self) -> None:
        """Put it in its place."""
        commit.put(self.partial, self.path, self.kind)


def chunk_rows(tile_bytes: int) -> int:
    """Return how many tiles make a chunk: a number that divides well, for those of distances."""
    rows = max(1, _CHUNK_BYTES // tile_bytes)
    return rows - rows % (1 << max(0, rows.bit_length() - 5))


def _part(rows: int, row_bytes: int, *, alone: bool) -> int:
    """Return into how many rows to cut those that one task writes, for chunks of the usual size.

    If it is not the only task they must divide: it is the divisor that comes nearest, in ratio.
    """
    wanted = max(1, _CHUNK_BYTES // row_bytes)
    if alone:
        return min(rows, wanted)
    divisors = [d for d in range(1, math.isqrt(rows) + 1) if rows % d == 0]
    divisors += [rows // d for d in divisors]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))


def _read_rows(
    array: zarr.Array[Any],
    row: tuple[int, ...],
    kind: Kind,
    version: Version,
    block_id: tuple[int, ...],
) -> NDArray[Any]:
    """Read a block: the items of one chunk, each in the shape of a row."""
    rows = array.chunks[0]
    first = block_id[0] * rows
    with version.reading():
        block = nodes.read(array, first, min(first + rows, array.shape[0]), kind)
    return block.reshape(len(block), *row)


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
        If there is none, it is not one of daskkm's, or it is not complete.

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
    # Absolute, because workers read it from folders of their own.
    path = locations.local(path, StoreError).absolute()
    if is_begun(path):
        msg = (
            f"{path}: there is no store yet: an ingest was cut short, or is under way; to go on, "
            "ingest the same images again"
        )
        raise StoreError(msg)
    version = Version.of(path)
    store = TileStore(path, *nodes.open_node(path, STORE), version)
    version.check()
    return store


def learnt(path: Path) -> list[str]:
    """Return the names of all labels and distances in a store's folder: labels/5, distances/5."""
    return [f"{kind.name}/{k}" for kind in (LABELS, DISTANCES) for k in known_ks(path / kind.name)]


def known_ks(folder: Path) -> list[int]:
    """Return each k of which there are labels, or distances, in a folder."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]*", name))


def clear(path: str | os.PathLike[str]) -> None:
    """Remove what ingests that were killed left beside a store that is the one asked for."""
    commit.clear(path, STORE)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Return True if there is anything at a path but an empty folder."""
    place = Path(path)
    return place.exists() and not (place.is_dir() and commit.is_empty(place))


def is_begun(path: str | os.PathLike[str]) -> bool:
    """Tell whether there is no store in a place, but beside it one that is not complete."""
    with suppress(OSError):
        return not Path(path).exists() and commit.begun(path).exists()
    return False


def _problem(
    tiles: zarr.Array[Any],
    where: Mapping[str, zarr.Array[Any]],
    images: Sequence[ImageRecord],
    skipped: Sequence[Skipped],
) -> str | None:
    """Say what of a store does not go together, if anything."""
    tile = tiles.shape[1:]
    if tiles.dtype != np.uint8 or len(tile) not in (2, 3) or not all(tile):
        return f"its tiles are {tiles.dtype} of shape {tiles.shape}"
    if bad := next((image for image in images if not _is_image(image, tile)), None):
        return f"it has an image that is none ({short(bad)})"
    if other := next((file for file in skipped if not _is_file(file, file.reason)), None):
        return f"it has left out a file that is none ({short(other)})"
    n = sum(math.prod(grid(image.shape, tile)) for image in images)
    if n != tiles.shape[0]:
        return f"its images have {n} tiles, and it has {tiles.shape[0]}"
    for name, array in where.items():
        if array.shape != (n,) or array.dtype != np.int32:
            return f"it has {n} tiles, and the {name} of each is {array.dtype} of {array.shape}"
    return None


def _is_image(image: ImageRecord, tile: tuple[int, ...]) -> bool:
    """Tell whether an image, as it was read from JSON, is one, of such tiles."""
    return (
        _is_file(image)
        and all(type(size) is int and size >= 0 for size in (*image.shape, *image.cropped))
        and len(image.shape) == len(tile)
        and image.shape[2:] == tile[2:]
        and len(image.cropped) == 2
    )


def _is_file(file: File, *texts: str) -> bool:
    """Tell whether a file, as it was read from JSON, is one, and all of these are texts."""
    return (
        all(isinstance(text, str) for text in (file.name, file.sha256, *texts))
        and "/" not in file.name
        and file.name not in ("", ".", "..")
        and type(file.size) is int
        and file.size >= 0
        and {type(file.mtime_ns), type(file.ctime_ns)} <= {int, type(None)}
    )


def provenance(
    images: Sequence[ImageRecord], tile: tuple[int, ...], first: int, last: int
) -> dict[str, NDArray[np.int32]]:
    """Return image, row and column of the tiles first … last - 1."""
    grids = np.array([grid(image.shape, tile) for image in images])
    ends = np.cumsum(grids.prod(axis=1))
    indices = np.arange(first, last)
    image = np.searchsorted(ends, indices, side="right")
    within = indices - (ends - grids.prod(axis=1))[image]
    columns = grids[image, 1]
    found = {"image": image, "row": within // columns, "col": within % columns}
    return {name: values.astype(np.int32) for name, values in found.items()}
