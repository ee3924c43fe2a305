"""Measure the constants of `benchmarks.costs`, check it against runs here, and predict others.

``python -m benchmarks.scaling --help``; `docs/scaling.md` has the tables that it prints.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import data, machine, schedulers
from benchmarks.costs import Constants, Machines, Work, as_json, elsewhere, here
from daskkm.kernels import assign
from daskkm.passes import memory
from daskkm.passes.runner import PassRunner
from daskkm.passes.statistics import statistics as lazy_statistics
from daskkm.passes.tiles import Tiles
from daskkm.storage import nodes
from daskkm.storage.tile_store import STORE, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore

SWEEP = (3, 4, 5, 6, 7)
MANY = (1024,)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    tiles: int  # of the store
    sample: int  # tiles that the kernel is timed with
    rounds: int
    workers: Sequence[int]
    blocks: Sequence[int]  # with each number of workers
    more: Sequence[tuple[int, int]]  # workers and blocks beside
    calibration: int  # blocks
    user: int  # blocks of an array that daskkm makes recipes of


DEFAULT = Sizes(
    tiles=1 << 20,
    sample=1 << 15,
    rounds=2,
    workers=(1, 2, 4, 8, 16),
    blocks=(10, 100, 1000),
    more=((16, 4096), (2, 20_000)),
    calibration=500,
    user=20_000,
)
TINY = Sizes(
    tiles=1 << 12,
    sample=256,
    rounds=1,
    workers=(1,),
    blocks=(10,),
    more=(),
    calibration=5,
    user=5,
)


def main(arguments: Sequence[str] | None = None, sizes: Sizes = DEFAULT) -> dict[str, Any]:
    """Measure, check, predict; print tables, and return what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="What a pass costs, here and elsewhere."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        store = _store(sizes.tiles, Path(folder))
        said, checks = _runs(store, sizes)
    found = machine.describe() | said | {"checks": checks}
    constants = Constants(**said["constants"])
    found["predictions"] = predictions(constants)
    _print(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


# --- The constants -----------------------------------------------------------------------------


def _store(n: int, folder: Path) -> TileStore:
    """Return a store of n tiles, few of them distinct, that is soon made."""
    path = folder / "tiles.zarr"
    shutil.rmtree(path, ignore_errors=True)
    tiles = data.make(0, min(n, 1 << 15))

    def repeat(rows: int) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, n, rows):
            yield np.resize(tiles, (min(rows, n - first), data.FEATURES))

    data.write_store(path, n, repeat)
    return open_store(path)


