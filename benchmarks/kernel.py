"""The kernel against scikit-learn's iteration: tiles a second on one thread, in one run.

``python benchmarks/kernel.py [--tiles N] [--rounds R]``, with the extra ``bench`` installed.
Both label and sum every tile once: scikit-learn on float32 made ready beforehand, daskkm on
uint8 as it lies in the store. For several k scikit-learn needs an iteration each. Rounds are
interleaved; medians are quoted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn
from sklearn.cluster._k_means_lloyd import lloyd_iter_chunked_dense
from threadpoolctl import threadpool_limits

from daskkm import kernel, tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

SWEEPS = ((5,), (3, 4, 5, 6, 7), (256,))


def all_tiles() -> NDArray[np.uint8]:
    """Return the tiles of the sample sheets, (5610, 256) uint8."""
    folder = Path(__file__).parent.parent / "images"
    sheets = [tiles.read_sheet(path, (16, 16))[1] for path in tiles.find_sheets(folder)]
    return np.concatenate([tiles.cut(sheet, (16, 16)) for sheet in sheets]).reshape(-1, 256)


def sample_tiles(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return n tiles drawn from the sample sheets, (n, 256) uint8."""
    digits = all_tiles()
    return digits[np.random.default_rng(seed).integers(0, len(digits), n)]


def peer_iteration(
    X: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make one of scikit-learn's Lloyd iterations on one thread: new centroids and weights."""
    k = len(centroids)
    new, weights, shift = np.zeros_like(centroids), np.zeros(k, np.float32), np.zeros(k, np.float32)
    ones, labels = np.ones(len(X), np.float32), np.zeros(len(X), np.int32)
    lloyd_iter_chunked_dense(X, ones, centroids, new, weights, labels, shift, 1)
    return new, weights


def seconds(work: Callable[[], Any]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(X: NDArray[np.uint8], ks: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time an iteration of all ks, ours and theirs in turn."""
    rng = np.random.default_rng(1)
    # No two centroids alike, which would be ties, and none without a tile, which would be moved.
    distinct = np.unique(X[:10_000], axis=0).astype(np.float64)
    stacks = [distinct[rng.choice(len(distinct), k, replace=False)] for k in ks]
    stack, offsets = np.concatenate(stacks), np.cumsum([0, *ks])
    ready = X.astype(np.float32)
    narrow = [centroids.astype(np.float32) for centroids in stacks]

    def ours() -> NDArray[Any]:
        return kernel.block_statistics(X, stack, offsets)

    def theirs() -> list[Any]:
        return [peer_iteration(ready, centroids) for centroids in narrow]

    # The same work: as many tiles in each cluster, but for those that float32 misplaces.
    counts = np.concatenate([weights for _, weights in theirs()])
    off = int(np.abs(ours()[:, -2] - counts).sum())
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = [b / a for a, b in times]
    rates = [len(X) / statistics.median(side) / 1e6 for side in zip(*times, strict=True)]
    return {
        "k": list(ks),
        "centroids": len(stack),
        "daskkm": rates[0],
        "scikit-learn": rates[1],
        "ratio": statistics.median(ratios),
        "counts_off": off,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run, print a table and a line of JSON, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    X = sample_tiles(options.tiles)
    with threadpool_limits(1):
        rows = [measure(X, ks, options.rounds) for ks in SWEEPS]
    print(f"{len(X)} tiles of 256 uint8, one thread, median of {options.rounds}, million tiles/s")
    print("          k  centroids  daskkm  scikit-learn  ratio")
    for row in rows:
        ks = f"{row['k'][0]}-{row['k'][-1]}" if len(row["k"]) > 1 else str(row["k"][0])
        print(
            f"{ks:>11}  {row['centroids']:9}  {row['daskkm']:6.2f}  {row['scikit-learn']:12.2f}"
            f"  {row['ratio']:4.1f}x"
        )
    versions = {"python": platform.python_version(), "scikit-learn": sklearn.__version__}
    print(json.dumps({"machine": platform.machine(), **versions, "rows": rows}))
    return rows


if __name__ == "__main__":
    main()
