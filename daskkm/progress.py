"""What a sweep says of itself while it works, and at the end."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from daskkm.quality import knee

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from daskkm.fit import SweepResult
    from daskkm.model import FittedModel
    from daskkm.quality import Quality
    from daskkm.reader import Pass

_WIDTH = 100  # characters of a line of the closing table
_HEADINGS = ("  k", "inertia", "iter", "converged", "CH", "DB", "silh", "purity", "ARI", "NMI")
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
        self._in_place = sys.stderr is not None and sys.stderr.isatty()
        self._lines = 0

    def show(self, done: Pass) -> None:
        """Show where all models stand after a pass.

        Parameters
        ----------
        done : Pass
        """
        if not done.steps:
            click.echo(f"pass {done.number}: seeding, {done.seconds:.2f} s", err=True)
            return
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


def closing_table(
    models: Mapping[int, FittedModel], qualities: Mapping[int, Quality], *, classes: bool = False
) -> str:
    """Return a table of the models, a line each, and how to read it.

    Parameters
    ----------
    models : mapping of k to FittedModel
    qualities : mapping of k to Quality
        Of the same k; empty if the figures were not measured.
    classes : bool
        Whether figures of classes were asked for.

    Returns
    -------
    str
        The lines, of no more than 100 characters.
    """
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
            line + _sizes(model.counts_.tolist(), _WIDTH - len(line))
            for line, model in zip(lines, models.values(), strict=True)
        ),
    ]
    if qualities:
        lines.append(
            "CH (Calinski-Harabasz) and silh (silhouette): more is better; "
            "DB (Davies-Bouldin): less."
        )
    if any(q.purity is not None for q in qualities.values()):
        lines.append("purity, ARI (adjusted Rand) and NMI: more is better, 1 is perfect.")
    elif classes and qualities:
        lines.append(
            "purity, ARI and NMI are left out: each sheet is one tile, a class of its own."
        )
    found = knee({k: model.inertia_ for k, model in models.items()})
    if found is not None:
        among = f"k = {min(models)} to {max(models)}"
        lines.append(
            f"The curve of inertia has its knee at k = {found} among {among}; "
            "another range of k can move it."
        )
    return "\n".join(lines)


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


def _sizes(counts: list[int], room: int) -> str:
    """Return the sizes of the clusters, biggest first, as many as there is room for."""
    sizes = "  " + " ".join(map(str, sorted(counts, reverse=True)))
    return sizes if len(sizes) <= room else sizes[: sizes.rindex(" ", 0, room - 1)] + " …"
