"""Checkpoint of a fit: the state after the last pass, as arrays in a file."""

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
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from daskkm.kmeans.pass_record import Seeding
    from daskkm.storage.locations import LocationLike

    Arrays = dict[str, NDArray[Any]]

_FORMAT = 4


@contextmanager
def open_checkpoint(folder: LocationLike, *, fresh: bool = False) -> Iterator[Checkpoint]:
    """Open and lock a checkpoint folder for one fit; remove its state if `fresh`.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, locked by another fit, or cannot be read or written.
    """
    with open_checkpoint_file(folder, fresh=fresh) as file:
        yield Checkpoint(file)


class Checkpoint:
    """State of one fit, in a locked folder.

    Attributes
    ----------
    identity : dict of str to Any, or None
        Identity of the saved fit: tiles, options and version of daskkm. None without a saved state.
    number : int
        Number of the last pass of the saved fit; 0 without a saved state.
    """

    def __init__(self, file: CheckpointFile) -> None:
        self._file = file
        self._arrays = file.arrays or {}
        self._attributes: dict[str, Any] = {}
        if self._arrays:
            self._attributes = json.loads(bytes(self._arrays["attributes"]))
            if (format_ := self._attributes["format"]) != _FORMAT:
                msg = (
                    f"{file.folder}: checkpoint of format {format_}, not {_FORMAT}. Resume with "
                    "the version of daskkm that wrote the checkpoint, or start over"
                )
                raise CheckpointError(msg, options=("fresh=True",))
        self.identity: dict[str, Any] | None = self._attributes.get("identity")
        self.number: int = self._attributes.get("number", 0)

    def begin(self, identity: Mapping[str, Any]) -> State | None:
        """Begin or resume a fit of this identity; return the saved state, if any.

        Raises
        ------
        CheckpointError
            If the saved state is of another fit.
        """
        self._identity = json.loads(json.dumps({"daskkm": __version__, **identity}))
        if self.identity is None:
            return None
        self._check_identity(self.identity)
        arrays = self._arrays
        references = zip(arrays["references"], arrays["reference_points"], strict=True)
        return State(
            self.number,
            self._attributes["bytes_read"],
            _steps_of_arrays(arrays),
            _seeding_of_arrays(arrays),
            [(Statistics(table), point) for table, point in references],
            arrays.get("total"),
        )

    def save(self, state: State) -> None:
        """Write the state after a pass, in place of the older state."""
        attributes = {
            "format": _FORMAT,
            "identity": self._identity,
            "number": state.number,
            "bytes_read": state.bytes_read,
        }
        arrays = _arrays_of_steps(state.steps) if state.steps else _arrays_of_seeding(state.seeding)
        arrays["references"] = np.array([statistics.table for statistics, _ in state.references])
        arrays["reference_points"] = np.array([point for _, point in state.references])
        if state.total is not None:
            arrays["total"] = state.total
        arrays["attributes"] = np.frombuffer(json.dumps(attributes).encode(), np.uint8)
        self._file.save(arrays)

    def clear(self) -> None:
        """Remove the state of a finished fit."""
        self._file.clear()

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        """Raise CheckpointError, with the differences, if the saved state is of another fit."""
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
    """Return the state of models that later passes or the result need, as arrays."""
    done = best_restarts({model: step for model, step in steps.items() if step.last})
    # Of the restarts of one k that are done, only the best can be the result.
    needed = {
        (k, restart): step
        for (k, restart), step in steps.items()
        if not step.last or done[k][0] == restart
    }
    arrays = {
        name: np.array([getattr(step, name) for step in needed.values()]) for name in _SCALARS
    }
    arrays["models"] = np.array(list(needed))
    arrays["centroids"] = np.concatenate(
        [step.centroids if step.last else step.updated for step in needed.values()]
    )
    tables = [step.statistics.table for step in needed.values() if step.last]
    arrays["statistics"] = np.concatenate(tables) if tables else np.empty((0, 0))
    return arrays


def _steps_of_arrays(arrays: Arrays) -> dict[tuple[int, int], Step]:
    """Return the steps of `_arrays_of_steps`, if any."""
    if "models" not in arrays:
        return {}
    steps = {}
    centroids, tables = arrays["centroids"], arrays["statistics"]
    scalars = zip(*(arrays[name].tolist() for name in _SCALARS), strict=True)
    for (k, restart), values in zip(arrays["models"].tolist(), scalars, strict=True):
        named = dict(zip(_SCALARS, values, strict=True))
        n_rows = k if named["last"] else 0
        own, centroids = centroids[:k], centroids[k:]
        table, tables = tables[:n_rows], tables[n_rows:]
        steps[k, restart] = Step(centroids=own, statistics=Statistics(table), updated=own, **named)
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
    """Return the state of `_arrays_of_seeding`, or None."""
    if "candidate_tiles" in arrays:
        rounds = int(arrays["rounds"])
        return Candidates(arrays["candidate_tiles"], rounds, arrays.get("candidate_weights"))
    if "chosen" not in arrays:
        return None
    candidates = np.split(arrays["candidates"], np.cumsum(arrays["counts"])[:-1])
    return [Trial(*each) for each in zip(arrays["chosen"], candidates, strict=True)]
