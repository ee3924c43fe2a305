"""Test that fits with failing workers and schedulers give the same bits, or one error."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.chaos import KillWorker
from PIL import Image

import daskkm
from daskkm.block_sizes import MiB, override
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import SchedulerError, StoreError
from daskkm.images import tasks
from daskkm.passes import connection, scheduler
from daskkm.storage.locations import as_location
from daskkm.storage.tile_store import is_present
from tests.locations import tree
from tests.processes import (
    DEADLINE,
    ENDLESS,
    QUIET,
    SETTINGS,
    Process,
    Remote,
    once_iterations_began,
    remote,
    start_worker,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from daskkm import Pass
    from daskkm.kmeans.sweep import SweepResult
    from daskkm.storage.tile_store import TileStore

pytestmark = pytest.mark.faults

SWEEP: dict[str, Any] = {
    "ks": (3, 5), "n_init": 2, "init": "k-means++", "max_iter": 9, "tol": 0, "random_state": 0,
}  # fmt: skip
# Short timeouts for scheduler and workers.
QUICK = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}


def assert_same_bits(result: SweepResult, expected: SweepResult) -> None:
    assert result.passes == expected.passes
    for k, model in expected.models.items():
        other = result.models[k]
        assert (other.inertia_, other.n_iter_) == (model.inertia_, model.n_iter_)
        np.testing.assert_array_equal(other.cluster_centers_, model.cluster_centers_)
        np.testing.assert_array_equal(other.counts_, model.counts_)


@pytest.fixture(scope="module")
def expected(digits: TileStore) -> SweepResult:
    with dask.config.set(scheduler="sync"):
        return daskkm.fit_sweep(digits, **SWEEP)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """Start a scheduler and two workers, with a nanny each."""
    with remote(tmp_path_factory.mktemp("machines"), workers=2, env=QUICK) as found:
        yield found


@contextmanager
def connected(address: str) -> Iterator[Client]:
    with connection.connect(address) as client:
        assert client is not None
        yield client


def signal_once(block: NDArray[Any], armed: Path, number: int) -> NDArray[Any]:
    """Send a signal to the process of the first task after `armed` was created."""
    try:
        armed.unlink()
    except FileNotFoundError:
        return block
    os.kill(os.getpid(), number)
    return block


def allocate(block: NDArray[Any], n_bytes: int) -> NDArray[Any]:
    """Allocate memory, and write to all of the memory."""
    memory = [np.ones(n_bytes // 8) for _ in range(len(block) > 0)]
    return block + np.uint8(sum(map(len, memory)) % 1)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(client: Client) -> set[int]:
    return set(client.run(os.getpid).values())


def fit(X: Any, on_pass: Callable[[Pass], None], **settings: Any) -> SweepResult:
    """Fit with a callback after each pass."""
    return daskkm.fit_sweep(X, **{**SWEEP, **settings}, on_pass=on_pass)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_fit_with_killed_or_frozen_worker_gives_the_same_bits(
    machines: Remote, digits: TileStore, expected: SweepResult, tmp_path: Path, number: int
) -> None:
    armed = tmp_path / "armed"
    X = digits.features().rechunk((701, -1)).map_blocks(signal_once, armed, number, dtype=np.uint8)
    with connected(machines.address) as client:
        client.wait_for_workers(2, timeout=DEADLINE)
        before = pids(client)

        def arm(done: Pass) -> None:
            if done.number == 4:
                armed.touch()

        assert_same_bits(fit(X, arm, cache="never"), expected)
        client.wait_for_workers(2, timeout=DEADLINE)
        assert not armed.exists()
        # A busy machine may have cost the other worker as well.
        assert before - pids(client)


@pytest.mark.parametrize(("kind", "moments"), [("store", (4, 7)), ("numpy", (4,))])
def test_fit_with_killed_worker_of_cached_tiles_gives_the_same_bits(
    machines: Remote,
    digits: TileStore,
    expected: SweepResult,
    kind: str,
    moments: tuple[int, ...],
) -> None:
    X = digits.features().rechunk((701, -1))
    with connected(machines.address) as client:
        client.wait_for_workers(2, timeout=DEADLINE)

        def kill(done: Pass) -> None:
            if done.number in moments:
                os.kill(min(pids(client)), signal.SIGKILL)

        given = X.compute() if kind == "numpy" else X
        assert_same_bits(fit(given, kill, cache="always"), expected)


@pytest.mark.parametrize(
    ("init", "dtype", "moments"),
    [
        ("k-means++", "uint8", {("sample fit", 1)}),
        # Between the rounds of k-means||, and in both fits.
        ("k-means||", "float32", {("pass", 4), ("candidate fit", 7), ("sample fit", 8)}),
    ],
)
def test_fit_with_killed_worker_during_init_gives_the_same_bits(
    machines: Remote,
    digits: TileStore,
    override_sizes: Callable[..., None],
    init: str,
    dtype: str,
    moments: set[tuple[str, int]],
) -> None:
    override_sizes(sample_tiles=1000)
    X = digits.features().rechunk((701, -1)).astype(dtype)
    with dask.config.set(scheduler="threads"):
        expected = daskkm.fit_sweep(X, **SWEEP | {"init": init})
    left = set(moments)
    with connected(machines.address) as client:
        client.wait_for_workers(2, timeout=DEADLINE)

        def kill(done: Pass) -> None:
            if (done.stage, done.number) in left:
                left.remove((done.stage, done.number))
                os.kill(min(pids(client)), signal.SIGKILL)

        assert_same_bits(fit(X, kill, init=init), expected)
    assert not left


def test_fit_without_workers_waits_and_then_raises(
    digits: TileStore, expected: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with remote(tmp_path, 1, worker_flags=("--no-nanny",)) as (address, _, _, (first,)):
        with connected(address), start_worker(address, tmp_path, "--no-nanny") as second:
            second.wait_for(
                "Starting established connection"
            )  # a worker that is not yet connected may be lost

            def kill(done: Pass) -> None:
                if done.number == 4:
                    first.send(signal.SIGKILL)

            assert_same_bits(fit(digits, kill), expected)
            monkeypatch.setattr(scheduler, "WORKERS_SECONDS", 1)
            second.send(signal.SIGKILL)
            with pytest.raises(SchedulerError, match="no worker has taken tasks for 1 s"):
                daskkm.fit_sweep(digits, **SWEEP)
        with (
            pytest.raises(SchedulerError, match="no worker has taken tasks for 1 s"),
            connected(address),
        ):
            pass


def test_fit_with_frozen_scheduler_raises(
    digits: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler freezes in a sweep, then before the first use of another client."""
    monkeypatch.setattr(scheduler, "SILENCE_SECONDS", 5)
    message = "has not answered for 5 s"
    with remote(tmp_path, 1, worker_flags=("--no-nanny",)) as (address, _, main, _):
        frozen: list[int] = []

        def freeze(done: Pass) -> None:
            if done.number == 4:
                frozen.append(done.number)
                os.kill(main.pid, signal.SIGSTOP)

        with connected(address), ExitStack() as stack:
            stack.callback(os.kill, main.pid, signal.SIGCONT)
            for _ in range(2):
                with pytest.raises(SchedulerError, match=message):
                    fit(digits, freeze)
                assert frozen == [4]
        with Client(address), ExitStack() as stack:
            stack.callback(os.kill, main.pid, signal.SIGCONT)
            os.kill(main.pid, signal.SIGSTOP)
            for _ in range(2):
                with pytest.raises(SchedulerError, match=message):
                    daskkm.fit_sweep(digits, **SWEEP)


