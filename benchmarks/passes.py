"""One pass over tiles that are read block by block: beside dask-ml, and beside reading alone."""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from benchmarks import data, peers, schedulers
from benchmarks.timing import Case, Outcome, interleaved, judge
from daskkm.kmeans.assessment import assess_counted
from daskkm.kmeans.sweep import fit_sweep
from daskkm.passes import reductions
from daskkm.passes.runner import PassRunner
from daskkm.passes.scheduler import threads
from daskkm.passes.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.timing import Work
    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.tile_store import TileStore


def one_pass(X: Any, starts: Iterable[NDArray[np.float64]]) -> Work:
    """Return a pass of daskkm: an iteration of all models."""
    runner, models = PassRunner(X, cache="never"), list(starts)
    stack, offsets = np.concatenate(models), np.array([0, *accumulate(map(len, models))])

    def work() -> Outcome:
        return Outcome(np.split(runner.measure(stack, offsets).means(), offsets[1:-1]))

    return work


def read(X: da.Array) -> Work:
    """Return a pass that reads every block and makes nothing of it but the number of its tiles."""
    # As daskkm's own passes are built, so that dask makes one task of a block here too.
    chunks = ((1,) * X.numblocks[0], (1,))
    lengths = X.map_blocks(_length, dtype=np.int64, chunks=chunks, meta=np.empty((0, 0), np.int64))
    total = lengths.sum(axis=0, split_every=8)

    def work() -> Outcome:
        return Outcome(said={"tiles_read": int(total.compute()[0])})

    return work


def _length(block: NDArray[Any]) -> NDArray[np.int64]:
    return np.array([[len(block)]])


def read_by_zarr(store: TileStore) -> Work:
    """Return a pass that reads every chunk as Zarr does, which checks it."""
    tiles = store.tiles
    X = da.from_array(tiles, chunks=tiles.chunks, name=False).reshape(len(store), -1)
    return read(X.rechunk({1: -1}))


def read_by_chunks(store: TileStore) -> Work:
    """Return a pass that reads and checks every chunk as daskkm's own passes do."""
    X = Tiles.of(store).in_blocks(threads())

    def work() -> Outcome:
        return Outcome(said={"tiles_read": reductions.gather(_number, X, None, sum).compute()})

    return work


def _number(tiles: NDArray[Any], first: int) -> int:  # noqa: ARG001 (what functions of blocks take)
    return len(tiles)


# Passes over a store that only read and check, by name.
READS: dict[str, Callable[[TileStore], Work]] = {
    "read only, by Zarr": read_by_zarr,
    "read only, by daskkm": read_by_chunks,
}


def beside_dask_ml(
    folder: Path, *, k: int, tiles: int, rounds: int, n_threads: int = 2
) -> list[Case]:
    """Compare a pass over the store with an iteration of dask-ml's."""
    store, (start,) = data.store(tiles, folder), data.starts([k], tiles).values()
    notes = peers.missing("dask_ml")
    with schedulers.threads(n_threads) as where:
        sides = {"daskkm": one_pass(store, [start])}
        if not notes:
            sides["dask-ml"] = peers.dask_ml_iteration(store.features(), start)
        found = interleaved(sides, rounds)
    judge(found, data.read(store.tiles))
    sizes = {"tiles": tiles, "k": [k], "rounds": rounds, "threads": n_threads}
    return [Case(f"k = {k}; {tiles:,} tiles", where, "daskkm", found, sizes, notes=notes)]


def beside_reading(
    folder: Path, *, ks: Sequence[int], tiles: int, rounds: int, n_threads: int = 2
) -> list[Case]:
    """Compare a pass over the store with passes that only read it and check its chunks."""
    store, starts = data.store(tiles, folder), data.starts(ks, tiles)
    with schedulers.threads(n_threads) as where:
        sides = {name: make(store) for name, make in READS.items()}
        found = interleaved(sides | {"daskkm": one_pass(store, starts.values())}, rounds)
    judge(found, data.read(store.tiles))
    what = f"k = {', '.join(map(str, ks))}; {tiles:,} tiles"
    sizes = {"tiles": tiles, "k": list(ks), "rounds": rounds, "threads": n_threads}
    return [Case(what, where, next(iter(READS)), found, sizes)]


def beside_figures(
    folder: Path, *, ks: Sequence[int], tiles: int, rounds: int, threads: Sequence[int] = (1, 2)
) -> list[Case]:
    """Compare the figures of a sweep's models with one pass over the same models."""
    source = data.store(tiles, folder)
    fitted = fit_sweep(source, ks, n_init=1, max_iter=3, random_state=0)
    models = fitted.models
    cases = []
    for n in threads:
        with schedulers.threads(n) as where:
            sides: dict[str, Work] = {
                "one pass": one_pass(source, [m.cluster_centers_ for m in models.values()]),
                "figures, alone": functools.partial(_assessed, source, models, None),
                "figures, after a fit": functools.partial(_assessed, source, models, fitted),
            }
            found = interleaved(sides, rounds)
        what = f"k = {ks[0]} to {ks[-1]}; {tiles:,} tiles"
        sizes = {"tiles": tiles, "k": list(ks), "rounds": rounds, "threads": n}
        cases.append(Case(what, where, "one pass", found, sizes))
    return cases


def _assessed(
    source: TileStore, models: Mapping[int, FittedModel], fitted: SweepResult | None
) -> Outcome:
    return Outcome(said={"passes": assess_counted(source, models, None, fitted).passes})


def many_blocks(
    folder: Path, *, k: int, blocks: int, rows: int, rounds: int, processes: int = 2
) -> list[Case]:
    """Compare a pass over many small blocks, made by a task each or read from Zarr, with reading.

    What reading alone takes is, of so small blocks, the scheduler's time.
    """
    n = blocks * rows
    generated = da.map_blocks(
        _made,
        rows=rows,
        chunks=((rows,) * blocks, (data.FEATURES,)),
        dtype=np.uint8,
        meta=np.empty((0, 0), np.uint8),
    )
    sources: dict[str, Any] = {
        "made": generated,
        "Zarr": data.plain_zarr(n, rows, folder),
    }
    (start,) = data.starts([k], rows).values()
    cases = []
    with schedulers.processes(processes) as (where, _):
        for name, X in sources.items():
            lazy = X if isinstance(X, da.Array) else da.from_array(X, chunks=X.chunks, name=False)
            sides = {"read only": read(lazy), "daskkm": one_pass(X, [start])}
            found = interleaved(sides, rounds)
            what = f"{name}; k = {k}; {blocks:,} blocks of {rows:,} tiles"
            sizes = {"tiles": n, "blocks": blocks, "k": [k], "rounds": rounds}
            cases.append(Case(what, where, "read only", found, sizes))
    judge(cases[1].sides, data.read(sources["Zarr"]))
    judge(cases[0].sides, (_made((i,), rows) for i in range(blocks)))
    return cases


def _made(block_id: tuple[int, ...], rows: int) -> NDArray[np.uint8]:
    """Return a block of tiles that costs next to nothing to make."""
    base = _base(2 * rows)
    first = block_id[0] * 37 % rows
    return base[first : first + rows]


@functools.cache
def _base(n: int) -> NDArray[np.uint8]:
    return data.make(0, n)
