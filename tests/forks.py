"""Commands in forks of a process that has imported all of daskkm, which spares their start-up.

Each can end itself by a signal at the n-th time that it opens, makes, moves or removes something in
its folder: moments that a seed can choose, and at which files are half done.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from daskkm.kernels.distances import distances_to_all, find_nearest_two, squared_distances

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 60
# The dtypes whose kernels take longest to compile come first.
_DTYPES = ("uint8", "uint16", "int8", "int16", "float32", "float64")
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


class Done(NamedTuple):
    """How a command ended."""

    status: int  # negative: killed by that signal
    events: int  # number of those in its folder, if it was not killed
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """Lines on standard error."""
        return self.stderr.splitlines()


class Forks:
    """The process that forks commands."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *args: str | Path, cwd: Path, **order: Any) -> Done:
        """Run ``daskkm ARGS`` in a folder.

        At event ``at`` the command gets the signal ``number``, or with ``full`` the disk is full
        from then on. ``sample`` is the size of a sample in tiles, ``chunk`` that of a chunk in
        bytes, ``lease`` the seconds of a lock on an object store,
        ``most`` the largest size of a file, ``user`` the user id of the command, ``env``
        additions to the environment.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order |= {"args": list(map(str, args)), "cwd": str(cwd)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the process that forks commands."""
    command = [sys.executable, "-m", "tests.forks"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def compile_all_kernels() -> None:
    """Compile the kernels of each dtype in two forks, or read the kernels from the cache."""
    # A fork has imported numba. With a warm cache, a new process would import for longer than read.
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        list(pool.map(compile_kernels, _DTYPES))


def compile_kernels(dtype: str = "uint8") -> None:
    """Compile the kernels for tiles of a dtype, or read the kernels from the cache."""
    import dask

    import daskkm
    from daskkm.kernels import bounds

    rng = np.random.default_rng(0)
    tiles, offsets = rng.integers(0, 100, (99, 16)).astype(dtype), np.array([0, 1, 3])
    with dask.config.set(scheduler="sync"):
        models = daskkm.fit_sweep(tiles, [2, 3], n_init=2, random_state=0).models
        for few_or_many in (tiles, np.tile(tiles, (99, 1))):  # figures have a way for each
            daskkm.assess(few_or_many, models)
    stack = np.concatenate([tiles[:1], models[2].cluster_centers_])
    if tiles.dtype.kind in "iu":  # else there are no bounds
        bounds.CachedBlock.from_block(tiles).statistics(stack, offsets, [0, 1])
    for centroids in (tiles[:3].astype(float), stack):
        distances = distances_to_all(tiles, centroids)
        labels, _, _ = find_nearest_two(distances)
        squared_distances(tiles, centroids, labels)


def _serve() -> None:
    for name in (
        *("cli.main", "images.ingest", "kmeans.assessment", "kmeans.checkpoint"),
        *(
            "kmeans.estimator",
            "kmeans.sweep",
            "report.closing_table",
            "report.contact_sheet",
            "storage.verification",
        ),
    ):
        import_module(f"daskkm.{name}")
    for name in ("distributed.dashboard.scheduler", "numcodecs", "rich.filesize"):
        import_module(name)
    from PIL import Image

    compile_kernels()
    Image.init()  # other users may not read modules that are imported later
    for line in sys.stdin:
        order = json.loads(line)
        pipes = [os.pipe() for _ in range(3)]
        child = os.fork()
        if not child:
            for reading, _ in pipes:
                os.close(reading)
            _child(order, *(writing for _, writing in pipes))
        for _, writing in pipes:
            os.close(writing)
        events, *text = _read([reading for reading, _ in pipes])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps([status, int(events or 0), *text]) + "\n")
        sys.stdout.flush()


def _read(pipes: list[int]) -> list[str]:
    """Return the text of each pipe, read until all are closed; close them here too."""
    text = dict.fromkeys(pipes, b"")
    open_pipes = set(pipes)
    while open_pipes:
        for pipe in select.select(open_pipes, [], [])[0]:
            data = os.read(pipe, 1 << 16)
            text[pipe] += data
            if not data:
                open_pipes.remove(pipe)
                os.close(pipe)
    return [data.decode() for data in text.values()]


def _child(order: dict[str, Any], into: int, output: int, errors: int) -> NoReturn:
    events = 0
    folder = order["cwd"]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal events
        if event not in _EVENTS or isinstance(args[0], int):
            return
        if os.path.abspath(os.fsdecode(args[0])).startswith(folder):  # noqa: PTH100
            events += 1
            if order.get("full") and events >= order["at"] and _needs_space(event, args):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if events == order.get("at") and "number" in order:
                os.kill(os.getpid(), order["number"])

    status: Any = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.close(output)
        os.close(errors)
        os.chdir(folder)
        os.environ.update(order.get("env", {}))
        signal.alarm(DEADLINE)  # which kills
        if "most" in order:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["most"], order["most"]))
        if "user" in order:
            os.setuid(order["user"])
        from daskkm.cli.interrupts import unwind_on_signals
        from daskkm.cli.main import run

        _set_sizes(order)
        sys.addaudithook(hook)
        with unwind_on_signals():
            run(order["args"], "python -m daskkm")
    except SystemExit as end:
        status = end.code
    finally:
        os.write(into, str(events).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _set_sizes(order: dict[str, Any]) -> None:
    from daskkm.block_sizes import sizes

    if "sample" in order:
        sizes.sample_tiles = order["sample"]
    if "chunk" in order:
        sizes.chunk_bytes = sizes.remote_chunk_bytes = order["chunk"]
        sizes.table_rows = 8
    if "lease" in order:
        from daskkm.storage import locks

        locks._LEASE_SECONDS = order["lease"]


def _needs_space(event: str, args: tuple[Any, ...]) -> bool:
    """Return True if an event creates a file or folder, or renames one."""
    if event == "open":
        return bool(args[2] & os.O_CREAT)
    return event in {"os.mkdir", "os.rename"}


if __name__ == "__main__":
    _serve()
