"""Test that images become labels on S3 with the bits of a local run, whatever the server does."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import daskkm
from daskkm.block_sizes import override
from daskkm.errors import DaskkmError
from daskkm.storage import locks
from tests.object_store import (
    CUT_SHORT,
    DROPPED,
    KILLED,
    LOST_ANSWER,
    UNAVAILABLE,
    environment,
    serve_s3,
)
from tests.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.forks import Done, Forks
    from tests.object_store import ObjectStore

pytestmark = pytest.mark.faults
KS = (2, 3)
CHUNK = 7 * 64  # seven tiles
# Retries end soon.
OPTIONS: dict[str, Any] = {
    "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=5)}
}


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with serve_s3() as store, environment(**store.environment):
        yield store


@pytest.fixture
def bucket(server: ObjectStore) -> Iterator[str]:
    yield server.create_bucket()
    server.fault = lambda _method, _path: None


def save_images(folder: Path, n: int = 5) -> Path:
    """Write images of 12 tiles of 8 x 8."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (24, 32), np.uint8)).save(folder / f"i_{i}.png")
    return folder


def run_all(images: Any, base: str | Path) -> dict[str, bytes]:
    """Ingest, append, fit, save, label and verify; return what was computed."""
    names = ("t.zarr", "checkpoint", "m.zarr")
    store_path, checkpoint, model_path = (
        f"{base}/{name}" if isinstance(base, str) else base / name for name in names
    )
    with override(chunk_bytes=CHUNK, remote_chunk_bytes=CHUNK):
        store = daskkm.create_store(images[:3], store_path, 8)
        store = store.append(images[3:])
        result = daskkm.fit_sweep(store, KS, n_init=2, random_state=0, checkpoint=checkpoint)
        model = daskkm.KMeans(n_clusters=3, random_state=0).fit(store)
        model.save(model_path)
        store.label(daskkm.load_model(model_path), distances=True)
        assert store.verify() == []
        found = {
            "tiles": store.features().compute(),
            "labels": store.labels(3).compute(),
            "distances": store.distances(3).compute(),
            **{f"k {k}": result.models[k].cluster_centers_ for k in KS},
            "saved": daskkm.load_model(model_path).cluster_centers_,
        }
    return {name: values.tobytes() for name, values in found.items()} | {
        "digest": store.digest.encode()
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("local")
    return run_all(sorted(save_images(home / "images").iterdir()), home)


@pytest.fixture
def local_images(tmp_path: Path) -> list[Path]:
    images = sorted(save_images(tmp_path / "images").iterdir())
    for path in images:  # a store does not record the times of files younger than two seconds
        os.utime(path, (0, 0))
    return images


def upload(images: list[Path], bucket: str) -> list[str]:
    from obstore.store import from_url

    for path in images:
        from_url(bucket).put(f"images/{path.name}", path.read_bytes())
    return [f"{bucket}/images/{path.name}" for path in images]


def test_images_on_s3_give_the_bits_of_local_images(
    bucket: str, expected: dict[str, bytes], local_images: list[Path]
) -> None:
    assert run_all(upload(local_images, bucket), f"{bucket}/deep/folder") == expected


@pytest.mark.parametrize("seed", range(2))
def test_failing_requests_are_repeated_and_give_the_same_bits(
    server: ObjectStore,
    bucket: str,
    expected: dict[str, bytes],
    local_images: list[Path],
    seed: int,
) -> None:
    images = upload(local_images, bucket)
    rng, lock = random.Random(seed), threading.Lock()
    met: set[str] = set()

    def fail_sometimes(method: str, _path: str) -> str | None:
        with lock:
            if rng.random() > 0.15:
                return None
            kinds = [UNAVAILABLE, DROPPED, *([CUT_SHORT] if method == "GET" else [LOST_ANSWER])]
            met.add(kind := rng.choice(kinds))
            return kind

    server.fault = fail_sometimes
    assert run_all(images, bucket) == expected
    assert met == {UNAVAILABLE, DROPPED, CUT_SHORT, LOST_ANSWER}


def test_root_whose_answer_is_lost_is_committed_once(
    server: ObjectStore, bucket: str, local_images: list[Path]
) -> None:
    lost: list[str] = []

    def lose(method: str, path: str) -> str | None:
        if method == "PUT" and path.endswith("t.zarr/zarr.json") and not lost:
            lost.append(path)
            return LOST_ANSWER
        return None

    server.fault = lose
    store = daskkm.create_store(local_images, f"{bucket}/t.zarr", 8)
    assert lost
    server.fault = lambda _method, _path: None
    assert daskkm.open_store(f"{bucket}/t.zarr").digest == store.digest


@pytest.mark.parametrize("fault", [UNAVAILABLE, DROPPED])
def test_server_that_always_fails_raises_one_error_with_the_url(
    server: ObjectStore, bucket: str, local_images: list[Path], fault: str
) -> None:
    store = daskkm.create_store(local_images, f"{bucket}/t.zarr", 8, storage_options=OPTIONS)
    server.fault = lambda _method, path: fault if "tiles/c" in path else None
    with pytest.raises(DaskkmError, match=rf"{bucket}/t\.zarr: tiles 0 to 59 cannot be read") as e:
        store.features().compute()
    assert "\n" not in str(e.value)
    assert "retries" in str(e.value)  # how many
    server.fault = lambda method, _path: fault if method == "PUT" else None
    with pytest.raises(DaskkmError, match=rf"{bucket}/u\.zarr: the store cannot be written"):
        daskkm.create_store(local_images, f"{bucket}/u.zarr", 8, storage_options=OPTIONS)


def test_second_writer_is_refused_and_killed_writer_blocks_nobody_for_long(
    server: ObjectStore, bucket: str, local_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(locks, "_LEASE_SECONDS", 0.6)

    def wait_at_chunk(method: str, path: str) -> str | None:
        if method == "PUT" and "tiles/c" in path:
            reached.set()
            assert go_on.wait(60)
        return None

    server.fault = wait_at_chunk
    first = threading.Thread(target=daskkm.create_store, args=(local_images, f"{bucket}/t.zarr", 8))
    first.start()
    assert reached.wait(60)
    with pytest.raises(daskkm.StoreError, match="another run is writing this store"):
        daskkm.create_store(local_images, f"{bucket}/t.zarr", 8)
    go_on.set()
    first.join()
    assert len(daskkm.open_store(f"{bucket}/t.zarr")) == 60


def test_command_killed_at_any_moment_gives_the_same_bits(
    server: ObjectStore, bucket: str, local_images: list[Path], tmp_path: Path, forked: Forks
) -> None:
    """The server kills its client at the n-th write; the next run goes on."""
    flags: list[str | Path] = [
        "--images",
        tmp_path / "images",
        "--k",
        "2-3",
        "--n-init",
        "2",
        "--scheduler",
    ]

    def sweep(base: str) -> Done:
        places = ["--store", f"{base}/t.zarr", "--out", f"{base}/out"]
        order = {"chunk": CHUNK, "lease": 0.5, "env": server.environment}
        return forked.run("sweep", *flags, "threads", *places, "-q", cwd=tmp_path, **order)

    assert sweep(f"{bucket}/whole").status == 0
    n_puts = sum(method == "PUT" and "/whole/" in path for method, path in server.requests)
    for moment in sorted(random.Random(3).sample(range(1, n_puts), 10)):
        puts = itertools.count(1)

        def kill(method: str, _path: str, puts: Any = puts, moment: int = moment) -> str | None:
            return KILLED if method == "PUT" and next(puts) == moment else None

        server.fault = kill
        assert sweep(f"{bucket}/killed").status in {0, -signal.SIGKILL}
    server.fault = lambda _method, _path: None
    assert sweep(f"{bucket}/killed").status == 0
    assert read_results(f"{bucket}/killed") == read_results(f"{bucket}/whole")


def read_results(base: str) -> dict[str, bytes]:
    """Return tiles, tables and results without random ids."""
    from obstore.store import from_url

    store = from_url(base)
    names = [item["path"] for page in store.list() for item in page]
    return {
        name: bytes(store.get(name).bytes()).replace(base.encode(), b"")
        for name in names
        # A lock of a killed command stays where no later command writes.
        if not name.endswith(("zarr.json", ".lock"))
    } | {"digest": daskkm.open_store(f"{base}/t.zarr").digest.encode()}


def test_url_without_obstore_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "from daskkm.cli.main import run; run(sys.argv[1:], 'daskkm')"
    )
    with Process("-c", code, "verify", "s3://bucket/t.zarr", cwd=tmp_path) as run:
        assert run.wait() == 2
    assert run.lines[-1].endswith("Install with: pip install 'daskkm[cloud]'")
