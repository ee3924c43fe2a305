"""Where a fit stands, on disk after every pass, so that it can go on from there.

A folder, locked as long as a fit holds it, with one file that each pass replaces: NumPy's .npz
without pickles, in which Zip keeps a CRC-32 of every member. It holds what the fit is of, in
JSON, and what the next pass needs, no more: centroids of models that move, centroids and
statistics of those that are done, or the candidates of a seeding.
"""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from daskkm import __version__
from daskkm.errors import CheckpointError
from daskkm.lloyd import Step
from daskkm.reader import Pass
from daskkm.seeding import Pool, Trial

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from daskkm.reader import Seeding

    Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")

_FORMAT = 1
_STATE, _PARTIAL = "state.npz", "state.npz.partial"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, MemoryError)


class Checkpoint:
    """Keeps where one fit stands.

    Parameters
    ----------
    folder : path-like
        Its own, made when it is first written.
    fresh : bool
        Whether what it holds is to be forgotten.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.folder = Path(folder)
        self._fresh = fresh
        self._of: dict[str, Any] = {}

    def said(self) -> dict[str, Any] | None:
        """Return what it is ``of``, and the ``number`` of the last pass, if there is one.

        Raises
        ------
        CheckpointError
            If it is damaged.
        """
        found = None if self._fresh else self._read()
        return None if found is None else self._said(found)

    @contextmanager
    def held(self, of: Mapping[str, Any]) -> Iterator[Pass | None]:
        """Hold it for a fit, which no other may then.

        Parameters
        ----------
        of : mapping of str to Any
            What the result depends on, by name, as JSON has it.

        Yields
        ------
        Pass or None
            The last pass, with what the next one needs of it.

        Raises
        ------
        CheckpointError
            If it is damaged, of another fit, held by another, or cannot be written.
        """
        self._of = json.loads(json.dumps({"daskkm": __version__, **of}))
        with self._locked():
            self._check_ours()
            if self._fresh:
                self._clear()
            try:
                yield self._load()
            finally:
                with suppress(OSError):  # nothing was kept
                    self.folder.rmdir()

    def kept(self, passes: Generator[Pass, None, T]) -> Generator[Pass, None, T]:
        """Make passes, each of which is kept before it is yielded; return their result.

        Parameters
        ----------
        passes : generator

        Yields
        ------
        Pass
        """
        while True:
            try:
                done = next(passes)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            # A sample that was brought together is read again.
            if done.steps or done.seeding is not None:
                self._save(done)
            yield done

    def remove(self) -> None:
        """Remove it: the fit is done, and its result is kept elsewhere."""
        with self._errors_named("removed"):
            self._clear()
            with suppress(FileNotFoundError):
                self.folder.rmdir()

    def _clear(self) -> None:
        for name in (_PARTIAL, _STATE):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder, and hold it; the system lets go of it however this process ends."""
        with self._errors_named("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = (
                    f"{self.folder}: another fit that is running keeps its checkpoint there; "
                    "wait for it, or choose another place (--checkpoint)"
                )
                raise CheckpointError(msg) from error
            except OSError as error:
                from daskkm.groups import NO_LOCKS  # with Zarr, which fits do not need

                if error.errno not in NO_LOCKS:
                    raise
            yield
        finally:
            os.close(lock)

    def _check_ours(self) -> None:
        """Raise CheckpointError if anything else lies there."""
        others = {entry.name for entry in self.folder.iterdir()} - {_STATE, _PARTIAL}
        if others:
            msg = (
                f"{self.folder}: this is no checkpoint, it holds {min(others)}; "
                "choose another place (--checkpoint)"
            )
            raise CheckpointError(msg)

    def _said(self, arrays: Arrays) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(bytes(arrays["said"]))
            found = said["format"]
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        if found != _FORMAT:
            msg = (
                f"{self.folder}: the checkpoint's format is {found}, not {_FORMAT}; go on with "
                "the version of daskkm that wrote it, or start over (--fresh)"
            )
            raise CheckpointError(msg)
        return said

    def _read(self) -> Arrays | None:
        """Return all arrays that it holds, if there is anything."""
        try:
            # Opened here, because NumPy leaves a file open that is no archive.
            with (self.folder / _STATE).open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
        except (FileNotFoundError, NotADirectoryError):  # of the latter, `held` says what is wrong
            return None
        except (*_UNREADABLE, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error

    def _load(self) -> Pass | None:
        """Return the last pass, if it was of this fit."""
        arrays = self._read()
        if arrays is None:
            return None
        said = self._said(arrays)
        self._check_same(said["of"])
        try:
            totals = list(zip(arrays["totals"], arrays["abouts"], strict=True))
            steps = _steps(said["names"], arrays) if "names" in said else {}
            seeding = _seeding(arrays)
            return Pass(said["number"], 0.0, steps, seeding, said["bytes_read"], totals)
        except _UNREADABLE as error:
            raise self._damaged(error) from error

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
                "choose another place (--checkpoint), or start over (--fresh)"
            )
            raise CheckpointError(msg)

    def _save(self, done: Pass) -> None:
        said: dict[str, Any] = {"format": _FORMAT, "of": self._of}
        said |= {"number": done.number, "bytes_read": done.bytes_read}
        if done.steps:
            said["names"] = [list(name) for name in done.steps]
            arrays = _of_steps(list(done.steps.values()))
        else:
            arrays = _of_seeding(done.seeding)
        arrays["totals"] = np.array([total for total, _ in done.totals])
        arrays["abouts"] = np.array([about for _, about in done.totals])
        arrays["said"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
        with self._errors_named("written"):
            partial = self.folder / _PARTIAL
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            partial.replace(self.folder / _STATE)

    def _damaged(self, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the checkpoint is damaged ({error}); start over (--fresh)"
        )

    @contextmanager
    def _errors_named(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = (
                f"{self.folder}: the checkpoint cannot be {what} ({error}); make room, or choose "
                "another place (--checkpoint)"
            )
            raise CheckpointError(msg) from error


_SCALARS = ("iteration", "inertia", "shift", "converged", "last")


def _of_steps(steps: Sequence[Step]) -> Arrays:
    """Return what goes on from these steps as arrays."""
    done, moving = ([step for step in steps if step.last == last] for last in (True, False))
    arrays = {name: np.array([getattr(step, name) for step in steps]) for name in _SCALARS}
    for name, parts in (
        ("updated", [step.updated for step in moving]),
        ("centroids", [step.centroids for step in done]),
        ("statistics", [step.statistics for step in done]),
    ):
        if parts:
            arrays[name] = np.concatenate(parts)
    return arrays


def _steps(names: Sequence[Sequence[int]], arrays: Arrays) -> dict[tuple[int, int], Step]:
    """Return the steps that were made arrays. Of those that move, only what is needed is known."""
    found, starts = {}, {"done": 0, "moving": 0}
    columns = (arrays[name].tolist() for name in _SCALARS)
    for (k, restart), scalars in zip(names, zip(*columns, strict=True), strict=True):
        said = dict(zip(_SCALARS, scalars, strict=True))
        which = "done" if said["last"] else "moving"
        rows = slice(starts[which], starts[which] + k)
        starts[which] += k
        centroids = arrays["centroids" if said["last"] else "updated"][rows]
        statistics = arrays["statistics"][rows] if said["last"] else np.empty((k, 0))
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
