"""Seedings of the sample images' tiles: what they leave, how often they read, how long they take.

``python -m benchmarks.seeding [--k K ...] [--seeds N] [--json]``; dask-ml's k-means|| (by its
defaults) comes beside where it is installed, as with the extra ``bench``.

What a seeding leaves is the sum of squared distances of all tiles to the nearest start, here
as a multiple of what scikit-learn's greedy k-means++ leaves. Seconds of daskkm include the
pass that measures it. Medians over the seeds are quoted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from sklearn.cluster import kmeans_plusplus

from benchmarks.data import digits
from benchmarks.timing import Case, Outcome, Side
from daskkm import block_sizes
from daskkm.kmeans.sweep import fit_sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from daskkm.kmeans.pass_record import Pass

ROWS_A_BLOCK = 1000


class Seeding(NamedTuple):
    """What one seeding did."""

    left: float  # sum of squared distances to the nearest start
    reads: float  # tiles read, as a multiple of their number
    seconds: float


class Counting:
    """Tiles that count how many of them are read."""

    def __init__(self, tiles: NDArray[Any]) -> None:
        self.tiles, self.shape, self.dtype, self.ndim = tiles, tiles.shape, tiles.dtype, 2
        self.read = 0
        self._lock = threading.Lock()

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return a block."""
        rows = np.asarray(self.tiles[key])
        with self._lock:
            self.read += len(rows)
        return rows

    def blocks(self) -> da.Array:
        """Return the tiles, block by block and lazily."""
        meta = np.empty((0, 0), self.dtype)
        return da.from_array(self, chunks=(ROWS_A_BLOCK, -1), meta=meta, asarray=False)


class _Seeded(Exception):  # noqa: N818 (not an error)
    """Ends a fit after the pass that measures its initial centroids."""


def first_pass(X: Any, k: int, init: str | ArrayLike, seed: int) -> Pass:
    """Return the pass that measures the initial centroids, and end the fit there."""
    settings: dict[str, Any] = {"n_init": 1, "max_iter": 1, "tol": 0, "random_state": seed}
    settings |= {"coarse": False, "cache": "never"}
    passes: list[Pass] = []

    def on_pass(done: Pass) -> None:
        passes.append(done)
        if done.steps:
            raise _Seeded

    with suppress(_Seeded):
        fit_sweep(X, [k], init=init, on_pass=on_pass, **settings)
    return passes[-1]


def left(X: NDArray[Any], start: NDArray[Any]) -> float:
    """Return the sum of squared distances of all tiles to the nearest start."""
    return first_pass(X, len(start), start, 0).steps[len(start), 0].inertia


def ours(init: str, X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by daskkm."""
    source = Counting(X)
    blocks = source.blocks()
    started = time.perf_counter()
    found = first_pass(blocks, k, init, seed)
    seconds = time.perf_counter() - started
    return Seeding(found.steps[k, 0].inertia, source.read / len(X) - 1, seconds)


def in_memory(X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by daskkm's k-means++ from all tiles, brought together."""
    return ours("k-means++", X, k, seed)


def in_passes(X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by daskkm's k-means++ as if there were too many tiles to bring together."""
    with block_sizes.override(sample_tiles=1):
        return ours("k-means++", X, k, seed)


def scalable(X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by daskkm's k-means||."""
    return ours("k-means||", X, k, seed)


def scikit_learn(X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by scikit-learn's k-means++."""
    wide = X.astype(np.float64)
    started = time.perf_counter()
    start, _ = kmeans_plusplus(wide, k, random_state=seed)
    seconds = time.perf_counter() - started
    return Seeding(left(X, start), 1, seconds)


def dask_ml(X: NDArray[Any], k: int, seed: int) -> Seeding:
    """Seed by dask-ml's k-means||, by its defaults."""
    from dask_ml.cluster.k_means import k_init

    source = Counting(X.astype(np.float64))
    blocks = source.blocks()
    started = time.perf_counter()
    start = k_init(blocks, k, init="k-means||", random_state=seed)
    seconds = time.perf_counter() - started
    return Seeding(left(X, np.asarray(start)), source.read / len(X), seconds)


METHODS: dict[str, Callable[[NDArray[Any], int, int], Seeding]] = {
    "scikit-learn k-means++": scikit_learn,
    "daskkm k-means++": in_memory,
    "daskkm k-means++, in passes": in_passes,
    "daskkm k-means||": scalable,
    "dask-ml k-means||": dask_ml,
}


def measure(X: NDArray[np.uint8], k: int, seeds: int) -> list[dict[str, Any]]:
    """Seed by every method, and compare with scikit-learn."""
    rows: list[dict[str, Any]] = []
    for name, method in METHODS.items():
        try:
            method(X, k, 0)  # the first call compiles and imports
        except ImportError:
            rows.append({"k": k, "method": name})
            continue
        found = [method(X, k, seed) for seed in range(seeds)]
        medians = [statistics.median(column) for column in zip(*found, strict=True)]
        rows.append({"k": k, "method": name} | dict(zip(Seeding._fields, medians, strict=True)))
    for row in rows:
        if "left" in row:
            row["ratio"] = row["left"] / rows[0]["left"]
    return rows


def cases(folder: Path, *, ks: Sequence[int], seeds: int) -> list[Case]:  # noqa: ARG001
    """Return the same as the suite has it."""
    found = []
    with dask.config.set(scheduler="threads"):
        for k in ks:
            rows = measure(digits(), k, seeds)
            sides = {
                row["method"]: Side([row["seconds"]], Outcome(said=_said(row)))
                for row in rows
                if "left" in row
            }
            notes = [f"{row['method']}: not installed" for row in rows if "left" not in row]
            where = "dask's threads, one a core"
            reference = "daskkm k-means++"
            sizes = {"tiles": len(digits()), "k": [k], "seeds": seeds}
            found.append(Case(f"k = {k}", where, reference, sides, sizes, notes=notes))
    return found


def _said(row: dict[str, Any]) -> dict[str, Any]:
    return {"left": row["left"], "reads": row["reads"]}


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    name = f"{row['k']:4}  {row['method']:27}"
    if "left" not in row:
        return f"{name}  not installed"
    return f"{name}  {row['ratio']:5.3f}x  {row['reads']:6.1f}  {row['seconds']:7.3f}"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run, print a table, and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[7, 50, 200])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    options = parser.parse_args(arguments)
    X = digits()
    print(f"{len(X)} tiles of {X.shape[1]} uint8, medians over {options.seeds} seeds")
    print("   k  method                         left   reads  seconds")
    rows = []
    with dask.config.set(scheduler="threads"):
        for k in options.k:
            found = measure(X, k, options.seeds)
            print(*map(line, found), sep="\n", flush=True)
            rows += found
    if options.json:
        print(json.dumps({"machine": platform.machine(), "rows": rows}))
    return rows


if __name__ == "__main__":
    main()
