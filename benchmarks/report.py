"""What was measured, for the terminal and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PAGE = """\
# Benchmarks

`{command}` wrote this page, and `benchmarks/README.md` in the repository describes each row.
Times are medians. All sides of a case had the same tiles, initial centroids, tol and number of
threads, and took turns in one run. Only the sweeps called "daskkm" and "coarse to fine" drew their
own initial centroids, and their time includes the draws. *Ratio* is the time of a side over that of
the first side; above 1 the first side is faster. *Inertia* is summed over the models, and measured
for all sides by the same plain float64.

| | row | target | side | measured | ratio | inertia | |
|---|---|---|---|---|---|---|---|
{rows}

{cores} cores of {cpu} ({flags}), {memory_gb} GB, {system}; {versions}; {date}.
"""

# Beside the seconds of a side, what else it may say of itself.
_KEYS = ("iterations", "passes", "k", "seconds", "tiles_read", "before_mib", "left", "reads")


def lines(cases: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what was measured in the cases of a row, a side a line."""
    for case in cases:
        yield f"  {case['what']} ({case['where']})"
        for name, measured, ratio, inertia, more in _sides(case):
            yield f"    {name:28}{measured:>10}  {ratio:>8}  {inertia:>12}  {more}".rstrip()
        yield from (f"    {note}" for note in case["notes"])


def markdown(results: Mapping[str, Any]) -> str:
    """Return the page of a run: the table, the machine, the versions, the command."""
    rows = ["| " + " | ".join(cells) + " |" for row in results["rows"] for cells in _cells(row)]
    machine = results["machine"]
    said = machine | {
        "command": results["command"],
        "date": results["date"],
        "rows": "\n".join(rows),
        "flags": ", ".join(machine["flags"]),
        "versions": ", ".join(f"{name} {found}" for name, found in results["versions"].items()),
    }
    return _PAGE.format(**said)


def _cells(row: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Yield the lines of a row: the number, title and target stand on the first one only."""
    first = [str(row["number"]), f"**{row['title']}**", row["target"] or "-"]
    if not row["cases"]:
        yield [*first, "", row.get("skipped", "not measured"), "", "", ""]
    for case in row["cases"]:
        first[1] = f"{first[1]} {case['what']} ({case['where']})".strip()
        for side in _sides(case):
            yield [*first, *(cell.replace("|", "\\|") for cell in side)]
            first = [""] * 3
        for note in case["notes"]:
            yield ["", "", "", "", note, "", "", ""]


def _sides(case: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the sides of a case in words, that to which the others are relative first."""
    for name, side in sorted(case["sides"].items(), key=lambda item: item[0] != case["reference"]):
        ratio = f"{side['ratio']:.2f} x" if len(case["sides"]) > 1 else ""
        inertia = f"{sum(side['inertias']):.6e}" if side["inertias"] else ""
        more = "; ".join(f"{key} {_words(side[key])}" for key in _KEYS if key in side)
        yield name, _quantity(side["median"], case["unit"]), ratio, inertia, more


def _quantity(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:,.0f} {unit}"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:,.2f} s"


def _words(value: float | Sequence[float]) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ", ".join(map(_words, value))
