"""How far a command has come, on standard error, and the closing table of a sweep.

On a terminal rich redraws one display in place. Elsewhere a line is printed every few seconds.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import TextIOBase
from typing import TYPE_CHECKING, NamedTuple, TextIO

import click

from daskkm.cli import interrupts
from daskkm.kmeans.metrics import knee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Console, RenderableType
    from rich.table import Table

    from daskkm.kmeans.metrics import Quality
    from daskkm.kmeans.model import FittedModel
    from daskkm.kmeans.recorder import Pass


# Seconds between two lines where standard error is not a terminal; 0 for a line a pass, no other.
INTERVAL = "DASKKM_PROGRESS_SECONDS"
_INTERVAL_SECONDS = 5.0
_POLL_SECONDS = 1.0
_WIDTH = 100  # characters of a line of the closing table
_HEADINGS = ("  k", "inertia", "iter", "converged", "CH", "DB", "silh", "purity", "ARI", "NMI")


class Progress:
    """Context of a command, from its start to its results, that shows each stage of the work.

    Parameters
    ----------
    quiet : bool
        Whether to show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage: _Stage | None = None
        self._stack = ExitStack()
        self._display: _Lines | _Screen | None = None

    def __enter__(self) -> Self:
        if self._quiet:  # that kernels are compiled is progress too
            log = logging.getLogger("daskkm.kernels.compilation")
            self._stack.callback(log.setLevel, log.level)
            log.setLevel(logging.ERROR)
        else:
            self._display = _display(lambda: self._stage)
            self._stack.enter_context(interrupts.erasing(self._display.erase))
            self._stack.callback(self._display.stop)
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def say(self, line: str) -> None:
        """Print a line that stays, unless the display is quiet."""
        if not self._quiet:
            click.echo(line, err=True)

    @contextmanager
    def stage(
        self, name: str, items: str = "", *, total: int = 0, poll: Callable[[], int] | None = None
    ) -> Iterator[Callable[[int, int], None]]:
        """Show a stage of the work while the body runs.

        Parameters
        ----------
        name : str
        items : str
            Name of what is counted, plural.
        total : int
            Number of items; 0 if unknown.
        poll : callable, optional
            Returns the number of items done. It is called about once a second, in any thread.

        Yields
        ------
        callable of (done, total)
            Shows that so many items are done.
        """
        self._stage = stage = _Stage(name, items, total=total, poll=poll)
        self._changed()

        def advance(done: int, total: int) -> None:
            stage.done, stage.total = done, total
            self._changed()

        try:
            yield advance
        finally:
            self._stage = None

    @contextmanager
    def fit(self) -> Iterator[Callable[[Pass], None]]:
        """Show a fit while the body runs; yield the `on_pass` of the fit."""
        self._stage = stage = _Stage("fit")

        def on_pass(done: Pass) -> None:
            stage.last = done
            self._changed()

        try:
            yield on_pass
            if self._display is not None:
                self._display.keep(stage)
        finally:
            self._stage = None

    def _changed(self) -> None:
        if self._display is not None:
            self._display.changed()


@dataclass
class _Stage:
    """Part of the work of a command, and how far it has come.

    Attributes
    ----------
    name, items, total, poll
        As for `Progress.stage`.
    done : int
        Items done.
    last : Pass or None
        The last pass of a fit.
    began : float
        By `time.perf_counter`.
    """

    name: str
    items: str = ""
    total: int = 0
    poll: Callable[[], int] | None = None
    done: int = 0
    last: Pass | None = None
    began: float = field(default_factory=time.perf_counter)
    polled: float = 0.0

    def line(self) -> str:
        """Return a line that says how far the stage has come."""
        now = time.perf_counter()
        if self.poll is not None and now - self.polled > _POLL_SECONDS:
            self.polled, self.done = now, self.poll()
        what = self.name
        if self.last is not None:
            what = _progress_of_pass(self.last)
        elif self.total:
            what = f"{self.name}: {self.done:,} of {self.total:,} {self.items}"
        return f"{what}, {now - self.began:.1f} s"


def _progress_of_pass(last: Pass) -> str:
    """Return the progress of a fit after a pass, or after another stage of it."""
    if not last.reads_tiles:
        return f"after {last.stage}"
    name = f"pass {last.number}"
    if not last.steps:
        return f"{name}: {'seeding' if last.stage == 'pass' else last.stage}"
    moving = sum(not step.last for step in last.steps.values())
    return f"{name}: {moving} of {len(last.steps)} models moving"


def _display(current: Callable[[], _Stage | None]) -> _Lines | _Screen:
    """Return a display of the current stage that suits standard error."""
    stream = sys.stderr
    if stream is not None and stream.isatty():
        gate = _Gate(stream)
        if (console := _console(gate)) is not None:
            return _Screen(current, gate, console)
    return _Lines(current)


