"""Schedulers that are not there, not ours, or not to be trusted, and commands that are stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from distributed import LocalCluster

import daskkm
from daskkm.cli import interrupts
from daskkm.errors import SchedulerError
from daskkm.passes import addresses, scheduler
from tests.processes import (
    DEADLINE,
    ENDLESS,
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
    tls: Remote


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two authorities, NAME.pem, and a certificate by each, NAME-node.pem."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "others"):
        authority = trustme.CA()
        node = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
        node.cert_chain_pems[0].write_to_path(folder / f"{name}-node.pem")
        node.private_key_pem.write_to_path(folder / f"{name}-node.key")
    key = load_pem_private_key((folder / "ours-node.key").read_bytes(), None)
    how = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    (folder / "locked.key").write_bytes(key.private_bytes(*how))
    (folder / "text.pem").write_text("text")
    return folder


@pytest.fixture(scope="module")
def machines(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler without TLS that has no workers, and one with TLS that has one."""
    flags = [f"--{name}={file}" for name, file in files(certificates).items()]
    with (
        remote(tmp_path_factory.mktemp("plain"), 0) as plain,
        remote(
            tmp_path_factory.mktemp("tls"),
            1,
            *(flag.replace("_", "-") for flag in flags),
            scheduler_flags=("--protocol", "tls"),
        ) as tls,
    ):
        yield Machines(plain, tls)


def files(folder: Path, **other: str) -> dict[str, str]:
    names = {"ca_file": "ours.pem", "cert": "ours-node.pem", "key": "ours-node.key", **other}
    return {f"tls_{name}": str(folder / file) for name, file in names.items()}


