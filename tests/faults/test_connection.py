"""Test unreachable, foreign and untrusted schedulers, and cancelled work."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import socketserver
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import distributed
import numpy as np
import psutil
import pytest
import trustme
from click.testing import CliRunner
from distributed import LocalCluster

import daskkm
from daskkm.cli import main
from daskkm.errors import SchedulerError
from daskkm.passes import connection, scheduler
from tests.processes import (
    DEADLINE,
    QUIET,
    ROOT,
    Process,
    Remote,
    once_iterations_began,
    remote,
    start_worker,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore

pytestmark = pytest.mark.faults

SWEEP: dict[str, Any] = {"ks": (3, 5), "n_init": 2, "max_iter": 3, "random_state": 0}


class Machines(NamedTuple):
    plain: Remote
    nannied: Remote
    tls: Remote


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two authorities, NAME.pem, each with a certificate, NAME-node.pem."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "others"):
        authority = trustme.CA()
        node = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
        node.cert_chain_pems[0].write_to_path(folder / f"{name}-node.pem")
        node.private_key_pem.write_to_path(folder / f"{name}-node.key")
    (folder / "text.pem").write_text("text")
    return folder


@pytest.fixture(scope="module")
def machines(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Start a scheduler without workers, and two with one worker each: without TLS, and with."""
    flags = [f"--{name}={file}" for name, file in files(certificates).items()]
    with (
        remote(tmp_path_factory.mktemp("plain"), 0) as plain,
        remote(tmp_path_factory.mktemp("nannied"), 1) as nannied,
        remote(
            tmp_path_factory.mktemp("tls"),
            1,
            *(flag.replace("_", "-") for flag in flags),
            scheduler_flags=("--protocol", "tls"),
        ) as tls,
    ):
        yield Machines(plain, nannied, tls)


def files(folder: Path, **other: str) -> dict[str, str]:
    names = {"ca_file": "ours.pem", "cert": "ours-node.pem", "key": "ours-node.key", **other}
    return {f"tls_{name}": str(folder / file) for name, file in names.items()}


