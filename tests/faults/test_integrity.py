"""Stores of which a bit is wrong, or more: found, named, and never taken for tiles."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from PIL import Image

import daskkm
from daskkm.errors import CorruptChunkError, ModelError, StoreError
from daskkm.kmeans import model
from daskkm.storage import metadata, nodes, tile_store, verification
from daskkm.storage.verification import verify_store
from tests.conftest import ROOT
from tests.processes import Process
from tests.test_layers import imports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.faults

# Each array, with a chunk of its tiles 14 to 20, and what is to be done.
CHUNKS = {
    "tiles": ("tiles/c/2/0/0", "ingest the images again"),
    "image": ("image/c/2", "ingest the images again"),
    "row": ("row/c/2", "ingest the images again"),
    "col": ("col/c/2", "ingest the images again"),
    "labels": ("labels/3/c/2", "label the tiles again"),
    "distances": ("distances/3/c/2/0", "label the tiles again, with distances"),
}
NODES = ("", "tiles", "image", "row", "col", "labels/3", "distances/3")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 30 tiles of 8 x 8, 7 a chunk, with labels and distances, and a model."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("é_2.png", (16, 24)), ("s_10.png", (32, 24)), ("s_1.png", (24, 32))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / "pictures" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskkm.storage.tile_store._CHUNK_BYTES", 7 * 64)
        patch.setattr("daskkm.storage.writer._PROVENANCE_CHUNK", 7)
        patch.setattr("daskkm.storage.tile_store._part", lambda rows, _, alone: rows)
        made = daskkm.create_store(folder / "pictures", folder / "t.zarr", tile=8)
        fitted = daskkm.KMeans(n_clusters=3, random_state=0).fit(made)
        made.label(fitted, distances=True)
    fitted.save(folder / "model.zarr")
    return folder


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "t.zarr", tmp_path / "t.zarr"))


@pytest.fixture
def saved(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "model.zarr", tmp_path / "model.zarr"))


def read(path: Path, name: str) -> None:
    """Read an array of a store in full."""
    opened = daskkm.open_store(path)
    if name == "tiles":
        for chunk in opened.streamed(4 << 20).compute(scheduler="sync"):
            list(chunk)
    elif name in ("labels", "distances"):
        getattr(opened, name)(3).compute(scheduler="sync")
    else:
        opened.provenance_of(name).compute(scheduler="sync")


def read_all(path: Path) -> None:
    for name in CHUNKS:
        read(path, name)


def verified(path: Path) -> list[str]:
    """What `verify` finds, or why it cannot."""
    try:
        return [str(error) for error in verify_store(path)]
    except StoreError as error:
        return [str(error)]


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def _to_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def _to_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda file: flip(file, 83), "checksum"),
    "truncated": (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes, not"),
    "longer": (lambda file: os.truncate(file, 1 << 40), "has 1099511627776 bytes, not"),
    "empty": (lambda file: os.truncate(file, 0), "has 0 bytes, not"),
    "missing": (Path.unlink, "is missing"),
    "link": (_to_link, "is a link"),
    "pipe": (_to_pipe, "is not a file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CHUNKS)
def test_a_damaged_chunk_is_named_with_what_to_do(path: Path, name: str, damage: str) -> None:
    key, advice = CHUNKS[name]
    do, why = DAMAGE[damage]
    read(path, name)
    do(path / key)
    with pytest.raises(CorruptChunkError) as caught:
        read(path, name)
    said = str(caught.value)
    place, found = said.split(": ", 1)
    assert place == str(path / name / "3" if name in ("labels", "distances") else path)
    what = "tiles" if name == "tiles" else f"{name} of tiles"
    assert found.startswith(f"{what} 14 to 20 cannot be read from chunk ")
    assert key.endswith(re.findall(r"chunk (\S+) ", found)[0])
    assert why in said
    assert said.endswith(f"or remove it and {advice}")
    assert [str(error) for error in verify_store(path)] == [said]
    for other in set(CHUNKS) - {name}:
        read(path, other)


def test_one_bit_of_any_chunk(path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, (key, _) in CHUNKS.items():
        file = path / key
        whole = file.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 40).tolist():
            flip(file, bit)
            with pytest.raises(CorruptChunkError):
                read(path, name)
            file.write_bytes(whole)
        read(path, name)


def test_the_error_comes_back_from_another_process(path: Path) -> None:
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


def test_a_store_that_a_machine_does_not_have(path: Path) -> None:
    X = daskkm.open_store(path).features()
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StoreError, match=r"it is not there; every worker needs it") as caught:
        X.compute(scheduler="sync")
    assert not isinstance(caught.value, CorruptChunkError)


def open_all(path: Path) -> None:
    """Look at all metadata of a store, as reading it does."""
    opened = daskkm.open_store(path)
    opened.labels(3)
    opened.distances(3)


@pytest.mark.parametrize("node", NODES)
def test_one_bit_of_any_metadata(path: Path, node: str) -> None:
    file = path / node / "zarr.json"
    whole = file.read_bytes()
    opened = daskkm.open_store(path)

    def look() -> None:
        if "/" not in node:
            daskkm.open_store(path)
        else:
            getattr(opened, node.partition("/")[0])(3)

    look()
    for bit in np.random.default_rng(2).integers(0, 8 * len(whole), 100).tolist():
        flip(file, bit)
        with pytest.raises(StoreError):
            look()
        file.write_bytes(whole)
    for size in (*range(0, len(whole), 5), len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            look()
    file.write_bytes(whole)
    look()
    file.unlink()
    with pytest.raises(StoreError):
        look()


@pytest.mark.parametrize("node", ["labels", "distances"])
def test_one_bit_of_the_metadata_of_a_group_of_nodes(path: Path, node: str) -> None:
    """It says only that it is a group, and nothing is read by it: `verify` looks at it."""
    file = path / node / "zarr.json"
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        flip(file, bit)
        with pytest.raises(StoreError):
            nodes.check_group(path, node, tile_store.STORE)
        file.write_bytes(whole)
    nodes.check_group(path, node, tile_store.STORE)
    file.unlink()
    (error,) = verify_store(path)
    assert f"the metadata of {node} is not that of a group" in str(error)


def test_one_bit_of_a_saved_model(saved: Path) -> None:
    daskkm.load_model(saved)
    rng = np.random.default_rng(3)
    for file in sorted(saved.rglob("*")):
        whole = file.read_bytes() if file.is_file() else b""
        for bit in rng.integers(0, 8 * len(whole), 40).tolist() if whole else ():
            flip(file, bit)
            with pytest.raises(ModelError):
                daskkm.load_model(saved)
            file.write_bytes(whole)
    daskkm.load_model(saved)


def seal(place: Path, name: str = "", **changes: Any) -> None:
    """Change metadata as if it had been written so: nothing but what it says is wrong."""
    documents = {
        file.parent.relative_to(place).as_posix(): json.loads(file.read_bytes())
        for file in place.rglob("zarr.json")
        if file.parent == place or file.parent.name in ("tiles", "image", "row", "col", "counts")
    }
    document = documents[name or "."]
    for key, value in changes.items():
        *outer, last = key.split("__")
        target = document
        for step in outer:
            target = target[step]
        target[last] = value
    own = documents.pop(".")
    below = {name: json.dumps(document).encode() for name, document in documents.items()}
    for other, data in below.items():
        (place / other / "zarr.json").write_bytes(data)
    (place / "zarr.json").write_bytes(metadata.sealed(own, below))


GZIP = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
SHARDS = [
    {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, 8, 8],
            "codecs": [{"name": "bytes"}],
            "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        },
    }
]
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("tiles", {"zarr_format": 2}, "its zarr_format is 2, not 3"),
    ("tiles", {"zarr_format": "3"}, "its zarr_format is '3', not 3"),
    ("tiles", {"node_type": "group"}, "its node_type is 'group', not 'array'"),
    ("tiles", {"data_type": "uint16", "codecs": GZIP}, "its codecs is .*gzip.* not .*little"),
    ("tiles", {"data_type": "int8"}, r"its tiles are int8 of shape \(30, 8, 8\)"),
    ("tiles", {"data_type": "object"}, "its data_type is 'object', no number"),
    ("tiles", {"data_type": ["uint8"]}, "its data_type is .*no number"),
    (
        "tiles",
        {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}},
        "its data_type is .*fixed_length_utf32.*no number",
    ),
    ("tiles", {"shape": []}, r"its shape is \[\]"),
    ("tiles", {"shape": [-1, 8, 8]}, "its shape is"),
    ("tiles", {"shape": [30.0, 8, 8]}, "its shape is"),
    ("tiles", {"shape": "many"}, "its shape is 'many'"),
    ("tiles", {"shape": [30, 8, 9]}, r"its chunk_grid is .*, not"),
    ("tiles", {"shape": [31, 8, 8]}, "its images have 30 tiles, and it has 31"),
    ("tiles", {"shape": [1 << 40, 8, 8]}, "its shape is .*in more than 2097152 chunks"),
    (
        "tiles",
        {"chunk_grid__configuration__chunk_shape": [1 << 30, 8, 8]},
        "its chunks have 68719476736 bytes",
    ),
    ("tiles", {"chunk_grid__configuration__chunk_shape": [7, 4, 8]}, "its chunk_grid"),
    ("tiles", {"chunk_grid__configuration__chunk_shape": [0, 8, 8]}, "its chunk_grid"),
    ("tiles", {"chunk_grid__configuration__chunk_shape": [7.0, 8, 8]}, "its chunk_grid"),
    ("tiles", {"chunk_grid__name": "rectangular"}, "its chunk_grid"),
    ("tiles", {"chunk_grid": None}, "its chunk_grid is None"),
    ("tiles", {"chunk_key_encoding__name": "v2"}, "its chunk_key_encoding"),
    ("tiles", {"chunk_key_encoding__configuration__separator": "."}, "its chunk_key_encoding"),
    ("tiles", {"codecs": GZIP}, "its codecs is .*gzip"),
    ("tiles", {"codecs": SHARDS}, "its codecs is .*sharding_indexed"),
    ("tiles", {"codecs": [{"name": "bytes"}]}, "its codecs is"),
    ("tiles", {"codecs": [{"name": "crc32c"}, {"name": "bytes"}]}, "its codecs is"),
    ("tiles", {"storage_transformers": [{"name": "x"}]}, "its storage_transformers is"),
    ("tiles", {"extension": {"must_understand": False}}, "it has 'extension'"),
    ("tiles", {"attributes": []}, r"its attributes are \[\]"),
    ("tiles", {"dimension_names": ["tile"]}, "metadata of tiles is not that of a store"),
    ("row", {"data_type": "int64"}, "the row of each is int64"),
    (
        "col",
        {"shape": [29]},
        r"it has 30 tiles, and the col of each is int32 of \(29,\)",
    ),
    (
        "image",
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        "its codecs is .*big.* not .*little",
    ),
    ("", {"consolidated_metadata": {"kind": "inline"}}, "it has 'consolidated_metadata'"),
    ("", {"consolidated_metadata": None}, "it has 'consolidated_metadata'"),
    ("", {"consolidated_metadata__metadata": {"tiles": {}}}, "it has 'consolidated_metadata'"),
    ("", {"zarr_format": 2}, "its zarr_format is 2, not 3"),
    ("", {"attributes__daskkm__images": None}, "attributes are not those of a store"),
    ("", {"attributes__daskkm__images": {}}, "its images have 0 tiles, and it has 30"),
    ("", {"attributes__daskkm__images": [{"name": "a"}]}, "attributes are not those of a store"),
    ("", {"attributes__daskkm__format": 1}, "its format is 1, not 2.*or remove it"),
    ("", {"attributes__daskkm__kind": "model"}, "its kind is model"),
    ("", {"attributes__daskkm__complete": False}, "not complete"),
]


@pytest.mark.parametrize(("name", "changes", "why"), WRONG)
def test_metadata_that_is_not_a_stores(
    path: Path, name: str, changes: dict[str, Any], why: str
) -> None:
    seal(path, name, **changes)
    with pytest.raises(StoreError, match=rf"t\.zarr: .*{why}"):
        daskkm.open_store(path)
    assert any(re.search(why, error) for error in verified(path))


@pytest.mark.parametrize("depth", [100, 300, 900, 990, 10_000])
def test_metadata_that_is_nested(path: Path, depth: int) -> None:
    document = json.loads((path / "row" / "zarr.json").read_bytes())
    document["codecs"] = "deep"
    text = json.dumps(document).replace('"deep"', "[" * depth + "]" * depth)
    (path / "row" / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match="the metadata of row"):
        daskkm.open_store(path)


@pytest.mark.parametrize(
    "change", [{"name": 5}, {"reason": [1]}, {"size": -1}, {"sha256": None}, {"name": "a/b"}]
)
def test_files_left_out_that_are_none(path: Path, change: dict[str, Any]) -> None:
    file = {"name": "s.png", "size": 0, "sha256": "", "reason": "it is bad"}
    seal(path, attributes__daskkm__skipped=[file])
    daskkm.open_store(path)
    seal(path, attributes__daskkm__skipped=[{**file, **change}])
    with pytest.raises(StoreError, match=r"the store is damaged: it has left out a file that is"):
        daskkm.open_store(path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../s.png"},
        {"name": ".."},
        {"name": 5},
        {"size": "860"},
        {"sha256": None},
        {"shape": [24.0, 32]},
        {"shape": "24"},
        {"shape": [24, 32, 3]},
        {"shape": [-24, -32]},
        {"cropped": [0]},
    ],
)
def test_images_that_are_none(path: Path, change: dict[str, Any]) -> None:
    images = json.loads((path / "zarr.json").read_bytes())["attributes"]["daskkm"]["images"]
    seal(path, attributes__daskkm__images=[{**images[0], "sha256": "0" * 64}, *images[1:]])
    daskkm.open_store(path)
    seal(path, attributes__daskkm__images=[{**images[0], **change}, *images[1:]])
    with pytest.raises(StoreError, match=r"t\.zarr: the store is damaged: it has an image that is"):
        daskkm.open_store(path)


def test_a_store_of_another_zarr_format(path: Path, tmp_path: Path) -> None:
    old = zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    old.create_array("tiles", shape=(3, 8, 8), dtype="u1")
    with pytest.raises(StoreError, match=r"old\.zarr: .*no store \(it is of Zarr format 2, as its"):
        daskkm.open_store(tmp_path / "old.zarr")
    shutil.rmtree(path / "tiles")
    shutil.copytree(tmp_path / "old.zarr" / "tiles", path / "tiles")
    with pytest.raises(StoreError, match="the store has no array 'tiles'"):
        daskkm.open_store(path)


LIMITED = """
import resource, sys
from pathlib import Path
import daskkm
from tests import test_faults_integrity as faults

