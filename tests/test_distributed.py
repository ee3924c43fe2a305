"""The same bits on every scheduler: threads, worker processes, and machines over sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np
import psutil
import pytest
from bokeh.client import pull_session
from distributed import Client, LocalCluster

import daskkm
from daskkm.block_sizes import override
from daskkm.passes import connection
from tests.processes import DEADLINE, ENDLESS, SETTINGS, Process, remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from daskkm import Pass
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.tile_store import TileStore

IRREGULAR = (10, 0, 5000, 600)
SWEEP: dict[str, Any] = {"ks": (3, 5), "n_init": 2, "max_iter": 12, "random_state": 0}


class Expected(NamedTuple):
    result: SweepResult
    labels: dict[int, NDArray[Any]]


def fit_in_this_process(X: Any, scheduler: str, **settings: Any) -> Expected:
    """Fit on a scheduler of dask without processes."""
    with dask.config.set(scheduler=scheduler):
        result = daskkm.fit_sweep(X, **SWEEP, **settings)
        return Expected(result, {k: m.predict(X).compute() for k, m in result.models.items()})


@pytest.fixture(scope="module")
def expected(digits: TileStore) -> Expected:
    return fit_in_this_process(digits.features(), "sync")


def assert_same_bits(result: SweepResult, expected: Expected, X: Any) -> None:
    assert result.passes == expected.result.passes
    assert result.bytes_read == expected.result.bytes_read
    for k, model in expected.result.models.items():
        other = result.models[k]
        assert other.inertia_ == model.inertia_
        assert other.n_iter_ == model.n_iter_
        np.testing.assert_array_equal(other.cluster_centers_, model.cluster_centers_)
        np.testing.assert_array_equal(other.counts_, model.counts_)
        np.testing.assert_array_equal(other.predict(X).compute(), expected.labels[k])


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as c,
        Client(c) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("name", "chunkings"),
    [
        ("threads", (5610, 1000, 701, IRREGULAR)),
        ("sync", (IRREGULAR,)),
        ("1 process", (5610, 1000)),
        ("3 processes", (701, IRREGULAR)),
    ],
    ids=["threads", "sync", "1 process", "3 processes"],
)
def test_fit_on_any_scheduler_and_chunking_gives_the_same_bits(
    digits: TileStore, expected: Expected, name: str, chunkings: tuple[Any, ...]
) -> None:
    with ExitStack() as stack:
        if name.split(maxsplit=1)[0].isdecimal():
            stack.enter_context(local_cluster(int(name.split(maxsplit=1)[0])))
        else:
            stack.enter_context(dask.config.set(scheduler=name))
        for chunks in chunkings:
            X = digits.features().rechunk((chunks, -1))
            assert_same_bits(daskkm.fit_sweep(X, **SWEEP), expected, X)


def test_fit_uses_an_existing_client_and_leaves_it_open(digits: TileStore) -> None:
    with (
        LocalCluster(1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        before = len(client.get_task_stream())
        daskkm.fit_sweep(digits.features(), [2], n_init=1, max_iter=2, random_state=0)
        assert len(client.get_task_stream()) > before
        assert client.status == "running"


@pytest.mark.parametrize(
    ("init", "dtype", "stages"),
    [
        ("k-means++", "uint8", {"sample fit"}),
        ("random", "float32", {"sample fit"}),
        ("k-means||", "float32", {"candidate fit", "sample fit"}),
    ],
)
def test_workers_fit_to_samples_to_the_same_bits(
    digits: TileStore,
    override_sizes: Callable[..., None],
    init: str,
    dtype: str,
    stages: set[str],
) -> None:
    """All workers take part, and the bits are those of threads."""
    override_sizes(sample_tiles=500, large_sample_bytes=1000 * 256)
    X = digits.features().astype(dtype)
    expected = fit_in_this_process(X, "threads", init=init)
    at_work: dict[str, set[str]] = {}
    with local_cluster(2) as client:

        def watch(done: Pass) -> None:
            tasks = client.get_task_stream()
            new, seen[0] = tasks[seen[0] :], len(tasks)
            summing = {task["worker"] for task in new if "statistics" in str(task["key"])}
            at_work[done.stage] = at_work.get(done.stage, set()) | summing

        seen = [0]
        result = daskkm.fit_sweep(X, **SWEEP, init=init, on_pass=watch)
        everyone = set(client.scheduler_info()["workers"])
        assert_same_bits(result, expected, X)
    assert {stage for stage, workers in at_work.items() if workers} == {"pass", *stages}
    assert at_work["sample fit"] == everyone


@override(chunk_bytes=7 * 64)
def test_label_by_worker_processes_gives_the_same_labels(images: Path, tmp_path: Path) -> None:
    store = daskkm.create_store(images, tmp_path / "t.zarr", tile=8)
    models = daskkm.fit_sweep(store, [1, 2, 3], n_init=1, random_state=0).models
    unlabelled = models.pop(2)
    with local_cluster(2):
        for model in models.values():
            store.label(model, distances=True)
        chunk = tmp_path / "t.zarr" / "tiles" / "c" / "1" / "0" / "0"
        chunk.rename(tmp_path / "chunk")
        (tmp_path / "t.zarr" / "labels" / "3" / "c" / "1").unlink()
        with pytest.raises(daskkm.StoreError, match="tiles 7 to 13 cannot be read"):
            store.label(unlabelled)
        (tmp_path / "chunk").rename(chunk)
        store.label(models[3], distances=True)
    with dask.config.set(scheduler="sync"):
        for k, model in models.items():
            np.testing.assert_array_equal(store.labels(k).compute(), model.predict(store).compute())
            np.testing.assert_array_equal(
                store.distances(k).compute(), model.transform(store).compute()
            )
    # Of one cluster all labels are 0, and written nevertheless.
    assert len(list((tmp_path / "t.zarr" / "labels" / "1" / "c").iterdir())) == 5


def test_connect_keeps_the_settings_of_distributed() -> None:
    code = (
        "import dask; from daskkm.passes.connection import connect\n"
        "for _ in range(2):\n"
        "    with connect('local', dashboard_address='127.0.0.1:0'): pass\n"
        "assert dask.config.get('distributed.comm')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def sweep(*args: str | Path, cwd: Path) -> Process:
    return Process("-m", "daskkm.sweep", *args, cwd=cwd)


def test_sweep_on_a_remote_scheduler_gives_the_same_bits(
    digits: TileStore, expected: Expected, tmp_path: Path
) -> None:
    flags = ("--store", digits.path, "--checkpoint", "checkpoint", "--out", "out")
    settings = ("--k", "3,5", "--n-init", "2", "--max-iter", "12")
    with remote(tmp_path, 2, worker_flags=("--no-nanny",)) as (address, file, *_):
        with sweep("--scheduler", file, *flags, *settings, cwd=tmp_path) as run:
            assert run.wait() == 0, run.lines
        for chunks, name in ((701, address), (IRREGULAR, str(file))):
            X = digits.features().rechunk((chunks, -1))
            with connection.connect(name):
                assert_same_bits(daskkm.fit_sweep(X, **SWEEP), expected, X)
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert summary["passes"] == expected.result.passes + 1  # the assessment's
    for model in summary["models"]:
        same = expected.result.models[model["k"]]
        assert (model["inertia"], model["n_iter"]) == (same.inertia_, same.n_iter_)
        assert model["sizes"] == same.counts_.tolist()


@pytest.mark.faults
# Python 3.12 and 3.13 say so of how bokeh's client makes its loop.
@pytest.mark.filterwarnings("ignore:There is no current event loop:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "ending", "word", "status"),
    [
        ((), signal.SIGTERM, "terminated", 143),
        (("--workers", "2"), signal.SIGINT, "interrupted", 130),
    ],
)
def test_sweep_serves_its_dashboard_on_loopback(
    digits: TileStore,
    tmp_path: Path,
    workers: tuple[str, ...],
    ending: signal.Signals,
    word: str,
    status: int,
) -> None:
    # Port 0: whichever is free.
    flags: tuple[str | Path, ...] = (
        "--store",
        digits.path,
        "--checkpoint",
        "checkpoint",
        "--dashboard-address",
        "127.0.0.1:0",
        *workers,
        *ENDLESS,
    )
    with sweep(*flags, cwd=tmp_path) as run:
        link = run.wait_for(r"dashboard: (http://127\.0\.0\.1:\d+/status)")[1]
        run.wait_for("pass 3:")
        with urllib.request.urlopen(link, timeout=DEADLINE) as page:
            assert page.status == 200
            assert "bokeh" in page.read().decode()
        session = pull_session(url=link)
        plots = {root.name for root in session.document.roots}
        session.close()
        assert {"task_stream", "task_progress", "workers_memory"} <= plots
        main = psutil.Process(run.pid)
        family = [main, *main.children(recursive=True)]
        for process in family:
            listening = [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
            assert {connection.laddr.ip for connection in listening} <= {"127.0.0.1"}
        run.send(ending)
        assert run.wait() == status
        assert not psutil.wait_procs(family, DEADLINE)[1]
        # Nothing but its own lines: no traceback, no log of tasks cut short.
        others = [line for line in run.lines if not line.startswith("pass ")]
        assert others[2:] == [word]
