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
from daskkm.storage import verification
from daskkm.storage.locations import as_location
from tests.conftest import ROOT
from tests.processes import Process
from tests.test_layers import imports

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.forks import Forks

pytestmark = pytest.mark.faults

# Each array, with a chunk, its rows, and the hint.
INGEST = "or remove it and ingest the images again"
CHUNKS = {
    "tiles": ("tiles/c/2/0/0", "tiles 14 to 20", INGEST),
    "images/height": ("images/height/c/0", "images/height of rows 0 to 2", INGEST),
    "images/name": ("images/name/c/0", "images/name of rows 0 to 7", INGEST),
    "labels/3": ("labels/3/c/2", "labels/3 of tiles 14 to 20", "Label the tiles again"),
    "distances/3": (
        "distances/3/c/2/0",
        "distances/3 of tiles 14 to 20",
        "Label the tiles again, with distances",
    ),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a store of 30 tiles of 8 x 8, 7 per chunk, with labels and distances, and a model."""
    folder = tmp_path_factory.mktemp("intact")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("é_2.png", (16, 24)), ("s_10.png", (32, 24)), ("s_1.png", (24, 32))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / "pictures" / name)
    with override(chunk_bytes=7 * 64, table_rows=8):
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
    elif name.startswith("images"):
        list(opened.images)
    else:
        getattr(opened, name.removesuffix("/3"))(3).compute(scheduler="sync")


def verify_store(path: Path) -> list[StoreError]:
    return verification.verify_store(as_location(path))


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda file: flip(file, 83), "checksum"),
    "truncated": (lambda file: os.truncate(file, file.stat().st_size - 1), ""),
    "longer": (lambda file: os.truncate(file, 1 << 40), ""),
    "empty": (lambda file: os.truncate(file, 0), ""),
    "missing": (Path.unlink, "(missing file)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CHUNKS)
def test_read_of_damaged_chunk_names_the_chunk_with_a_hint(
    path: Path, name: str, damage: str
) -> None:
    key, rows, advice = CHUNKS[name]
    do, why = DAMAGE[damage]
    read(path, name)
    do(path / key)
    with pytest.raises(CorruptChunkError) as caught:
        read(path, name)
    message = str(caught.value)
    assert message.startswith(f"{path}: {rows} cannot be read from chunk {key} (")
    # A compressed chunk has no size of its own.
    size = r"wrong checksum|not of \d+ bytes" if name.startswith("images") else "wrong size"
    assert re.search(re.escape(why) or size, message)
    assert message.endswith(advice)
    assert [str(error) for error in verify_store(path)] == [message]
    for other in CHUNKS:
        if other.split("/")[0] != name.split("/", maxsplit=1)[0]:
            read(path, other)


def test_read_of_chunk_with_flipped_bit_is_refused(path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, (key, *_) in CHUNKS.items():
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
        StoreError, match=r"t\.zarr: not found\. Every worker needs this location"
    ) as caught:
        X.compute(scheduler="sync")
    assert not isinstance(caught.value, CorruptChunkError)


@pytest.mark.parametrize("name", ["store", "labels"])
def test_open_node_with_flipped_bit_or_truncation_is_refused(path: Path, name: str) -> None:
    file = path / "zarr.json"
    whole = file.read_bytes()
    opened = daskkm.open_store(path)

    def look() -> None:
        if name == "labels":
            opened.labels(3)
        else:
            daskkm.open_store(path)

    look()
    for bit in np.random.default_rng(2).integers(0, 8 * len(whole), 500).tolist():
        flip(file, bit)
        with pytest.raises(StoreError):
            look()
        file.write_bytes(whole)
    for size in (*range(0, len(whole), 100), len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            look()
    file.write_bytes(whole)
    look()
    file.unlink()
    with pytest.raises(StoreError):
        look()


@pytest.mark.parametrize("name", ["tiles", "images/height", "labels/3", "distances/3"])
def test_verify_store_with_damaged_metadata_of_array_names_the_array(path: Path, name: str) -> None:
    """daskkm reads the copy in the root; other programs may read the file."""
    file = path / name / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"int", b"uint").replace(b"float64", b"float32"))
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
    """Except the machine code of numba, and connections of object stores, sent to workers."""
    pickling = {"pickle", "_pickle", "marshal", "shelve", "joblib", "dill"}
    for file in (ROOT / "daskkm").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT / "daskkm").with_suffix("").parts)
        used = {name for found in imports(module) for name in found.split(".")}
        assert not used & pickling or file.stem in {"compilation", "locations"}, file
        assert file.stem == "compilation" or file.read_text().count("pickle.load") <= (
            file.stem == "locations"
        )
        assert not re.search(r"allow_pickle=True|cloudpickle\.(?!dump)", file.read_text()), file


@pytest.fixture
def damaged(path: Path) -> tuple[Path, list[str]]:
    """Return a store with one damage in each part, and the expected messages."""
    flip(path / "tiles/c/1/0/0", 100)
    (path / "tiles/c/4/0/0").unlink()
    os.truncate(path / "images/height/c/0", 3)
    flip(path / "images/width/zarr.json", 77)
    os.truncate(path / "labels/3/c/1", 0)
    flip(path / "distances/3/zarr.json", 1234)
    expected = [
        r"t\.zarr: the metadata of images/width ",
        r"t\.zarr: the metadata of distances/3 ",
        r"t\.zarr: tiles 7 to 13 .*tiles/c/1/0/0 \(wrong checksum",
        r"t\.zarr: tiles 28 to 29 .*tiles/c/4/0/0 \(missing file",
        r"t\.zarr: images/height of rows 0 to 2 .*images/height/c/0 \(wrong checksum",
        r"t\.zarr: labels/3 of tiles 7 to 13 .*c/1 \(wrong size",
    ]
    return path, expected


def test_verify_store_with_many_damages_reports_all(damaged: tuple[Path, list[str]]) -> None:
    path, expected = damaged
    errors = [str(error) for error in verify_store(path)]
    assert len(errors) == len(expected), errors
    for why in expected:
        assert sum(bool(re.search(why, error)) for error in errors) == 1, (why, errors)


def test_verify_store_with_wrong_values_reports_the_values(path: Path, saved: Path) -> None:
    heights = zarr.open_array(path / "images" / "height", mode="r+")
    heights[1] = 64
    (error,) = map(str, verify_store(path))
    assert "t.zarr: the records of the images do not fit the tiles" in error
    labels = zarr.open_array(path / "labels" / "3", mode="r+")
    labels[7:14] = np.full(7, 3, np.int32)
    (error,) = map(str, verify_store(path))
    assert "t.zarr: labels/3 of tiles 7 to 13 are wrong (not all within 0 and 2)" in error
    daskkm.open_store(path).label(daskkm.load_model(saved))
    assert "labels" not in "".join(map(str, verify_store(path)))


def test_verify_store_of_replaced_store_reports_the_replacement(
    path: Path, intact: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    shutil.copy(intact / "pictures" / "s_10.png", tmp_path / "pictures")
    flip(path / "images" / "height" / "c" / "0", 5)
    findings = verification.iter_findings(as_location(path))
    next(findings)
    daskkm.create_store(tmp_path / "pictures", path, tile=4, overwrite=True)
    with pytest.raises(StoreError, match=r"t\.zarr: replaced during a read"):
        list(findings)
    assert verify_store(path) == []


def test_verify_store_with_replaced_labels_keeps_other_errors(path: Path) -> None:
    store = daskkm.open_store(path)
    fitted = daskkm.KMeans(n_clusters=3, random_state=1).fit(store)
    flip(path / "images" / "height" / "c" / "0", 5)
    flip(path / "labels" / "3" / "c" / "2", 5)
    findings = verification.iter_findings(as_location(path))
    next(findings)
    store.label(fitted)
    errors = [str(error) for finding in findings for error in finding.errors]
    assert len([error for error in errors if "images/height of rows" in error]) == 1
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
    assert re.search(r"t\.zarr: 26 chunks, [\d.]+ kB read, [\d.]+ s; no errors", line)
    assert len(bad.stdout.splitlines()) == len(expected)
    (line,) = bad.lines
    assert re.match(r"error: .*t\.zarr: 6 errors in 26 chunks, ", line)
    assert "the store does not exist" in none.lines[0]