path, names = Path(sys.argv[1]), sys.argv[2:]
faults.open_all(path)  # all is imported
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for name in names:
    with faults.restoring(path):
        try:
            getattr(faults, name)(path)
        except daskkm.StoreError as error:
            print(name, type(error).__name__, error)
"""


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    yield
    for file, data in files.items():
        file.write_bytes(data)


def bomb_of_tiles(path: Path) -> None:
    seal(path, "tiles", shape=[1 << 40, 8, 8])
    daskkm.open_store(path)


def bomb_in_a_chunk(path: Path) -> None:
    seal(path, "tiles", chunk_grid__configuration__chunk_shape=[1 << 34, 8, 8])
    os.truncate(path / "tiles/c/0/0/0", (1 << 40) + 4)
    daskkm.open_store(path)


def _huge(path: Path) -> None:
    """2⁴⁰ tiles, in all consistent: no more can be seen before chunks are asked for."""
    record = {"name": "s", "size": 1, "sha256": "", "shape": [1 << 23, 1 << 23], "cropped": [0, 0]}
    grid = "chunk_grid__configuration__chunk_shape"
    seal(path, "tiles", shape=[1 << 40, 8, 8], **{grid: [1 << 20, 8, 8]})
    for name in ("image", "row", "col"):
        seal(path, name, shape=[1 << 40], **{grid: [1 << 20]})
    seal(path, attributes__daskkm__images=[record])


def bomb_that_is_consistent(path: Path) -> None:
    _huge(path)
    daskkm.open_store(path).check()


def bomb_of_provenance(path: Path) -> None:
    _huge(path)
    daskkm.open_store(path).provenance()


def bomb_of_features(path: Path) -> None:
    _huge(path)
    daskkm.open_store(path).features()[5 << 20].compute(scheduler="sync")


def bomb_of_long_blocks(path: Path) -> None:
    _huge(path)
    next(iter(daskkm.open_store(path).streamed(4 << 20).blocks[7].compute(scheduler="sync")))


def bomb_of_errors(path: Path) -> None:
    # Of whose threads the stacks alone would be too much.
    os.cpu_count = lambda: 64
    module: Any = verification
    module.CPU_COUNT = 64
    _huge(path)
    raise verify_store(path)[-1]


def bomb_of_a_long_chunk(path: Path) -> None:
    seal(path, "tiles", chunk_grid__configuration__chunk_shape=[1 << 24, 8, 8])
    read(path, "tiles")


def bomb_in_a_sparse_chunk(path: Path) -> None:
    os.truncate(path / "row/c/1", 1 << 40)
    daskkm.open_store(path).provenance()


def bomb_of_metadata(path: Path) -> None:
    os.truncate(path / "zarr.json", 1 << 40)
    daskkm.open_store(path)


def bomb_of_metadata_of_an_array(path: Path) -> None:
    (path / "row" / "zarr.json").write_bytes(b'{"shape": [' + b"1, " * (1 << 20) + b"1]}")
    daskkm.open_store(path)


def bomb_of_brackets(path: Path) -> None:
    (path / "row" / "zarr.json").write_bytes(b"[" * 1_000_000)
    daskkm.open_store(path)


def bomb_of_digits(path: Path) -> None:
    (path / "row" / "zarr.json").write_bytes(b'{"shape": [' + b"1" * 1_000_000 + b"]}")
    daskkm.open_store(path)


BOMBS = {
    "bomb_of_tiles": "StoreError .*in more than 2097152 chunks",
    "bomb_in_a_chunk": "StoreError .*its chunks have 1099511627776 bytes, more than",
    "bomb_that_is_consistent": r"CorruptChunkError .*tiles 0 to 1048575 .*chunk tiles/c/0/0/0 ",
    "bomb_of_provenance": r"CorruptChunkError .*image of tiles 0 to 1048575 .*chunk image/c/0 ",
    "bomb_of_features": r"CorruptChunkError .*tiles 5242880 to 6291455 .*chunk tiles/c/5/0/0 ",
    "bomb_of_long_blocks": r"CorruptChunkError .*tiles \d+ to \d+ .* \(it is missing\)",
    "bomb_of_errors": r"StoreError .*t\.zarr: with \d+ errors it was left at that; ingest",
    "bomb_of_a_long_chunk": r"CorruptChunkError .*tiles 0 to 29 .*has 452 bytes, not 1073741828",
    "bomb_in_a_sparse_chunk": r"CorruptChunkError .*row of tiles 7 to 13 .*1099511627776 bytes",
    "bomb_of_metadata": r"StoreError .*t\.zarr: the metadata cannot be read \(it has 109951162777",
    "bomb_of_metadata_of_an_array": "StoreError .*the metadata of row cannot .*has 3145742 bytes",
    "bomb_of_brackets": "StoreError .*the metadata of row cannot be read .*nested too deep",
    "bomb_of_digits": "StoreError .*the metadata of row cannot be read",
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are not kept")
def test_what_asks_for_more_memory_than_there_is(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, path, *BOMBS],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    said = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert said.keys() == BOMBS.keys()
    for name, why in BOMBS.items():
        assert re.match(why, said[name]), said[name]


@pytest.mark.parametrize(
    "key",
    [
        *("zarr.json", "tiles", "tiles/zarr.json", "tiles/c", "tiles/c/0", "tiles/c/0/0/0"),
        *("row", "row/c", "labels", "labels/3", "labels/3/zarr.json", "labels/3/c"),
        *("distances/3", "distances/3/c/0"),
    ],
)
def test_no_link_leads_out_of_a_store(path: Path, tmp_path: Path, key: str) -> None:
    (path / key).rename(tmp_path / "outside")
    (path / key).symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="is a link, which may lead out of the store"):
        read_all(path)
    errors = verified(path)
    assert errors
    assert all("is a link" in error for error in errors)


@pytest.mark.parametrize("node", ["", "row", "labels/3"])
def test_metadata_that_is_a_pipe_is_not_waited_for(path: Path, node: str) -> None:
    _to_pipe(path / node / "zarr.json")
    with pytest.raises(StoreError, match=r"the metadata.* cannot be read .*is not a file"):
        open_all(path)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is read ahead")
def test_what_is_read_ahead_is_not_reached_by_a_link(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = path / "tiles" / "c" / "2" / "0" / "0"
    chunk.rename(tmp_path / "outside")
    chunk.symlink_to(tmp_path / "outside")
    ahead = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda file, *_: ahead.append(Path(f"/proc/self/fd/{file}").readlink())
    )
    with pytest.raises(CorruptChunkError, match=r"chunk tiles/c/2/0/0 .*is a link"):
        list(nodes.stream(daskkm.open_store(path).tiles, 0, 30, tile_store.STORE))
    assert ahead == [path / "tiles" / "c" / str(i) / "0" / "0" for i in (1, 3)]


@pytest.mark.parametrize("key", ["labels", "labels/3", "distances", "distances/3"])
def test_nothing_is_written_through_a_link(
    path: Path, saved: Path, tmp_path: Path, key: str
) -> None:
    (path / key).rename(tmp_path / "outside")
    (path / key).symlink_to(tmp_path / "outside")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "outside").rglob("*")}
    with pytest.raises(StoreError, match=r"is a link, .*remove the link"):
        daskkm.open_store(path).label(daskkm.load_model(saved), distances=True)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "outside").rglob("*")} == before


@pytest.mark.parametrize("name", ["3.lock", "3.0a1b2c3d.old", "3.0a1b2c3d.partial"])
@pytest.mark.parametrize("kind", ["labels", "distances"])
@pytest.mark.parametrize("empty", [False, True])
def test_what_is_left_beside_labels_may_be_a_link(
    path: Path, saved: Path, tmp_path: Path, kind: str, name: str, empty: bool
) -> None:
    outside = tmp_path / "outside"
    if name != "3.lock":
        (path / kind / "3").rename(outside)
    if empty and outside.exists():
        shutil.rmtree(outside)
        outside.mkdir()
    (path / kind / name).symlink_to(outside)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("outside/**")}
    store = daskkm.open_store(path)
    if name == "3.lock":
        with pytest.raises(StoreError, match="symbolic links"):
            store.label(daskkm.load_model(saved), distances=True)
    else:
        store.label(daskkm.load_model(saved), distances=True)
        store.labels(3).compute()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("outside/**")} == before


def test_a_link_to_a_store_is_a_place_for_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(path)
    assert verify_store(tmp_path / "link.zarr") == []
    read_all(tmp_path / "link.zarr")


@pytest.mark.parametrize("name", ["../counts", "a/../../counts", "/etc", "", ".", "a//b"])
def test_names_that_lead_out_of_a_model(saved: Path, name: str) -> None:
    shutil.copytree(saved / "counts", saved.parent / "counts")
    group = zarr.open_group(saved, mode="r+")
    said: Any = group.attrs["daskkm"]
    nodes.complete(group, model._kind(), {**said, "extra": []})
    daskkm.load_model(saved)
    nodes.complete(group, model._kind(), {**said, "extra": [name]})
    with pytest.raises(ModelError, match=r"model\.zarr: .* is no name of an array"):
        daskkm.load_model(saved)


def test_there_is_no_pickle() -> None:
    """But for what tasks are told (`source`) and numba's machine code (`compilation`)."""
    may_use = {"source": {"cloudpickle"}, "compilation": {"pickle"}}
    pickling = {"pickle", "_pickle", "cloudpickle", "marshal", "shelve", "joblib", "dill"}
    for file in (ROOT / "daskkm").glob("*.py"):
        used = {name for found in imports(file.stem) for name in found.split(".")}
        assert not used & pickling - may_use.get(file.stem, set()), file
        assert not re.search(r"allow_pickle=True|cloudpickle\.(?!dump)", file.read_text()), file


