"""What the commands share: how they end, and the options that need parsing."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from daskkm.errors import DaskkmError

if TYPE_CHECKING:
    from types import FrameType

_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", 130),
    signal.SIGTERM: ("terminated", 143),
}


def run(command: click.Command, args: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted.

    Parameters
    ----------
    command : click.Command
    args : list of str, optional
        Those of the process if not given.
    """
    for number in _ENDINGS:
        signal.signal(number, _end)
    warnings.showwarning = _show_warning
    try:
        command.main(args, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DaskkmError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(0)


def _end(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that workers are stopped, without what they say of being cut short."""
    for other in _ENDINGS:  # once is enough: a second one must not cut the first one's work short
        signal.signal(other, signal.SIG_IGN)
    logging.disable()
    said, status = _ENDINGS[number]
    os.write(2, f"{said}\n".encode())  # what was interrupted may hold the stream's lock
    sys.exit(status)


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    click.echo(f"warning: {message}", err=True)


_MOST = 100_000


class KList(click.ParamType[tuple[int, ...]]):
    """Numbers of clusters: numbers and ranges between commas, as in 2,4,8-12."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers, ascending, each once."""
        if not isinstance(value, str):
            return tuple(value)
        ks: set[int] = set()
        for part in value.split(","):
            lo, dash, hi = part.strip().partition("-")
            if not (lo.isdecimal() and (hi.isdecimal() or not dash)):
                self.fail(f"{part!r} is neither a number nor a range like 3-7", param, ctx)
            numbers = range(int(lo), int(hi or lo) + 1)
            if not numbers or not int(lo):
                self.fail(f"{part!r} holds no k of 1 or more", param, ctx)
            if numbers[-1] > _MOST:
                self.fail(f"{part!r} goes beyond the most that makes sense, {_MOST}", param, ctx)
            ks.update(numbers)
        return tuple(sorted(ks))


class TileSize(click.ParamType[tuple[int, int]]):
    """Height and width of a tile in pixels: one number for both, or two around an x."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (height, width)."""
        if not isinstance(value, str):
            return (value[0], value[1])
        height, x, width = value.lower().partition("x")
        size = (height, width if x else height)
        if not all(side.isdecimal() and int(side) for side in size):
            self.fail(f"{value!r} is not a size like 16 or 16x24", param, ctx)
        return (int(size[0]), int(size[1]))
