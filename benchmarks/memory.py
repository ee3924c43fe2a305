"""The most memory that a worker ever held, over stores of two sizes."""

from __future__ import annotations

from pathlib import Path

from benchmarks import data, schedulers
from benchmarks.timing import Case, Outcome, Side, Skipped
from daskkm.kmeans.sweep import fit_sweep

_STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """Return the peak of the resident set of this process, in MiB."""
    (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(
    folder: Path, *, k: int, small: int, large: int, iterations: int = 3, processes: int = 2
) -> list[Case]:
    """Compare the peaks of workers, new ones for each store, after so many iterations."""
    if not _STATUS.exists():
        msg = "there is no /proc/self/status on this system"
        raise Skipped(msg)
    sides = {}
    for n in (small, large):
        store, starts = data.store(n, folder), data.starts([k], n)
        with schedulers.processes(processes) as (where, client):
            before = client.run(peak_mib).values()
            # A worker that begins late may have seen no block.
            result = fit_sweep(store, [k], init=starts, max_iter=iterations, tol=0, cache="never")
            peaks = list(client.run(peak_mib).values())
        said = {
            "passes": result.passes,
            "before_mib": max(before),
            "iterations": result.models[k].n_iter_,
        }
        outcome = Outcome([result.models[k].cluster_centers_], said)
        name = f"store of {n * data.FEATURES / 1e6:,.0f} MB"
        sides[name] = Side([max(peaks)], outcome)
    what = f"k = {k}; {iterations} iterations; the largest peak of a worker"
    sizes = {"tiles": [small, large], "k": [k], "iterations": iterations}
    return [Case(what, where, next(iter(sides)), sides, sizes, unit="MiB")]
