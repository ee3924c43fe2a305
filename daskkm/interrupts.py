"""How a command ends by Ctrl-C or SIGTERM, from its first moment to its last.

Imported before all else by the commands, so it imports next to nothing itself.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", 130),
    signal.SIGTERM: ("terminated", 143),
}
_UNWINDING_SECONDS = 30
_ending: SystemExit | None = None


def end_at_once() -> None:
    """Have interrupts end the process at once, as long as there is nothing to undo."""
    _handle(_end)


def unwind() -> None:
    """Have the first interrupt unwind the process, so that workers are stopped.

    Any other is ignored: it must not cut that work short. Nor may the work take for ever: the
    process ends after half a minute, wherever it is.
    """
    _handle(_unwind)


def by_default() -> None:
    """Have interrupts end the process as the system does, when all is done."""
    _handle(signal.SIG_DFL)


def end_if_interrupted() -> None:
    """Exit as interrupted if that is so, whatever the interrupt has become on its way."""
    if _ending is not None:
        raise _ending


@contextmanager
def postponed() -> Iterator[None]:
    """Postpone interrupts until what must not be left half done is done.

    Threads that are started meanwhile, and processes that these start, are never reached by a
    Ctrl-C, which a terminal sends to all of a group: their parent stops them.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: signal.signal(n, lambda number, _: came.append(number)) for n in _ENDINGS}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in _ENDINGS:
        signal.signal(number, handler)


def _say(number: int) -> int:
    """Say how the process ends, and return its exit status."""
    said, status = _ENDINGS[number]
    os.write(2, f"{said}\n".encode())  # what was interrupted may hold the stream's lock
    return status


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(_say(number))


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    global _ending  # noqa: PLW0603
    _handle(signal.SIG_IGN)
    status = _say(number)
    _ending = SystemExit(status)
    # threading.Thread takes locks, one of which may be what was interrupted.
    _thread.start_new_thread(_give_up, (status,))
    # What is cut short says so, in logs and tracebacks.
    import logging

    logging.disable()
    threading.excepthook = lambda _: None
    sys.unraisablehook = _again
    raise _ending


def _give_up(status: int) -> None:
    time.sleep(_UNWINDING_SECONDS)
    os._exit(status)


def _again(lost: Any) -> None:
    """Unwind once more, a moment later, if a finalizer or a callback was what was interrupted.

    Python goes on after these, whatever they raise.
    """
    if lost.exc_value is _ending:
        signal.signal(signal.SIGALRM, lambda *_: end_if_interrupted())
        signal.setitimer(signal.ITIMER_REAL, 0.01)
