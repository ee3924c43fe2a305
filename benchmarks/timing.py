"""What the sides of a comparison did, and how long it took: interleaved, never alone."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


class Outcome(NamedTuple):
    """What a piece of work came to."""

    centroids: Sequence[NDArray[Any]] = ()  # of every model, to be judged
    said: Mapping[str, Any] = {}  # iterations, passes and the like


if TYPE_CHECKING:
    Work = Callable[[], Outcome]


@dataclass
class Side:
    """One side of a comparison."""

    samples: list[float] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    inertias: list[float] = field(default_factory=list)  # of its models, by one judge

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)


@dataclass
class Case:
    """Several sides beside one another, on the same data, in one run."""

    what: str
    where: str  # scheduler and threads
    reference: str  # the side that ratios are relative to
    sides: dict[str, Side]
    sizes: dict[str, Any]
    unit: str = "s"
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str) -> float:
        """Return how many times the reference's seconds (or bytes) a side took."""
        own, other = self.sides[name].samples, self.sides[self.reference].samples
        if len(own) != len(other):  # one was too slow to be repeated
            return statistics.median(own) / statistics.median(other)
        return statistics.median(a / b for a, b in zip(own, other, strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return all there is to know."""
        sides = {
            name: {
                "samples": side.samples,
                "median": side.median,
                "ratio": self.ratio(name),
                "inertias": side.inertias,
                **side.outcome.said,
            }
            for name, side in self.sides.items()
        }
        said = {"what": self.what, "where": self.where, "unit": self.unit, "notes": self.notes}
        return said | {"sizes": self.sizes, "reference": self.reference, "sides": sides}


class Skipped(Exception):  # noqa: N818 (not an error)
    """A row that cannot be run here; the message says why."""


def interleaved(
    sides: Mapping[str, Work], rounds: int, *, warm: bool = True, once: Collection[str] = ()
) -> dict[str, Side]:
    """Time all sides round by round, in turn forwards and backwards.

    Parameters
    ----------
    sides : mapping of str to callable
    rounds : int
    warm : bool
        Whether each is run once before, untimed: it compiles, imports and fills caches.
    once : collection of str
        Sides too slow to be repeated, or run before.

    Returns
    -------
    dict of str to Side
    """
    found = {name: Side() for name in sides}
    for name, work in sides.items() if warm else ():
        if name not in once:
            work()
    for turn in range(rounds):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            if turn and name in once:
                continue
            started = time.perf_counter()
            outcome = sides[name]()
            found[name].samples.append(time.perf_counter() - started)
            found[name].outcome = outcome
    return found


def judge(found: Mapping[str, Side], blocks: Iterable[NDArray[np.uint8]]) -> None:
    """Measure what every side's centroids leave of the tiles, by plain float64 and BLAS.

    All sides have the one judge, which is none of them: so a fast wrong answer shows.
    """
    models = [(side, np.asarray(c, float)) for side in found.values() for c in side.outcome[0]]
    for side in found.values():
        side.inertias = []
    sums = np.zeros(len(models))
    for block in blocks if models else ():
        for first in range(0, len(block), 4096):
            rows = block[first : first + 4096].astype(float)
            norms = np.einsum("ij,ij->i", rows, rows)
            for i, (_, centroids) in enumerate(models):
                scores = np.square(centroids).sum(axis=1) - 2 * (rows @ centroids.T)
                sums[i] += (norms + scores.min(axis=1)).sum()
    for (side, _), left in zip(models, sums, strict=True):
        side.inertias.append(float(left))
