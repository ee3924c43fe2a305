"""Test that each damage of a store is found and named, and never read as tiles."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from PIL import Image

import daskkm
from daskkm.block_sizes import override
from daskkm.errors import CorruptChunkError, ModelError, StoreError
from daskkm.storage.verification import iter_findings, verify_store
from tests.conftest import ROOT
from tests.processes import Process
from tests.test_layers import imports

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.forks import Forks

pytestmark = pytest.mark.faults

# Each array, with the chunk of tiles 14 to 20 and the hint.
CHUNKS = {
    "tiles": ("tiles/c/2/0/0", "ingest the images again"),
    "image": ("image/c/2", "ingest the images again"),
    "row": ("row/c/2", "ingest the images again"),
    "col": ("col/c/2", "ingest the images again"),
    "labels": ("labels/3/c/2", "label the tiles again"),
    "distances": ("distances/3/c/2/0", "label the tiles again, with distances"),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a store of 30 tiles of 8 x 8, 7 per chunk, with labels and distances, and a model."""
    folder = tmp_path_factory.mktemp("intact")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("é_2.png", (16, 24)), ("s_10.png", (32, 24)), ("s_1.png", (24, 32))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / "pictures" / name)
    with override(chunk_bytes=7 * 64, provenance_rows=7):
        made = daskkm.create_store(folder / "pictures", folder / "t.zarr", tile=8)
        fitted = daskkm.KMeans(n_clusters=3, random_state=0).fit(made)
        made.label(fitted, distances=True)
    fitted.save(folder / "model.zarr")
    return folder


@pytest.fixture
def path(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact / "t.zarr", tmp_path / "t.zarr"))


@pytest.fixture
def saved(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact / "model.zarr", tmp_path / "model.zarr"))


def read(path: Path, name: str) -> None:
    """Read a whole array of a store."""
    opened = daskkm.open_store(path)
    if name == "tiles":
        for chunk in opened.stream(4 << 20).compute(scheduler="sync"):
            list(chunk)
    elif name in ("labels", "distances"):
        getattr(opened, name)(3).compute(scheduler="sync")
    else:
        opened.provenance_of(name).compute(scheduler="sync")


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda file: flip(file, 83), "checksum"),
    "truncated": (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes, not"),
    "longer": (lambda file: os.truncate(file, 1 << 40), "1099511627776 bytes, not"),
    "empty": (lambda file: os.truncate(file, 0), "(0 bytes, not"),
    "missing": (Path.unlink, "(missing file)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CHUNKS)
def test_read_of_damaged_chunk_names_the_chunk_with_a_hint(
    path: Path, name: str, damage: str
) -> None:
    key, advice = CHUNKS[name]
    do, why = DAMAGE[damage]
    read(path, name)
    do(path / key)
    with pytest.raises(CorruptChunkError) as caught:
        read(path, name)
    message = str(caught.value)
    place, found = message.split(": ", 1)
    assert place == str(path / name / "3" if name in ("labels", "distances") else path)
    what = "tiles" if name == "tiles" else f"{name} of tiles"
    assert found.startswith(f"{what} 14 to 20 cannot be read from chunk ")
    assert key.endswith(re.findall(r"chunk (\S+) ", found)[0])
    assert why in message
    assert message.endswith(f"or remove it and {advice}")
    assert [str(error) for error in verify_store(path)] == [message]
    for other in set(CHUNKS) - {name}:
        read(path, other)


def test_read_of_chunk_with_flipped_bit_is_refused(path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, (key, _) in CHUNKS.items():
        file = path / key
        whole = file.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 20).tolist():
            flip(file, bit)
            with pytest.raises(CorruptChunkError):
                read(path, name)
            file.write_bytes(whole)
        read(path, name)


def test_read_of_damaged_chunk_by_worker_raises_the_same_error(path: Path) -> None:
    opened = daskkm.open_store(path)
    flip(path / "tiles/c/2/0/0", 9)
    error = CorruptChunkError("t.zarr: tiles 14 to 20")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (CorruptChunkError, str(error))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster),
    ):
        with pytest.raises(CorruptChunkError, match=r"tiles 14 to 20 .*tiles/c/2/0/0 .*checksum"):
            opened.features().compute()
        with pytest.raises(CorruptChunkError, match=r"tiles 14 to 20 .*tiles/c/2/0/0 .*checksum"):
            daskkm.fit_sweep(opened, [2], n_init=1, random_state=0)


