"""Closing table of a sweep."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import daskkm
from daskkm.report.closing_table import format_table


@pytest.mark.parametrize("columns", [50, 80, 100, 300])
def test_format_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    counts = np.arange(1000, 1040)
    model = daskkm.FittedModel(np.zeros((40, 1)), counts, 1.0, 3, True, 0, np.dtype(np.uint8), None)
    quality = daskkm.Quality(1.0, counts, 606.5, 2.6, 0.185, 0.5, 0.2, 0.3)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    head, row, *_ = format_table({40: model}, {40: quality}).splitlines()
    assert max(len(head), len(row)) <= min(columns, 100)
    assert row.endswith(" …")
    assert head.endswith("tiles in each cluster" if columns >= 100 else " …")
