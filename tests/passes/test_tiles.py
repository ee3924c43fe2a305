"""What a user gives becomes blocks that hold the same tiles, in fewer tasks."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from daskkm.passes.reader import Reader
from distributed import Client, LocalCluster

import daskkm
from daskkm.passes import reductions, tiles
from daskkm.passes.tiles import Recipe, as_tiles, in_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore

N = 1100  # blocks
TILES = np.random.default_rng(0).integers(0, 256, (3 * N, 4), np.uint8)
MADE: Counter[int] = Counter()


def block(block_id: tuple[int, int]) -> NDArray[np.uint8]:
    MADE[block_id[0]] += 1
    return TILES[3 * block_id[0] : 3 * block_id[0] + 3]


def short_blocks() -> da.Array:
    meta = np.empty((0, 0), np.uint8)
    return da.map_blocks(block, chunks=((3,) * N, (4,)), dtype=np.uint8, meta=meta)


def read(X: da.Array) -> NDArray[Any]:
    """All tiles, in the order in which passes come to them."""
    return np.asarray(reductions.taken(X, np.arange(X.shape[0])).compute(scheduler="sync"))


def test_short_blocks_are_made_several_a_task() -> None:
    X = in_blocks(short_blocks(), short_blocks(), 2)
    assert tiles.has_recipes(X)
    assert X.numblocks == (64, 1)
    assert all(isinstance(X.dask[key], Recipe) for (key,) in X.__dask_keys__())
    MADE.clear()
    np.testing.assert_array_equal(read(X), TILES)
    # Each once, and by itself.
    assert dict.fromkeys(range(N), 1) == MADE
    assert in_blocks(short_blocks(), short_blocks(), 1000).numblocks == (N // 4, 1)


@pytest.mark.parametrize("cache", ["always", "never"])
def test_a_fit_of_short_blocks_is_that_of_the_array(cache: str) -> None:
    call: dict[str, Any] = {"n_init": 1, "max_iter": 1, "random_state": 0}
    whole = daskkm.fit_sweep(TILES, [2, 5], **call)
    X = short_blocks()[:, ::-1][:, ::-1]  # more than one task a block
    weights = da.ones(len(TILES), dtype=np.int64, chunks=500)
    for result in (
        daskkm.fit_sweep(X, [2, 5], **call, cache=cache),
        daskkm.fit_sweep(X, [2, 5], **call, cache=cache, sample_weight=weights),
    ):
        for k, model in whole.models.items():
            assert result.models[k].inertia_ == model.inertia_
            assert result.models[k].cluster_centers_.tobytes() == model.cluster_centers_.tobytes()


def shared() -> da.Array:
    """Short blocks that are cut from long ones: each would be made many times."""
    long = da.from_array(TILES, chunks=(len(TILES) // 2, -1)) + np.uint8(0)
    return long.rechunk((3, -1))


def persisted() -> da.Array:
    return short_blocks().persist(scheduler="sync") + np.uint8(0)


def annotated() -> da.Array:
    with dask.annotate(resources={"GPU": 1}):
        return short_blocks()


@pytest.mark.parametrize(
    "make",
    [shared, annotated, lambda: short_blocks()[: 3 * 1000], lambda: da.zeros((5, 3), chunks=2)],
)
def test_other_blocks_stay_as_they_are(make: Any) -> None:
    X = make()
    assert in_blocks(X, X, 2) is X


class Locked:
    """An array that cannot be sent, as one of an open HDF5 file."""

    shape, dtype, ndim, chunks = TILES.shape, TILES.dtype, 2, (3, 4)

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getitem__(self, key: Any) -> Any:
        with self.lock:
            return TILES[key]


def test_what_cannot_be_sent_or_is_large_is_read_where_it_is(tmp_path: Any) -> None:
    lazy = da.from_array(Locked(), chunks=(3, -1))
    assert in_blocks(lazy, lazy, 2) is lazy
    found = daskkm.fit_sweep(Locked(), [2], n_init=1, max_iter=1, random_state=0)
    whole = daskkm.fit_sweep(TILES, [2], n_init=1, max_iter=1, random_state=0)
    assert found.models[2].inertia_ == whole.models[2].inertia_
    np.save(tmp_path / "x.npy", np.zeros((1 << 20, 64), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    X = da.from_array(mapped, chunks=(500, -1), name="mapped")
    tracemalloc.start()
    assert in_blocks(X, X, 2) is X
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes / 2


def test_weights_are_sent_once() -> None:
    X, weights = short_blocks(), np.ones(len(TILES), np.int64)
    reader = Reader(X, weights)
    graph = reductions.statistics(
        reader.blocks, np.zeros((2, 4)), np.array([0, 2]), weights=reader.weights
    ).__dask_graph__()
    assert len(graph) < N  # not a task for each short block


def test_short_chunks_of_an_open_array_are_grouped(tmp_path: Any) -> None:
    import zarr

    array = zarr.create_array(tmp_path / "x.zarr", shape=TILES.shape, chunks=(3, 4), dtype="uint8")
    array[:] = TILES
    X = in_blocks(array, as_tiles(array), 2)
    assert tiles.has_recipes(X)
    np.testing.assert_array_equal(read(X), TILES)


def test_a_store_is_read_its_own_way_as_long_as_it_is_whole(digits: TileStore) -> None:
    X = digits.features()
    for given in (digits, X):
        assert in_blocks(given, as_tiles(given), 2).name.startswith("chunks-")
    for other in (X[5:], X[:, :7], X.rechunk((100, -1)), X + np.uint8(0)):
        assert in_blocks(other, other, 2) is other
    np.testing.assert_array_equal(read(in_blocks(digits, X, 2)), X.compute())


def test_what_workers_hold_is_no_recipe() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        held = short_blocks().persist()
        scattered = client.scatter(TILES)
        cut = dask.delayed(lambda tiles, i: tiles[3 * i : 3 * i + 3])
        parts = [da.from_delayed(cut(scattered, i), (3, 4), np.uint8) for i in range(N)]
        for X in (held, held + np.uint8(0), da.concatenate(parts)):
            assert in_blocks(X, X, 2) is X
        np.testing.assert_array_equal(reductions.taken(held, np.arange(9)).compute(), TILES[:9])


def test_fractional_weights_do_not_see_the_cache(digits: TileStore) -> None:
    weights = np.random.default_rng(0).random(len(digits))
    call: dict[str, Any] = {"n_init": 1, "max_iter": 3, "random_state": 0}
    for X, w in ((digits, weights), (short_blocks(), weights[: len(TILES)])):
        found = [
            daskkm.fit_sweep(X, [3], **call, sample_weight=w, cache=cache).models[3]
            for cache in ("always", "never")
        ]
        assert found[0].inertia_ == found[1].inertia_
        assert found[0].cluster_centers_.tobytes() == found[1].cluster_centers_.tobytes()
