"""Progress of a command, on a terminal and elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyte
import pytest
from click.testing import CliRunner

from daskkm.cli import main, progress
from daskkm.cli.progress import Progress
from daskkm.kmeans.lloyd import Step
from daskkm.kmeans.pass_record import Pass
from tests.processes import DEADLINE, ENDLESS, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from daskkm.storage.tile_store import TileStore


class Terminal:
    """A terminal that knows its screen, and whether lines have left it at the top."""

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
            except OSError:  # the other end is closed
                return
            with self._lock:
                self.written += data
                self._stream.feed(data)

    def lines(self) -> list[str]:
        """Return the lines that are not empty."""
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
    """Put a terminal in place of standard error."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    shown = Terminal(columns, lines)
    try:
        with os.fdopen(os.dup(shown.end), "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            yield shown
    finally:
        shown.close()


def a_pass(number: int, ks: Iterable[int] = (), stage: str = "pass") -> Pass:
    """Return a pass after which two restarts of each odd k move, and those of even k do not."""
    none: Any = None
    steps = {
        (k, restart): Step(number, none, none, 1e10 / k + restart, 1.0, False, not k % 2, none)
        for k in ks
        for restart in range(2)
    }
    return Pass(number, stage, 0.1, steps, 0)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10), (30, 3), (80, 1), (200, 60)])
def test_terminal_during_a_fit_shows_one_line(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int
) -> None:
    with terminal(monkeypatch, columns, lines) as shown:
        with Progress() as display, display.fit() as on_pass:
            for number in (1, 2):
                on_pass(a_pass(number, range(2, 41)))
                text = f"pass {number}: 38 of 78 models moving, 0.10 s a pass"
                until(lambda: shown.shows(text[: columns - 4]))  # noqa: B023
                assert len(shown.lines()) == 1
        until(lambda: not shown.lines())
        assert shown.n_scrolled() == 0


def test_terminal_shows_other_lines_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "dashboard: http://127.0.0.1:8787/" + "x" * 70
    with terminal(monkeypatch) as shown, Progress() as display:
        with display.stage("ingest", "images") as advance:
            advance(1, 40)
            until(lambda: shown.shows("ingest: 1 of 40 images"))
            display.print_line(long)
            progress.print_above("warning: [bold]not[/bold] markup")
            until(lambda: shown.shows("warning: [bold]not[/bold] markup"))
            until(lambda: "ingest: 1 of 40 images" in shown.lines()[-1])
        until(lambda: not shown.shows("ingest"))
    assert shown.lines() == [long[:80], long[80:], "warning: [bold]not[/bold] markup"]


def test_terminal_that_cannot_redraw_shows_lines(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_interrupted_sweep_leaves_no_display_on_a_terminal(
    digits: TileStore, tmp_path: Path, number: int, status: int, word: str
) -> None:
    shown = Terminal()
    flags = ["--store", str(digits.path), "--scheduler", "threads", *ENDLESS]
    command = [sys.executable, "-m", "daskkm.sweep", *flags, "--checkpoint", str(tmp_path / "c")]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=shown.end
    ) as process:
        until(lambda: shown.shows("models moving"))
        process.send_signal(number)
        assert process.wait(DEADLINE) == status
    until(lambda: shown.shows(word))
    shown.close()
    first, last = shown.lines()[0], shown.lines()[-1]
    assert first.startswith(str(digits.path)[:40])
    assert last == word
    assert not any("pass" in line for line in shown.lines())
    assert b"\x1b[?25l" not in shown.written  # a cursor that was hidden would stay so
    assert shown.n_scrolled() == 0


def test_pipe_shows_lines_at_intervals_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(progress.INTERVAL, "0.01")
    lines: list[str] = []

    def wait_for(text: str) -> None:
        def is_shown() -> bool:
            lines.extend(capsys.readouterr().err.splitlines())
            return any(text in line for line in lines)

        until(is_shown)

    with Progress() as display:
        with display.stage("ingest", "images") as advance:
            wait_for("ingest, ")
            advance(7, 2000)
            wait_for("ingest: 7 of 2,000 images, ")
        with display.stage("label", "chunks", total=3, poll=lambda: 2):
            wait_for("label: 2 of 3 chunks, ")
        with display.fit() as on_pass:
            wait_for("fit, ")
            on_pass(a_pass(1))
            wait_for("pass 1: initial centroids, ")
            on_pass(a_pass(1, stage="sample"))
            wait_for("pass 1: sample, ")
            on_pass(a_pass(1, stage="sample fit"))
            wait_for("fit to a sample, ")
            on_pass(a_pass(2, range(2, 41)))
            wait_for("pass 2: 38 of 78 models moving, 0.10 s a pass, ")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("interval", "n_lines"),
    [("3600", 1), ("", 1), ("often", 1), ("0", 500)]
    + [(none, 1) for none in ("inf", "nan", "-1", "1e300")],
)
def test_pipe_during_many_passes_shows_few_lines(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interval: str,
    n_lines: int,
) -> None:
    monkeypatch.setenv(progress.INTERVAL, interval)
    with Progress() as display, display.fit() as on_pass:
        on_pass(a_pass(1, stage="sample"))
        for stage in ("draw", "candidate fit", "sample fit"):
            on_pass(a_pass(1, stage=stage))  # which read no tiles
        for number in range(2, 501):
            on_pass(a_pass(number, (2, 4)))
    lines = capsys.readouterr().err.splitlines()
    assert interval != "0" or lines[0].startswith("pass 1: sample, ")
    assert len(lines) == n_lines
    assert lines[-1].startswith("pass 500: 0 of 4 models moving, ")


@pytest.mark.parametrize("interval", ["inf", "nan", "-1", "1e300", "often", ""])
def test_interval_that_is_not_a_time_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    monkeypatch.setenv(progress.INTERVAL, interval)
    monkeypatch.setattr(progress, "DEFAULT_INTERVAL", 0.01)
    with Progress() as display, display.stage("verify"):
        until(lambda: "verify, " in capsys.readouterr().err)


def test_quiet_progress_shows_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("daskkm.kernels.compilation")
    caplog.set_level(logging.WARNING, log.name)  # and afterwards as it was
    with Progress(quiet=True) as display:
        display.print_line("dashboard")
        log.warning("kernels are compiled")
        with display.stage("ingest", "images") as advance:
            advance(1, 2)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def test_quiet_command_prints_results_only(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def quiet(*args: str) -> str:
        done = CliRunner().invoke(main.group, [*args, "-q"])
        assert (done.exit_code, done.stderr) == (0, "")
        return done.stdout

    flags = ("--store", "s.zarr", "--scheduler", "threads")
    assert quiet("ingest", str(images), "--tile", "8", *flags).count("\n") == 1
    table = quiet("sweep", *flags, "--k", "2-4", "--n-init", "2")
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["k", "2", "3", "4"]
    assert "better" not in table
    assert "knee" not in table
    assert quiet("label", "centroids/3/model.zarr", *flags).count("\n") == 1
    assert quiet("verify", "s.zarr").count("\n") == 1
