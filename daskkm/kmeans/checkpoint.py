"""Checkpoint of a fit: its state after the last pass, as arrays in a file."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from daskkm import __version__
from daskkm.errors import CheckpointError
from daskkm.kernels.statistics import Statistics
from daskkm.kmeans.kmeans_parallel import Candidates
from daskkm.kmeans.lloyd import Step, best_restarts
from daskkm.kmeans.pass_record import State
from daskkm.passes.draws import Trial
from daskkm.storage.checkpoints import CheckpointFile, open_checkpoint_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from daskkm.kmeans.pass_record import Seeding

    Arrays = dict[str, NDArray[Any]]

_FORMAT = 3


@contextmanager
def open_checkpoint(folder: str | os.PathLike[str], *, fresh: bool = False) -> Iterator[Checkpoint]:
    """Open and lock a checkpoint folder for one fit; forget its state if `fresh`.

    Raises
    ------
    CheckpointError
        If it is damaged, locked by another fit, or cannot be read or written.
    """
    with open_checkpoint_file(folder, fresh=fresh) as file:
        yield Checkpoint(file)


class Checkpoint:
    """State of one fit, in a locked folder.

    Attributes
    ----------
    identity : dict of str to Any, or None
        Identity of the fit of this state: tiles, options and version of daskkm. None if there is no
        state.
    number : int
        Number of the pass of the state that was found; 0 if there is none.
    """

    def __init__(self, file: CheckpointFile) -> None:
        self._file = file
        self._arrays = file.arrays
        self._identity: dict[str, Any] = {}
        self.identity: dict[str, Any] | None = None
        self.number = 0
        if self._arrays is not None:
            self._attributes = json.loads(bytes(self._arrays["attributes"]))
            if (format_ := self._attributes["format"]) != _FORMAT:
                msg = (
                    f"{file.folder}: checkpoint of format {format_}, not {_FORMAT}. Resume with "
                    "the version of daskkm that wrote it, or start over"
                )
                raise CheckpointError(msg, options=("fresh=True",))
            self.identity = self._attributes["identity"]
            self.number = self._attributes["number"]

    def begin(self, identity: Mapping[str, Any]) -> State | None:
        """Begin a fit of this identity, or resume it: return the state that was found.

        Raises
        ------
        CheckpointError
            If the state that was found is of another fit.
        """
        self._identity = json.loads(json.dumps({"daskkm": __version__, **identity}))
        arrays = self._arrays
        if arrays is None or self.identity is None:
            return None
        self._check_identity(self.identity)
        attributes = self._attributes
        references = zip(arrays["references"], arrays["reference_points"], strict=True)
        return State(
            self.number,
            attributes["bytes_read"],
            _steps_of_arrays(attributes["names"], arrays) if "names" in attributes else {},
            _seeding_of_arrays(arrays),
            [(Statistics(table), point) for table, point in references],
            arrays.get("total"),
        )

    def save(self, state: State) -> None:
        """Write the state after a pass, in place of the state before."""
        attributes: dict[str, Any] = {"format": _FORMAT, "identity": self._identity}
        attributes |= {"number": state.number, "bytes_read": state.bytes_read}
        if state.steps:
            attributes["names"] = [list(name) for name in state.steps]
            arrays = _arrays_of_steps(state.steps)
        else:
            arrays = _arrays_of_seeding(state.seeding)
        arrays["references"] = np.array([statistics.table for statistics, _ in state.references])
        arrays["reference_points"] = np.array([point for _, point in state.references])
        if state.total is not None:
            arrays["total"] = state.total
        arrays["attributes"] = np.frombuffer(json.dumps(attributes).encode(), np.uint8)
        self._file.save(arrays)

    def clear(self) -> None:
        """Remove the state: the fit is done."""
        self._file.clear()

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        """Raise CheckpointError, with the differences, if the state is of another fit."""
        own = self._identity
        names = [name for name in {**found, **own} if found.get(name) != own.get(name)]
        if names:
            differences = " and ".join(
                f"{name} {found.get(name)}, not {own.get(name)}"
                if name not in ("X", "sample_weight")
                else f"another {name}"
                for name in names
            )
            msg = (
                f"{self._file.folder}: the checkpoint is of a fit with {differences}. Resume with "
                "the same, choose another folder, or start over"
            )
            raise CheckpointError(msg, options=("checkpoint", "fresh=True"))


_SCALARS = ("iteration", "inertia", "shift", "converged", "last")


def _arrays_of_steps(steps: Mapping[tuple[int, int], Step]) -> Arrays:
    """Return the part of these steps that later passes need, as arrays."""
    moving = [step for step in steps.values() if not step.last]
    # A restart that is done and not the best so far will never be the best.
    done = best_restarts({name: step for name, step in steps.items() if step.last})
    best = {(k, restart) for k, (restart, _) in done.items()}
    arrays = {name: np.array([getattr(step, name) for step in steps.values()]) for name in _SCALARS}
    arrays["best"] = np.array([name in best for name in steps])
    of_best = [step for name, step in steps.items() if name in best]
    for name, parts in (
        ("updated", [step.updated for step in moving]),
        ("centroids", [step.centroids for step in of_best]),
        ("statistics", [step.statistics.table for step in of_best]),
    ):
        if parts:
            arrays[name] = np.concatenate(parts)
    return arrays


def _steps_of_arrays(names: Sequence[Sequence[int]], arrays: Arrays) -> dict[tuple[int, int], Step]:
    """Return the steps of `_arrays_of_steps`."""
    steps = {}
    rows = {"updated": 0, "centroids": 0}
    columns = (arrays[name].tolist() for name in _SCALARS)
    for (k, restart), values, best in zip(
        names, zip(*columns, strict=True), arrays["best"], strict=True
    ):
        scalars = dict(zip(_SCALARS, values, strict=True))
        centroids = table = np.empty((0, 0))
        if best or not scalars["last"]:
            source = "centroids" if best else "updated"
            own = slice(rows[source], rows[source] + k)
            rows[source] += k
            centroids = arrays[source][own]
            table = arrays["statistics"][own] if best else table
        steps[k, restart] = Step(
            centroids=centroids, statistics=Statistics(table), updated=centroids, **scalars
        )
    return steps


def _arrays_of_seeding(seeding: Seeding | None) -> Arrays:
    """Return the state of a seeding in passes as arrays."""
    if isinstance(seeding, Candidates):
        arrays = {"candidate_tiles": seeding.tiles, "rounds": np.array(seeding.rounds)}
        if seeding.weights is not None:
            arrays["candidate_weights"] = seeding.weights
        return arrays
    trials = seeding or ()
    return {
        "chosen": np.array([trial.centroids for trial in trials]),
        "candidates": np.concatenate([trial.candidates for trial in trials]),
        "counts": np.array([len(trial.candidates) for trial in trials]),
    }


def _seeding_of_arrays(arrays: Arrays) -> Seeding | None:
    """Return the state of `_arrays_of_seeding`, if there is one."""
    if "candidate_tiles" in arrays:
        rounds = int(arrays["rounds"])
        return Candidates(arrays["candidate_tiles"], rounds, arrays.get("candidate_weights"))
    if "chosen" not in arrays:
        return None
    candidates = np.split(arrays["candidates"], np.cumsum(arrays["counts"])[:-1])
    return [Trial(*each) for each in zip(arrays["chosen"], candidates, strict=True)]