def test_connect_to_frozen_or_killed_scheduler_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "SILENCE_SECONDS", 5)
    messages = {
        signal.SIGSTOP: "the scheduler has not answered for 5 s. See",
        signal.SIGKILL: "the connection to the scheduler was lost. Start a scheduler",
    }
    with remote(tmp_path, 0) as (address, _, main, _):

        def is_connected() -> bool:
            with suppress(ValueError):  # no client yet
                return bool(Client.current().status == "running")
            return False

        def strike(number: int) -> None:
            until(is_connected)
            os.kill(main.pid, number)

        for number, message in messages.items():
            striking = Thread(target=strike, args=(number,))
            striking.start()
            try:
                with pytest.raises(SchedulerError, match=message), connected(address):
                    pass
            finally:
                striking.join()
                os.kill(main.pid, signal.SIGCONT)


@pytest.mark.parametrize("connecting", ["by daskkm", "by distributed"])
def test_fit_with_closed_client_raises(
    digits: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connecting: str
) -> None:
    """dask would silently compute in this process."""
    monkeypatch.setattr(scheduler, "CONNECT_SECONDS", 5)
    alone = ("--no-nanny",)
    with remote(tmp_path, 1, worker_flags=alone) as (address, _, main, _), ExitStack() as stack:
        ours = connecting == "by daskkm"
        made = connection.connect(address) if ours else Client(address, timeout=5)
        client = stack.enter_context(made)
        assert client is not None

        def kill() -> None:
            main.send(signal.SIGKILL)
            until(lambda: client.status == "closed")

        message = f"^{address}: the connection to the scheduler was lost. Start a scheduler again"
        with pytest.raises(SchedulerError, match=message):
            fit(digits, once_iterations_began(kill))
        if ours:
            with pytest.raises(SchedulerError, match=message):
                daskkm.fit_sweep(digits, **SWEEP)
        # An explicit dask scheduler is used.
        with dask.config.set(scheduler="sync"):
            daskkm.fit_sweep(digits, [2], n_init=1, max_iter=1)
    with dask.config.set(scheduler="sync"):
        daskkm.fit_sweep(digits, [2], n_init=1, max_iter=1)


