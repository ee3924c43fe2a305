"""Lengths of blocks, and the memory of a pass, known before the pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, strategies as st
from PIL import Image

import daskkm
from daskkm.errors import FitError
from daskkm.passes import memory, runner
from daskkm.passes.memory import Work, Worker
from daskkm.passes.runner import PassRunner
from daskkm.passes.statistics import statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GB = 10**9


@given(total=st.integers(0, 2**50), threads=st.integers(1, 10**4))
def test_block_bytes_are_within_limits_and_balanced(total: int, threads: int) -> None:
    n_bytes = memory.block_bytes(total, threads)
    assert n_bytes >= 4 << 20
    assert -(-total // n_bytes) <= 4096
    assert n_bytes <= max(64 << 20, total // 4096 + 1)
    # Balance: eight a thread, as long as there is enough for so many.
    if total >= threads * 8 * (4 << 20):
        assert total // n_bytes >= min(8 * threads, 4096) - 1


def test_pass_over_a_remote_store_counts_chunks_fetched_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override_sizes: Callable[..., None]
) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "image.png")
    places = tmp_path / "tiles.zarr", f"memory://{tmp_path.name}/tiles.zarr"
    local, remote = (daskkm.create_store(tmp_path / "image.png", p, tile=8) for p in places)
    override_sizes(unchecked_bytes=0)
    monkeypatch.setattr(runner, "workers", lambda _: [Worker("small", 1, 40_000, 0)])
    PassRunner(local).prepare(1, 2)
    with pytest.raises(FitError, match="small: a pass would take"):
        PassRunner(remote).prepare(1, 2)


def test_check_and_room_compare_a_pass_with_each_worker() -> None:
    workers = [memory.Worker("one", 2, 4 * GB, GB), memory.Worker("two", 2, 4 * GB, 3 * GB)]
    small = Work(25, 256, 4 << 20)
    memory.check(workers, small)
    # The second has more than half of its memory in use: nothing stays there.
    assert memory.room(workers, small) == 2 * GB - GB - memory.peak(small, threads=2)
    with pytest.raises(FitError, match=r"^two: a pass would take .* beside the 3\.0 GB in use"):
        memory.check(workers, Work(8192, 256, 4 << 20))
    with pytest.raises(FitError, match=r"blocks of 1\.0 GB"):
        memory.check(workers, Work(5, 256, GB))
    unlimited = [memory.Worker("one", 2, float("inf"), GB)]
    memory.check(unlimited, Work(10**6, 256, GB))
    assert memory.room(unlimited, small) == 0


def test_check_sample_that_does_not_fit_is_refused_before_a_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = memory.Worker("this process", 2, 10 * GB, 0)
    memory.check_sample(one, 1 << 15, 64 * 64, 1)
    with pytest.raises(FitError, match=r"from 32768 tiles would take 64\.4 GB of the 10\.0"):
        memory.check_sample(one, 1 << 15, 256 * 256 * 3, 1)
    monkeypatch.setattr("daskkm.passes.memory._LIMIT", 1e-9)
    X = da.map_blocks(lambda: 1 / 0, chunks=((10, 10), (4,)), dtype="uint8", meta=np.empty((0, 0)))
    for init in ("k-means++", "random"):
        with pytest.raises(FitError, match="drawing initial centroids from 20 tiles would take"):
            daskkm.fit_sweep(X, [2], init=init)


def memory_of_process(name: str) -> int:
    """Return a figure of this process, in bytes, as the system has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def reset_peak() -> int:
    """Reset the peak of the memory of this process; return its memory."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of_process("VmRSS")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            memory_limit="2GB",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(("rows", "tiles"), [(5, 40_000), (1500, 8000)])
def test_peak_of_a_worker_is_at_most_the_plan_and_not_far_below(
    client: Client, rows: int, tiles: int
) -> None:
    # Far below, much would be refused that fits.
    X = da.random.default_rng(0).integers(0, 256, (12 * tiles, 256), np.uint8, chunks=(tiles, -1))
    rng = np.random.default_rng(0)

    def one_pass(k: int) -> None:
        stack = rng.integers(0, 256, (k, 256)).astype(float)
        statistics(X, stack, np.array([0, k])).compute()

    one_pass(2)  # imports and compiles
    (before,) = client.run(reset_peak).values()
    one_pass(rows)
    (peak,) = client.run(memory_of_process, "VmHWM").values()
    planned = memory.peak(Work(rows, 256, tiles * 256), threads=2)
    assert 0.25 * planned < peak - before < planned


def test_prepare_caches_tiles_only_where_there_is_room(client: Client) -> None:
    n = 2_000_000  # half a gigabyte; the worker has two, of which some is in use
    for size, is_cached in ((n // 5, True), (4 * n, False)):
        X = da.zeros((size, 256), dtype=np.uint8, chunks=(n // 10, -1))
        runner = PassRunner(X, cache="auto")
        runner.prepare(1, 5)
        assert (runner.bytes_read > 0) == is_cached
