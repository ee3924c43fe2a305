"""The benchmark suite: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was measured."""
    from benchmarks import machine, report, suite

    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="daskkm beside its peers, side by side on the same data in one run.",
        epilog=f"Rows: {', '.join(suite.ROWS)}.",
    )
    parser.add_argument(
        "--only", metavar="NAME,...", default="*", help="rows, by name or pattern: 'pass*,sweep'"
    )
    parser.add_argument("--full", action="store_true", help="the published table's sizes")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the tiles are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(words)
    try:
        names = suite.chosen(options.only.split(","))
    except ValueError as error:
        parser.error(str(error))
    described = machine.describe()
    print(*(f"{name}: {said}" for name, said in described.items()), sep="\n")
    if options.data is not None:
        options.data.mkdir(parents=True, exist_ok=True)
    place = nullcontext(options.data) if options.data else tempfile.TemporaryDirectory()
    # Where files lie on this machine is no one's business.
    kept = ["--full"] * options.full + ["--only", options.only] * (options.only != "*")
    results = described | {
        "command": shlex.join(["python", "-m", "benchmarks", *kept]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": [],
    }
    sizes = "full" if options.full else "default"
    with place as folder:
        for row in suite.run(names, sizes, Path(folder).absolute()):
            results["rows"].append(row)
            # At once: the next row may take long, or fail.
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
            if options.markdown is not None:
                options.markdown.write_text(report.markdown(results))


if __name__ == "__main__":
    main()