class _Lines:
    """Lines on standard error, at most one every few seconds."""

    def __init__(self, current: Callable[[], _Stage | None]) -> None:
        self._current = current
        self._stopped = threading.Event()
        self._erased = False
        self._lock = threading.RLock()
        self._interval = _interval()

    def start(self) -> None:
        """Begin to print lines."""
        if self._interval > 0:
            threading.Thread(target=self._print_lines, name="progress", daemon=True).start()

    def stop(self) -> None:
        """Print no more lines."""
        with _held_by(self._lock):
            self._stopped.set()

    def erase(self) -> bytes:
        """Print no more lines, as an interrupt is about to be said; there is nothing to erase."""
        self._erased = True  # before the lock: a handler of signals may find it held
        with _held_by(self._lock):
            return b""

    def changed(self) -> None:
        """Print a line for a pass, if each is to be printed."""
        stage = self._current()
        last = None if stage is None else stage.last
        if not self._interval > 0 and last is not None and last.reads_tiles:
            self._print(stage)

    def keep(self, stage: _Stage) -> None:
        """Print a line for the end of a stage."""
        if self._interval > 0:
            self._print(stage)

    def _print_lines(self) -> None:
        with suppress(OSError, ValueError):  # whoever read them is gone
            while not self._stopped.wait(self._interval):
                self._print(self._current())

    def _print(self, stage: _Stage | None) -> None:
        if stage is not None:
            line = stage.line()
            with self._lock:
                if not self._erased and not self._stopped.is_set():
                    click.echo(line, err=True)


def _interval() -> float:
    """Return the seconds between two lines, as the environment has them if these are any."""
    with suppress(KeyError, ValueError):
        seconds = float(os.environ[INTERVAL])
        if 0 <= seconds <= threading.TIMEOUT_MAX:  # else no thread could wait for so long
            return seconds
    return _INTERVAL_SECONDS


class _Screen:
    """A display on a terminal, redrawn in place and removed at the end.

    Other lines for the terminal appear above it.
    """

    def __init__(self, current: Callable[[], _Stage | None], gate: _Gate, console: Console) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self._current = current
        self._gate = gate
        self._console = console
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console,
            transient=True,
            get_renderable=self._draw,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._stack = ExitStack()

    def start(self) -> None:
        """Begin to draw."""
        with ExitStack() as stack:
            stack.enter_context(redirect_stderr(_above(self._console, sys.stderr)))
            if sys.stdout is not None and sys.stdout.isatty():
                stack.enter_context(redirect_stdout(_above(self._console, sys.stdout)))
            stack.callback(self._live.stop)
            self._live.start()
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """Remove the display."""
        self._stack.close()

    def erase(self) -> bytes:
        """Draw no more, and return codes that remove the display: an interrupt is about to be said.

        Whatever rich was about to write when the interrupt came is lost.
        """
        from rich.control import Control
        from rich.segment import ControlType

        self._gate.shut()
        clear = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
        up = Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return (str(clear) + str(up) * (self._gate.height - 1)).encode()

    def changed(self) -> None:
        """Draw a change, soon: rich does so four times a second."""

    def keep(self, stage: _Stage) -> None:
        """Leave nothing of a stage: the results follow."""

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        stage = self._current()
        if stage is None:
            self._gate.next_height = 0
            return Group()
        head = Table.grid(padding=(0, 1, 0, 0))
        head.add_column(width=1)
        head.add_column(no_wrap=True, overflow="ellipsis")
        cells: list[RenderableType] = [self._spinner, stage.line()]
        if stage.total:
            cells.append(ProgressBar(stage.total, stage.done, width=20))
        head.add_row(*cells)
        rows = _rows(stage.last, self._console.height - 2)  # but for the head, and a line to spare
        self._gate.next_height = 1 + (rows.row_count + 1 if rows else 0)
        return Group(head, rows) if rows else head


def _rows(last: Pass | None, room: int) -> Table | None:
    """Return a table of where each k stands, in so many lines, if there is anything to show."""
    from rich.table import Table

    states = {} if last is None else _states(last)
    room -= 2  # the headings, and what does not fit
    if not states or room < 1:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("  k", "inertia", "iteration", "models moving"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="ellipsis")
    # Those that still move first, if there is no room for all.
    shown = sorted(states, key=lambda k: (not states[k].moving, k))
    shown = shown[: room if len(shown) > room + 1 else room + 1]
    for k in sorted(shown):
        state = states[k]
        moving = str(state.moving) if state.moving else "done"
        table.add_row(str(k), f"{state.inertia:.6g}", str(state.iteration), moving)
    if hidden := len(states) - len(shown):
        table.add_row("…", f"{hidden} more k")
    return table


class _Gate(TextIOBase):
    """A stream to a terminal that can be shut at any moment, also within a write to it.

    Attributes
    ----------
    height : int
        Lines of the display that are on the terminal.
    next_height : int
        Lines of the display that the next write draws.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._open = True
        self.height = self.next_height = 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Return True: it is made for terminals only."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write to the stream, unless the gate is shut."""
        with self._lock:
            if self._open:
                self._stream.write(text)
                self._stream.flush()
                self.height = self.next_height
        return len(text)

    def shut(self) -> None:
        """Let nothing through any more."""
        with _held_by(self._lock):
            self._open = False


