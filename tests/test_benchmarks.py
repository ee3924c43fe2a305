"""Benchmarks run once, tiny, so that they never rot; sides that are compared did the same work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest

from benchmarks import __main__, costs, data, report, scaling, seeding, suite, timing
from daskkm.passes.statistics import statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What comes of the same start in float32: after one iteration, and after many.
ONE, MANY = 1e-6, 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiles")


def tiny(name: str, folder: Path) -> list[dict[str, Any]]:
    """The cases of a row."""
    (row,) = suite.run([name], "tiny", folder)
    assert "skipped" not in row
    cases: list[dict[str, Any]] = row["cases"]
    for case in cases:
        for side in case["sides"].values():
            assert side["median"] > 0
    return cases


def assert_same_work(case: dict[str, Any], models: int, within: float) -> None:
    found = {name: side["inertias"] for name, side in case["sides"].items() if side["inertias"]}
    for name, inertias in found.items():
        assert len(inertias) == models, name
        first = next(iter(found.values()))
        np.testing.assert_allclose(inertias, first, rtol=within, err_msg=name)


@pytest.mark.parametrize(
    ("name", "models", "n_cases", "peer"),
    [
        ("iteration", 1, 1, "scikit-learn"),
        ("iteration-sweep", 5, 1, "scikit-learn"),
        ("iteration-256", 1, 1, "scikit-learn"),
        ("iteration-1024", 1, 2, "faiss"),
        ("pass", 1, 1, "dask-ml"),
    ],
)
def test_one_iteration(name: str, models: int, n_cases: int, peer: str, folder: Path) -> None:
    cases = tiny(name, folder)
    assert len(cases) == n_cases
    for case in cases:
        missing = f"{peer.replace('-', '_')} is not installed"
        assert peer in case["sides"] or case["notes"] == [missing]
        assert_same_work(case, models, ONE)


def test_bounds(folder: Path) -> None:
    large, small = tiny("bounds", folder)
    assert large["sizes"]["tiles"] > small["sizes"]["tiles"]
    assert {"scikit-learn, lloyd", "scikit-learn, elkan"} <= set(small["sides"])
    for case in (large, small):
        assert list(case["sides"])[:2] == ["daskkm, bounds", "daskkm, no bounds"]
        assert_same_work(case, 1, MANY)


def test_sweep(folder: Path) -> None:
    (case,) = tiny("sweep", folder)
    # One read of the tiles is not a fit.
    read_once = case["sides"].pop("scikit-learn, mini-batches")
    others = {name: case["sides"].pop(name) for name in ("daskkm", "daskkm, 16 restarts")}
    assert_same_work(case, 5, MANY)
    same = case["sides"]["daskkm, same starts"]
    for side in (read_once, *others.values()):
        np.testing.assert_allclose(side["inertias"], same["inertias"], rtol=0.5)


def test_a_peer_that_is_too_slow_is_stopped(folder: Path) -> None:
    pytest.importorskip("dask_ml")
    row = suite.ROWS["sweep"]
    (case,) = row.measure(folder, **row.always, **(row.sizes["tiny"] | {"limit": 0}))
    assert case.sides["dask-ml"].outcome.said["k"] == [3]
    assert "dask-ml was stopped after k = 3" in case.notes[0]


@pytest.mark.parametrize("name", ["figures", "figures-many"])
def test_figures(name: str, folder: Path) -> None:
    cases = tiny(name, folder)
    assert [case["sizes"]["threads"] for case in cases] == [1, 2]
    for case in cases:
        sides = case["sides"]
        passes = {side: sides[side]["passes"] for side in sides if side != "one pass"}
        assert passes == {"figures, alone": 2, "figures, after a fit": 1}


def test_coarse(folder: Path, override_sizes: Callable[..., None]) -> None:
    override_sizes(sample_tiles=1 << 12)
    (case,) = tiny("coarse", folder)
    coarse, fine = case["sides"]["coarse to fine"], case["sides"]["same starts, all tiles"]
    assert coarse["passes"] < fine["passes"]
    np.testing.assert_allclose(coarse["inertias"], fine["inertias"], rtol=0.1)


@pytest.mark.parametrize(("name", "models"), [("pass-read", 1), ("pass-read-sweep", 5)])
def test_reading(name: str, models: int, folder: Path) -> None:
    (case,) = tiny(name, folder)
    assert len(case["sides"]["daskkm"]["inertias"]) == models
    for reading in set(case["sides"]) - {"daskkm"}:
        assert case["sides"][reading]["tiles_read"] == case["sizes"]["tiles"]


def test_memory(folder: Path) -> None:
    (case,) = tiny("memory", folder)
    assert case["unit"] == "MiB"
    for side in case["sides"].values():
        assert side["iterations"] == 3
        assert side["before_mib"] <= side["median"]


def test_many_blocks(folder: Path) -> None:
    cases = tiny("blocks", folder)
    assert len(cases) == 2
    for case in cases:
        assert case["sides"]["read only"]["tiles_read"] == 8000
        assert len(case["sides"]["daskkm"]["inertias"]) == 1


def test_the_command(folder: Path) -> None:
    (case,) = tiny("command", folder)
    assert len(case["sides"]["daskkm"]["inertia"]) == 5


def test_seeding(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = tiny("seeding", folder)
    whole, passes, pool = (
        case["sides"][f"daskkm {name}"]
        for name in ("k-means++", "k-means++, in passes", "k-means||")
    )
    assert whole["reads"] == 1
    # Beside the passes, the block of the first tile.
    for side, n in ((passes, 3), (pool, 6)):
        assert n < side["reads"] <= n + seeding.ROWS_A_BLOCK / 5610
    reference = case["sides"]["scikit-learn k-means++"]["left"]
    assert all(0.5 < side["left"] / reference < 2 for side in (whole, passes, pool))
    theirs = {
        name: seeding.METHODS[name] for name in ("scikit-learn k-means++", "dask-ml k-means||")
    }
    monkeypatch.setattr(seeding, "METHODS", theirs)
    rows = {row["method"]: row for row in seeding.main(["--k", "3", "--seeds", "1"])}
    assert list(rows) == list(theirs)
    assert "ratio" in rows["dask-ml k-means||"] or "not installed" in capsys.readouterr().out


def test_one_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(suite.ROWS["iteration"].sizes["default"], "tiles", 600)
    found, page = tmp_path / "found.json", tmp_path / "page.md"
    __main__.main(["--only", "iteration", "--json", str(found), "--markdown", str(page)])
    results = json.loads(found.read_text())
    assert results["command"] == "python -m benchmarks --only iteration"
    assert {"cpu", "cores", "flags", "memory_gb"} <= set(results["machine"])
    assert {"python", "numpy", "dask", "zarr", "numba", "scikit-learn"} <= set(results["versions"])
    (case,) = results["rows"][0]["cases"]
    assert [len(side["samples"]) for side in case["sides"].values()] == [9, 9]
    assert "scikit-learn" in capsys.readouterr().out
    assert page.read_text() == report.markdown(results)
    assert str(tmp_path) not in page.read_text() + found.read_text()


def test_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    found = scaling.main(["--json", str(file)], scaling.TINY)
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert {check["workers"] for check in found["checks"]} == {1}
    assert all(check["predicted"] > 0 < check["measured"] for check in found["checks"])
    # 256 GB fit into the memory of 100 workers of 32 GB, 25.6 TB do not.
    fits = {each["tiles"] for each in found["predictions"] if each["place"] == "memory"}
    assert fits == {10**9}
    assert {each["tiles"] for each in found["predictions"]} == {10**9, 10**11}
    printed = capsys.readouterr().out
    assert "predicted s" in printed
    assert str(tmp_path) not in printed + file.read_text()


@pytest.mark.parametrize("n", [1, 2, 8, 9, 65, 600])
def test_tasks_are_counted_as_dask_makes_them(n: int) -> None:
    X = da.zeros((n, 4), chunks=(1, 4), dtype=np.uint8)
    lazy = statistics(X, np.zeros((2, 4)), np.array([0, 2]))
    work = costs.Work(n, n, (2,), "memory", features=4)
    made = len(dask.optimize(lazy)[0].dask)
    assert work.tasks - work.levels <= made <= work.tasks


def test_a_row_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--only", "iteration,elsewhere"])
    assert "no row is called elsewhere; there are iteration, " in capsys.readouterr().err
    assert suite.chosen(["pass*", "iteration"]) == [
        "iteration",
        "pass",
        "pass-read",
        "pass-read-sweep",
    ]


def test_every_row_is_described() -> None:
    described = (data.ROOT / "benchmarks" / "README.md").read_text()
    for name in suite.ROWS:
        assert f"| `{name}` |" in described


def test_tiles_are_the_same_whatever_the_chunks(folder: Path) -> None:
    whole = data.make(0, 10_000)
    assert len(np.unique(whole, axis=0)) == 10_000
    for rows in (999, 8192, 8765):
        np.testing.assert_array_equal(np.concatenate([*data.chunks(10_000, rows)]), whole)
    np.testing.assert_array_equal(data.store(10_000, folder).features().compute(), whole)
    np.testing.assert_array_equal(data.plain_zarr(8000, 1000, folder)[:], whole[:8000])


def test_the_judge_sees_a_wrong_answer() -> None:
    X = data.make(0, 500)
    good, bad = X[:3], X[:3] + 1.0
    sides = {"good": timing.Side([], timing.Outcome([good, good])), "bad": timing.Side()}
    sides["bad"].outcome = timing.Outcome([bad])
    timing.judge(sides, [X[:100], X[100:]])
    exact = np.square(X[:, None].astype(float) - good).sum(axis=2).min(axis=1).sum()
    np.testing.assert_allclose(sides["good"].inertias, [exact, exact], rtol=1e-12)
    assert sides["bad"].inertias[0] != pytest.approx(exact, rel=1e-9)