def _best(work: Callable[[], object], rounds: int) -> float:
    """Return the least seconds that a piece of work took, after one run that is not timed."""
    work()
    return min(_timed(work) for _ in range(rounds))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _stack(ks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    models = data.starts(list(ks), 1 << 13).values()
    return np.concatenate(list(models)), np.array([0, *accumulate(ks)], np.intp)


def _kernel(sizes: Sizes) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the kernel's constants, from three stacks, and what they say of two others."""
    X = data.make(0, sizes.sample)

    def seconds(ks: Sequence[int], n: int) -> float:
        stack, offsets = _stack(ks)
        return _best(lambda: assign.block_statistics(X[:n], stack, offsets), 2 * sizes.rounds + 1)

    empty = {ks: seconds(ks, 1) for ks in (SWEEP, MANY)}
    prepare = empty[MANY] / (sum(MANY) * data.FEATURES)

    def a_tile(ks: tuple[int, ...]) -> float:
        return max(0.0, seconds(ks, len(X)) - prepare * sum(ks) * data.FEATURES) / len(X)

    one, five, many = a_tile((25,)), a_tile(SWEEP), a_tile(MANY)
    # Of few tiles, as in a test, differences may be anything.
    product = max(1e-15, (many - one) / (sum(MANY) - 25) / data.FEATURES)
    model = max(0.0, (five - one) / (len(SWEEP) - 1))
    tile = max(0.0, one - model - 25 * data.FEATURES * product)
    checks = []
    for k in (5, 256):
        predicted = tile + model + k * data.FEATURES * product
        checks.append({"k": k, "predicted": predicted, "measured": a_tile((k,))})
    found = {"prepare": prepare, "tile": tile, "model": model, "product": product}
    return found, checks


def _reading(path: str, rounds: int) -> dict[str, float]:
    """Return seconds a byte of one thread that reads the store and checks it, or has it."""
    store = open_store(path)
    array = nodes.read_node(store.location, STORE).arrays["tiles"]
    zarr_array, n = store.tiles, len(store)

    def borrow() -> None:
        for _ in array.stream(0, n):
            pass

    def whole() -> None:
        for first in range(0, n, array.rows):
            _ = zarr_array[first : first + array.rows]

    def drop() -> None:
        os.sync()
        for path in _files(store):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    disk = []
    for _ in range(rounds):
        drop()
        disk.append(_timed(borrow))
    resident = data.make(0, 1 << 15).repeat(8, axis=0).view(np.uint64)
    n_bytes = n * data.FEATURES
    return {
        "page cache": _best(borrow, rounds) / n_bytes,
        "disk": statistics.median(disk) / n_bytes,
        "Zarr, page cache": _best(whole, rounds) / n_bytes,
        "memory": _best(lambda: np.bitwise_or.reduce(resident, axis=None), rounds)
        / resident.nbytes,
    }


def _fresh(path: str, n_bytes: int) -> dict[str, float]:
    """Return GB/s of reading a file into new memory, and into memory that is used again."""
    buffer = np.empty(n_bytes, np.uint8)

    def read(new: bool) -> None:
        with Path(path).open("rb", buffering=0) as file:
            file.readinto((np.empty(n_bytes, np.uint8) if new else buffer).data)

    return {
        name: n_bytes / _best(lambda new=new: read(new), 20) / 1e9  # type: ignore[misc]
        for name, new in (("new", True), ("again", False))
    }


def _peak_mib() -> float:
    """Return the largest resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- Passes ------------------------------------------------------------------------------------


def _made(block_id: tuple[int, ...], rows: int) -> NDArray[np.uint8]:
    """Return a block of tiles that is already there."""
    return _ready(rows) if block_id else _ready(0)


@functools.cache
def _ready(rows: int) -> NDArray[np.uint8]:
    return data.make(0, rows)


def _array(n: int, rows: int) -> da.Array:
    """Return so many blocks, made by a task each."""
    return da.map_blocks(
        _made,
        rows=rows,
        chunks=((rows,) * n, (data.FEATURES,)),
        dtype=np.uint8,
        meta=np.empty((0, 0), np.uint8),
    )


@dataclass(frozen=True)
class Spent:
    """Seconds of a pass: on the clock, and of the processors."""

    wall: float
    client: float  # the thread that builds the graph
    scheduler: float
    workers: float


def _spent(client: Any, work: Callable[[], object]) -> Spent:
    """Return what a pass takes here, where the scheduler lives in this process."""
    clocks = time.perf_counter, time.thread_time, time.process_time
    of_workers = sum(client.run(time.process_time).values())
    before = [clock() for clock in clocks]
    work()
    wall, own, both = (clock() - then for clock, then in zip(clocks, before, strict=True))
    of_workers = sum(client.run(time.process_time).values()) - of_workers
    return Spent(wall, own, both - own, of_workers)


def _raw(X: da.Array, ks: Sequence[int]) -> Callable[[], object]:
    """Return a pass over the blocks as they are."""
    stack, offsets = _stack(ks)
    turn = iter(range(1 << 30))

    def work() -> object:
        # Another stack each time, as in a fit.
        return lazy_statistics(X, stack + next(turn) / 1024, offsets).compute()

    return work


def _pass(runner: PassRunner, ks: Sequence[int]) -> Callable[[], object]:
    """Return a pass as a fit makes it."""
    stack, offsets = _stack(ks)
    turn = iter(range(1 << 30))
    return lambda: runner.measure(stack + next(turn) / 1024, offsets)


def _least(client: Any, work: Callable[[], object], rounds: int) -> Spent:
    """Return the pass of least time on the clock, after one that is not counted."""
    work()
    return min((_spent(client, work) for _ in range(rounds)), key=lambda spent: spent.wall)


def _ship(client: Any, X: da.Array) -> float:
    """Return the seconds until the scheduler has a pass's graph, which is then dropped."""
    stack, offsets = _stack(SWEEP)
    lazy = lazy_statistics(X, stack, offsets)
    tasks = client.cluster.scheduler.tasks
    work = Work(X.numblocks[0], X.numblocks[0], SWEEP, "memory")
    n = work.tasks - work.levels  # of which dask may have fused as many
    started = time.perf_counter()
    # No worker has this: nothing is run.
    future = client.compute(lazy, resources={"none": 1})
    while len(tasks) < n:
        time.sleep(1e-3)
    seconds = time.perf_counter() - started
    future.cancel()
    while tasks:
        time.sleep(1e-3)
    return seconds


def _runs(store: TileStore, sizes: Sizes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the constants, and the passes that check them."""
    n = sizes.calibration
    short = Work(n, n, SWEEP, "memory")
    passes: list[tuple[str, int, Work, float]] = []
    said: dict[str, Any] = {}
    timing: dict[str, float] = {}
    measured = {}
    for workers in sorted({*sizes.workers, *(w for w, _ in sizes.more)}):
        with schedulers.processes(workers) as (_, client):
            if workers == min(sizes.workers):
                # In a worker: its memory is given back more often than another process's.
                of_kernel, said["kernel"] = client.submit(_kernel, sizes).result()
                reading = client.submit(_reading, str(store.path), sizes.rounds).result()
                chunk = str(next(_files(store)))
                said["fresh"] = client.submit(_fresh, chunk, Path(chunk).stat().st_size).result()
                timing["latency"] = _least(client, _raw(_array(1, 1), SWEEP), 9).wall
                many = Work(8 * n, 8 * n, SWEEP, "memory")
                timing["ship"] = min(_ship(client, _array(8 * n, 1)) for _ in range(3)) / many.tasks
                measured["one"] = _least(client, _raw(_array(n, 1), SWEEP), sizes.rounds)
                timing["graph"] = measured["one"].client / n
            if workers == (2 if 2 in sizes.workers else min(sizes.workers)):
                measured["two"] = _least(client, _raw(_array(n, 1), SWEEP), sizes.rounds)
            passes += _checked(client, workers, sizes)
            if workers in (1, 2, 4):
                passes += _stored(client, workers, store, sizes)
            if workers == min(2, max(sizes.workers)):
                said["recipes"] = _recipes(client, sizes)
            said["peak_mib"] = max(client.run(_peak_mib).values())
        print(f"{workers} worker(s) measured", flush=True)
    said["unqueued"] = _unqueued(min(2, max(sizes.workers)), sizes)
    one, two = measured["one"], measured["two"]
    compute = n * (of_kernel["tile"] + of_kernel["prepare"] * 25 * data.FEATURES)
    ship = timing["ship"] * short.tasks
    constants = Constants(
        **timing,
        schedule=max(0.0, two.scheduler - ship) / short.tasks,
        work=max(0.0, two.workers - compute) / short.tasks,
        turn=max(0.0, one.wall - timing["graph"] * n - ship - compute) / short.tasks,
        **of_kernel,
        read=reading,
    )
    said["constants"] = as_json(constants)
    cores = os.cpu_count() or 1
    checks = []
    for what, workers, work, seconds in passes:
        parts = here(work, constants, workers, cores)
        ratio = parts["total"] / seconds
        checks.append(
            {"what": what, "workers": workers, "blocks": work.blocks, "tasks": work.tasks}
            | {"parts": parts, "predicted": parts["total"], "measured": seconds, "ratio": ratio}
        )
    return said, checks


def _files(store: TileStore) -> Any:
    chunks = Path(store.path) / "tiles"
    return (path for path in chunks.rglob("*") if path.is_file() and path.suffix != ".json")


def _checked(client: Any, workers: int, sizes: Sizes) -> list[tuple[str, int, Work, float]]:
    """Return passes over cheap blocks, made by a task each."""
    wanted = [n for n in sizes.blocks if workers in sizes.workers]
    wanted += [n for w, n in sizes.more if w == workers]
    found = []
    for n in wanted:
        for rows in (16, 1024) if n == 100 and workers <= 2 else (16,):
            work = _raw(_array(n, rows), SWEEP)
            # The first of many would be as good as the second, and takes as long.
            spent = _spent(client, work) if n >= 1000 else _least(client, work, sizes.rounds)
            made = Work(n * rows, n, SWEEP, "memory")
            found.append((f"made, {rows} tiles each", workers, made, spent.wall))
    return found


def _stored(
    client: Any, workers: int, store: TileStore, sizes: Sizes
) -> list[tuple[str, int, Work, float]]:
    """Return passes over the store: from the page cache, and from the workers' memory."""
    found = []
    for place, cache in (("page cache", "never"), ("memory", "always")):
        runner = PassRunner(store, cache=cache, bounds=False)
        runner.prepare(1, sum(MANY))
        for ks in (SWEEP, MANY):
            spent = _least(client, _pass(runner, ks), 1 if ks == MANY else sizes.rounds)
            work = Work(len(store), runner.blocks.numblocks[0], ks, place)
            name = "3 … 7" if ks == SWEEP else str(ks[0])
            found.append((f"store, {place}, k = {name}", workers, work, spent.wall))
    return found


def _unqueued(workers: int, sizes: Sizes) -> dict[str, float]:
    """Return what a task takes when dask sends workers all of them at once, as by its setting."""
    X = _array(sizes.calibration, 1)
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": "inf"}),
        schedulers.processes(workers) as (_, client),
    ):
        spent = _least(client, _raw(X, SWEEP), sizes.rounds)
    tasks = Work(sizes.calibration, sizes.calibration, SWEEP, "memory").tasks
    sides = {"wall": spent.wall, "scheduler": spent.scheduler, "workers": spent.workers}
    return {"of workers": workers} | {name: side / tasks for name, side in sides.items()}


def _recipes(client: Any, sizes: Sizes) -> dict[str, Any]:
    """Return what a user's array of many short blocks costs: once, and each pass."""
    tiles = Tiles.of(_array(sizes.user, 16))
    started = time.perf_counter()
    runner = PassRunner(tiles)
    once = time.perf_counter() - started
    first = _spent(client, _pass(runner, SWEEP))
    then = _least(client, _pass(runner, SWEEP), 1)
    return {
        "blocks": sizes.user,
        "recipes": runner.blocks.numblocks[0],
        "once": once,
        "first": first.wall,
        "pass": then.wall,
    }


# --- Elsewhere ---------------------------------------------------------------------------------

FINE_PASSES = 25


def predictions(constants: Constants, machines: Machines | None = None) -> list[dict[str, Any]]:
    """Return what passes over many more tiles would take on many machines."""
    machines = machines or Machines()
    threads = machines.workers * machines.threads
    found = []
    for n in (10**9, 10**11):
        n_bytes = n * data.FEATURES
        own, given = memory.block_bytes(n_bytes, threads), 64 << 20
        # Place, what it is read like, the bytes of a block, and of what is in memory of it.
        cases = (
            ("object store", "Zarr, page cache", given, given),
            ("shared file system", "page cache", own, 4 << 20),
            ("memory", "memory", own, own),
            ("memory, a block a thread", "memory", n_bytes // threads, n_bytes // threads),
        )
        for place, like, size, piece in cases:
            for ks in (SWEEP, (25,), MANY):
                work = Work(n, -(-n_bytes // size), ks, like)
                kept = like == "memory"
                if kept and n_bytes > machines.room(work, piece):
                    continue
                parts = elsewhere(work, constants, machines, remote=not kept)
                # Of tiles that are kept, the first read is from the store.
                first = n_bytes / machines.workers / machines.store if kept else 0.0
                found.append(
                    {"tiles": n, "place": place, "ks": list(ks), "blocks": work.blocks}
                    | {"block_mb": size / 1e6, "parts": parts}
                    | {"sweep": parts["total"] * (FINE_PASSES + 1) + first}
                )
    return found


# --- Tables ------------------------------------------------------------------------------------


def _print(found: dict[str, Any]) -> None:
    c = found["constants"]
    print(*found["machine"].items(), *found["versions"].items(), sep="\n")
    print("\n| constant | value |\n|---|---|")
    for name in ("latency", "graph", "ship", "schedule", "work", "turn"):
        print(f"| {name} | {c[name] * 1e3:.3f} ms |")
    print(f"| prepare | {c['prepare'] * 1e9:.1f} ns a number of the stack |")
    print(f"| tile | {c['tile'] * 1e9:.1f} ns |\n| model | {c['model'] * 1e9:.1f} ns |")
    print(f"| product | {1e-9 / c['product']:.0f} G/s |")
    for name, seconds in c["read"].items():
        print(f"| read: {name} | {1e-9 / seconds:.2f} GB/s |")
    for name, rate in found["fresh"].items():
        print(f"| in a worker, into memory {name} | {rate:.1f} GB/s |")
    for each in found["kernel"]:
        ns = [each[side] * 1e9 for side in ("predicted", "measured")]
        print(f"kernel, k = {each['k']}: predicted {ns[0]:.0f} ns a tile, measured {ns[1]:.0f}")
    print("\n| pass | workers | blocks | predicted s | measured s | ratio | bound |")
    print("|---|---|---|---|---|---|---|")
    for each in found["checks"]:
        print(
            f"| {each['what']} | {each['workers']} | {each['blocks']:,} | {each['predicted']:.3f} "
            f"| {each['measured']:.3f} | {each['ratio']:.2f} | {each['parts']['bound']} |"
        )
    print("\nunqueued:", {k: round(v, 5) for k, v in found["unqueued"].items()})
    print("\nrecipes:", {k: round(v, 3) for k, v in found["recipes"].items()})
    names = ["client", "scheduler", "store", "threads", "turns", "stack", "statistics"]
    print(f"\n| tiles | place | k | blocks | {' | '.join(names)} | pass s | bound | sweep min |")
    print("|" + "---|" * (len(names) + 7))
    for each in found["predictions"]:
        ks, parts = each["ks"], each["parts"]
        row = [f"{each['tiles']:.0e}", each["place"], str(ks)[1:-1], f"{each['blocks']:,}"]
        row += [f"{parts[name]:.2f}" for name in names]
        row += [f"{parts['total']:.1f}", parts["bound"], f"{each['sweep'] / 60:.1f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    # Workers import what they are sent from a module, and __main__ is another one there.
    from benchmarks import scaling  # noqa: PLW0406

    scaling.main()
