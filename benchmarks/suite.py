"""The rows of the table: what is compared, at what sizes, and the target of each."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from benchmarks import command, fits, ingest, iteration, memory, passes, remote, report, seeding
from benchmarks.timing import Case, Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

Sizes = dict[str, Any]
SWEEP = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    title: str
    measure: Callable[..., list[Case]]
    always: Sizes  # arguments whatever the sizes
    sizes: dict[str, Sizes]  # "tiny" for tests, "default": minutes in all, "full": as published
    target: str = ""


def _sized(tiny: int, default: int, full: int, *, rounds: tuple[int, int]) -> dict[str, Sizes]:
    """Return the sizes of a row that has only tiles and rounds."""
    return {
        "tiny": {"tiles": tiny, "rounds": 1},
        "default": {"tiles": default, "rounds": rounds[0]},
        "full": {"tiles": full, "rounds": rounds[1]},
    }


ROWS: dict[str, Row] = {
    "iteration": Row(
        "One iteration in memory",
        iteration.measure,
        {"ks": (5,)},
        _sized(600, 200_000, 500_000, rounds=(9, 15)),
        target="scikit-learn 3.5",
    ),
    "iteration-sweep": Row(
        "One iteration of a sweep in memory, beside one of each k",
        iteration.measure,
        {"ks": SWEEP},
        _sized(600, 200_000, 500_000, rounds=(9, 15)),
        target="scikit-learn 5",
    ),
    "iteration-256": Row(
        "One iteration in memory, many clusters",
        iteration.measure,
        {"ks": (256,)},
        _sized(600, 100_000, 500_000, rounds=(5, 9)),
        target="scikit-learn 1.3",
    ),
    "iteration-1024": Row(
        "One iteration in memory, very many clusters",
        iteration.measure,
        {"ks": (1024,), "with_faiss": True, "threads": (1, 2)},
        _sized(2000, 50_000, 200_000, rounds=(5, 9)),
        target="faiss 1.3",
    ),
    "bounds": Row(
        "A whole fit of resident tiles, bounds on distances on and off",
        fits.bounds,
        {"k": 25},
        {
            "tiny": {"tiles": 2000, "peer_tiles": 1000, "rounds": 1},
            "default": {"tiles": 200_000, "peer_tiles": 50_000, "rounds": 1},
            "full": {"tiles": 2_000_000, "peer_tiles": 200_000, "rounds": 3},
        },
        target="no bounds 1.5",
    ),
    "pass": Row(
        "One pass from the store, beside an iteration of dask-ml",
        passes.beside_dask_ml,
        {"k": 5},
        _sized(20_000, 400_000, 4_000_000, rounds=(5, 7)),
        target="dask-ml 10",
    ),
    "sweep": Row(
        "A whole sweep from the store, beside dask-ml fit by fit",
        fits.sweep,
        {"ks": SWEEP},
        {
            "tiny": {"tiles": 5000, "rounds": 1, "limit": 60},
            "default": {"tiles": 100_000, "rounds": 1, "limit": 90},
            "full": {"tiles": 4_000_000, "rounds": 1, "limit": 310},
        },
        target="dask-ml 30",
    ),
    "pass-read": Row(
        "One pass from the store, beside only reading it",
        passes.beside_reading,
        {"ks": (5,)},
        _sized(20_000, 400_000, 4_000_000, rounds=(9, 9)),
        target="at most 1.4 reads",
    ),
    "pass-read-sweep": Row(
        "One pass of a sweep from the store, beside only reading it",
        passes.beside_reading,
        {"ks": SWEEP},
        _sized(20_000, 400_000, 4_000_000, rounds=(9, 9)),
        target="at most 2.2 reads",
    ),
    "figures": Row(
        "The figures for choosing k, beside one pass over the same models",
        passes.beside_figures,
        {"ks": SWEEP},
        _sized(2000, 400_000, 2_000_000, rounds=(5, 7)),
        target="at most 3 passes",
    ),
    "figures-many": Row(
        "The figures of many k, beside one pass over the same models",
        passes.beside_figures,
        {"ks": tuple(range(5, 26))},
        _sized(2000, 400_000, 2_000_000, rounds=(3, 5)),
        target="at most 3 passes",
    ),
    "coarse": Row(
        "Passes over all tiles to convergence, coarse to fine and without",
        fits.coarse,
        {"ks": SWEEP},
        _sized(8000, 100_000, 4_000_000, rounds=(1, 3)),
        target="at most 0.4 of the passes",
    ),
    "memory": Row(
        "Peak memory of a worker over two sizes of store",
        memory.measure,
        {"k": 5},
        {
            "tiny": {"small": 2000, "large": 20_000, "processes": 1},
            "default": {"small": 200_000, "large": 1_600_000},
            "full": {"small": 2_000_000, "large": 16_000_000},
        },
        target="at most 1.1",
    ),
    "blocks": Row(
        "One pass over many small blocks on two processes, beside only reading them",
        passes.many_blocks,
        {"k": 5, "rows": 1000},
        {
            "tiny": {"blocks": 8, "rounds": 1, "processes": 1},
            "default": {"blocks": 1000, "rounds": 3},
            "full": {"blocks": 10_000, "rounds": 2},
        },
        target="at most 6 s",
    ),
    "command": Row(
        "The README's sweep of the sample images, start to finish, second run",
        command.measure,
        {},
        {
            "tiny": {"rounds": 1, "n_init": 1},
            "default": {"rounds": 3},
            "full": {"rounds": 5},
        },
        target="at most 5 s",
    ),
    "fetch": Row(
        "One pass from an HTTP server, beside fetching alone",
        remote.measure,
        {"k": 5, "latency": 0.0},
        _sized(20_000, 2_000_000, 8_000_000, rounds=(5, 7)),
        target="at most 1.18 fetches",
    ),
    "fetch-latency": Row(
        "One pass from an HTTP server that waits 40 ms, beside fetching alone",
        remote.measure,
        {"k": 5, "latency": 0.04},
        _sized(20_000, 2_000_000, 8_000_000, rounds=(5, 7)),
        target="at most 1.25 fetches",
    ),
    "ingest-png": Row(
        "Large PNGs to a store, beside decoding them",
        ingest.measure,
        {"suffix": ".png"},
        {
            "tiny": {"images": 2, "pixels": 64, "rounds": 1},
            "default": {"images": 24, "pixels": 2048, "rounds": 5},
            "full": {"images": 96, "pixels": 2048, "rounds": 7},
        },
        target="one thread at most 1.25; two workers 1.7 times as fast as one",
    ),
    "ingest-jpeg": Row(
        "Large JPEGs to a store, beside decoding them",
        ingest.measure,
        {"suffix": ".jpg"},
        {
            "tiny": {"images": 2, "pixels": 64, "rounds": 1},
            "default": {"images": 24, "pixels": 2048, "rounds": 5},
            "full": {"images": 96, "pixels": 2048, "rounds": 7},
        },
        target="one thread at most 1.25; two workers 1.7 times as fast as one",
    ),
    "ingest-small": Row(
        "Many small PNGs to a store, beside decoding them",
        ingest.measure,
        {"suffix": ".png"},
        {
            "tiny": {"images": 20, "pixels": 32, "rounds": 1},
            "default": {"images": 20_000, "pixels": 64, "rounds": 3},
            "full": {"images": 20_000, "pixels": 64, "rounds": 5},
        },
        target="one thread at most 1.6",
    ),
    "seeding": Row(
        "What starts leave, on the sample images",
        seeding.cases,
        {},
        {
            "tiny": {"ks": (3,), "seeds": 1},
            "default": {"ks": (7, 50), "seeds": 3},
            "full": {"ks": (7, 50, 200), "seeds": 20},
        },
    ),
}


def chosen(patterns: Iterable[str]) -> list[str]:
    """Return the names of the rows that match, in the order of the table.

    Raises
    ------
    ValueError
        If a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in ROWS):
            msg = f"no row is called {pattern}; there are {', '.join(ROWS)}"
            raise ValueError(msg)
    return [name for name in ROWS if any(fnmatch(name, pattern) for pattern in patterns)]


def run(names: Sequence[str], sizes: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Measure rows, print each as it is done, and yield it as JSON has it.

    Parameters
    ----------
    names : sequence of str
    sizes : {"tiny", "default", "full"}
    folder : Path
        Where the tiles are made, or were.
    """
    for name in names:
        row, started = ROWS[name], time.perf_counter()
        print(f"\n{name}: {row.title}", flush=True)
        said: dict[str, Any] = {"row": name, "number": list(ROWS).index(name) + 1}
        said |= {"title": row.title, "target": row.target, "cases": []}
        try:
            cases = row.measure(folder, **row.always, **row.sizes[sizes])
        except Skipped as reason:
            said["skipped"] = str(reason)
            print(f"  skipped: {reason}")
        else:
            said["cases"] = [case.as_json() for case in cases]
            print(*report.lines(said["cases"]), sep="\n", flush=True)
        said["seconds"] = time.perf_counter() - started
        yield said
        gc.collect()  # the arrays of one row are not those of the next
