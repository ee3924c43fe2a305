"""Write and find labels and distances in a store: Zarr arrays ``labels/K``, ``distances/K``.

A chunk of labels has as many rows as a chunk of tiles, and so has a whole number of chunks of
distances. Thus a task that reads a chunk of tiles writes whole chunks. Labels exist once the root
of the store names them. Labels of another model are removed from the root before they are
overwritten; labels of the same model grow.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm.block_sizes import sizes
from daskkm.errors import StoreError
from daskkm.storage import locks, nodes
from daskkm.storage.arrays import ChunkedArray, ChunkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from daskkm.storage.locations import Location
    from daskkm.storage.nodes import Node

LABELS, DISTANCES = "labels", "distances"
_HINTS = {LABELS: "Label the store first", DISTANCES: "Label the store with distances first"}


def list_ks(node: Node, folder: str) -> list[int]:
    """Return the values of k for which a store has labels or distances."""
    return sorted(map(int, node.attributes.get(folder, {})))


def list_labels(node: Node) -> list[str]:
    """Return the paths of all labels and distances in a store, such as "labels/5"."""
    return [f"{folder}/{k}" for folder in (LABELS, DISTANCES) for k in list_ks(node, folder)]


def find(node: Node, folder: str, k: int) -> dict[str, Any]:
    """Return the attributes of labels or distances; ``n_tiles`` counts the tiles with labels."""
    found: dict[str, Any] | None = node.attributes.get(folder, {}).get(str(k))
    if found is None:
        msg = f"{node.location}: no {folder} for k = {k}. {_HINTS[folder]}"
        raise StoreError(msg)
    return found


@dataclass(frozen=True)
class Target:
    """Writer of labels or distances of tiles from `first` on, for tasks on any worker.

    Rows are counted from `first`. Each write covers whole chunks, or the last chunk.
    """

    array: ChunkedArray
    node: Node
    first: int

    @property
    def rows(self) -> int:
        """Number of rows of a chunk."""
        return self.array.rows

    @property
    def n_chunks(self) -> int:
        """Number of chunks to write."""
        return self.array.n_chunks - self.first // self.rows

    def __setitem__(self, key: slice, rows: NDArray[Any]) -> None:
        with nodes.translate_write_errors(self.node.location, self.node.kind):
            self.array.write(self.first + key.start, rows)

    def count_labels(self, k: int) -> NDArray[np.int64]:
        """Return the number of earlier labels, before `first`, of each cluster, (k,)."""
        counts = np.zeros(k, np.int64)
        name = f"{LABELS}/{k}"
        for rows in nodes.stream_rows(self.node, name, 0, self.first) if self.first else ():
            counts += np.bincount(rows, minlength=k)
        return counts

    def n_written(self) -> int:
        """Return the number of chunks written so far by all workers."""
        return max(0, len((self.array.location / "c").names()) - self.first // self.rows)


@contextmanager
def open_label_targets(
    node: Node, n: int, attributes: Mapping[str, Any], *, distances: bool
) -> Iterator[tuple[Target, Target | None]]:
    """Yield targets for labels, (n,) int32, and for distances, (n, k) float64, or None.

    The attributes identify the model and hold ``k``. The root names the new labels at exit.
    Distances of another model are removed.
    """
    k, location, kind = attributes["k"], node.location, node.kind
    busy = StoreError(f"{location}: another run is labelling for k = {k}. Wait until the run ends")
    folders = (LABELS, DISTANCES) if distances else (LABELS,)
    with ExitStack() as stack:
        with nodes.translate_write_errors(location, kind):
            stack.enter_context(locks.lock(location / f"{LABELS}-{k}", busy))
        node = nodes.read_node(location, kind)
        old = {folder: node.attributes.get(folder, {}).get(str(k)) for folder in _HINTS}
        same = [folder for folder, own in old.items() if own and _is_of(own, attributes)]
        for folder in _HINTS:
            _check_own(location / folder / str(k))
        if any(old[folder]["n_tiles"] > n for folder in same):
            msg = f"{location}: more tiles are labelled than were present. Open the store again"
            raise StoreError(msg)
        if stale := [folder for folder, own in old.items() if own and folder not in same]:
            node = nodes.update_node(location, kind, lambda now: _remove(now, stale, k))
        with nodes.translate_write_errors(location, kind):
            for folder in _HINTS.keys() - set(same):  # also chunks of killed runs
                (location / folder / str(k)).remove()
        first = min(_count_intact(node, f"{f}/{k}") if f in same else 0 for f in folders)
        tiles = node.arrays["tiles"]
        if first < n:
            first -= first % tiles.rows
        targets = {
            folder: Target(_make_array(tiles, node, folder, k, n), node, first)
            for folder in folders
        }
        yield targets[LABELS], targets.get(DISTANCES)
        for folder, target in targets.items():
            name = f"{folder}/{k}"
            written = replace(node, arrays={name: target.array})
            with nodes.translate_read_errors(written, name, 0, n):
                target.array.check_sizes()

        def add(now: Node) -> Node:
            if now.attributes["id"] != node.attributes["id"]:
                msg = f"{location}: replaced while it was labelled. Label the store again"
                raise StoreError(msg)
            for folder, target in targets.items():
                own = {**attributes, "n_tiles": n}
                array = target.array.resize(len(now.arrays["tiles"]))
                now = replace(
                    now,
                    arrays=now.arrays | {f"{folder}/{k}": array},
                    attributes=now.attributes
                    | {folder: now.attributes.get(folder, {}) | {str(k): own}},
                )
            return now

        nodes.update_node(location, kind, add)


def _is_of(own: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    """Return True if labels are of the model with these attributes."""
    return all(own.get(name) == value for name, value in attributes.items())


def _check_own(folder: Location) -> None:
    """Raise StoreError if a folder of labels or distances holds other files."""
    if others := sorted(nodes.list_names(folder) - {nodes.METADATA, "c"}):
        msg = f"{folder}: not labels of daskkm, the folder holds {others[0]}. Move the folder"
        raise StoreError(msg)


def _count_intact(node: Node, name: str) -> int:
    """Return the number of rows of labels or distances before the first damaged chunk."""
    folder, _, k = name.partition("/")
    n, n_intact = find(node, folder, int(k))["n_tiles"], 0
    with suppress(ChunkError), nodes.translate_write_errors(node.location, node.kind):
        for rows in node.arrays[name].stream(0, n):
            if folder == LABELS and not ((rows >= 0) & (rows < int(k))).all():
                break
            n_intact += len(rows)
    return n_intact


def _remove(node: Node, folders: list[str], k: int) -> Node:
    attributes = dict(node.attributes)
    for folder in folders:
        attributes[folder] = {
            name: own for name, own in attributes[folder].items() if name != str(k)
        }
    names = {f"{folder}/{k}" for folder in folders}
    arrays = {name: array for name, array in node.arrays.items() if name not in names}
    return replace(node, arrays=arrays, attributes=attributes)


def _make_array(tiles: ChunkedArray, node: Node, folder: str, k: int, n: int) -> ChunkedArray:
    """Return an array of labels or distances; an existing one keeps its chunks."""
    if (name := f"{folder}/{k}") in node.arrays:
        return node.arrays[name].resize(n)
    location = node.location / name
    if folder == LABELS:
        return ChunkedArray(
            location, (n,), np.dtype(np.int32), tiles.rows, ("tile",), tiles.compressed, -1
        )
    rows = choose_part_rows(tiles.rows, 8 * k)
    return ChunkedArray(
        location, (n, k), np.dtype(float), rows, ("tile", "cluster"), tiles.compressed, "NaN"
    )


def choose_part_rows(rows: int, row_bytes: int) -> int:
    """Return the number of rows of a chunk of about `sizes.chunk_bytes`: a divisor of `rows`."""
    wanted = max(1, sizes.chunk_bytes // row_bytes)
    divisors = [d for d in range(1, math.isqrt(rows) + 1) if rows % d == 0]
    divisors += [rows // d for d in divisors]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))
