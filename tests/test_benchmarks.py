"""Benchmarks run once, tiny, so that they never rot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import kernel, seeding

if TYPE_CHECKING:
    import pytest


def test_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    rows = kernel.main(["--tiles", "600", "--rounds", "1"])
    assert [row["centroids"] for row in rows] == [5, 25, 256]
    for row in rows:
        assert row["daskkm"] > 0
        assert row["counts_off"] <= 2  # the same work: but for a tile that float32 misplaces
    assert "ratio" in capsys.readouterr().out


def test_seeding(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["method"]: row for row in seeding.main(["--k", "3", "--seeds", "1"])}
    assert list(rows) == list(seeding.METHODS)
    assert rows["scikit-learn k-means++"]["ratio"] == 1
    whole, passes, pool = (
        rows[f"daskkm {name}"] for name in ("k-means++", "k-means++, in passes", "k-means||")
    )
    assert whole["reads"] == 1
    # Beside the passes, the block of the first tile.
    for row, n in ((passes, 3), (pool, 6)):
        assert n < row["reads"] <= n + seeding.ROWS_A_BLOCK / 5610
    assert all(0.5 < row["ratio"] < 2 for row in (whole, passes, pool))
    assert "ratio" in rows["dask-ml k-means||"] or "not installed" in capsys.readouterr().out