@pytest.fixture
def ruined(path: Path) -> tuple[Path, list[str]]:
    """A store with something wrong in all of its parts, and what is to be said of each."""
    flip(path / "tiles/c/1/0/0", 100)
    (path / "tiles/c/4/0/0").unlink()
    os.truncate(path / "image/c/0", 3)
    flip(path / "row/zarr.json", 77)
    os.truncate(path / "labels/3/c/1", 0)
    flip(path / "labels/zarr.json", 33)
    flip(path / "distances/3/zarr.json", 1234)
    expected = [
        r"t\.zarr: the metadata of row ",
        r"t\.zarr: the metadata of labels ",
        r"t\.zarr/distances/3: the metadata ",
        r"t\.zarr: tiles 7 to 13 .*tiles/c/1/0/0 \(its checksum",
        r"t\.zarr: tiles 28 to 29 .*tiles/c/4/0/0 \(it is missing",
        r"t\.zarr: image of tiles 0 to 6 .*image/c/0 \(it has 3 bytes, not 32",
        r"t\.zarr/labels/3: labels of tiles 7 to 13 .*c/1 \(it has 0 bytes, not 32",
    ]
    return path, expected


def test_all_that_is_wrong_is_reported_at_once(ruined: tuple[Path, list[str]]) -> None:
    path, expected = ruined
    errors = [str(error) for error in verify_store(path)]
    assert len(errors) == len(expected), errors
    for why in expected:
        assert sum(bool(re.search(why, error)) for error in errors) == 1, (why, errors)


