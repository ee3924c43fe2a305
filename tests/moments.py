"""A command that is stopped at the n-th change it makes in a folder, many times a second.

``python -m tests.moments FOLDER`` imports what the command needs once, and runs each order that it
is given, a line of JSON, in a fork of itself. A change is that a file is opened to be written,
renamed or removed, or a folder made or removed; something happens just before it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}


class Server:
    """The other end: what a test has of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *args: str | Path, at: int = -1, do: str = "") -> dict[str, Any]:
        """Run ``python -m ARGS``; do what is said just before its change number `at`.

        Parameters
        ----------
        args : str or Path
        at : int
        do : {"kill", "terminate", "full", "hold"} or a number
            Send it that signal; have no space left from then on; return, and wait for `release`;
            or, from the start, a limit in bytes to its files.

        Returns
        -------
        dict
            ``status``, as in subprocess, ``changes``, their number, ``out`` and ``err``.
        """
        return self._ask({"args": list(map(str, args)), "at": at, "do": do})

    def release(self) -> dict[str, Any]:
        """Let the one that is held go on to its end."""
        return self._ask({})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def moments(folder: Path) -> Iterator[Server]:
    """Start the process that runs commands for the tests of a module."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.moments", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def _serve(folder: str) -> None:
    import daskkm.cli
    import daskkm.store

    # Many chunks of few tiles, as of many tiles.
    daskkm.store._CHUNK_BYTES = 7 * 64
    daskkm.store._PROVENANCE_CHUNK = 8
    held, pid = {}, 0
    for line in sys.stdin:
        order = json.loads(line)
        if order:
            for name in ("changes", "out", "err"):
                Path(folder, f".{name}").write_text("")
            ends = {name: os.pipe() for name in ("held", "go")}
            pid = os.fork()
            if not pid:
                os.close(ends["go"][1])
                _run(folder, order, ends["held"][1], ends["go"][0])
            for end in (ends["held"][1], ends["go"][0]):
                os.close(end)
            held = {"held": ends["held"][0], "go": ends["go"][1]}
            if os.read(held["held"], 1):  # else it has ended
                _answer({})
                continue
        os.close(held["go"])
        os.close(held["held"])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = {name: Path(folder, f".{name}").read_text() for name in ("changes", "out", "err")}
        _answer({"status": status, **said, "changes": len(said["changes"])})


def _answer(said: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def _run(folder: str, order: dict[str, Any], held: int, go: int) -> None:
    """Be the command."""
    streams = [os.open(Path(folder, f".{name}"), os.O_WRONLY) for name in ("changes", "out", "err")]
    counter = streams[0]
    os.dup2(streams[1], 1)
    os.dup2(streams[2], 2)
    seen = 0

    def change(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _CHANGES or (event == "open" and not args[2] & _WRITES):
            return
        # By the name in a folder that is open already, as where a whole tree is removed.
        relative = event in {"os.remove", "os.rmdir"} and args[-1] != -1
        if not relative and not str(args[0]).startswith(f"{folder}/"):
            return
        os.write(counter, b".")
        seen += 1
        if seen > order["at"] >= 0 and order["do"] == "full" and event in {"open", "os.mkdir"}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if seen != order["at"] + 1:
            return
        if order["do"] == "hold":
            os.write(held, b".")
            os.read(go, 1)
        elif order["do"] in {"kill", "terminate"}:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[order["do"]])

    if isinstance(order["do"], int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["do"], order["do"]))
    sys.addaudithook(change)
    sys.argv = order["args"]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    os._exit(99)


if __name__ == "__main__":
    _serve(sys.argv[1])
