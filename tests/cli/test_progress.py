"""What a command shows while it works, on a terminal and elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyte
import pytest
from click.testing import CliRunner

import daskkm
from daskkm.cli import progress
from daskkm.cli.progress import Progress
from daskkm.kmeans.lloyd import Step
from daskkm.kmeans.recorder import Pass
from tests.processes import DEADLINE, ENDLESS, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from daskkm.storage.tile_store import TileStore


class Terminal:
    """A terminal: what can be seen on it, and whether lines have left it at the top."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self._main, self.end = pty.openpty()
        self.written = b""
        self._screen = pyte.HistoryScreen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 65536)
            except OSError:  # no one has the other end any more
                return
            with self._lock:
                self.written += data
                self._stream.feed(data)

    def lines(self) -> list[str]:
        """Lines that are not empty."""
        with self._lock:
            lines = [line.rstrip() for line in self._screen.display]
        return [line for line in lines if line]

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.lines())

    def n_scrolled(self) -> int:
        return len(self._screen.history.top)

    def close(self) -> None:
        os.close(self.end)
        self._reader.join(DEADLINE)
        os.close(self._main)


@contextmanager
def terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int = 80, lines: int = 24
) -> Iterator[Terminal]:
    """A terminal in place of standard error."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    found = Terminal(columns, lines)
    try:
        with os.fdopen(os.dup(found.end), "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield found
    finally:
        found.close()


def a_pass(number: int, ks: Iterable[int] = (), stage: str = "pass") -> Pass:
    """A pass after which two restarts of each odd k move, and those of each even k are done."""
    none: Any = None
    steps = {
        (k, restart): Step(number, none, none, 1e10 / k + restart, 1.0, False, not k % 2, none)
        for k in ks
        for restart in range(2)
    }
    return Pass(number, stage, 0.1, steps, 0)


def show(display: Progress, passes: Iterable[Pass]) -> None:
    """Show a fit of these passes."""
    with display.fit() as on_pass:
        for done in passes:
            on_pass(done)


@pytest.mark.parametrize(
    ("columns", "lines", "highest"),
    [
        *((80, 24, highest) for highest in (2, 3, 21, 22, 23, 24, 25, 40)),
        *((40, 10, highest) for highest in (2, 9, 10, 40)),
        (30, 3, 40),
        (80, 1, 7),
        (200, 60, 40),
    ],
)
def test_terminal_shows_each_k_or_how_many_more(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int, highest: int
) -> None:
    ks = range(2, highest + 1)
    n_moving = 2 * sum(k % 2 for k in ks)
    screens = []

    def counted(screen: list[str]) -> tuple[list[int], int]:
        """Return each k that is shown, and how many more there are said to be."""
        more = re.fullmatch(r" +… +(\d+) more k", screen[-1])
        rows = [line.split() for line in screen[2:]]
        wanted = {k: "2" if k % 2 else "done" for k in ks}
        shown = [int(row[0]) for row in rows if row[0].isdecimal()]
        whole = all(wanted.get(int(row[0])) == row[-1] for row in rows if row[0].isdecimal())
        return shown if whole else [], int(more[1]) if more else 0

    def whole(number: int) -> list[str] | None:
        """Return the screen after a pass, once it is drawn to the end."""
        screen = shown.lines()
        head = f"pass {number}: {n_moving} of {2 * len(ks)} models moving"[: columns - 15]
        if not screen or head not in screen[0]:
            return None
        there, hidden = counted(screen)
        return screen if lines <= 3 or len(there) + hidden == len(ks) else None

    def watched() -> Iterator[Pass]:
        for number in (1, 2):
            yield a_pass(number, ks)
            screens.append(until(lambda: whole(number)))  # noqa: B023

    with terminal(monkeypatch, columns, lines) as shown:
        with Progress() as display:
            show(display, watched())
        until(lambda: not shown.lines())
        assert shown.n_scrolled() == 0
    for screen in screens:
        there, hidden = counted(screen)
        assert there == sorted(there)
        assert len(screen) == lines - 1 if hidden else len(screen) < max(lines, 2)
        if hidden:  # those that move come first
            assert sum(k % 2 for k in there) == min(len(there), n_moving // 2)


def test_terminal_shows_other_lines_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "dashboard: http://127.0.0.1:8787/" + "x" * 70
    with terminal(monkeypatch) as shown, Progress() as display:
        with display.stage("ingest", "images") as advance:
            advance(1, 40)
            until(lambda: shown.shows("ingest: 1 of 40 images"))
            display.say(long)
            click.echo("warning: [bold]not[/bold] markup", err=True)
            until(lambda: shown.shows("warning: [bold]not[/bold] markup"))
            until(lambda: "ingest: 1 of 40 images" in shown.lines()[-1])
        until(lambda: not shown.shows("ingest"))
    assert shown.lines() == [long[:80], long[80:], "warning: [bold]not[/bold] markup"]


def test_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv(progress.INTERVAL, "0.01")
        with Progress() as display, display.stage("verify", "chunks") as advance:
            advance(1, 2)
            until(lambda: shown.shows("verify: 1 of 2 chunks"))
        assert b"\x1b" not in shown.written


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupt_removes_the_display_from_a_terminal(
    digits: TileStore, tmp_path: Path, number: int, status: int, word: str
) -> None:
    shown = Terminal()
    flags = ["--store", str(digits.path), "--scheduler", "threads", *ENDLESS]
    command = [sys.executable, "-m", "daskkm.sweep", *flags, "--checkpoint", str(tmp_path / "c")]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=shown.end
    ) as process:
        until(lambda: shown.shows("pass ") and shown.shows(" 12 "))
        process.send_signal(number)
        assert process.wait(DEADLINE) == status
    until(lambda: shown.shows(word))
    shown.close()
    first, last = shown.lines()[0], shown.lines()[-1]
    assert first.startswith(str(digits.path)[:40])
    assert last == word
    assert not any("pass" in line or "moving" in line for line in shown.lines())
    assert b"\x1b[?25l" not in shown.written  # a cursor that was hidden would stay so
    assert shown.n_scrolled() == 0


def test_lines_appear_at_intervals_and_say_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place of a long time, an interval that is short."""
    monkeypatch.setenv(progress.INTERVAL, "0.01")
    said: list[str] = []

    def until_said(text: str) -> None:
        def found() -> bool:
            said.extend(capsys.readouterr().err.splitlines())
            return any(text in line for line in said)

        until(found)

    def passes() -> Iterator[Pass]:
        until_said("fit, ")
        yield a_pass(1)
        until_said("pass 1: seeding, ")
        yield a_pass(1, stage="sample")
        until_said("pass 1: sample, ")
        yield a_pass(1, stage="draw")
        until_said("after draw, ")
        yield a_pass(2, range(2, 41))
        until_said("pass 2: 38 of 78 models moving, ")

    with Progress() as display:
        with display.stage("ingest", "images") as advance:
            until_said("ingest, ")
            advance(7, 2000)
            until_said("ingest: 7 of 2,000 images, ")
        with display.stage("label", "chunks", total=3, poll=lambda: 2):
            until_said("label: 2 of 3 chunks, ")
        show(display, passes())
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize(
    ("interval", "n_lines"),
    [("3600", 1), ("", 1), ("often", 1), ("0", 500)]
    + [(none, 1) for none in ("inf", "nan", "-1", "1e300")],
)
def test_many_passes_are_few_lines(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interval: str,
    n_lines: int,
) -> None:
    monkeypatch.setenv(progress.INTERVAL, interval)

    def passes() -> Iterator[Pass]:
        yield a_pass(1, stage="sample")
        for stage in ("draw", "candidate fit", "sample fit"):
            yield a_pass(1, stage=stage)  # which read no tiles
        for number in range(2, 501):
            yield a_pass(number, (2, 4))

    with Progress() as display:
        show(display, passes())
    lines = capsys.readouterr().err.splitlines()
    assert interval != "0" or lines[0].startswith("pass 1: sample, ")
    assert len(lines) == n_lines
    assert lines[-1].startswith("pass 500: 0 of 4 models moving, ")


