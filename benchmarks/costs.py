"""What a pass costs, by formula: `docs/scaling.md` says it in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from daskkm.passes import memory

if TYPE_CHECKING:
    from collections.abc import Sequence

FAN_IN = 8


@dataclass(frozen=True)
class Constants:
    """What one thread, or the scheduler, takes for one of something, in seconds."""

    latency: float  # a pass over one block
    graph: float  # a block, on the client
    ship: float  # a task, until the scheduler has made it of the graph
    schedule: float  # a task, on the scheduler
    work: float  # a task, of a worker's processor, whatever is in it
    turn: float  # a task, from its end to that of an empty next one, on one thread
    prepare: float  # a number of the stack, for each array of tiles that is measured against it
    tile: float  # a tile
    model: float  # a tile and model
    product: float  # a multiply-add
    read: dict[str, float]  # a byte, by where it is read from


@dataclass(frozen=True)
class Work:
    """A pass to make: the tiles, how they are cut, and the stack."""

    tiles: int
    blocks: int
    ks: Sequence[int]
    place: str  # where the tiles are: a name in Constants.read
    features: int = 256

    @property
    def rows(self) -> int:
        """Of the stack."""
        return sum(self.ks)

    @property
    def n_bytes(self) -> int:
        """Of all tiles, of one byte a feature."""
        return self.tiles * self.features

    @property
    def stack_bytes(self) -> int:
        """Of the stack."""
        return self.rows * self.features * 8

    @property
    def statistics_bytes(self) -> int:
        """Of the statistics of a block."""
        return self.rows * (self.features + 2) * 8

    @property
    def levels(self) -> int:
        """Of the tree of sums."""
        return max(1, math.ceil(math.log(self.blocks, FAN_IN) - 1e-9))

    @property
    def tasks(self) -> int:
        """Of blocks, sums and the stack; dask may fuse the sum of a single one with that."""
        total, level = self.blocks + 1, self.blocks
        for _ in range(self.levels):
            level = math.ceil(level / FAN_IN)
            total += level
        return total


def thread_seconds(work: Work, c: Constants) -> dict[str, float]:
    """Return what a pass takes of the workers' threads, added up: reading, and measuring."""
    values = work.rows * work.features
    a_tile = c.tile + c.model * len(work.ks) + c.product * values
    return {
        "read": work.n_bytes * c.read[work.place],
        "measure": work.tiles * a_tile + work.blocks * values * c.prepare,
    }


def here(work: Work, c: Constants, workers: int, cores: int) -> dict[str, Any]:
    """Return the parts of a pass of workers of one thread that share cores with the scheduler."""
    threads = sum(thread_seconds(work, c).values())
    scheduler = work.tasks * c.schedule
    parts = {
        "latency": c.latency,
        "client": work.blocks * c.graph + work.tasks * c.ship,
        "scheduler": scheduler,
        "turns": (work.tasks * c.turn + threads) / workers,
        "cores": (scheduler + work.tasks * c.work + threads) / min(cores, workers + 1),
    }
    slowest = max(("scheduler", "turns", "cores"), key=parts.__getitem__)
    total = parts["latency"] + parts["client"] + parts[slowest]
    return parts | {"bound": slowest, "total": total}


@dataclass(frozen=True)
class Machines:
    """Workers elsewhere; all of it assumed."""

    workers: int = 100
    threads: int = 8
    memory: float = 32e9
    used: float = 0.3e9  # of that, before a fit
    network: float = 1.25e9  # bytes a second in and out of each
    store: float = 0.5e9  # bytes a second that each reads from the object store

    def room(self, work: Work, piece: int) -> float:
        """Return how many bytes of tiles may stay in memory."""
        worker = memory.Worker("worker", self.threads, self.memory, self.used)
        planned = memory.Work(work.rows, work.features, piece)
        return self.workers * memory.room([worker], planned)


def elsewhere(work: Work, c: Constants, machines: Machines, *, remote: bool) -> dict[str, Any]:
    """Return the parts of a pass on many machines, the scheduler on one of its own.

    Parameters
    ----------
    work : Work
    c : Constants
    machines : Machines
    remote : bool
        Whether the tiles come over the network: then reading is also bound by that.

    Returns
    -------
    dict
        Seconds by part; ``bound``, the part that is the longest; ``total``.
    """
    threads = machines.workers * machines.threads
    # Whole blocks go to threads: the last round of them is not full.
    rounds = math.ceil(work.blocks / threads)
    uneven = rounds * threads / work.blocks
    of_threads = thread_seconds(work, c)
    line = work.n_bytes / (machines.workers * machines.store) if remote else 0.0
    parts = {
        "client": work.blocks * c.graph + work.tasks * c.ship,
        "scheduler": work.tasks * c.schedule,
        # A worker's threads share what it reads, so there its last block counts, not theirs.
        "store": line * math.ceil(work.blocks / machines.workers) * machines.workers / work.blocks,
        "threads": sum(of_threads.values()) / threads * uneven,
        "turns": work.tasks / threads * c.turn,
        # All fetch the stack from the worker that has it; half a tree's node lies elsewhere.
        "stack": machines.workers * work.stack_bytes / machines.network,
        "statistics": (work.blocks * 8 / 7 / machines.workers + work.levels * FAN_IN)
        * work.statistics_bytes
        / machines.network,
    }
    # Reading from a store and measuring take turns in a thread; other threads fill the gaps.
    workers = max(parts["store"], parts["threads"]) + parts["turns"]
    middle = max(parts["scheduler"], workers)
    total = c.latency + parts["client"] + middle + parts["stack"] + parts["statistics"]
    bound = max(("client", "scheduler", "store", "threads"), key=parts.__getitem__)
    return parts | {"latency": c.latency, "bound": bound, "total": total}


def as_json(found: Constants | Work | Machines) -> dict[str, Any]:
    """Return the fields by name."""
    return asdict(found)
