"""How a command ends by Ctrl-C or SIGTERM, from its first moment to its last.

Imported before all else by the commands, so it imports next to nothing itself.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ENDINGS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("interrupted", 130),
    signal.SIGTERM: ("terminated", 143),
}
_UNWINDING_SECONDS = 30
_AGAIN_SECONDS = 1
_ending: SystemExit | None = None
_postponements = 0
_erase: Callable[[], bytes] = bytes


def end_at_once() -> None:
    """Have interrupts end the process at once, as long as there is nothing to undo, or no more."""
    _handle(_end)


def unwind() -> None:
    """Have the first interrupt unwind the process, so that workers are stopped.

    Any other is ignored: it must not cut that work short. Nor may the work take for ever: the
    process ends after half a minute, wherever it is.
    """
    _handle(_unwind)


def end_if_interrupted() -> None:
    """Exit as interrupted if that is so, whatever the interrupt has become on its way.

    For where all is unwound: it is not done again after this.
    """
    if _ending is not None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # not the timer: `_again` may set it just now
        raise _ending


@contextmanager
def postponed() -> Iterator[None]:
    """Postpone interrupts until what must not be left half done is done.

    That a command ends, if one comes, is said at once, and the half minute begins.
    """
    global _postponements  # noqa: PLW0603
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def later(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if handlers[number] is _unwind:
            _begin(number)

    if threading.current_thread() is threading.main_thread():
        # One that is not Python's, as where R has started it, cannot be put back.
        found = {number: signal.getsignal(number) for number in _ENDINGS}
        handlers |= {number: handler for number, handler in found.items() if handler is not None}
        for number in handlers:
            signal.signal(number, later)
    _postponements += 1
    try:
        yield
    finally:
        _postponements -= 1
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def erasing(erase: Callable[[], bytes]) -> Iterator[None]:
    """Have a display removed before an interrupt is said.

    Parameters
    ----------
    erase : callable
        Ends the display and returns codes that remove it from the terminal. It is called by a
        handler of signals, at any moment: it must neither raise nor wait.
    """
    global _erase  # noqa: PLW0603
    before, _erase = _erase, erase
    try:
        yield
    finally:
        _erase = before


@contextmanager
def unreached() -> Iterator[None]:
    """Start threads that, with processes that they start, are never reached by a Ctrl-C.

    A terminal sends it to all of a group: their parent stops them.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Handle interrupts, but for those that were ignored from the start, as in a script's jobs."""
    for number in _ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _say(number: int) -> None:
    """Say how the process ends, to whom it is that still listens."""
    # Not by the stream: what was interrupted may hold its lock.
    codes = _erase()
    with suppress(OSError):
        if sys.stderr is not None and select.select([], [2], [], 0)[1]:
            os.write(2, codes + f"{_ENDINGS[number][0]}\n".encode())


def _end(number: int, _frame: FrameType | None) -> None:
    _say(number)
    os._exit(_ENDINGS[number][1])


def _unwind(number: int, _frame: FrameType | None) -> None:
    _begin(number)
    _exit()


def _exit() -> None:
    """Raise what unwinds, and look in a moment whether it does.

    It may be lost on the way: Python goes on after finalizers and callbacks, whatever they raise,
    and some modules written in C clear whatever is raised while they are imported.
    """
    assert _ending is not None  # noqa: S101  # as `_begin` has it
    signal.signal(signal.SIGALRM, _again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    raise _ending


def _again(_number: int, _frame: FrameType | None) -> None:
    """Unwind once more, unless that is going on, or must wait."""
    if not _is_unwinding() and not _postponements:
        _exit()
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _is_unwinding() -> bool:
    """Tell whether what this thread does undoes something, and must not be cut short."""
    error = sys.exc_info()[1]
    while error is not None and error is not _ending:
        error = error.__context__
    return error is not None


def _begin(number: int) -> None:
    """Begin to end, once: say so, and see that it does not take for ever."""
    global _ending  # noqa: PLW0603
    _handle(signal.SIG_IGN)
    if _ending is not None:
        return
    status = _ENDINGS[number][1]
    _ending = SystemExit(status)
    # threading.Thread takes locks, one of which may be what was interrupted.
    _thread.start_new_thread(_give_up, (status,))
    _say(number)
    # What is cut short says so, in logs and tracebacks.
    import logging

    logging.disable()
    threading.excepthook = lambda _: None
    sys.unraisablehook = _of_finalizer


def _give_up(status: int) -> None:
    time.sleep(_UNWINDING_SECONDS)
    os._exit(status)


def _of_finalizer(lost: Any) -> None:
    """Do not wait as long where it is known that it was lost."""
    if lost.exc_value is _ending:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
