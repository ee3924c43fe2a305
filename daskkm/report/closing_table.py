"""Closing table of a sweep: a line for each model, and explanations."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from daskkm.kmeans.metrics import knee

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daskkm.kmeans.metrics import Quality
    from daskkm.kmeans.model import FittedModel

_MAX_WIDTH = 100  # characters of a line of the models
_HEADINGS = ("  k", "inertia", "iter", "converged", "CH", "DB", "silh", "purity", "ARI", "NMI")


def format_table(
    models: Mapping[int, FittedModel],
    qualities: Mapping[int, Quality],
    *,
    classes: bool = False,
    quiet: bool = False,
) -> str:
    """Return a table of the models by k, with explanations unless `quiet`.

    `qualities` may be empty. `classes` is True if the user wants figures against classes.
    """
    rows = [_HEADINGS, *(_format_cells(k, model, qualities.get(k)) for k, model in models.items())]
    columns = list(zip(*rows, strict=False))  # drops headings of figures that were not measured
    widths = [max(map(len, column)) for column in columns]
    sizes = ["tiles in each cluster", *(_format_sizes(model) for model in models.values())]
    lines = [
        "  ".join([*map(str.rjust, cells, widths), last])
        for cells, last in zip(zip(*columns, strict=True), sizes, strict=True)
    ]
    width = _find_width()
    lines = [_shorten(line, width) for line in lines]
    return "\n".join(lines if quiet else lines + _explain(models, qualities, classes=classes))


def _explain(
    models: Mapping[int, FittedModel], qualities: Mapping[int, Quality], *, classes: bool
) -> list[str]:
    """Return lines that explain the columns and name the knee of the inertia."""
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
    if k := knee({k: model.inertia_ for k, model in models.items()}):
        lines.append(
            f"The curve of inertia has its knee at k = {k} among k = {min(models)} to "
            f"{max(models)}; another range of k can move it."
        )
    return lines


def _format_cells(k: int, model: FittedModel, quality: Quality | None) -> list[str]:
    """Return the cells of a model, under the first headings."""
    cells = [str(k), f"{model.inertia_:.6g}", str(model.n_iter_)]
    cells.append("yes" if model.converged_ else "no")
    if quality is None:
        return cells
    cells.append(_format_figure(quality.calinski_harabasz, 1))
    figures = [quality.davies_bouldin, quality.silhouette]
    if quality.purity is not None:
        figures += [quality.purity, quality.adjusted_rand, quality.normalized_mutual_info]
    return cells + [_format_figure(value) for value in figures]


def _format_figure(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _format_sizes(model: FittedModel) -> str:
    """Return the numbers of tiles in clusters, the largest first."""
    return " ".join(map(str, sorted(model.counts_.tolist(), reverse=True)))


def _find_width() -> int:
    """Return the number of characters of a line of the models."""
    if sys.stdout is not None and sys.stdout.isatty():
        return min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    return _MAX_WIDTH


def _shorten(line: str, width: int) -> str:
    """Return a line, cut to whole words and an ellipsis if too long."""
    if len(line) <= width:
        return line
    return line[: max(0, line.rfind(" ", 0, width - 1))] + " …"
