"""Progress of a command, on standard error.

A terminal shows one line that rich redraws. A pipe or file gets a line every few seconds.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from rich.console import Console

    from daskkm.kmeans.pass_record import Pass

# Seconds between two lines where standard error is not a terminal; 0 for a line after each pass.
INTERVAL = "DASKKM_PROGRESS_SECONDS"
DEFAULT_INTERVAL = 5.0
_POLL_SECONDS = 1.0
# Descriptions of stages of a fit.
_STAGES = {
    "pass": "initial centroids",
    "draw": "initial centroids",
    "sample fit": "fit to a sample",
    "candidate fit": "fit to candidates",
}


class Progress:
    """Context of a command that shows the current stage of the work."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage: _Stage | None = None
        self._stack = ExitStack()
        self._console = None if quiet else _find_terminal()
        self._interval = _read_interval()

    def __enter__(self) -> Self:
        if self._quiet:
            # The announcement of a compilation is progress too.
            logging.getLogger("daskkm.kernels.compilation").setLevel(logging.ERROR)
        elif self._console:
            self._stack.enter_context(_redraw(self._console, lambda: self._stage))
        elif self._interval:
            self._stack.enter_context(_repeat(self._print_stage, self._interval))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def print_line(self, line: str) -> None:
        """Print a line above the display, unless the command is quiet."""
        if not self._quiet:
            print_above(line)

    def print_dashboard(self, client: Any) -> None:
        """Print the address of the dashboard of a distributed.Client, if not None."""
        if client is not None:
            self.print_line(f"dashboard: {client.dashboard_link}")

    @contextmanager
    def stage(
        self, name: str, items: str = "", *, total: int = 0, poll: Callable[[], int] | None = None
    ) -> Iterator[Callable[[int, int], None]]:
        """Show a stage while the body runs; yield a callback for the items done and the total.

        Instead, `poll` may return the items done, about once a second in any thread.
        """
        self._stage = stage = _Stage(name, items, total=total, poll=poll)

        def advance(done: int, total: int) -> None:
            stage.done, stage.total = done, total

        try:
            yield advance
        finally:
            self._stage = None

    @contextmanager
    def fit(self) -> Iterator[Callable[[Pass], None]]:
        """Show a fit while the body runs; yield a callback for each pass."""
        self._stage = stage = _Stage("fit")
        prints_lines = not self._quiet and not self._console

        def on_pass(done: Pass) -> None:
            stage.last_pass = done
            if prints_lines and not self._interval and done.reads_tiles:
                self._print_stage()

        try:
            yield on_pass
            if prints_lines and self._interval:
                self._print_stage()
        finally:
            self._stage = None

    def _print_stage(self) -> None:
        if stage := self._stage:
            print_above(stage.describe())


@dataclass
class _Stage:
    """Part of a command's work, with its progress."""

    name: str
    items: str = ""
    total: int = 0
    poll: Callable[[], int] | None = None
    done: int = 0
    last_pass: Pass | None = None
    start: float = field(default_factory=time.perf_counter)
    polled: float = 0.0

    def describe(self) -> str:
        """Return one line: stage, items done, rate and time."""
        now = time.perf_counter()
        seconds = now - self.start
        if self.poll is not None and now - self.polled > _POLL_SECONDS:
            self.polled, self.done = now, self.poll()
        text = self.name
        if self.last_pass is not None:
            text = _describe_pass(self.last_pass)
        elif self.total:
            rate = f", {self.done / seconds:,.0f} a second" if self.done > seconds else ""
            text = f"{self.name}: {self.done:,} of {self.total:,} {self.items}{rate}"
        return f"{text}, {seconds:.1f} s"


def _describe_pass(done: Pass) -> str:
    """Return a description of a fit after a pass or another stage."""
    stage = _STAGES.get(done.stage, done.stage)
    if not done.reads_tiles:
        return stage
    if not done.steps:
        return f"pass {done.number}: {stage}"
    moving = sum(not step.last for step in done.steps.values())
    models = f"{moving} of {len(done.steps)} models moving"
    return f"pass {done.number}: {models}, {done.seconds:.2f} s a pass"


def print_above(line: str) -> None:
    """Print a line to standard error, above the display of progress if any."""
    # Without `file`, click would bypass rich's replacement of the stream.
    click.echo(line, file=sys.stderr, err=True)


@contextmanager
def _repeat(function: Callable[[], None], interval: float) -> Iterator[None]:
    """Call a function at intervals while the body runs, in a thread."""
    stopped = threading.Event()

    def repeat() -> None:
        with suppress(OSError, ValueError):  # nobody reads the lines any more
            while not stopped.wait(interval):
                function()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(1)  # not for ever: a full pipe would block the end


@contextmanager
def _redraw(console: Console, current: Callable[[], _Stage | None]) -> Iterator[None]:
    """Show the current stage at the bottom of a terminal while the body runs."""
    from rich.console import Group, RenderableType
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner
    from rich.table import Table

    spinner = Spinner("dots")

    def draw() -> RenderableType:
        stage = current()
        if stage is None:
            return Group()
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=1)
        line.add_column(no_wrap=True, overflow="ellipsis")
        text = stage.describe()
        bar = [ProgressBar(stage.total, stage.done, width=20)] if stage.total else []
        line.add_row(spinner, text, *bar)
        return line

    is_shared = sys.stdout is not None and sys.stdout.isatty()
    with Live(console=console, transient=True, get_renderable=draw, redirect_stdout=is_shared):
        yield


def _find_terminal() -> Console | None:
    """Return a console if standard error is a terminal with a movable cursor."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    class VisibleCursor(Console):
        """Console that never hides the cursor: a killed process could not restore the cursor."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    console = VisibleCursor(stderr=True, soft_wrap=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _read_interval() -> float:
    """Return the seconds between two lines, from the environment if valid."""
    with suppress(KeyError, ValueError):
        seconds = float(os.environ[INTERVAL])
        if 0 <= seconds <= threading.TIMEOUT_MAX:  # the longest that a thread can wait
            return seconds
    return DEFAULT_INTERVAL
