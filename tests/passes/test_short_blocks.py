"""Short blocks that are read several a task: the same tiles, in fewer tasks."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import daskkm
from daskkm.passes.reductions import take_tiles
from daskkm.passes.runner import PassRunner
from daskkm.passes.short_blocks import Recipe, group_short_blocks, is_grouped
from daskkm.passes.statistics import statistics
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

N = 300  # blocks
TILES = np.random.default_rng(0).integers(0, 256, (3 * N, 4), np.uint8)
MADE: Counter[int] = Counter()


@pytest.fixture(autouse=True)
def fewer_blocks(override_sizes: Callable[..., None]) -> None:
    override_sizes(many_blocks=256)


def block(block_id: tuple[int, int]) -> NDArray[np.uint8]:
    MADE[block_id[0]] += 1
    return TILES[3 * block_id[0] : 3 * block_id[0] + 3]


def short_blocks() -> da.Array:
    meta = np.empty((0, 0), np.uint8)
    return da.map_blocks(block, chunks=((3,) * N, (4,)), dtype=np.uint8, meta=meta)


def read(X: da.Array) -> NDArray[Any]:
    """Return all tiles, in the order in which passes read them."""
    return np.asarray(take_tiles(X, np.arange(X.shape[0])).compute(scheduler="sync"))


def test_group_short_blocks_makes_each_block_once() -> None:
    X = group_short_blocks(short_blocks(), 2)
    assert is_grouped(X)
    assert X.numblocks == (64, 1)
    assert all(isinstance(X.dask[key], Recipe) for (key,) in X.__dask_keys__())
    MADE.clear()
    np.testing.assert_array_equal(read(X), TILES)
    assert dict.fromkeys(range(N), 1) == MADE
    assert group_short_blocks(short_blocks(), 1000).numblocks == (N // 4, 1)


@pytest.mark.parametrize(("cache", "weighted"), [("always", False), ("never", True)])
def test_fit_sweep_of_short_blocks_is_that_of_the_array(cache: str, weighted: bool) -> None:
    call: dict[str, Any] = {"n_init": 1, "max_iter": 1, "random_state": 0}
    whole = daskkm.fit_sweep(TILES, [2, 5], **call)
    X = short_blocks()[:, ::-1][:, ::-1]  # more than one task a block
    weights = da.ones(len(TILES), dtype=np.int64, chunks=500) if weighted else None
    result = daskkm.fit_sweep(X, [2, 5], **call, cache=cache, sample_weight=weights)
    for k, model in whole.models.items():
        assert result.models[k].inertia_ == model.inertia_
        assert result.models[k].cluster_centers_.tobytes() == model.cluster_centers_.tobytes()


def shared() -> da.Array:
    """Return short blocks that are cut from long ones, which would be made many times."""
    long = da.from_array(TILES, chunks=(len(TILES) // 2, -1)) + np.uint8(0)
    return long.rechunk((3, -1))


def annotated() -> da.Array:
    with dask.annotate(resources={"GPU": 1}):
        return short_blocks()


@pytest.mark.parametrize(
    "make",
    [shared, annotated, lambda: short_blocks()[: 3 * 256], lambda: da.zeros((5, 3), chunks=2)],
)
def test_group_short_blocks_leaves_other_blocks_alone(make: Any) -> None:
    X = make()
    assert group_short_blocks(X, 2) is X


class Locked:
    """An array that cannot be pickled, as one of an open HDF5 file."""

    shape, dtype, ndim, chunks = TILES.shape, TILES.dtype, 2, (3, 4)

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __getitem__(self, key: Any) -> Any:
        with self.lock:
            return TILES[key]


def test_group_short_blocks_leaves_blocks_of_what_cannot_be_pickled_alone() -> None:
    lazy = da.from_array(Locked(), chunks=(3, -1))
    assert group_short_blocks(lazy, 2) is lazy
    found = daskkm.fit_sweep(Locked(), [2], n_init=1, max_iter=1, random_state=0)
    whole = daskkm.fit_sweep(TILES, [2], n_init=1, max_iter=1, random_state=0)
    assert found.models[2].inertia_ == whole.models[2].inertia_


def test_group_short_blocks_does_not_copy_a_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1 << 18, 64), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    X = da.from_array(mapped, chunks=(800, -1), name="mapped")
    tracemalloc.start()
    assert group_short_blocks(X, 2) is X
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes / 2


def test_pass_runner_of_short_blocks_sends_weights_once() -> None:
    runner = PassRunner(short_blocks(), np.ones(len(TILES), np.int64))
    stack, offsets = np.zeros((2, 4)), np.array([0, 2])
    table = statistics(runner.blocks, stack, offsets, weights=runner.weights)
    (table,) = dask.optimize(table)
    assert len(table.__dask_graph__()) < N  # not a task for each short block


def test_in_blocks_of_short_chunks_of_a_zarr_array_groups_them(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", shape=TILES.shape, chunks=(3, 4), dtype="uint8")
    array[:] = TILES
    X = Tiles.of(array).in_blocks(2)
    assert is_grouped(X)
    np.testing.assert_array_equal(read(X), TILES)


def test_group_short_blocks_leaves_data_on_workers_alone() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        persisted = short_blocks().persist()
        scattered = client.scatter(TILES)
        cut = dask.delayed(lambda tiles, i: tiles[3 * i : 3 * i + 3])
        parts = [da.from_delayed(cut(scattered, i), (3, 4), np.uint8) for i in range(N)]
        for X in (persisted, persisted + np.uint8(0), da.concatenate(parts)):
            assert group_short_blocks(X, 2) is X
        np.testing.assert_array_equal(take_tiles(persisted, np.arange(9)).compute(), TILES[:9])