def assert_refused(name: str, message: str, **tls: Any) -> None:
    with pytest.raises(SchedulerError, match=message) as caught, connection.connect(name, **tls):
        pass
    assert "\n" not in str(caught.value)
    del caught
    with warnings.catch_warnings():  # distributed leaves a socket open after a failed handshake
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Hello(socketserver.BaseRequestHandler):
    """Server that speaks first, as mail servers do."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8786", "'localhost:8786': not a scheduler. Give local, threads, an address"),
        ("tcp://localhost", r"no scheduler answers \(missing port"),
        # On a busy machine the last attempt can time out before the refusal.
        ("tcp://127.0.0.1:9", r"no scheduler answers \((Connection refused|TimeoutError)\)"),
        ("tcp://no-such-host.invalid:8786", r"no scheduler answers \("),
        ("silent", r"no scheduler answers \(TimeoutError\)"),
        ("tls as tcp", r"no scheduler answers \("),
        ("says hello", r"no scheduler answers \("),
        ("no workers", "no worker has taken tasks for 1 s. Start workers with: dask worker tcp"),
    ],
)
def test_connect_without_a_usable_scheduler_raises(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setattr(scheduler, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(scheduler, "WORKERS_SECONDS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hello) as hello,
        ThreadPoolExecutor() as serving,
        ExitStack() as stack,
    ):
        serving.submit(hello.serve_forever, 0.01)
        stack.callback(hello.shutdown)
        special = {
            "says hello": f"tcp://127.0.0.1:{hello.server_address[1]}",
            "silent": f"tcp://127.0.0.1:{silent.getsockname()[1]}",
            "tls as tcp": machines.tls.address.replace("tls", "tcp"),
            "no workers": machines.plain.address,
        }
        assert_refused(special.get(address, address), message)


@pytest.mark.parametrize("content", ["{}", "[", '{"address": "tcp://h"}'])
def test_connect_by_a_malformed_scheduler_file_raises(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    assert_refused(str(tmp_path / "s.json"), r"s\.json: not a scheduler file|tcp://h: no scheduler")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ca_file": "others.pem"}, "certificate verify failed"),
        ({"cert": "others-node.pem", "key": "others-node.key"}, "no scheduler answers"),
        ({"ca_file": "none.pem"}, "No such file"),
        ({"key": "others-node.key"}, "key values mismatch"),
        ({"cert": "text.pem"}, "PEM"),
    ],
)
def test_connect_with_wrong_certificates_names_the_options(
    machines: Machines, certificates: Path, other: dict[str, str], message: str
) -> None:
    options = r"Check address and certificates \(tls_ca_file, tls_cert, tls_key\)"
    tls = files(certificates, **other)
    assert_refused(machines.tls.address, rf"{message}.*{options}", **tls)


def test_connect_without_certificates_raises(machines: Machines, certificates: Path) -> None:
    assert_refused(machines.tls.address, "TLS expects.*Check address and certificates")
    plain = machines.plain.address.replace("tcp", "tls")
    assert_refused(plain, "Check address and certificates", **files(certificates))


def test_connect_with_certificates_is_never_unencrypted(
    machines: Machines, certificates: Path
) -> None:
    assert_refused(str(machines.plain.file), "encryption required", **files(certificates))


def test_connect_to_a_worker_raises(machines: Machines) -> None:
    with connection.connect(machines.nannied.address) as client:
        assert client is not None
        ((worker, info),) = client.scheduler_info(-1)["workers"].items()
    assert_refused(worker, "not a scheduler but a worker. Give the address of the scheduler")
    assert_refused(info["nanny"], "not a scheduler but a nanny")


def test_connect_in_running_event_loop_computes(machines: Machines, digits: TileStore) -> None:
    async def cell(address: str) -> float:
        with connection.connect(address):
            return daskkm.fit_sweep(digits, **SWEEP).models[3].inertia_

    async def asynchronous(address: str) -> None:
        async with distributed.Client(address, asynchronous=True):
            daskkm.fit_sweep(digits, **SWEEP)

    with dask.config.set(scheduler="sync"):
        expected = daskkm.fit_sweep(digits, **SWEEP).models[3].inertia_
    address = machines.nannied.address
    assert asyncio.run(cell(address)) == expected
    with pytest.raises(SchedulerError, match="use a Client that is not asynchronous"):
        asyncio.run(asynchronous(address))
    with (
        dask.config.set(scheduler="distributed"),
        pytest.raises(SchedulerError, match=r"no usable scheduler.*Client"),
    ):
        daskkm.fit_sweep(digits, **SWEEP)


# distributed leaves the socket of the dashboard open.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("settings", "address", "message"),
    [
        ({}, "192.0.2.1:0", r"cannot start \(.*assign.*\(dashboard_address\)"),
        ({"temporary-directory": "/proc/none"}, "127.0.0.1:0", r"cannot start \(.*No such file"),
    ],
)
def test_connect_to_local_scheduler_without_start_raises(
    settings: dict[str, Any], address: str, message: str
) -> None:
    with dask.config.set(settings):
        assert_refused("local", message, dashboard_address=address)


@pytest.mark.parametrize("workers", [None, 1])
def test_local_scheduler_without_tls_or_host_listens_on_loopback(workers: int | None) -> None:
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        connection.connect("local", workers=workers, dashboard_address=":0") as client,
    ):
        assert client is not None
        port = int(client.dashboard_link.split(":")[2].split("/")[0])
        addresses = [c.laddr for c in psutil.Process().net_connections("tcp")]
        assert {each.ip for each in addresses if each.port == port} == {"127.0.0.1"}
        assert scheduler.compute(da.ones(9, chunks=3).sum()) == (9,)


def test_sweep_over_tls_by_options_or_dask_settings_gives_the_same_bits(
    machines: Machines,
    certificates: Path,
    digits: TileStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dask.config.set(scheduler="sync"):
        expected = daskkm.fit_sweep(digits, **SWEEP)
    ca, cert, key = files(certificates).values()
    tls = "distributed.comm.tls"
    settings = {f"{tls}.ca-file": ca, f"{tls}.client.cert": cert, f"{tls}.client.key": key}
    with dask.config.set(settings), connection.connect(machines.tls.address):
        result = daskkm.fit_sweep(digits, **SWEEP)
    for k, model in expected.models.items():
        assert result.models[k].inertia_ == model.inertia_
        np.testing.assert_array_equal(result.models[k].cluster_centers_, model.cluster_centers_)
    flags = ("--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key)
    name = ["--scheduler", str(machines.tls.file), "--store", str(digits.path), "--k", "2"]
    name += ["--checkpoint", "checkpoint"]
    with Process("-m", "daskkm.sweep", *name, *flags, "--n-init", "1", cwd=tmp_path) as run:
        assert run.wait() == 0, run.lines
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main.group, ["sweep", *name])
    assert refused.exit_code == 1
    assert re.fullmatch(r"error: tls://127\.0\.0\.1:.*\n", refused.output)


def test_sweep_without_scheduler_ingests_no_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--images", str(images), "--scheduler", "tcp://127.0.0.1:9")
    done = CliRunner().invoke(main.group, ["sweep", *flags])
    assert done.exit_code == 1
    cause = "(Connection refused|TimeoutError)"
    message = rf"error: tcp://127\.0\.0\.1:9: no scheduler answers \({cause}\)\..*\n"
    assert re.fullmatch(message, done.output)
    assert not (tmp_path / "store").exists()


def environment(folder: Path, but: str) -> dict[str, str]:
    """Return an environment in which Python finds all installed packages except `but`."""
    folder.mkdir()
    for place in map(Path, sys.path):
        if place.name == "site-packages":
            for path in place.iterdir():
                if but not in path.name and path.suffix != ".pth":
                    (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": str(folder) if but == "daskkm" else f"{folder}{os.pathsep}{ROOT}"}


def another_version(folder: Path) -> dict[str, str]:
    """Return an environment in which Python finds daskkm 9.9."""
    (folder / "daskkm-9.9.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: daskkm\nVersion: 9.9\n"
    (folder / "daskkm-9.9.dist-info" / "METADATA").write_text(metadata)
    paths = (str(folder), str(Path(daskkm.__file__).parent.parent))
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize(
    ("package", "theirs"), [("daskkm", "missing"), ("daskkm", "9.9"), ("zarr", "missing")]
)
def test_connect_with_other_versions_on_workers_raises(
    machines: Machines, digits: TileStore, tmp_path: Path, package: str, theirs: str
) -> None:
    address = machines.plain.address
    if theirs == "missing":
        env, python = environment(tmp_path / "site", package), ["-S"]
    else:
        env, python = another_version(tmp_path), list[str]()
    with start_worker(address, tmp_path, "--no-nanny", env=env, python=python) as worker:
        worker.wait_for("Registered to:")
        here = rf"{package} is {re.escape(version(package))} here"
        message = rf"{here}, but {theirs} at tcp://.*\. Install equal versions"
        assert_refused(address, message)
        if theirs == "missing":  # the first use of another client compares versions
            with distributed.Client(address), pytest.raises(SchedulerError, match=message):
                daskkm.fit_sweep(digits, **SWEEP)


def hold(block: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Delay the first task after `armed` was created, until `go` exists."""
    try:
        (folder / "armed").rename(folder / "holding")
    except FileNotFoundError:
        return block
    until((folder / "go").exists)
    return block