def test_read_of_store_missing_on_machine_raises_not_found(path: Path) -> None:
    X = daskkm.open_store(path).features()
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(
        StoreError, match=r"t\.zarr: not found\. Every worker needs this path"
    ) as caught:
        X.compute(scheduler="sync")
    assert not isinstance(caught.value, CorruptChunkError)


@pytest.mark.parametrize("node", ["", "labels/3", "distances/3"])
def test_open_node_with_flipped_bit_or_truncation_is_refused(path: Path, node: str) -> None:
    file = path / node / "zarr.json"
    whole = file.read_bytes()
    opened = daskkm.open_store(path)

    def look() -> None:
        if node:
            getattr(opened, node.partition("/")[0])(3)
        else:
            daskkm.open_store(path)

    look()
    for bit in np.random.default_rng(2).integers(0, 8 * len(whole), 50).tolist():
        flip(file, bit)
        with pytest.raises(StoreError):
            look()
        file.write_bytes(whole)
    for size in (*range(0, len(whole), 10), len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            look()
    file.write_bytes(whole)
    look()
    file.unlink()
    with pytest.raises(StoreError):
        look()


@pytest.mark.parametrize("name", ["tiles", "image", "row", "col"])
def test_verify_store_with_damaged_metadata_of_array_names_the_array(path: Path, name: str) -> None:
    """daskkm reads the copy in the root; other programs may read the file."""
    file = path / name / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"uint8", b"uint7").replace(b"int32", b"int16"))
    read(path, name)
    (error,) = verify_store(path)
    assert f"t.zarr: the metadata of {name} has changed" in str(error)


def test_open_store_with_link_in_the_folder_is_refused(path: Path, tmp_path: Path) -> None:
    (path / "tiles").rename(tmp_path / "outside")
    (path / "tiles").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="the store holds a link, tiles"):
        daskkm.open_store(path)


def test_open_store_through_link_is_done(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(path)
    assert verify_store(tmp_path / "link.zarr") == []
    for name in CHUNKS:
        read(tmp_path / "link.zarr", name)


def test_load_model_with_flipped_bit_is_refused(saved: Path) -> None:
    daskkm.load_model(saved)
    rng = np.random.default_rng(3)
    for file in (saved / "zarr.json", *sorted(saved.rglob("c/**/0"))):
        whole = file.read_bytes() if file.is_file() else b""
        for bit in rng.integers(0, 8 * len(whole), 20).tolist() if whole else ():
            flip(file, bit)
            with pytest.raises(ModelError):
                daskkm.load_model(saved)
            file.write_bytes(whole)
    daskkm.load_model(saved)


def test_modules_that_read_files_do_not_unpickle() -> None:
    """Except the machine code of numba, in `compilation`."""
    pickling = {"pickle", "_pickle", "marshal", "shelve", "joblib", "dill"}
    for file in (ROOT / "daskkm").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT / "daskkm").with_suffix("").parts)
        used = {name for found in imports(module) for name in found.split(".")}
        assert not used & pickling or file.stem == "compilation", file
        assert not re.search(r"allow_pickle=True|cloudpickle\.(?!dump)", file.read_text()), file


@pytest.fixture
def damaged(path: Path) -> tuple[Path, list[str]]:
    """Return a store with one damage in each part, and the expected messages."""
    flip(path / "tiles/c/1/0/0", 100)
    (path / "tiles/c/4/0/0").unlink()
    os.truncate(path / "image/c/0", 3)
    flip(path / "row/zarr.json", 77)
    os.truncate(path / "labels/3/c/1", 0)
    flip(path / "distances/3/zarr.json", 1234)
    expected = [
        r"t\.zarr: the metadata of row ",
        r"t\.zarr/distances/3: the metadata ",
        r"t\.zarr: tiles 7 to 13 .*tiles/c/1/0/0 \(wrong checksum",
        r"t\.zarr: tiles 28 to 29 .*tiles/c/4/0/0 \(missing file",
        r"t\.zarr: image of tiles 0 to 6 .*image/c/0 \(3 bytes, not 32",
        r"t\.zarr/labels/3: labels of tiles 7 to 13 .*c/1 \(0 bytes, not 32",
    ]
    return path, expected