@contextmanager
def _held_by(lock: threading.RLock) -> Iterator[None]:
    """Hold a lock, but do not wait for ever: neither a handler of signals may, nor the end."""
    held = lock.acquire(timeout=1)
    try:
        yield
    finally:
        if held:
            lock.release()


def _console(gate: _Gate) -> Console | None:
    """Return a console for a terminal on which a display can be redrawn; else None."""
    from rich.console import Console

    class Visible(Console):
        """A console that never hides the cursor: a process that is killed could not show it."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    console = Visible(file=gate, soft_wrap=True)  # type: ignore[arg-type]
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _above(console: Console, stream: TextIO) -> TextIO:
    """Return a stream whose lines appear above the display of a console."""
    from rich.file_proxy import FileProxy

    class Above(FileProxy):
        """With what click asks a text stream for, else it would write past it."""

        encoding = stream.encoding
        errors = stream.errors

    return Above(console, stream)  # type: ignore[return-value]


class _State(NamedTuple):
    """Where the restarts of one k stand: the best so far, and how many still move."""

    inertia: float
    iteration: int
    moving: int


def _states(done: Pass) -> dict[int, _State]:
    restarts: dict[int, list[_State]] = {}
    for (k, _), step in done.steps.items():
        restarts.setdefault(k, []).append(_State(step.inertia, step.iteration, not step.last))
    return {
        k: min(states, key=lambda state: state.inertia)._replace(
            moving=sum(state.moving for state in states)
        )
        for k, states in restarts.items()
    }


def size(n_bytes: int) -> str:
    """Return a number of bytes in the unit that suits it, as in "52.7 GB"."""
    from rich.filesize import decimal

    return decimal(n_bytes)


def closing_table(
    models: Mapping[int, FittedModel],
    qualities: Mapping[int, Quality],
    *,
    classes: bool = False,
    quiet: bool = False,
) -> str:
    """Return a table of the models, a line each, and how to read it.

    Parameters
    ----------
    models : mapping of k to FittedModel
    qualities : mapping of k to Quality
        Of the same k; empty if the figures were not measured.
    classes : bool
        Whether figures of classes were asked for.
    quiet : bool
        Whether to leave out how to read it.

    Returns
    -------
    str
        The lines, those of the models of no more characters than the terminal has, or 100.
    """
    width = _width()
    cells = [_cells(k, model, qualities.get(k)) for k, model in models.items()]
    columns = list(zip(_HEADINGS, *cells, strict=False))  # there may be fewer cells
    widths = [max(map(len, column)) for column in columns]
    head, *lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    )
    lines = [
        head + "  tiles in each cluster",
        *(
            line + _sizes(model.counts_.tolist())
            for line, model in zip(lines, models.values(), strict=True)
        ),
    ]
    lines = [_cut(line, width) for line in lines]
    return "\n".join(lines if quiet else lines + _explain(models, qualities, classes=classes))


def _explain(
    models: Mapping[int, FittedModel], qualities: Mapping[int, Quality], *, classes: bool
) -> list[str]:
    """Return lines that say how to read the closing table."""
    lines = []
    if qualities:
        lines.append(
            "CH (Calinski-Harabasz) and silh (silhouette): more is better; "
            "DB (Davies-Bouldin): less."
        )
    if any(q.purity is not None for q in qualities.values()):
        lines.append("purity, ARI (adjusted Rand) and NMI: more is better, 1 is perfect.")
    elif classes and qualities:
        lines.append(
            "purity, ARI and NMI are left out: each image is one tile, a class of its own."
        )
    found = knee({k: model.inertia_ for k, model in models.items()})
    if found is not None:
        among = f"k = {min(models)} to {max(models)}"
        lines.append(
            f"The curve of inertia has its knee at k = {found} among {among}; "
            "another range of k can move it."
        )
    return lines


def _cells(k: int, model: FittedModel, quality: Quality | None) -> list[str]:
    """Return a line of the table but for the sizes, under as many of the headings."""
    cells = [str(k), f"{model.inertia_:.6g}", str(model.n_iter_)]
    cells.append("yes" if model.converged_ else "no")
    if quality is None:
        return cells
    cells.append(_figure(quality.calinski_harabasz, 1))
    cells += [_figure(quality.davies_bouldin), _figure(quality.silhouette)]
    of_classes = quality.purity, quality.adjusted_rand, quality.normalized_mutual_info
    return cells if quality.purity is None else cells + [_figure(value) for value in of_classes]


def _figure(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _sizes(counts: list[int]) -> str:
    """Return the sizes of the clusters, biggest first."""
    return "  " + " ".join(map(str, sorted(counts, reverse=True)))


def _width() -> int:
    """Return the number of characters of a line of the table."""
    if sys.stdout is not None and sys.stdout.isatty():
        return min(_WIDTH, shutil.get_terminal_size().columns)
    return _WIDTH


def _cut(line: str, width: int) -> str:
    """Return as many words of a line as there is room for, and a sign if these are not all."""
    if len(line) <= width:
        return line
    return line[: max(0, line.rfind(" ", 0, width - 1))] + " …"
