"""Test that a sweep that was interrupted at any moment resumes to the same bits."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import daskkm
from daskkm import block_sizes
from daskkm.kmeans.checkpoint import open_checkpoint
from daskkm.report import results
from daskkm.storage.locations import as_location
from tests.conftest import ROOT
from tests.processes import Process, remote

if TYPE_CHECKING:
    from tests.forks import Forks

pytestmark = pytest.mark.faults

COMMON = ("--store", "tiles.zarr", "--k", "3,5", "--n-init", "2", "--max-iter", "8")
SWEEP = ("sweep", "--scheduler", "threads", "--cache", "never", *COMMON)
# Ways to draw initial centroids: in passes, in memory, and from coarse to fine.
INITS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "k-means||": (("--init", "k-means||"), {"sample": 3}),
    "k-means++": ((), {}),
    "coarse": ((), {"sample": 1000}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store in six chunks, so that passes open files."""
    folder = tmp_path_factory.mktemp("home")
    with block_sizes.override(chunk_bytes=1000 * 256):
        daskkm.create_store(ROOT / "images", folder / "tiles.zarr")
    return folder


def read_results(home: Path) -> dict[str, bytes]:
    """Return the files of results of a sweep; assert that there are no other files."""
    assert {path.name for path in home.iterdir()} == {"tiles.zarr", "centroids"}
    out = home / "centroids"
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module", params=INITS)
def expected(
    request: pytest.FixtureRequest,
    home: Path,
    forked: Forks,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, int, dict[str, bytes]]:
    """Return an init, and the number of events and the results of an uninterrupted sweep."""
    args, order = INITS[request.param]
    place = tmp_path_factory.mktemp("whole") / "home"
    shutil.copytree(home, place)
    done = forked.run(*SWEEP, *args, cwd=place, **order)
    assert done.status == 0, done.lines
    files = read_results(place)
    assert len(files) > 10
    return request.param, done.events, files


