"""Whole fits to the same tol: how long, how many passes, how good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import data, ours, peers, schedulers
from benchmarks.timing import Case, interleaved, judge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.timing import Work
    from daskkm.storage.tile_store import TileStore

TOL = 1e-4
MAX_ITER = 300


def mean_variance(store: TileStore) -> float:
    """Return mean(var(tiles, axis=0))."""
    n = len(store)
    sums, squares = np.zeros(data.FEATURES, np.int64), np.zeros(data.FEATURES, np.int64)
    for rows in data.read(store.tiles):
        sums += rows.sum(axis=0, dtype=np.int64)
        squares += np.square(rows.astype(np.int32)).sum(axis=0, dtype=np.int64)
    return float((squares / n - (sums / n) ** 2).mean())


def bounds(
    folder: Path,  # noqa: ARG001 (these tiles are in memory)
    *,
    k: int,
    tiles: int,
    peer_tiles: int,
    rounds: int,
    threads: int = 2,
) -> list[Case]:
    """Compare fits of resident tiles with and without bounds on distances, beside scikit-learn's.

    Its float32 takes four times the memory, Elkan's bounds as much again: so fewer tiles there.
    """
    return [
        _bounds(k, n, n <= peer_tiles, rounds, threads) for n in sorted({tiles, peer_tiles})[::-1]
    ]


def _bounds(k: int, n: int, with_peers: bool, rounds: int, threads: int) -> Case:
    X, starts = data.make(0, n), data.starts([k], n)

    def sides(tiles: NDArray[np.uint8], max_iter: int) -> dict[str, Work]:
        stop: dict[str, Any] = {"max_iter": max_iter, "tol": TOL}
        stop_and_keep = stop | {"cache": "always"}
        found = {
            "daskkm, bounds": ours.lloyds(tiles, starts, bounds=True, **stop_and_keep),
            "daskkm, no bounds": ours.lloyds(tiles, starts, bounds=False, **stop_and_keep),
        }
        if with_peers:
            ready = tiles.astype(np.float32)
            for algorithm in ("lloyd", "elkan"):
                work = peers.sklearn_fit(ready, starts[k], algorithm, threads, **stop)
                found[f"scikit-learn, {algorithm}"] = work
        return found

    with schedulers.threads(threads) as where:
        for work in sides(X[:1000], 2).values():  # compiles and imports
            work()
        found = interleaved(sides(X, MAX_ITER), rounds, warm=False)
    judge(found, [X])
    sizes = {"tiles": n, "k": [k], "rounds": rounds, "threads": threads}
    sizes |= {"max_iter": MAX_ITER, "tol": TOL}
    return Case(f"k = {k}; {n:,} tiles", where, "daskkm, bounds", found, sizes)


def sweep(
    folder: Path,
    *,
    ks: Sequence[int],
    tiles: int,
    rounds: int,
    limit: float,
    threads: int = 2,
) -> list[Case]:
    """Compare a sweep from the store, read anew in every pass, with dask-ml fit by fit."""
    store, starts = data.store(tiles, folder), data.starts(ks, tiles)
    notes = peers.missing("dask_ml")
    slow = {"dask-ml", "scikit-learn, mini-batches"}
    # dask-ml's tol is no multiple of the variance.
    absolute = TOL * mean_variance(store)
    X = store.features()

    def sides(blocks: Any, max_iter: int) -> dict[str, Work]:
        stop: dict[str, Any] = {"max_iter": max_iter, "tol": TOL}
        streamed = stop | {"cache": "never"}
        found = {
            # Its own starts: from coarse to fine it fits them to a sample first.
            "daskkm": ours.sweep(blocks, ks, n_init=1, random_state=0, **streamed),
            "daskkm, 16 restarts": ours.sweep(blocks, ks, n_init=16, random_state=0, **streamed),
            "daskkm, same starts": ours.lloyds(blocks, starts, bounds=False, **streamed),
        }
        if not notes:
            found["dask-ml"] = peers.dask_ml_sweep(
                blocks, starts, max_iter=max_iter, tol=absolute, limit=limit
            )
        found["scikit-learn, mini-batches"] = peers.minibatch_sweep(blocks, starts, threads)
        return found

    with schedulers.threads(threads) as where:
        for work in sides(X.blocks[:1], 2).values():  # compiles and imports
            work()
        found = interleaved(sides(X, MAX_ITER), rounds, warm=False, once=slow)
    judge(found, data.read(store.tiles))
    done = found["dask-ml"].outcome.said["k"] if not notes else list(ks)
    if len(done) < len(ks):
        notes.append(f"dask-ml was stopped after k = {', '.join(map(str, done))}: more than shown")
    what = f"k = {', '.join(map(str, ks))}; {tiles:,} tiles"
    sizes = {"tiles": tiles, "k": list(ks), "rounds": rounds, "threads": threads, "tol": TOL}
    sizes |= {"max_iter": MAX_ITER, "dask_ml_tol": absolute}
    return [Case(what, where, "daskkm", found, sizes, notes=notes)]


def coarse(
    folder: Path, *, ks: Sequence[int], tiles: int, rounds: int, threads: int = 2
) -> list[Case]:
    """Compare passes over all tiles to convergence, coarse to fine and without."""
    store, starts = data.store(tiles, folder), data.starts(ks, tiles)
    stop: dict[str, Any] = {"max_iter": MAX_ITER, "tol": TOL}
    with schedulers.threads(threads) as where:
        sides = {
            "coarse to fine": ours.sweep(store, ks, n_init=1, random_state=0, **stop),
            "same starts, all tiles": ours.sweep(store, ks, init=starts, **stop),
        }
        found = interleaved(sides, rounds, warm=False)
    judge(found, data.read(store.tiles))
    what = f"k = {', '.join(map(str, ks))}; {tiles:,} tiles"
    sizes = {"tiles": tiles, "k": list(ks), "rounds": rounds, "threads": threads, **stop}
    return [Case(what, where, "coarse to fine", found, sizes)]
