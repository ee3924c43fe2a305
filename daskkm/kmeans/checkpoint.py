"""Where a fit stands, on disk after every pass, so that it can go on from there.

A folder, locked as long as a fit holds it, with one file that each pass replaces: a SHA-256, and
then that of which it is, NumPy's .npz without pickles. It holds what the fit is of, in JSON, and
what the next pass needs, no more: centroids of models that move, centroids and statistics of the
best of those that are done, or the candidates of a seeding.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from daskkm import __version__
from daskkm.errors import CheckpointError, translate_errors
from daskkm.files import atomic_writer, partial_path
from daskkm.kmeans.lloyd import Step, best
from daskkm.kmeans.seeding import Pool, Trial
from daskkm.passes.reader import Pass
from daskkm.storage import locations, locks

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from daskkm.passes.reader import Seeding

    Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")

_FORMAT = 2
_STATE = "state"
_DIGEST_BYTES = 32
# Parameters by which errors can be resolved.
_ANOTHER, _START_OVER = ("checkpoint",), ("fresh=True",)


class Checkpoint:
    """Keeps where one fit stands. Get one from `held`.

    Attributes
    ----------
    folder : Path
    said : dict of str to Any, or None
        What the state that was found is ``of``, and the ``number`` of its pass, if there is one.
    """

    def __init__(self, folder: Path, state: Arrays | None) -> None:
        self.folder = folder
        self.said: dict[str, Any] | None = None
        self._state = state
        self._of: dict[str, Any] = {}
        if state is not None:
            self.said = json.loads(bytes(state["said"]))
            if (found := self.said["format"]) != _FORMAT:
                msg = (
                    f"{folder}: the checkpoint's format is {found}, not {_FORMAT}; go on with "
                    "the version of daskkm that wrote it, or start over"
                )
                raise CheckpointError(msg, options=_START_OVER)

    def begin(self, of: Mapping[str, Any]) -> Pass | None:
        """Begin a fit, or go on with it.

        Parameters
        ----------
        of : mapping of str to Any
            What the result depends on, by name, as JSON has it.

        Returns
        -------
        Pass or None
            The last pass, with what the next one needs of it.

        Raises
        ------
        CheckpointError
            If the state that was found is of another fit.
        """
        self._of = json.loads(json.dumps({"daskkm": __version__, **of}))
        said, state = self.said, self._state
        if said is None or state is None:
            return None
        self._check_same(said["of"])
        totals = list(zip(state["totals"], state["abouts"], strict=True))
        steps = _steps(said["names"], state) if "names" in said else {}
        read = said["bytes_read"]
        return Pass(said["number"], 0.0, steps, _seeding(state), read, totals, state.get("total"))

    def kept(self, passes: Generator[Pass, None, T]) -> Generator[Pass, None, T]:
        """Make passes, each of which is kept before it is yielded; return their result.

        Parameters
        ----------
        passes : generator

        Yields
        ------
        Pass

        Raises
        ------
        CheckpointError
            If one cannot be written.
        """
        while True:
            try:
                done = next(passes)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            # A sample is brought together, and fitted to, again.
            if done.stage == "pass":
                self._save(done)
            yield done

    def clear(self) -> None:
        """Forget it: the fit is done, and its result is kept elsewhere."""
        try:
            _clear(self.folder)
        except OSError as error:  # the result is worth more
            msg = f"{self.folder}: the checkpoint cannot be removed ({error}); remove it"
            warnings.warn(msg, stacklevel=2)

    def _check_same(self, of: Mapping[str, Any]) -> None:
        names = [name for name in {**of, **self._of} if of.get(name) != self._of.get(name)]
        if names:
            others = " and ".join(
                f"{name} {of.get(name)}, not {self._of.get(name)}"
                if name not in ("X", "sample_weight")
                else f"another {name}"
                for name in names
            )
            msg = (
                f"{self.folder}: the checkpoint is of a fit with {others}; go on with the same, "
                "choose another folder, or start over"
            )
            raise CheckpointError(msg, options=(*_ANOTHER, *_START_OVER))

    def _save(self, done: Pass) -> None:
        said: dict[str, Any] = {"format": _FORMAT, "of": self._of}
        said |= {"number": done.number, "bytes_read": done.bytes_read}
        if done.steps:
            said["names"] = [list(name) for name in done.steps]
            arrays = _of_steps(done.steps)
        else:
            arrays = _of_seeding(done.seeding)
        arrays["totals"] = np.array([total for total, _ in done.totals])
        arrays["abouts"] = np.array([about for _, about in done.totals])
        if done.total is not None:
            arrays["total"] = done.total
        arrays["said"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        data = packed.getbuffer()
        with _errors(self.folder, "written"), atomic_writer(self.folder / _STATE) as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)


@contextmanager
def held(folder: str | os.PathLike[str], *, fresh: bool = False) -> Iterator[Checkpoint]:
    """Hold a checkpoint for a fit, which no other may then.

    Parameters
    ----------
    folder : path-like
        Its own: made if it is not there, with those that it is in, and removed at the end if
        nothing is kept.
    fresh : bool, default False
        Whether what it holds is to be forgotten.

    Yields
    ------
    Checkpoint

    Raises
    ------
    CheckpointError
        If it is damaged, held by another, or cannot be read or written.
    """
    folder = locations.local(folder, partial(CheckpointError, options=_ANOTHER))
    missing: list[Path] = []

    msg = (
        f"{folder}: another fit that is running keeps its checkpoint there; "
        "wait for it, or choose another folder"
    )
    busy = CheckpointError(msg, options=_ANOTHER)
    with ExitStack() as stack:
        with _errors(folder, "written"):
            missing += (path for path in folder.absolute().parents if not path.exists())
            stack.enter_context(locks.lock_folder(folder, busy))
            _check_ours(folder)
            if fresh:
                _clear(folder)
        try:
            with _errors(folder, "read"):
                state = _read(folder)
            yield Checkpoint(folder, state)
        finally:
            with suppress(OSError):  # something is kept
                for path in (folder, *missing):
                    path.rmdir()


def _check_ours(folder: Path) -> None:
    """Raise CheckpointError if anything else lies there, but for what systems leave anywhere."""
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if others := names - {_STATE}:
        msg = f"{folder}: this is no checkpoint, it holds {min(others)}; choose another folder"
        raise CheckpointError(msg, options=_ANOTHER)


def _clear(folder: Path) -> None:
    for path in (partial_path(folder / _STATE), folder / _STATE):
        path.unlink(missing_ok=True)


def _read(folder: Path) -> Arrays | None:
    """Return all arrays that are kept, if there are any."""
    file = folder / _STATE
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        msg = f"{folder}: this is no checkpoint, its {_STATE} is no file; choose another folder"
        raise CheckpointError(msg, options=_ANOTHER)
    try:
        return _unpacked(folder, memoryview(file.read_bytes()))
    except MemoryError as error:
        msg = (
            f"{folder}: the checkpoint is damaged, or of a larger machine (it takes more memory "
            "than there is); start over"
        )
        raise CheckpointError(msg, options=_START_OVER) from error


def _unpacked(folder: Path, data: memoryview) -> Arrays:
    """Return the arrays that a file holds."""
    packed = data[_DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != data[:_DIGEST_BYTES]:
        msg = (
            f"{folder}: the checkpoint is damaged (its checksum is not that of its bytes); "
            "start over"
        )
        raise CheckpointError(msg, options=_START_OVER)
    with np.load(io.BytesIO(packed)) as arrays:
        return dict(arrays)


def _errors(folder: Path, action: str) -> AbstractContextManager[None]:
    """Turn an OSError into a CheckpointError: the checkpoint cannot be read or written, and why."""
    problem, hint = f"the checkpoint cannot be {action}", "Make room, or choose another folder"
    return translate_errors(CheckpointError, folder, problem, hint, options=_ANOTHER)


_SCALARS = ("iteration", "inertia", "shift", "converged", "last")


def _of_steps(steps: Mapping[tuple[int, int], Step]) -> Arrays:
    """Return what goes on from these steps as arrays."""
    moving = [step for step in steps.values() if not step.last]
    # Restarts that are done and were not the best so far will not be.
    done = best({name: step for name, step in steps.items() if step.last})
    names = {(k, restart) for k, (restart, _) in done.items()}
    arrays = {name: np.array([getattr(step, name) for step in steps.values()]) for name in _SCALARS}
    arrays["best"] = np.array([name in names for name in steps])
    for name, parts in (
        ("updated", [step.updated for step in moving]),
        ("centroids", [step.centroids for name, step in steps.items() if name in names]),
        ("statistics", [step.statistics for name, step in steps.items() if name in names]),
    ):
        if parts:
            arrays[name] = np.concatenate(parts)
    return arrays


def _steps(names: Sequence[Sequence[int]], arrays: Arrays) -> dict[tuple[int, int], Step]:
    """Return the steps that were made arrays. Of each, only what is needed is known."""
    found = {}
    starts = {"updated": 0, "centroids": 0}
    columns = (arrays[name].tolist() for name in _SCALARS)
    for (k, restart), scalars, kept in zip(
        names, zip(*columns, strict=True), arrays["best"], strict=True
    ):
        said = dict(zip(_SCALARS, scalars, strict=True))
        centroids = statistics = np.empty((0, 0))
        if kept or not said["last"]:
            which = "centroids" if kept else "updated"
            rows = slice(starts[which], starts[which] + k)
            starts[which] += k
            centroids = arrays[which][rows]
            statistics = arrays["statistics"][rows] if kept else statistics
        found[k, restart] = Step(
            centroids=centroids, statistics=statistics, updated=centroids, **said
        )
    return found


def _of_seeding(seeding: Seeding | None) -> Arrays:
    """Return what a seeding goes on from as arrays."""
    if isinstance(seeding, Pool):
        arrays = {"pool": seeding.tiles, "rounds": np.array(seeding.rounds)}
        return arrays if seeding.weights is None else {**arrays, "weights": seeding.weights}
    trials = seeding or ()
    return {
        "chosen": np.array([trial.chosen for trial in trials]),
        "candidates": np.concatenate([trial.candidates for trial in trials]),
        "counts": np.array([len(trial.candidates) for trial in trials]),
    }


def _seeding(arrays: Arrays) -> Seeding | None:
    """Return what was made arrays, if it was."""
    if "pool" in arrays:
        return Pool(arrays["pool"], int(arrays["rounds"]), arrays.get("weights"))
    if "chosen" not in arrays:
        return None
    candidates = np.split(arrays["candidates"], np.cumsum(arrays["counts"])[:-1])
    return [Trial(*each) for each in zip(arrays["chosen"], candidates, strict=True)]
