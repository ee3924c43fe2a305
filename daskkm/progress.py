"""What a sweep says of itself while it works, and at the end."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from daskkm.fit import Pass, SweepResult
    from daskkm.model import FittedModel

_UP_AND_CLEAR = "\x1b[{}A\x1b[J"


def show_all(passes: Generator[Pass, None, SweepResult]) -> SweepResult:
    """Make all passes of a sweep, showing each as it is done.

    Parameters
    ----------
    passes : generator
        As `daskkm.fit.iter_passes` returns it.

    Returns
    -------
    SweepResult
    """
    display = Progress()
    while True:
        try:
            display.show(next(passes))
        except StopIteration as done:
            result: SweepResult = done.value
            return result


class Progress:
    """Shows each pass on standard error.

    On a terminal, a line a k that is rewritten in place; elsewhere, a line a pass.
    """

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._lines = 0

    def show(self, done: Pass) -> None:
        """Show where all models stand after a pass.

        Parameters
        ----------
        done : Pass
        """
        states = _states(done)
        moving = sum(state.moving for state in states.values())
        head = (
            f"pass {done.number}: {moving} of {len(done.steps)} models moving, {done.seconds:.2f} s"
        )
        if not self._in_place:
            brief = (f"k={k} {s.inertia:.6g} it {s.iteration}" for k, s in states.items())
            click.echo("; ".join([head, *brief]), err=True)
            return
        lines = [head]
        for k, state in states.items():
            status = f"{state.moving} moving" if state.moving else "done"
            lines.append(
                f"  k = {k:<4} inertia {state.inertia:<12.6g} "
                f"iteration {state.iteration:<4} {status}"
            )
        # A terminal can only go back up to its first line.
        del lines[shutil.get_terminal_size().lines - 1 :]
        clear = _UP_AND_CLEAR.format(self._lines) if self._lines else ""
        click.echo(clear + "\n".join(lines), err=True)
        self._lines = len(lines)


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


def closing_table(models: Mapping[int, FittedModel]) -> str:
    """Return a table of the models, a line each.

    Parameters
    ----------
    models : mapping of k to FittedModel

    Returns
    -------
    str
    """
    lines = ["  k        inertia  iterations  converged  tiles in each cluster"]
    for k, model in models.items():
        counts = sorted(model.counts_.tolist(), reverse=True)
        sizes = " ".join(map(str, counts[:12])) + (" …" if len(counts) > 12 else "")
        converged = "yes" if model.converged_ else "no"
        lines.append(f"{k:3}  {model.inertia_:13.6g}  {model.n_iter_:10}  {converged:>9}  {sizes}")
    return "\n".join(lines)