@pytest.mark.parametrize("interval", ["inf", "nan", "-1", "1e300", "often", ""])
def test_an_interval_that_is_none_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    monkeypatch.setenv(progress.INTERVAL, interval)
    monkeypatch.setattr(progress, "_INTERVAL_SECONDS", 0.01)
    with Progress() as display, display.stage("verify"):
        until(lambda: "verify, " in capsys.readouterr().err)


def test_an_interrupt_while_lines_stop_takes_no_lock_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may come while `stop` holds the lock of the event that it sets."""
    lines = progress._Lines(lambda: progress._Stage("verify"))
    with lines._stopped._cond:  # type: ignore[attr-defined]
        erasing = threading.Thread(target=lines.erase, daemon=True)
        erasing.start()
        erasing.join(DEADLINE / 10)
        assert not erasing.is_alive()
    lines.keep(progress._Stage("verify"))
    assert capsys.readouterr().err == ""


def test_quiet_shows_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("daskkm.kernels.compilation")
    with Progress(quiet=True) as display:
        display.say("dashboard")
        log.warning("kernels are compiled")
        with display.stage("ingest", "images") as advance:
            advance(1, 2)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
    log.warning("kernels are compiled")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (2_872_320, "2.9 MB"), (52_736_000_000, "52.7 GB")],
)
def test_size_is_in_the_unit_that_suits_it(n_bytes: int, text: str) -> None:
    assert progress.size(n_bytes) == text


@pytest.mark.parametrize("columns", [50, 80, 100, 300])
def test_closing_table_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, digits: TileStore
) -> None:
    counts = np.arange(1000, 1040)
    model = daskkm.FittedModel(np.zeros((40, 1)), counts, 1.0, 3, True, 0, np.dtype(np.uint8), None)
    quality = daskkm.Quality(1.0, counts, 606.5, 2.6, 0.185, 0.5, 0.2, 0.3)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    head, row, *_ = progress.closing_table({40: model}, {40: quality}).splitlines()
    assert max(len(head), len(row)) <= min(columns, 100)
    assert row.endswith(" …")
    assert head.endswith("tiles in each cluster" if columns >= 100 else " …")


def test_each_command_is_quiet_when_asked(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daskkm.cli import main

    monkeypatch.chdir(tmp_path)

    def quiet(*args: str) -> str:
        done = CliRunner().invoke(main.group, [*args, "-q"])
        assert (done.exit_code, done.stderr) == (0, "")
        return done.stdout

    assert quiet("ingest", str(images), "--store", "s.zarr", "--tile", "8").count("\n") == 1
    flags = ("--store", "s.zarr", "--scheduler", "threads")
    table = quiet("sweep", *flags, "--k", "2-4", "--n-init", "2")
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["k", "2", "3", "4"]
    assert "better" not in table
    assert "knee" not in table
    assert quiet("label", "centroids/3/model.zarr", *flags).count("\n") == 1
    assert quiet("verify", "s.zarr").count("\n") == 1
