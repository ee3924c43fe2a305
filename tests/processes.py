"""Commands, schedulers and workers as processes of their own, as users start them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from daskkm import Pass

DEADLINE = 60
ROOT = Path(__file__).parent.parent
# Flags of a sweep that goes on until it is stopped.
ENDLESS = (
    *("--k", "3-12", "--n-init", "30", "--init", "random"),
    *("--tol", "0", "--max-iter", "10000"),
)
# Settings of dask for schedulers and workers of tests: no profiles, and few measurements of idle
# event loops, which would take 5 % of a core for each process.
SETTINGS: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
}
_ENVIRONMENT = {f"DASK_{key.upper().replace('.', '__')}": str(SETTINGS[key]) for key in SETTINGS}
# Settings of a LocalCluster.
QUIET: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true, but not for ever; return its value."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, "condition was never true"
        time.sleep(0.01)
    return value


def once_iterations_began(action: Callable[[], object]) -> Callable[[Pass], None]:
    """Return an `on_pass` that acts once: after the first pass that moves models."""
    acted: list[Pass] = []

    def on_pass(done: Pass) -> None:
        if done.steps and not acted:
            acted.append(done)
            action()

    return on_pass


class Process:
    """A process of Python whose output can be awaited; it ends with the context."""

    def __init__(
        self, *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **_ENVIRONMENT, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self.pid = self._popen.pid
        self.lines: list[str] = []
        self.output: list[str] = []
        self._queue: Queue[str | None] = Queue()
        streams = (self._popen.stderr, self.lines), (self._popen.stdout, self.output)
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in streams]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))
                self._queue.put(lines[-1])
        self._queue.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in the lines that the process prints from now on."""
        while (line := self._queue.get(timeout=DEADLINE)) is not None:
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} was not printed: {self.lines} {self.output}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started, as a terminal does."""
        os.killpg(self.pid, number)

    def poll(self) -> int | None:
        """Return the status of the process, or None while it runs."""
        return self._popen.poll()

    def status(self) -> int:
        """Wait for the end of the process alone: others may keep its streams open."""
        return self._popen.wait(DEADLINE)

    def wait(self) -> int:
        code = self.status()
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.terminate()
        self.wait()


class Remote(NamedTuple):
    address: str
    file: Path
    scheduler: Process
    workers: list[Process]


def start_worker(
    address: str,
    folder: Path,
    *flags: str | Path,
    python: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a worker as users do, with one thread; it can import functions of tests."""
    command = (*python, "-m", "dask", "worker", address, "--no-dashboard", "--nthreads", "1")
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return Process(*command, *flags, cwd=folder, env={"PYTHONPATH": path, **(env or {})})


@contextmanager
def remote(
    folder: Path,
    workers: int,
    *flags: str | Path,
    scheduler_flags: tuple[str | Path, ...] = (),
    worker_flags: tuple[str | Path, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Remote]:
    """Start a scheduler and workers as users do: as processes of their own.

    The flags are for both, the environment is the scheduler's.
    """
    file = folder / "scheduler.json"
    dask_cli = ("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0")
    with ExitStack() as stack:
        main = stack.enter_context(
            Process(
                *(*dask_cli, "--no-dashboard", "--scheduler-file", file, *flags, *scheduler_flags),
                cwd=folder,
                env=env,
            )
        )
        address = main.wait_for(r"Scheduler at:\s+(t\w+://127\.0\.0\.1:\d+)")[1]
        started = [
            stack.enter_context(start_worker(address, folder, *flags, *worker_flags))
            for _ in range(workers)
        ]
        for worker in started:
            worker.wait_for("Registered to:")
        yield Remote(address, file, main, started)