@contextmanager
def local_cluster(workers: int, **settings: Any) -> Iterator[tuple[LocalCluster, Client]]:
    """Start worker processes that are restarted, however many workers a task has killed."""
    with (
        dask.config.set(SETTINGS),
        dask.config.set({"distributed.scheduler.allowed-failures": settings.pop("failures", 100)}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", **QUIET, **settings
        ) as made,
        Client(made) as client,
    ):
        yield made, client


# Ways to end, each twice.
MODES: tuple[Any, ...] = ("sys.exit", "graceful", "segfault") * 2


class Armed(KillWorker):  # type: ignore[misc]  # distributed has no types for it
    """Worker plugin that ends each worker in the next of `MODES`, then creates a file.

    After the last of the modes workers live on: a fit ends on a slow machine, too.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(delay="1 s")
        self._folder = folder

    async def setup(self, worker: Any) -> None:
        for i, self.mode in enumerate(MODES):
            with suppress(FileExistsError):
                (self._folder / f"{i}.begun").touch(exist_ok=False)
                await super().setup(worker)
                return

    def graceful(self) -> None:
        self._create_file()
        super().graceful()

    def sys_exit(self) -> None:
        self._create_file()
        super().sys_exit()

    def segfault(self) -> None:
        self._create_file()
        super().segfault()

    def _create_file(self) -> None:
        (self._folder / f"{os.getpid()}.killed").touch()


def test_fit_with_workers_killed_at_random_gives_the_same_bits(
    digits: TileStore, expected: SweepResult, tmp_path: Path
) -> None:
    def killed() -> set[int]:
        return {int(path.stem) for path in tmp_path.glob("*.killed")}

    X = digits.features().rechunk((701, -1))
    within = 0
    end = time.monotonic() + 2 * DEADLINE
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        local_cluster(2) as (made, client),
    ):
        # A worker that ends by sys.exit also ends its nanny: `adapt` starts another worker.
        made.adapt(minimum=2, maximum=2, interval="500ms")
        first = pids(client)
        client.register_plugin(Armed(tmp_path))
        while len(killed()) < len(MODES):
            before = killed()
            assert time.monotonic() < end, (before, first, within)
            assert_same_bits(daskkm.fit_sweep(X, **SWEEP, cache="never"), expected)
            within += bool(killed() - before)
        assert within
        assert len(killed() - first) >= 2
    assert not any(map(is_alive, killed()))


def test_fit_with_task_above_memory_limit_raises(digits: TileStore) -> None:
    with local_cluster(1, memory_limit="500MB", failures=0) as _:
        X = digits.features().map_blocks(allocate, 1_000_000_000, dtype=np.uint8)
        with pytest.raises(
            SchedulerError, match=r"^local: 1 workers died of the same task.*memory"
        ):
            daskkm.fit_sweep(X, [2], n_init=1)


def test_ingest_of_many_images_stays_within_memory_limit(tmp_path: Path) -> None:
    """The tiles together take more than the limit of the only worker."""
    n, limit = 2000, 300_000_000
    folder = tmp_path / "images"
    folder.mkdir()
    Image.linear_gradient("L").resize((400, 400)).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for i in range(n):
        (folder / f"{i}.png").write_bytes(content)
    with local_cluster(1, memory_limit=str(limit), failures=0) as (_, client):
        before = pids(client)
        store = daskkm.create_store(folder, tmp_path / "t.zarr", tile=400)
        assert pids(client) == before
        (peak,) = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values()
    assert len(store) == n
    assert n * 400**2 > limit > peak * 1024


def test_fit_with_paused_workers_raises(digits: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "WORKERS_SECONDS", 1)
    with (
        LocalCluster(1, processes=False, memory_limit="50MB", **QUIET) as made,
        Client(made),
        pytest.raises(SchedulerError, match=r"no worker has taken tasks for 1 s.*more memory"),
    ):
        daskkm.fit_sweep(digits, [2], n_init=1)


def test_fit_to_store_missing_on_workers_raises(
    machines: Remote, digits: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits.path.parent)
    here_only = daskkm.open_store(f"/proc/self/cwd/{digits.path.name}")
    message = r"tiles\.zarr: not found on worker tcp://.*\. Every worker needs this location"
    with connected(machines.address), pytest.raises(StoreError, match=message):
        daskkm.fit_sweep(here_only, [2], n_init=1)


def test_killed_command_ends_its_workers(digits: TileStore, tmp_path: Path) -> None:
    flags = (
        "--store",
        digits.path,
        "--checkpoint",
        "checkpoint",
        "--workers",
        "1",
        "--dashboard-address",
        "127.0.0.1:0",
    )
    with Process("-m", "daskkm.sweep", *flags, *ENDLESS, cwd=tmp_path) as run:
        run.wait_for("pass 3:")
        children = psutil.Process(run.pid).children(recursive=True)
        assert any("spawn_main" in " ".join(child.cmdline()) for child in children)
        os.kill(run.pid, signal.SIGKILL)
        assert not psutil.wait_procs(children, DEADLINE)[1]


# A sweep of chunks that are smaller than an image.
SMALL_CHUNKS = """
from daskkm.block_sizes import MiB, sizes
from daskkm.cli.main import run_module