def assert_refused(name: str, message: str, **tls: Any) -> None:
    with pytest.raises(SchedulerError, match=message) as caught, scheduler.connect(name, **tls):
        pass
    assert "\n" not in str(caught.value)
    del caught
    with warnings.catch_warnings():  # of the socket of a handshake that failed, in distributed
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Hello(socketserver.BaseRequestHandler):
    """Speaks first, as of mail and shells."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8786", "'localhost:8786' is no scheduler; give local, threads, an address"),
        ("tcp://localhost", "'tcp://localhost' is no address like tcp://host:8786"),
        ("tcp://localhost:99999", "is no address like tcp://host:8786"),
        ("tcp://127.0.0.1:9", r"no scheduler answers there \(nothing listens; start one with"),
        (
            "tcp://no-such-host.invalid:8786",
            r"there \(its host is unknown: ",
        ),
        ("silent", r"no scheduler answers there \(no word in 1 s; is that where a scheduler"),
        (
            "tls as tcp",
            "it hangs up; if it speaks TLS, name it as tls",
        ),
        ("says hello", r"no scheduler answers there \(what answers is none; is that where a sch"),
        ("no workers", "for 1 s there have been no workers; start some with: dask worker tcp"),
    ],
)
def test_addresses_where_no_scheduler_can_be_used(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    if "in 1 s" in message:
        monkeypatch.setattr(addresses, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(scheduler, "_WORKERS_SECONDS", 1)
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


@pytest.mark.parametrize(
    "content",
    ["{}", "[", "[" * 100_000, '{"address": "tcp://h"}', '{"address": "ws://127.0.0.1:8786"}'],
    ids=range(5),
)
def test_scheduler_files_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    assert_refused(str(tmp_path / "s.json"), r"s\.json: this is no scheduler file|is no address")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"ca_file": "others.pem"},
            r"certificate is refused, .*, now .*others\.pem\) \(tls_ca_file\)",
        ),
        (
            {"cert": "others-node.pem", "key": "others-node.key"},
            r"it hangs up on the certificate .*others-node\.pem; give one by the authority",
        ),
        ({"ca_file": "none.pem"}, r"none\.pem: the certificate of the authority cannot be read"),
        ({"cert": "none.pem"}, r"none\.pem: the certificate cannot be read \(No such file"),
        ({"key": "none.key"}, r"none\.key: the key cannot be read"),
        ({"key": "others-node.key"}, r"no certificate and its key .*KEY_VALUES_MISMATCH"),
        ({"key": "locked.key"}, r"locked\.key: the key is encrypted; give one that is not"),
        ({"ca_file": "text.pem"}, r"text\.pem: this is no certificate in PEM form"),
        ({"cert": "text.pem"}, r"text\.pem and .*: these are no certificate and its key in PEM"),
    ],
)
def test_certificates_that_are_wrong(
    machines: Machines, certificates: Path, other: dict[str, str], message: str
) -> None:
    assert_refused(machines.tls.address, message, **files(certificates, **other))


@pytest.mark.parametrize(
    ("inline", "other", "message"),
    [
        ("ca_file", {"key": "locked.key"}, r"locked\.key: the key is encrypted; give one that"),
        ("ca_file", {"cert": "text.pem"}, r"text\.pem and .*: these are no certificate and its"),
        ("ca_file", {"ca_file": "text.pem"}, r"^in dask's settings: this is no certificate in"),
        ("cert", {"key": "locked.key"}, r"locked\.key: the key is encrypted; give one that"),
        ("key", {"key": "locked.key"}, r"^in dask's settings: the key is encrypted; give one"),
        ("key", {"cert": "others-node.pem"}, r"and in dask's settings: .*KEY_VALUES_MISMATCH"),
    ],
)
def test_certificates_that_are_wrong_beside_one_in_dasks_settings(
    machines: Machines, certificates: Path, inline: str, other: dict[str, str], message: str
) -> None:
    tls = files(certificates, **other)
    setting = inline.replace("_", "-") if inline == "ca_file" else f"client.{inline}"
    itself = Path(tls.pop(f"tls_{inline}")).read_text() + "\n"
    with dask.config.set({f"distributed.comm.tls.{setting}": itself}):
        assert_refused(machines.tls.address, message, **tls)


@pytest.mark.parametrize(
    ("inline", "change", "message"),
    [
        (
            "key",
            ("\n", "\\n"),
            r"^distributed\.comm\.tls\.client\.key in dask's settings: the key has no line breaks",
        ),
        (
            "ca-file",
            ("-----BEGIN", "für uns\n-----BEGIN"),
            "^in dask's settings: this is no certif",
        ),
        ("cert", ("-----BEGIN CERTIFICATE", "a\0b"), "these are no certificate and its key in PEM"),
    ],
)
def test_certificates_in_dasks_settings_are_shown_to_nobody(
    machines: Machines, certificates: Path, inline: str, change: tuple[str, str], message: str
) -> None:
    tls = files(certificates)
    setting = inline if inline == "ca-file" else f"client.{inline}"
    itself = Path(tls.pop(f"tls_{inline.replace('-', '_')}")).read_text()
    with dask.config.set({f"distributed.comm.tls.{setting}": itself.replace(*change)}):
        with pytest.raises(SchedulerError, match=message) as caught:
            scheduler.check_reachable(machines.tls.address, **tls)
        assert itself.splitlines()[1] not in str(caught.value)


def test_a_certificate_that_is_a_pipe_is_not_waited_for(
    machines: Machines, certificates: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("ca_file", "cert", "key"):
        given = files(certificates, **{name: str(tmp_path / "pipe")})
        assert_refused(
            machines.tls.address, r"pipe: the .* cannot be read \(it is no file\)", **given
        )


@pytest.mark.parametrize("setting", ["soon", "", [60], {}])
def test_a_setting_that_is_no_time(setting: Any) -> None:
    name = "distributed.scheduler.no-workers-timeout"
    said = rf"^{name} is {re.escape(repr(setting))} in dask's settings, which is no time; give"
    with dask.config.set({name: setting}):
        assert_refused("local", said)
        with pytest.raises(SchedulerError, match=said):  # before images are ingested
            scheduler.check_reachable("local")


def test_a_worker_is_no_scheduler(tmp_path: Path) -> None:
    levels = [logging.getLogger(f"distributed.{name}").level for name in ("client", "batched")]
    with remote(tmp_path, 1) as (address, *_):
        with scheduler.connect(address) as client:
            assert client is not None
            ((worker, info),) = client.scheduler_info(-1)["workers"].items()
        for name in (worker, info["nanny"]):
            assert_refused(name, "that is a worker; name its scheduler")
    after = [logging.getLogger(f"distributed.{name}").level for name in ("client", "batched")]
    assert after == levels


def test_connecting_where_a_loop_runs_as_in_a_notebook(digits: TileStore, tmp_path: Path) -> None:
    async def cell(address: str) -> float:
        with scheduler.connect(address):
            return daskkm.fit_sweep(digits, **SWEEP).models[3].inertia_

    async def asynchronous(address: str) -> None:
        async with distributed.Client(address, asynchronous=True):
            daskkm.fit_sweep(digits, **SWEEP)

    with dask.config.set(scheduler="sync"):
        expected = daskkm.fit_sweep(digits, **SWEEP).models[3].inertia_
    with remote(tmp_path, 1) as (address, *_):
        assert asyncio.run(cell(address)) == expected
        with pytest.raises(SchedulerError, match=r"an asynchronous .*; make a Client that is not"):
            asyncio.run(asynchronous(address))
    with (
        dask.config.set(scheduler="distributed"),
        pytest.raises(SchedulerError, match=r"no Client active.*; make a Client that is not"),
    ):
        daskkm.fit_sweep(digits, **SWEEP)


# Of the dashboard's socket, in distributed.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("settings", "address", "message"),
    [
        ({}, "192.0.2.1:0", r"dashboard at 192\.0\.2\.1:0 cannot start \(.*assign.*choose another"),
        ({}, "[::1]:0", r"'\[::1\]:0' is not an address like 127\.0\.0\.1:8787"),
        (
            {"temporary-directory": "/proc/none"},
            "127.0.0.1:0",
            "^a local scheduler cannot start .*/proc/none'\\); see to that, and run again",
        ),
    ],
)
def test_a_local_scheduler_that_cannot_start(
    settings: dict[str, Any], address: str, message: str
) -> None:
    with dask.config.set(settings):
        assert_refused("local", message, dashboard_address=address)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_local_scheduler_needs_neither_tls_nor_a_host(workers: int | None) -> None:
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        scheduler.connect("local", workers=workers, dashboard_address=":0") as client,
    ):
        assert client is not None
        port = int(client.dashboard_link.split(":")[2].split("/")[0])
        found = [c.laddr for c in psutil.Process().net_connections("tcp") if c.laddr.port == port]
        assert {place.ip for place in found} == {"127.0.0.1"}
        assert scheduler.compute(da.ones(9, chunks=3).sum()) == (9,)


def test_certificates_that_are_missing_or_of_no_use(machines: Machines, certificates: Path) -> None:
    tls = files(certificates)
    assert_refused(
        machines.tls.address, r"TLS needs a certificate of the authority; .*\(tls_ca_file\)"
    )
    del tls["tls_cert"]
    assert_refused(machines.tls.address, r"TLS needs a certificate; .*\(tls_cert\)", **tls)
    assert_refused(machines.plain.address, "this is no address for TLS, which was asked for", **tls)
    tls = files(certificates)
    plain = machines.plain.address.replace("tcp", "tls")
    assert_refused(plain, "it does not speak TLS; name it as tcp", **tls)


def test_a_sweep_over_tls_by_options_and_by_dasks_settings(
    machines: Machines, certificates: Path, digits: TileStore, tmp_path: Path
) -> None:
    with dask.config.set(scheduler="sync"):
        expected = daskkm.fit_sweep(digits, **SWEEP)
    ca, cert, key = files(certificates).values()
    tls = "distributed.comm.tls"
    settings = {f"{tls}.ca-file": ca, f"{tls}.client.cert": cert, f"{tls}.client.key": key}
    with (
        dask.config.set(settings),
        scheduler.connect(machines.tls.address),
    ):
        found = daskkm.fit_sweep(digits, **SWEEP)
    for k, model in expected.models.items():
        assert found.models[k].inertia_ == model.inertia_
        np.testing.assert_array_equal(found.models[k].cluster_centers_, model.cluster_centers_)
    flags = ("--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key)
    name = (
        "--scheduler",
        str(machines.tls.file),
        "--store",
        digits.path,
        "--checkpoint",
        "kept",
        "--k",
        "2",
    )
    with Process("-m", "daskkm.sweep", *name, *flags, "--n-init", "1", cwd=tmp_path) as run:
        assert run.wait() == 0, run.lines
    with Process("-m", "daskkm.sweep", *name, cwd=tmp_path) as run:
        assert run.wait() == 1
    assert run.lines[-1].startswith("error: tls://127.0.0.1:")
    assert "Traceback" not in "".join(run.lines)
    with Process("-m", "daskkm.sweep", *flags[:2], cwd=tmp_path) as run:
        assert run.wait() == 2
    assert run.lines[-1] == "Error: --tls-ca-file has no use with --scheduler local"
    with Process("-m", "daskkm.sweep", "--tol", "nan", cwd=tmp_path) as run:
        assert run.wait() == 2
    assert run.lines[-1] == "Error: Invalid value for '--tol': 'nan' is not a number"


def test_a_scheduler_that_is_not_there_is_said_before_images_are_ingested(
    images: Path, tmp_path: Path
) -> None:
    flags = ("--images", str(images), "--scheduler", "tcp://127.0.0.1:9")
    with Process("-m", "daskkm.sweep", *flags, cwd=tmp_path) as run:
        assert run.wait() == 1
    assert len(run.lines) == 1
    assert run.lines[0].startswith("error: tcp://127.0.0.1:9: no scheduler answers there (nothing")
    assert not (tmp_path / "store").exists()


def environment(folder: Path, but: str) -> dict[str, str]:
    """Variables with which Python finds all that it finds here, but for a package."""
    folder.mkdir()
    for place in map(Path, sys.path):
        if place.name == "site-packages":
            for path in place.iterdir():
                if but not in path.name and path.suffix != ".pth":
                    (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": str(folder) if but == "daskkm" else f"{folder}{os.pathsep}{ROOT}"}


def another_version(folder: Path) -> dict[str, str]:
    """Variables with which Python finds a daskkm that calls itself 9.9."""
    (folder / "daskkm-9.9.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: daskkm\nVersion: 9.9\n"
    (folder / "daskkm-9.9.dist-info" / "METADATA").write_text(metadata)
    paths = (str(folder), str(Path(daskkm.__file__).parent.parent))
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize(
    ("package", "theirs"), [("daskkm", "missing"), ("daskkm", "9.9"), ("zarr", "missing")]
)
def test_workers_with_another_daskkm_or_none(
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
        said = rf"{here}, but {theirs} at tcp://.*; install the same"
        assert_refused(address, said)
        if theirs == "missing":  # a client that was not connected by us is not asked before
            with distributed.Client(address), pytest.raises(SchedulerError, match=said):
                daskkm.fit_sweep(digits, **SWEEP)


def held(block: NDArray[Any], folder: Path) -> NDArray[Any]:
    """Hold up the first task that comes here after `armed` was made."""
    try:
        (folder / "armed").rename(folder / "begun")
    except FileNotFoundError:
        return block
    until((folder / "go").exists)
    return block


def test_a_worker_with_another_daskkm_that_comes_in_the_middle_of_a_pass(
    digits: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_LOOK_SECONDS", DEADLINE)  # it is seen at the end of the pass
    X = digits.features().rechunk((701, -1)).map_blocks(held, tmp_path, dtype=np.uint8)
    with remote(tmp_path, 1) as (address, *_), ExitStack() as stack:
        client = stack.enter_context(scheduler.connect(address))

        def join() -> None:
            until((tmp_path / "begun").exists)
            flags = address, tmp_path, "--no-nanny"
            worker = stack.enter_context(start_worker(*flags, env=another_version(tmp_path)))
            worker.wait_for("Registered to:")
            (tmp_path / "go").touch()

        joining = Thread(target=join)

        def arm() -> None:
            (tmp_path / "armed").touch()
            joining.start()

        said = rf"daskkm is {daskkm.__version__} here, but 9\.9 at tcp://.*; install the same"
        settings = {**SWEEP, "init": "random", "tol": 0, "cache": "never"}
        with pytest.raises(SchedulerError, match=said):
            daskkm.fit_sweep(X, **settings, on_pass=once_iterations_began(arm))
        joining.join()
        assert client is not None
        assert len(client.scheduler_info(-1)["workers"]) == 2
        with pytest.raises(SchedulerError, match=said):
            daskkm.fit_sweep(digits, **SWEEP)


def test_a_worker_with_another_daskkm_that_comes_to_the_address_of_another(
    digits: TileStore, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = "--no-nanny", "--host", "127.0.0.1", "--worker-port", port
    with (
        remote(tmp_path, 1, worker_flags=flags) as (address, _, _, (worker,)),
        ExitStack() as stack,
    ):
        client = stack.enter_context(scheduler.connect(address))
        assert client is not None
        daskkm.fit_sweep(digits, **SWEEP)
        worker.send(signal.SIGTERM)
        until(lambda: not client.scheduler_info(-1)["workers"])
        env = another_version(tmp_path)
        other = stack.enter_context(start_worker(address, tmp_path, *map(str, flags), env=env))
        other.wait_for("Registered to:")
        message = rf"but 9\.9 at tcp://127\.0\.0\.1:{port}; install the same"
        with pytest.raises(SchedulerError, match=message):
            daskkm.fit_sweep(digits, **SWEEP)


def test_work_that_another_client_calls_off(digits: TileStore, tmp_path: Path) -> None:
    X = digits.features().rechunk((701, -1)).map_blocks(held, tmp_path, dtype=np.uint8)
    with remote(tmp_path, 1) as (address, *_), scheduler.connect(address):

        def restart() -> None:
            until((tmp_path / "begun").exists)
            with distributed.Client(address, set_as_default=False) as other:
                other.restart(timeout=DEADLINE)

        restarting = Thread(target=restart)

        def arm() -> None:
            (tmp_path / "armed").touch()
            restarting.start()

        settings = {**SWEEP, "init": "random", "tol": 0, "cache": "never"}
        with pytest.raises(
            SchedulerError, match=r"the scheduler has called the work off \(.*; see"
        ):
            daskkm.fit_sweep(X, **settings, on_pass=once_iterations_began(arm))
        restarting.join()
        daskkm.fit_sweep(digits, **SWEEP)  # the connection is there


def test_an_interrupt_in_ones_own_program_ends_the_pass_on_the_workers(tmp_path: Path) -> None:
    blocks = da.zeros((9, 1), chunks=(1, 1), dtype=np.uint8)
    lazy = blocks.map_blocks(held, tmp_path, dtype=np.uint8).sum()
    (tmp_path / "armed").touch()
    with (
        LocalCluster(1, threads_per_worker=1, processes=False, **QUIET) as cluster,
        distributed.Client(cluster),
    ):

        def interrupt() -> None:
            until((tmp_path / "begun").exists)
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            scheduler.compute(lazy)
        interrupting.join()
        until(lambda: not cluster.scheduler.tasks)
        (tmp_path / "go").touch()


def await_handlers(pid: int) -> None:
    """Wait until a command has its own handlers: before, Python itself is starting."""

    def there() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1

    until(there)


def endless(digits: TileStore, *flags: str) -> tuple[str, ...]:
    """The flags of a sweep that goes on until it is stopped."""
    where = "--store", str(digits.path), "--checkpoint", "kept"
    return (*where, "--dashboard-address", "127.0.0.1:0", *flags, *ENDLESS)


ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


@pytest.mark.parametrize("seed", range(6))
def test_interrupts_at_any_moment(digits: TileStore, tmp_path: Path, seed: int) -> None:
    """The moments are drawn: while modules are imported, workers start, passes are made."""
    rng = random.Random(seed)
    workers = ("--workers", "1") if seed % 2 else ()
    number = rng.choice([*ENDINGS])
    with Process("-m", "daskkm.sweep", *endless(digits, *workers), cwd=tmp_path) as run:
        await_handlers(run.pid)
        time.sleep(rng.uniform(0, 4))  # any moment will do
        family = psutil.Process(run.pid).children(recursive=True)
        run.send(number)
        said, status = ENDINGS[number]
        assert run.wait() == status, run.lines
        assert not psutil.wait_procs(family, DEADLINE)[1]
        others = [
            line
            for line in run.lines
            if not line.startswith(("pass ", "dashboard:", str(digits.path)))
        ]
        assert others == [said]


def workers_of(main: psutil.Process) -> list[psutil.Process]:
    return [
        child
        for child in main.children()
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]


def test_a_terminals_interrupt_does_not_reach_a_worker_that_was_restarted(
    digits: TileStore, tmp_path: Path
) -> None:
    with Process("-m", "daskkm.sweep", *endless(digits, "--workers", "1"), cwd=tmp_path) as run:
        run.wait_for("pass 2:")
        main = psutil.Process(run.pid)
        (first,) = workers_of(main)
        first.kill()
        until(lambda: [worker for worker in workers_of(main) if worker != first])
        shown = len(run.lines)
        until(lambda: any(line.startswith("pass ") for line in run.lines[shown:]))
        family = main.children(recursive=True)
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert not psutil.wait_procs(family, DEADLINE)[1]
        assert run.lines[-1] == "interrupted"
        assert "Traceback" not in "".join(run.lines)


def test_an_interrupt_while_a_worker_hangs_at_its_start(digits: TileStore, tmp_path: Path) -> None:
    code = (
        "import runpy, daskkm.cli.interrupts; daskkm.cli.interrupts._UNWINDING_SECONDS = 1;"
        "runpy.run_module('daskkm.sweep', run_name='__main__')"
    )
    with Process("-c", code, *endless(digits, "--workers", "1"), cwd=tmp_path) as run:
        main = psutil.Process(run.pid)
        found = until(lambda: workers_of(main))
        found[0].suspend()
        try:
            os.kill(run.pid, signal.SIGINT)
            run.wait_for("interrupted")
            os.kill(run.pid, signal.SIGTERM)
            assert run.status() == 130
        finally:
            found[0].kill()


@pytest.mark.parametrize("pipe", ["closed", "full"])
def test_an_interrupt_that_no_one_hears_of(digits: TileStore, tmp_path: Path, pipe: str) -> None:
    os.mkfifo(fifo := tmp_path / "stderr")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)
    command = sys.executable, "-m", "daskkm.sweep", *endless(digits)
    with subprocess.Popen(command, cwd=tmp_path, stderr=writer) as run, os.fdopen(reader) as lines:
        os.close(writer)  # else what it says would have no end, if it ended
        next(line for line in lines if line.startswith("pass 2:"))
        run.send_signal(signal.SIGSTOP)
        if pipe == "closed":
            lines.close()
        else:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, b".")
            os.close(writer)
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGCONT)
        assert run.wait(DEADLINE) == 130


def test_an_interrupt_while_a_name_is_looked_up(tmp_path: Path) -> None:
    """A resolver returns when it will, so it is not the main thread that waits."""
    code = (
        "import runpy, socket, sys, threading; from daskkm.cli import interrupts\n"
        "def never(*_, **__):\n"
        "    print('in', threading.current_thread().name, flush=True); threading.Event().wait()\n"
        "socket.getaddrinfo = never; interrupts._UNWINDING_SECONDS = 1\n"
        "runpy.run_module('daskkm.sweep', run_name='__main__')"
    )
    with Process("-c", code, "--scheduler", "tcp://host:8786", cwd=tmp_path) as run:
        assert run.wait_for("^in (.*)")[1] != "MainThread"
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert run.lines == ["interrupted"]


@pytest.mark.parametrize("then", ["pass", "threading.Event().wait()"])
def test_an_interrupt_that_is_swallowed(tmp_path: Path, then: str) -> None:
    """As by another's `except:`, or modules in C that clear whatever is raised at their import."""
    code = (
        "import click, os, signal, threading; from daskkm.cli import interrupts, main\n"
        "@click.command()\n"
        "def deaf():\n"
        "    try:\n"
        "        try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "        except: pass\n"
        f"        {then}\n"
        "    finally: print('undone')\n"
        "main.run(deaf)"
    )
    with Process("-c", code, cwd=tmp_path) as run:
        assert run.wait() == 143
        assert (run.output, run.lines) == (["undone"], ["terminated"])