def test_fit_cancelled_by_another_client_raises(
    machines: Machines, digits: TileStore, tmp_path: Path
) -> None:
    address = machines.nannied.address
    X = digits.features().rechunk((701, -1)).map_blocks(hold, tmp_path, dtype=np.uint8)
    with connection.connect(address):

        def restart() -> None:
            until((tmp_path / "holding").exists)
            with distributed.Client(address, set_as_default=False) as other:
                other.restart(timeout=DEADLINE)

        restarting = Thread(target=restart)

        def arm() -> None:
            (tmp_path / "armed").touch()
            restarting.start()

        settings = {**SWEEP, "init": "random", "tol": 0, "cache": "never"}
        with pytest.raises(SchedulerError, match="the scheduler cancelled the work"):
            daskkm.fit_sweep(X, **settings, on_pass=once_iterations_began(arm))
        restarting.join()
        daskkm.fit_sweep(digits, **SWEEP)


def test_interrupted_compute_cancels_tasks_on_workers(tmp_path: Path) -> None:
    blocks = da.zeros((9, 1), chunks=(1, 1), dtype=np.uint8)
    lazy = blocks.map_blocks(hold, tmp_path, dtype=np.uint8).sum()
    (tmp_path / "armed").touch()
    with (
        LocalCluster(1, threads_per_worker=1, processes=False, **QUIET) as cluster,
        distributed.Client(cluster),
    ):

        def interrupt() -> None:
            until((tmp_path / "holding").exists)
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            scheduler.compute(lazy)
        interrupting.join()
        until(lambda: not cluster.scheduler.tasks)
        (tmp_path / "go").touch()