sizes.chunk_bytes = MiB // 2
run_module("sweep")
"""
SWEEP_FLAGS = (
    *("--images", "../images", "--store", "t.zarr", "--no-quality", "--cache", "never"),
    *("--k", "3,5", "--n-init", "2", "--tol", "0", "--max-iter", "12"),
)
# A worker that is killed with its nanny, like a machine, while a chunk of tiles is half written.
DYING_WORKER = """
import os, signal
from pathlib import Path

def replace(self, target):
    if "/tiles/c/" in str(target):
        os.killpg(0, signal.SIGKILL)
    os.replace(self, target)

Path.replace = replace
"""


def save_large_images(folder: Path, n: int) -> None:
    """Write images of 3,969 tiles: the chunks of a store hold tiles of several images."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    means = rng.integers(0, 224, (n, 63, 1, 63, 1), np.uint8)
    for i in range(n):
        pixels = means[i] + rng.integers(0, 32, (63, 16, 63, 16), np.uint8)
        Image.fromarray(pixels.reshape(1008, 1008)).save(folder / f"{i}.png", compress_level=1)
        os.utime(folder / f"{i}.png", (1, 1))


def await_registration(*workers: Process) -> None:
    for worker in workers:
        worker.wait_for("Registered to:")


@contextmanager
def frozen(*workers: Process) -> Iterator[None]:
    """Freeze workers, so that the work does not end before other workers have joined."""
    for worker in workers:
        worker.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.send(signal.SIGCONT)


def test_sweep_with_workers_that_are_killed_and_added_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four workers are replaced during the ingest, and two during the sweep."""
    n_images = 32
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    (tmp_path / "dying.py").write_text(DYING_WORKER)
    store = as_location(together / "t.zarr")

    with remote(tmp_path, 0) as (address, *_), ExitStack() as stack:

        def start(*names: str, flags: tuple[str | Path, ...] = ()) -> list[Process]:
            """Start workers, each in a folder of its own."""
            for name in names:
                (tmp_path / name).mkdir()
            return [
                stack.enter_context(start_worker(address, tmp_path / name, *flags))
                for name in names
            ]

        dying = start("a", "b", flags=("--preload", tmp_path / "dying.py"))
        first = start("c", "d")
        save_large_images(tmp_path / "images", n_images)
        monkeypatch.chdir(alone)
        with override(chunk_bytes=MiB // 2):
            sweep_command.main([*SWEEP_FLAGS, "--scheduler", "threads"], standalone_mode=False)
        await_registration(*dying, *first)
        command = ("-c", SMALL_CHUNKS, *SWEEP_FLAGS, "--scheduler", address)
        run = stack.enter_context(Process(*command, cwd=together))
        assert dying[0].status() == -signal.SIGKILL
        with frozen(*first):
            assert dying[1].status() == -signal.SIGKILL
            await_registration(*(second := start("e", "f", flags=("--no-nanny",))))
            before = tasks.count_recorded(store)
            assert before < n_images
            until(lambda: tasks.count_recorded(store) > before)
            assert not is_present(store)
        run.wait_for("pass 5:")
        with frozen(*second):
            for worker in first:
                worker.send(signal.SIGKILL)
            await_registration(*(third := start("g", "h", flags=("--no-nanny",))))
            assert run.poll() is None
        assert run.wait() == 0, run.lines
        for worker in (*second, *third):  # an orderly end would take a second for each
            worker.send(signal.SIGKILL)
    assert tree(together) == tree(alone)
