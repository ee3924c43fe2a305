"""Commands that are ended by Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.processes import DEADLINE, ROOT, Process, until

if TYPE_CHECKING:
    from daskkm.storage.tile_store import TileStore

pytestmark = pytest.mark.faults

# Flags of a sweep that outlasts a test, and has fewer models than `tests.processes.ENDLESS`.
LONG = ("--k", "3-12", "--n-init", "20", "--tol", "0", "--max-iter", "10000")
ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


def endless(digits: TileStore, *flags: str) -> tuple[str, ...]:
    """Return the flags of a sweep that goes on until a signal stops it."""
    where = "--store", str(digits.path), "--checkpoint", "checkpoint"
    return (*where, "--dashboard-address", "127.0.0.1:0", *flags, *LONG)


def wait_for_handlers(pid: int) -> None:
    """Wait until a command handles signals: before, Python itself is starting."""

    def is_handled() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1

    until(is_handled)


def list_workers(main: psutil.Process) -> list[psutil.Process]:
    return [
        child
        for child in main.children()
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("seed", range(3))
def test_sweep_interrupted_at_any_moment_ends_with_one_word(
    digits: TileStore, tmp_path: Path, seed: int
) -> None:
    """Each seed draws a moment of its own third: imports, start of workers, passes."""
    rng = random.Random(seed)
    workers = ("--workers", "1") if seed % 2 else ()
    number = rng.choice([*ENDINGS])
    with Process("-m", "daskkm.sweep", *endless(digits, *workers), cwd=tmp_path) as run:
        wait_for_handlers(run.pid)
        time.sleep(rng.uniform(seed, seed + 1) * 4 / 3)
        family = psutil.Process(run.pid).children(recursive=True)
        run.send(number)
        word, status = ENDINGS[number]
        assert run.wait() == status, run.lines
        assert not psutil.wait_procs(family, DEADLINE)[1]
        usual = ("pass ", "dashboard:", str(digits.path))
        assert [line for line in run.lines if not line.startswith(usual)] == [word]


def test_terminals_interrupt_does_not_reach_a_restarted_worker(
    digits: TileStore, tmp_path: Path
) -> None:
    with Process("-m", "daskkm.sweep", *endless(digits, "--workers", "1"), cwd=tmp_path) as run:
        run.wait_for("pass 2:")
        main = psutil.Process(run.pid)
        (first,) = list_workers(main)
        first.kill()
        until(lambda: [worker for worker in list_workers(main) if worker != first])
        shown = len(run.lines)
        until(lambda: any(line.startswith("pass ") for line in run.lines[shown:]))
        family = main.children(recursive=True)
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert not psutil.wait_procs(family, DEADLINE)[1]
        assert run.lines[-1] == "interrupted"
        assert "Traceback" not in "".join(run.lines)


def test_second_signal_ends_a_command_that_hangs(digits: TileStore, tmp_path: Path) -> None:
    with Process("-m", "daskkm.sweep", *endless(digits, "--workers", "1"), cwd=tmp_path) as run:
        run.wait_for("pass 2:")
        (worker,) = list_workers(psutil.Process(run.pid))
        worker.suspend()
        try:
            os.kill(run.pid, signal.SIGINT)
            os.kill(run.pid, signal.SIGTERM)
            assert run.status() == 130
        finally:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        assert run.lines[-1] == "interrupted"


@pytest.mark.parametrize("pipe", ["closed", "full"])
def test_interrupt_without_a_reader_ends_the_command(
    digits: TileStore, tmp_path: Path, pipe: str
) -> None:
    os.mkfifo(fifo := tmp_path / "stderr")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)
    command = sys.executable, "-m", "daskkm.sweep", *endless(digits, "--workers", "1")
    with subprocess.Popen(command, cwd=tmp_path, stderr=writer) as run, os.fdopen(reader) as lines:
        os.close(writer)  # else what it says would have no end, if it ended
        next(line for line in lines if line.startswith("pass 2:"))
        run.send_signal(signal.SIGSTOP)
        if pipe == "closed":
            lines.close()
        else:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, b".")
            os.close(writer)
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGCONT)
        assert run.wait(DEADLINE) == 130


def test_interrupt_while_a_name_is_looked_up_ends_the_command(tmp_path: Path) -> None:
    """A resolver returns when it will: another thread than the main one must wait for it."""
    code = (
        "import runpy, socket, threading\n"
        "def never(*_, **__):\n"
        "    print('in', threading.current_thread().name, flush=True); threading.Event().wait()\n"
        "socket.getaddrinfo = never\n"
        "runpy.run_module('daskkm.sweep', run_name='__main__')"
    )
    (tmp_path / "images").symlink_to(ROOT / "images")
    with Process("-c", code, "--scheduler", "tcp://host:8786", cwd=tmp_path) as run:
        assert run.wait_for("^in (.*)")[1] != "MainThread"
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert run.lines == ["interrupted"]


def test_swallowed_interrupt_gives_its_status_at_the_end(tmp_path: Path) -> None:
    code = (
        "import os, signal; from daskkm.cli.interrupts import unwind_on_signals\n"
        "with unwind_on_signals():\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    except: print('swallowed')\n"
        "print('not reached')"
    )
    with Process("-c", code, cwd=tmp_path) as run:
        assert run.wait() == 143
        assert (run.output, run.lines) == (["swallowed"], ["terminated"])


def test_interrupt_after_a_command_ends_the_process(tmp_path: Path) -> None:
    code = (
        "import atexit, time; from daskkm.cli.interrupts import unwind_on_signals\n"
        "atexit.register(lambda: (print('ended'), time.sleep(60)))\n"
        "with unwind_on_signals(): pass"
    )
    with Process("-c", code, cwd=tmp_path) as run:
        run.wait_for("ended")
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert run.lines == ["interrupted"]


def test_interrupt_ignored_from_the_start_stays_ignored(digits: TileStore, tmp_path: Path) -> None:
    """A script's shell ignores it for commands that it starts in the background."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'daskkm.sweep', *sys.argv[1:]])"
    )
    with Process("-c", code, *endless(digits, "--workers", "1"), cwd=tmp_path) as run:
        for moment in ("pass 1:", "pass 2:"):
            run.wait_for(moment)
            run.send(signal.SIGINT)
        run.wait_for("pass 3:")
        run.send(signal.SIGTERM)
        assert run.wait() == 143
        assert run.lines[-1] == "terminated"


def test_sweep_without_a_standard_error_succeeds(digits: TileStore, tmp_path: Path) -> None:
    flags = "--store", digits.path, "--k", "2", "--n-init", "1", "--scheduler", "threads"
    shell = "sh", "-c", 'exec "$@" 2>&-', "sh"
    subprocess.run([*shell, sys.executable, "-m", "daskkm.sweep", *flags], cwd=tmp_path, check=True)
