"""Benchmarks run once, tiny, so that they never rot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import kernel

if TYPE_CHECKING:
    import pytest


def test_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    rows = kernel.main(["--tiles", "600", "--rounds", "1"])
    assert [row["centroids"] for row in rows] == [5, 25, 256]
    for row in rows:
        assert row["daskkm"] > 0
        assert row["counts_off"] <= 2  # the same work: but for a tile that float32 misplaces
    assert "ratio" in capsys.readouterr().out