def test_verify_store_with_many_damages_reports_all(damaged: tuple[Path, list[str]]) -> None:
    path, expected = damaged
    errors = [str(error) for error in verify_store(path)]
    assert len(errors) == len(expected), errors
    for why in expected:
        assert sum(bool(re.search(why, error)) for error in errors) == 1, (why, errors)


def test_verify_store_with_wrong_values_reports_the_values(path: Path) -> None:
    (columns, labels) = (zarr.open_array(path / name, mode="r+") for name in ("col", "labels/3"))
    columns[14:21] = np.full(7, 5, np.int32)
    labels[7:14] = np.full(7, 3, np.int32)
    one, other = map(str, verify_store(path))
    assert "t.zarr: col of tiles 14 to 20 are wrong (not the provenance of the images)" in one
    assert "labels/3: labels of tiles 7 to 13 are wrong (not all within 0 and 2)" in other


def test_verify_store_of_replaced_store_reports_the_replacement(
    path: Path, intact: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    shutil.copy(intact / "pictures" / "s_10.png", tmp_path / "pictures")
    flip(path / "col" / "c" / "2", 5)
    findings = iter_findings(path)
    next(findings)
    daskkm.create_store(tmp_path / "pictures", path, tile=4, overwrite=True)
    with pytest.raises(StoreError, match=r"t\.zarr: replaced during a read"):
        list(findings)
    assert verify_store(path) == []


def test_verify_store_with_replaced_labels_keeps_other_errors(path: Path) -> None:
    store = daskkm.open_store(path)
    fitted = daskkm.KMeans(n_clusters=3, random_state=1).fit(store)
    flip(path / "col" / "c" / "2", 5)
    flip(path / "labels" / "3" / "c" / "2", 5)
    findings = iter_findings(path)
    next(findings)
    store.label(fitted)
    errors = [str(error) for finding in findings for error in finding.errors]
    assert len([error for error in errors if "col of tiles 14 to 20 cannot be read" in error]) == 1
    assert {error for error in errors if "cannot be read" not in error} <= {
        f"{path}/{name}/3: replaced during a read. Open the store again"
        for name in ("labels", "distances")
    }


def test_commands_on_unprintable_paths_succeed(intact: Path, forked: Forks, tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    place.mkdir()
    shutil.copytree(intact / "t.zarr", place / "t.zarr")
    shutil.copytree(intact / "model.zarr", place / "model.zarr")
    store = ("--store", place / "t.zarr", "--scheduler", "threads")
    sweep = ("sweep", *store, "--out", place / "out", "--k", "2", "--n-init", "1")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    with Process("-m", "daskkm", *sweep, cwd=tmp_path, env=strict) as run:
        assert run.wait() == 0, run.lines
    assert str(tmp_path) + r"/\udcff\n/" in run.output[-1]
    for args in (("verify", place / "t.zarr"), ("label", place / "model.zarr", *store)):
        done = forked.run(*args, cwd=tmp_path)
        assert done.status == 0, done.lines
        assert str(tmp_path) + r"/\udcff\n/" in done.stdout.splitlines()[-1]


def test_verify_command_with_or_without_errors_exits_with_1_or_0(
    damaged: tuple[Path, list[str]], intact: Path, forked: Forks, tmp_path: Path
) -> None:
    path, expected = damaged
    good, bad, none = (
        forked.run("verify", store, cwd=tmp_path)
        for store in (intact / "t.zarr", path, path / "none")
    )
    assert (good.status, bad.status, none.status) == (0, 1, 1)
    (line,) = good.stdout.splitlines()
    assert re.search(r"t\.zarr: 30 chunks, [\d.]+ kB read, [\d.]+ s; no errors", line)
    assert len(bad.stdout.splitlines()) == len(expected)
    (line,) = bad.lines
    assert re.match(r"error: .*t\.zarr: 6 errors in 25 chunks, ", line)
    assert "the store does not exist" in none.lines[0]