@pytest.mark.parametrize("part", range(4))
def test_killed_sweep_resumes_to_the_same_bits(
    expected: tuple[str, int, dict[str, bytes]],
    part: int,
    home: Path,
    forked: Forks,
    tmp_path: Path,
) -> None:
    init, events, whole = expected
    args, order = INITS[init]
    # Kill the sweep at a seeded event in each quarter, then once more while it resumes.
    moment = random.Random(f"{init} {part}")
    last = events - 3  # the number of events varies with threads
    at = moment.randrange(last * part // 4, last * (part + 1) // 4) + 1
    shutil.copytree(home, place := tmp_path / "home")
    killed = forked.run(*SWEEP, *args, cwd=place, at=at, number=signal.SIGKILL, **order)
    assert killed.status == -signal.SIGKILL
    # No pass that was shown is repeated, except the read of a sample.
    shown = [line for line in killed.lines if line.startswith("pass ")]
    with open_checkpoint(place / "tiles.zarr.checkpoint") as checkpoint:
        number = checkpoint.number
    assert len(shown) < 2 or not number or number >= len(shown)
    assert number or len(shown) < 2 or (place / "centroids" / "sweep.json").exists()
    again = forked.run(
        *SWEEP, *args, cwd=place, at=moment.randrange(1, events), number=signal.SIGKILL, **order
    )
    assert again.status in (0, -signal.SIGKILL), again.lines
    done = forked.run(*SWEEP, *args, cwd=place, **order)
    assert done.status == 0, done.lines
    assert read_results(place) == whole


@pytest.mark.parametrize("part", range(3))
def test_interrupted_sweep_resumes_to_the_same_bits(
    expected: tuple[str, int, dict[str, bytes]],
    part: int,
    home: Path,
    forked: Forks,
    tmp_path: Path,
) -> None:
    init, events, whole = expected
    args, order = INITS[init]
    # In each third of each sweep one signal, and the other in the next third.
    number = (signal.SIGINT, signal.SIGTERM)[(list(INITS).index(init) + part) % 2]
    at = random.Random(f"{init} {part}").randrange(events * part // 3, events * (part + 1) // 3)
    shutil.copytree(home, place := tmp_path / "home")
    ended = forked.run(*SWEEP, *args, cwd=place, at=at + 1, number=number, **order)
    assert ended.status == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], ended.lines
    last = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert ended.lines[-1] == last
    usual = ("pass ", "tiles.zarr: ")
    assert all(line.startswith(usual) for line in ended.lines[:-1]), ended.lines
    done = forked.run(*SWEEP, *args, cwd=place, **order)
    assert done.status == 0, done.lines
    assert read_results(place) == whole


@pytest.mark.parametrize("expected", ["k-means++"], indirect=True)
def test_sweep_after_killed_scheduler_resumes(
    expected: tuple[str, int, dict[str, bytes]], home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, place := tmp_path / "home")
    command = ("-m", "daskkm.sweep", "--cache", "never", *COMMON)
    for last in (False, True):
        (tmp_path / str(last)).mkdir()
        with (
            remote(tmp_path / str(last), 1, worker_flags=("--no-nanny",)) as (address, _, main, _),
            Process(*command, "--scheduler", address, cwd=place) as run,
        ):
            if last:
                assert run.wait() == 0, run.lines
            else:
                run.wait_for("pass 5:")
                main.send(signal.SIGKILL)
                assert run.wait() == 1
                message = f"error: {address}: the connection to the scheduler was lost"
                assert run.lines[-1].startswith(message)
                assert "Traceback" not in "".join(run.lines), run.lines
    assert any("cut short after pass" in line for line in run.lines)
    assert read_results(place) == expected[2]


def test_second_sweep_into_results_in_use_is_refused(
    home: Path, forked: Forks, tmp_path: Path
) -> None:
    shutil.copytree(home, place := tmp_path / "home")
    (place / "centroids").mkdir()
    with results.lock_folder(as_location(place / "centroids")):
        second = forked.run(*SWEEP, "--checkpoint", "other", cwd=place)
    assert second.status == 1
    assert re.fullmatch(
        r"error: centroids: locked by another sweep\. Wait for it, or "
        r"choose another folder \(--out\)",
        second.lines[-1],
    )
    assert forked.run(*SWEEP, cwd=place).status == 0


def test_second_sweep_of_same_checkpoint_is_refused_before_ingest(
    forked: Forks, tmp_path: Path
) -> None:
    (tmp_path / "centroids").mkdir()
    args = ("sweep", "--images", ROOT / "images", "--store", "new/t.zarr")
    with results.lock_folder(as_location(tmp_path / "centroids")):
        done = forked.run(*args, cwd=tmp_path)
        assert done.status == 1
        assert "centroids: locked by another sweep" in done.lines[-1]
    with open_checkpoint(tmp_path / "new" / "t.zarr.checkpoint"):
        done = forked.run(*args, cwd=tmp_path)
        assert done.status == 1
        assert "t.zarr.checkpoint: locked by another fit" in done.lines[-1]
    # The checks leave no files.
    assert [entry.name for entry in tmp_path.iterdir()] == ["centroids"]


@pytest.mark.parametrize("expected", ["k-means++"], indirect=True)
def test_sweep_on_full_disk_ends_with_one_line_and_resumes(
    expected: tuple[str, int, dict[str, bytes]], home: Path, forked: Forks, tmp_path: Path
) -> None:
    lengths = sorted({len(data) for data in expected[2].values()})
    # Limits of file size for the models, then for the largest picture.
    shutil.copytree(home, place := tmp_path / "home")
    for most in (1000, lengths[-1] - 1):
        done = forked.run(*SWEEP, cwd=place, most=most)
        assert done.status == 1
        assert done.lines[-1].startswith("error: ")
        assert "cannot be written" in done.lines[-1]
        assert "Traceback" not in "".join(done.lines)
    assert forked.run(*SWEEP, cwd=place).status == 0
    assert read_results(place) == expected[2]


def test_commands_on_a_closed_folder_end_with_one_line(forked: Forks) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "shut").mkdir(mode=0o700)
        Path(folder, "shut", "images").mkdir()
        nobody = {"user": 65534} if os.getuid() == 0 else {}
        Path(folder, "shut").chmod(0o000)
        for args in (
            ("sweep", "--store", "shut/t.zarr", "--out", "/tmp"),
            ("ingest", "shut/images"),
            ("ingest", "shut/*.png"),
            ("ingest", "shut/*/*.png"),
            ("ingest", "shut/images/*.png"),
            ("verify", "shut/t.zarr"),
        ):
            done = forked.run(*args, cwd=Path(folder), **nobody)
            assert done.status == 1, done.lines
            assert len(done.lines) == 1
            assert re.match(r"error: .*shut.*Permission denied", done.lines[0])
        Path(folder, "shut").chmod(0o700)


@pytest.mark.parametrize("closed", [".", "centroids"])
def test_sweep_into_a_closed_folder_ends_with_one_line(
    closed: str, home: Path, forked: Forks
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to other users
        Path(folder).chmod(0o755)
        shutil.copytree(home, place := Path(folder, "home"))
        (place / "centroids").mkdir()
        for each in (place, place / "centroids"):
            each.chmod(0o555 if each == place / closed else 0o777)
        nobody = {"user": 65534} if os.getuid() == 0 else {}  # root may write to every folder
        done = forked.run(*SWEEP, cwd=place, **nobody)
        (place / closed).chmod(0o777)
    assert done.status == 1
    assert len(done.lines) <= 2
    what = {".": "tiles.zarr.checkpoint: the checkpoint", "centroids": "centroids: results"}
    assert done.lines[-1].startswith(f"error: {what[closed]} cannot be written")