def test_what_an_interrupt_undoes_is_not_cut_short(tmp_path: Path) -> None:
    """Though it is looked, now and then, whether it is undone."""
    code = (
        "import click, contextlib, os, signal; from daskkm.cli import interrupts, main\n"
        "interrupts._AGAIN_SECONDS = 0.001\n"
        "looks = []\n"
        "look = interrupts._is_unwinding\n"
        "interrupts._is_unwinding = lambda: looks.append(0) or look()\n"
        "@contextlib.contextmanager\n"
        "def held():\n"
        "    try: yield\n"
        "    finally:\n"
        "        while len(looks) < 20: pass\n"
        "        print('undone')\n"
        "@click.command()\n"
        "def command():\n"
        "    with held():\n"
        "        os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "main.run(command)"
    )
    with Process("-c", code, cwd=tmp_path) as run:
        assert run.wait() == 130
        assert (run.output, run.lines) == (["undone"], ["interrupted"])


def test_handlers_that_are_not_pythons_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another program has started Python."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    with monkeypatch.context() as patched:
        patched.setattr(signal, "signal", None)
        with interrupts.postponed():
            pass


def test_an_interrupt_at_the_very_end(tmp_path: Path) -> None:
    code = (
        "import atexit, click, time; from daskkm.cli import main\n"
        "@click.command()\n"
        "def done(): atexit.register(lambda: (print('ended'), time.sleep(60)))\n"
        "main.run(done)"
    )
    with Process("-c", code, cwd=tmp_path) as run:
        run.wait_for("ended")
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert run.lines == ["interrupted"]


def test_an_interrupt_that_is_ignored_from_the_start(digits: TileStore, tmp_path: Path) -> None:
    """As a shell's script has it for what it starts in the background."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'daskkm.sweep', *sys.argv[1:]])"
    )
    with Process("-c", code, *endless(digits), cwd=tmp_path) as run:
        for moment in ("pass 1:", "pass 2:", "pass 3:"):
            run.wait_for(moment)
            run.send(signal.SIGINT)
        run.wait_for("pass 4:")
        run.send(signal.SIGTERM)
        assert run.wait() == 143
        assert run.lines[-1] == "terminated"


def test_a_sweep_without_a_standard_error(digits: TileStore, tmp_path: Path) -> None:
    flags = "--store", digits.path, "--k", "2", "--n-init", "1", "--scheduler", "threads"
    shell = "sh", "-c", 'exec "$@" 2>&-', "sh"
    subprocess.run([*shell, sys.executable, "-m", "daskkm.sweep", *flags], cwd=tmp_path, check=True)