@pytest.mark.parametrize(("most", "left"), [(2, True), (3, False)])
def test_it_is_left_at_many_errors_only_where_there_is_more_to_look_at(
    ruined: tuple[Path, list[str]], most: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of four chunks that are damaged the last is one of labels, where verifying ends.
    monkeypatch.setattr(verification, "_MOST", most)
    monkeypatch.setattr(verification, "_WAITING", 1)
    errors = [str(error) for error in verify_store(ruined[0])]
    assert len(errors) == len(ruined[1])
    assert ("with 3 errors it was left at that" in errors[-1]) == left
    assert ("labels of tiles 7 to 13" in errors[-1]) != left


def test_verify_finds_what_no_checksum_can(path: Path) -> None:
    (columns, labels) = (zarr.open_array(path / name, mode="r+") for name in ("col", "labels/3"))
    columns[14:21] = np.full(7, 5, np.int32)
    labels[7:14] = np.full(7, 3, np.int32)
    one, other = map(str, verify_store(path))
    assert "t.zarr: col of tiles 14 to 20 cannot be right (not what the images say)" in one
    assert "labels/3: labels of tiles 7 to 13 cannot be right (not all within 0 and 2)" in other


def test_a_store_that_is_replaced_meanwhile_is_not_called_damaged(
    path: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment, and so are labels."""
    (tmp_path / "pictures").mkdir()
    shutil.copy(sound / "pictures" / "s_10.png", tmp_path / "pictures")
    here = daskkm.open_store(path)
    fitted = daskkm.KMeans(n_clusters=3, random_state=1).fit(here)
    moments = {
        "labels": lambda: here.label(fitted),
        "store": lambda: daskkm.create_store(tmp_path / "pictures", path, tile=4, overwrite=True),
    }
    for what, change in moments.items():
        for name, moment in (
            *(("_contents", -1), ("known_ks", 0), ("known_ks", -1), ("known_ks", -2)),
            *(("_check_run", 0), ("_check_run", 5)),
        ):
            shutil.rmtree(path)
            shutil.copytree(sound / "t.zarr", path)
            flip(path / "col" / "c" / "2", 5)
            with monkeypatch.context() as patched:
                replaced_at(patched, name, moment, change)
                if what == "store":
                    with pytest.raises(StoreError, match=r"t\.zarr: it was replaced while"):
                        verify_store(path)
                    assert verify_store(path) == []
                    continue
                # What else was found is not lost.
                said = list(map(str, verify_store(path)))
            (damaged,) = (line for line in said if "cannot be read" in line)
            assert "col of tiles 14 to 20" in damaged
            others = [line for line in said if line != damaged]
            # Those that were there when their names were read, and are not at the end.
            replaced = {re.sub(r".*/(\w+/3): it was replaced .*", r"\1", line) for line in others}
            assert len(replaced) == len(others)
            assert replaced <= {"labels/3", "distances/3"}
            assert replaced or (name, moment) in {("known_ks", 0), ("known_ks", -1)}


def replaced_at(
    patched: pytest.MonkeyPatch, name: str, moment: int, change: Callable[[], object]
) -> None:
    """Have something done before call 0, 1, … of a function of `verify`, or after call -1, -2, …"""
    module = verification
    function, calls, lock = getattr(module, name), itertools.count(), threading.Lock()

    def called(*args: Any) -> Any:
        with lock:
            if (call := next(calls)) == moment:
                change()
        found = function(*args)
        if call == -moment - 1:
            change()
        return found

    patched.setattr(module, name, called)


def test_places_that_cannot_be_printed(sound: Path, tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    place.mkdir()
    shutil.copytree(sound / "t.zarr", place / "t.zarr")
    shutil.copytree(sound / "model.zarr", place / "model.zarr")
    store = ("--store", place / "t.zarr", "--scheduler", "threads")
    sweep = ("sweep", *store, "--out", place / "out", "--k", "2", "--n-init", "1")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for args in (("verify", place / "t.zarr"), ("label", place / "model.zarr", *store), sweep):
        with Process("-m", "daskkm", *args, cwd=tmp_path, env=strict) as run:
            assert run.wait() == 0, run.lines
        assert str(tmp_path) + r"/\udcff\n/" in run.output[-1]


def test_the_command(ruined: tuple[Path, list[str]], sound: Path) -> None:
    path, expected = ruined
    with (
        Process("-m", "daskkm.verify", sound / "t.zarr") as good,
        Process("-m", "daskkm", "verify", path) as bad,
    ):
        assert (good.wait(), bad.wait()) == (0, 1)
    (line,) = good.output
    assert re.search(r"t\.zarr: 30 chunks, [\d.]+ kB read, [\d.]+ s; all of it is as it was", line)
    assert len(bad.output) == len(expected)
    (line,) = bad.lines
    assert re.match(r"error: .*t\.zarr: 7 errors in 20 chunks, ", line)
    with Process("-m", "daskkm.verify", path / "none") as none:
        assert none.wait() == 1
    assert "there is no store" in none.lines[0]
