"""The end of a command by Ctrl-C or SIGTERM.

The first signal raises SystemExit, so that a command stops its workers. A second signal ends the
process at once. Commands import this module first, so it imports no slow module.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", 130),
    signal.SIGTERM: ("terminated", 143),
}
_first_signal: int | None = None


@contextmanager
def unwind_on_signals() -> Iterator[None]:
    """End the body and then the process on a signal; ignored signals stay ignored."""
    _handle_signals(_raise_exit)
    try:
        yield
    finally:
        _handle_signals(_exit_at_once)
        if _first_signal is not None:
            _report(_first_signal)
            raise SystemExit(_ENDINGS[_first_signal][1])  # also after another error


def is_unwinding() -> bool:
    """Return True after a signal: later errors are not reported."""
    return _first_signal is not None


def _handle_signals(handler: signal._HANDLER) -> None:
    for number in _ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _raise_exit(number: int, _frame: FrameType | None) -> None:
    global _first_signal  # noqa: PLW0603
    _first_signal = number
    _handle_signals(_exit_at_once)
    sys.unraisablehook = lambda _: None  # finalizers may swallow the exit
    import logging

    logging.disable()  # distributed logs connections that end with the process
    raise SystemExit(_ENDINGS[number][1])


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    number = _first_signal or number
    _report(number)
    os._exit(_ENDINGS[number][1])


def _report(number: int) -> None:
    """Print the kind of end to standard error, unless the write would block."""
    with suppress(OSError):
        if sys.stderr is not None and select.select([], [2], [], 0)[1]:
            os.write(2, f"{_ENDINGS[number][0]}\n".encode())
