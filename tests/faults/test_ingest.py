"""Test that interrupted and concurrent ingests leave a complete store or no store, and resume."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import daskkm
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import StoreError
from daskkm.storage import commit
from daskkm.storage.labels import LABELS
from daskkm.storage.records import ImageRecord
from daskkm.storage.verification import verify_store
from daskkm.storage.writer import open_writer
from tests.processes import Process, once_iterations_began

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.forks import Done, Forks

pytestmark = pytest.mark.faults


def save(folder: Path, seed: int) -> Path:
    """Write three images of 12, 6 and 12 tiles of 8 x 8."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for name, shape in (("s_1.png", (24, 32)), ("s_2.png", (16, 24)), ("s_10.png", (32, 24))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
        os.utime(folder / name, (seed, seed))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Ingests:
    """Two sets of images with complete stores, and a runner of commands that are stopped."""

    def __init__(self, home: Path, forked: Forks) -> None:
        self._forked = forked
        self.home = home
        self.images, self.others = save(home / "pictures", 1), save(home / "others", 2)
        self.whole, self.other = home / "whole" / "t.zarr", home / "other" / "t.zarr"
        for folder, store in ((self.images, self.whole), (self.others, self.other)):
            store.parent.mkdir()
            assert self.ingest(store, folder).status == 0

    def run(self, *args: str | Path, **stop: Any) -> Done:
        return self._forked.run(*args, **stop)

    def ingest(self, store: Path, images: Path | None = None, **stop: Any) -> Done:
        """Run `daskkm ingest` with seven tiles per chunk, and count events beside the store.

        The command overwrites an older store, also a store that a killed run set aside.
        """
        flags: list[str | Path] = [images or self.images, "--store", store, "--tile", "8"]
        if store.exists() or store.with_name(f".{store.name}.old").exists():
            flags.append("--overwrite")
        return self._forked.run("ingest", *flags, cwd=store.parent, chunk=7 * 64, **stop)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forked: Forks) -> Ingests:
    return Ingests(tmp_path_factory.mktemp("world"), forked)


@pytest.fixture
def place(world: Ingests, tmp_path: Path) -> Iterator[Path]:
    """Return the path of a store in a folder for one test."""
    folder = world.home / tmp_path.name
    folder.mkdir()
    yield folder / "t.zarr"
    shutil.rmtree(folder)


def assert_complete_or_missing(world: Ingests, place: Path) -> None:
    """Assert that the store is one of the complete stores, or missing."""
    if place.exists():
        daskkm.open_store(place).check()
        assert tree(place) in (tree(world.whole), tree(world.other))
    else:
        with pytest.raises(StoreError, match=r"the store (does not exist|is not complete)"):
            daskkm.open_store(place)


def kill_and_run_again(world: Ingests, place: Path, at: int) -> tuple[bool, bool, int]:
    """Kill an ingest at an event and resume the ingest.

    Return whether the ingest was killed, whether the older store was present after the kill, and
    the number of chunks that the resumed ingest kept.
    """
    killed = world.ingest(place, at=at, number=signal.SIGKILL)
    # The number of events varies by one, since threads create folders.
    assert killed.status in {-signal.SIGKILL, 0}, killed.lines
    assert_complete_or_missing(world, place)
    was_old = place.exists() and tree(place) == tree(world.other)
    written_chunks = read_written_chunks(place)
    done = world.ingest(place)
    assert done.status == 0, done.lines
    assert tree(place) == tree(world.whole), at
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"], at
    # The resumed ingest does not write these chunks again.
    assert {chunk: (place / chunk).stat().st_ino for chunk in written_chunks} == written_chunks
    return killed.status != 0, was_old, len(written_chunks)


def test_ingest_killed_at_any_moment_is_resumed(world: Ingests, place: Path) -> None:
    events = world.ingest(place).events
    assert events > 100
    ends, kept = [], []
    for part in range(8):  # one seeded moment in each part
        shutil.rmtree(place)
        at = random.Random(part).randrange(events * part // 8, events * (part + 1) // 8) + 1
        killed, _, n = kill_and_run_again(world, place, at)
        ends.append(killed)
        kept.append(n)
    assert sum(ends) >= 7
    assert kept[0] == 0
    assert max(kept) == 5
    assert sum(kept) > 8


def test_ingest_killed_during_commit_is_resumed(world: Ingests, place: Path) -> None:
    """A bisection finds the event after which the older store is missing."""
    shutil.copytree(world.other, place)
    first, last = 1, world.ingest(place).events
    while last - first > 1:
        shutil.rmtree(place)
        shutil.copytree(world.other, place)
        at = (first + last) // 2
        _, was_old, _ = kill_and_run_again(world, place, at)
        first, last = (at, last) if was_old else (first, at)
    for at in range(first - 1, last + 3):
        shutil.rmtree(place)
        shutil.copytree(world.other, place)
        kill_and_run_again(world, place, at)


def read_written_chunks(place: Path) -> dict[str, int]:
    """Return the chunks that the metadata of a partial store lists as written, with inodes."""
    partial = place.with_name("t.zarr.partial")
    if not (partial / "tiles" / "zarr.json").exists():
        return {}
    message = json.loads((partial / "zarr.json").read_text())["attributes"]["daskkm"]
    written = 30 if message["complete"] else message.get("written", 0)
    chunks = [f"tiles/c/{i}/0/0" for i in range(-(-written // 7))]
    return {chunk: (partial / chunk).stat().st_ino for chunk in chunks}


def find_middle_event(world: Ingests, place: Path) -> int:
    """Return the number of an event at which about half of the chunks are written."""
    events = world.ingest(place).events
    shutil.rmtree(place)
    return events // 3


def test_ingest_after_sigterm_is_resumed(world: Ingests, place: Path) -> None:
    ended = world.ingest(place, at=find_middle_event(world, place), number=signal.SIGTERM)
    assert (ended.status, ended.lines) == (143, ["terminated"])
    assert read_written_chunks(place)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("present", [False, True], ids=["new", "replaced"])
def test_ingest_on_full_disk_is_resumed(world: Ingests, place: Path, present: bool) -> None:
    events = world.ingest(place).events
    for part in range(4):
        at = random.Random(part).randrange(events * part // 5, events * (part + 1) // 5) + 1
        shutil.rmtree(place, ignore_errors=True)
        if present:
            shutil.copytree(world.other, place)
        ended = world.ingest(place, at=at, full=True)
        assert ended.status == 1, at
        (message,) = ended.lines
        assert "t.zarr: the store cannot be written (" in message
        assert "No space left on device" in message
        assert "Make room" in message
        assert_complete_or_missing(world, place)
        assert place.exists() == present
        assert world.ingest(place).status == 0
        assert tree(place) == tree(world.whole)
        assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("limit", [300, 1800])
def test_ingest_with_a_limit_of_file_size_is_resumed(
    world: Ingests, place: Path, limit: int
) -> None:
    """300 bytes are less than a chunk; 1800 bytes are less than the metadata of the store."""
    ended = world.ingest(place, most=limit)
    assert ended.status == 1
    assert "t.zarr: the store cannot be written (File too large" in ended.lines[0]
    assert bool(read_written_chunks(place)) == (limit == 1800)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)


def test_ingest_during_another_write_is_refused(world: Ingests, place: Path) -> None:
    """The second ingest may have the same or other images, in the same or another process."""
    flags = ("-m", "daskkm.ingest", world.others, "--store", place, "--tile", "8")
    with open_writer(place, 1, (8, 8), ()) as first:
        with Process(*flags) as second:
            assert second.wait() == 1
        (message,) = second.lines
        assert "t.zarr: another run is writing this store. Wait until the run ends" in message
        with pytest.raises(StoreError, match="another run is writing this store"):
            daskkm.create_store(world.images, place, tile=8)
        with pytest.raises(StoreError, match="not complete: an ingest was interrupted, or is run"):
            daskkm.open_store(place)
        first.append(ImageRecord("a", 1, "", (8, 8), (0, 0)), np.full((1, 8, 8), 7, np.uint8))
    assert daskkm.open_store(place).features().compute().tolist() == [[7] * 64]
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("edited", r"t\.zarr\.partial: .* 1 image changed \(s_1\.png\)\. Ingest the same"),
        ("added", r"1 image added \(s_0\.png\)\. Ingest"),
        ("removed", r"1 image removed \(s_1\.png\)\. Ingest"),
        ("tile", r"ingest: tiles of 8 x 8, not 4 x 4\. Ingest"),
    ],
)
def test_ingest_of_other_images_than_the_partial_store_is_refused(
    world: Ingests, place: Path, change: str, message: str
) -> None:
    images = Path(shutil.copytree(world.images, place.parent / "pictures"))
    assert (
        world.ingest(
            place, images, at=find_middle_event(world, place), number=signal.SIGKILL
        ).status
        == -9
    )
    assert read_written_chunks(place)
    tile = 4 if change == "tile" else 8
    if change == "edited":
        shutil.copy(world.others / "s_1.png", images)
    elif change == "added":
        shutil.copy(world.others / "s_1.png", images / "s_0.png")
    elif change == "removed":
        (images / "s_1.png").unlink()
    with pytest.raises(StoreError, match=message) as refused:
        daskkm.create_store(images, place, tile=tile)
    assert refused.value.options == ("overwrite=True",)
    assert read_written_chunks(place)
    after = daskkm.create_store(images, place, tile=tile, overwrite=True)
    fresh = daskkm.create_store(images, place.with_name("fresh.zarr"), tile=tile)
    np.testing.assert_array_equal(after.tiles[:], fresh.tiles[:])
    assert after.images == fresh.images
    assert sorted(entry.name for entry in place.parent.iterdir()) == [
        *("fresh.zarr", "pictures", "t.zarr")
    ]


def test_ingest_after_loss_of_a_chunk_starts_over(world: Ingests, place: Path) -> None:
    assert (
        world.ingest(place, at=find_middle_event(world, place), number=signal.SIGKILL).status == -9
    )
    (place.with_name("t.zarr.partial") / "tiles" / "c" / "0" / "0" / "0").unlink()
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)


@pytest.mark.parametrize("file", ["zarr.json", "tiles/zarr.json", "tiles/c/0/0/0"])
def test_ingest_after_bit_flip_never_keeps_the_bit(world: Ingests, place: Path, file: str) -> None:
    assert (
        world.ingest(place, at=find_middle_event(world, place), number=signal.SIGKILL).status == -9
    )
    partial = place.with_name("t.zarr.partial")
    kept = shutil.copytree(partial, place.with_name("kept"))
    whole = (kept / file).read_bytes()
    resumed = 0
    for part in range(6):
        bit = random.Random(part).randrange(8 * len(whole))
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(kept, partial)
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (partial / file).write_bytes(damaged)
        done = world.ingest(place)
        if done.status == 0:
            resumed += 1
            assert tree(place) == tree(world.whole), bit
            continue
        (message,) = done.lines
        assert done.status == 1
        assert re.match(r"error: .*t\.zarr\.partial: ", message), message
        assert not place.exists()
    assert resumed == 6 or file == "zarr.json"


def test_ingest_with_a_link_as_partial_store_is_refused(world: Ingests, place: Path) -> None:
    (place.parent / "mine").mkdir()
    place.with_name("t.zarr.partial").symlink_to(place.parent / "mine")
    ended = world.ingest(place)
    assert ended.status == 1
    assert "t.zarr.partial: not a store that daskkm may replace (a link)" in (ended.lines[0])
    assert not list((place.parent / "mine").iterdir())


def test_ingest_beside_other_files_keeps_the_files(world: Ingests, place: Path) -> None:
    partial = place.with_name("t.zarr.partial")
    partial.mkdir()
    (partial / "thesis.tex").write_text("precious")
    ended = world.ingest(place)
    assert ended.status == 1
    assert "t.zarr.partial: not a store that daskkm may replace" in ended.lines[0]
    assert tree(partial) == {"thesis.tex": b"precious"}
    shutil.rmtree(partial)
    lock = place.with_name("t.zarr.lock")
    lock.write_text("precious")
    assert world.ingest(place).status == 0
    assert lock.read_text() == "precious"
    # The same holds for a complete store, and for a sweep, which reads the size of tiles.
    partial.mkdir()
    (partial / "thesis.tex").write_text("precious")
    assert world.ingest(place).status == 0
    with pytest.raises(StoreError, match="not a store that daskkm may replace"):
        sweep("--store", place, "--images", world.images, out=place.with_name("out"))
    assert tree(partial) == {"thesis.tex": b"precious"}


def sweep(*flags: str | Path, out: Path) -> None:
    settings = ("--k", "2", "--n-init", "1", "--scheduler", "threads", "--out", str(out))
    sweep_command.main([*map(str, flags), *settings], standalone_mode=False)


def test_sweep_after_killed_ingest_resumes_the_ingest(world: Ingests, place: Path) -> None:
    assert (
        world.ingest(place, at=find_middle_event(world, place), number=signal.SIGKILL).status == -9
    )
    out = place.with_name("out")
    with pytest.raises(
        StoreError, match=r"t\.zarr: the store is not complete: an ingest was interrupted"
    ):
        sweep("--store", place, out=out)
    assert not place.exists()
    sweep("--store", place, "--images", world.images, out=out)
    # The sweep keeps the size of tiles of the ingest.
    store = daskkm.open_store(place)
    whole = daskkm.open_store(world.whole)
    assert (store.tile, store.images) == (whole.tile, whole.images)
    np.testing.assert_array_equal(store.tiles[:], whole.tiles[:])
    assert not place.with_name("t.zarr.partial").exists()


def test_sweep_after_killed_ingest_keeps_the_size_of_tiles(world: Ingests, place: Path) -> None:
    events = world.ingest(place).events
    for at in [*range(1, 25, 4), events // 2]:
        shutil.rmtree(place, ignore_errors=True)
        assert world.ingest(place, at=at, number=signal.SIGKILL).status == -9
        is_partial = (place.with_name("t.zarr.partial") / "zarr.json").exists()
        flags = ("--images", world.images, "--k", "2", "--n-init", "1", "--scheduler", "threads")
        done = world.run("sweep", "--store", place, *flags, cwd=place.parent)
        assert done.status == 0, done.lines
        assert daskkm.open_store(place).tile == ((8, 8) if is_partial else (16, 16))


def test_sweep_of_store_beside_partial_store_of_other_tiles_is_refused(
    world: Ingests, place: Path
) -> None:
    assert (
        world.ingest(place, at=find_middle_event(world, place), number=signal.SIGKILL).status == -9
    )
    daskkm.create_store(world.images, place.with_name("u.zarr"), tile=4)
    place.with_name("u.zarr").rename(place)
    flags = ("--store", place, "--images", world.images)
    with pytest.raises(StoreError, match=r"tiles of 4 x 4, the partial store of 8 x 8"):
        sweep(*flags, out=place.with_name("out"))
    assert daskkm.open_store(place).tile == (4, 4)
    assert read_written_chunks(place)
    # The sweep resumes a partial store of the same size of tiles.
    shutil.rmtree(place)
    shutil.copytree(world.other, place)
    with pytest.raises(StoreError, match=r"t\.zarr: .*: 3 images changed .*overwrite"):
        sweep(*flags, out=place.with_name("out"))
    sweep(*flags, "--overwrite", out=place.with_name("out"))
    assert [image.sha256 for image in daskkm.open_store(place).images] == [
        image.sha256 for image in daskkm.open_store(world.whole).images
    ]
    assert not place.with_name("t.zarr.partial").exists()


def test_ingest_of_complete_store_removes_the_partial_store(world: Ingests, place: Path) -> None:
    assert (
        world.ingest(place, at=find_middle_event(world, place), number=signal.SIGKILL).status == -9
    )
    shutil.copytree(world.whole, place)
    assert world.ingest(place).status == 0
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]
    assert tree(place) == tree(world.whole)


def test_read_of_replaced_store_is_refused(world: Ingests, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    X = store.features()
    before = X.compute()
    first = X[:7].compute()
    assert world.ingest(place, world.others).status == 0
    for read in (X[7:14].compute, store.provenance, store.provenance_of("row").compute):
        with pytest.raises(StoreError, match=r"t\.zarr: replaced during a read"):
            read()
    with pytest.raises(StoreError, match="replaced"):
        daskkm.fit_sweep(store, [2], n_init=1)
    np.testing.assert_array_equal(first, before[:7])
    # A store of the same images has the same tiles.
    assert world.ingest(place).status == 0
    np.testing.assert_array_equal(X.compute(), before)
    # A replacement is reported before missing chunks.
    daskkm.create_store(world.images, place, tile=4, overwrite=True)
    with pytest.raises(StoreError, match="replaced during"):
        X.compute()


def test_read_of_replaced_labels_is_refused(world: Ingests, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    one, other = (
        daskkm.fit_sweep(store, [3], n_init=1, random_state=seed).models[3] for seed in (0, 1)
    )
    store.label(one, distances=True)
    labels, distances = store.labels(3), store.distances(3)
    first = labels[:7].compute()
    store.label(other, distances=True)
    for read in (labels[7:].compute, distances.compute):
        with pytest.raises(StoreError, match=r"/3: replaced during a read\. Open"):
            read()
    assert not np.array_equal(store.labels(3).compute()[:7], first)
    store.label(one, distances=True)  # the same labels as before
    np.testing.assert_array_equal(labels[:7].compute(), first)
    # Labels of a replaced store are refused, even of the same model.
    daskkm.create_store(world.others, place, tile=8, overwrite=True)
    daskkm.open_store(place).label(one)
    with pytest.raises(StoreError, match=r"t\.zarr: replaced"):
        labels.compute()
    before = tree(place)
    with pytest.raises(StoreError, match=r"t\.zarr: replaced"):
        store.label(one)
    assert tree(place) == before


def test_sweep_of_a_store_replaced_between_passes_is_refused(world: Ingests, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    settings: Any = {"n_init": 1, "random_state": 0, "cache": "never"}
    settings |= {"init": "random", "max_iter": 100, "tol": 0.0}
    undisturbed = daskkm.fit_sweep(store, [2], **settings)

    def ingest(images: Path) -> Callable[[daskkm.Pass], None]:
        def run() -> None:
            assert world.ingest(place, images).status == 0

        return once_iterations_began(run)

    # An ingest of the same images changes nothing.
    result = daskkm.fit_sweep(store, [2], **settings, on_pass=ingest(world.images))
    assert result.models[2].inertia_ == undisturbed.models[2].inertia_
    with pytest.raises(StoreError, match="replaced during a read"):
        daskkm.fit_sweep(store, [2], **settings, on_pass=ingest(world.others))


def test_label_of_replaced_store_writes_nothing(
    world: Ingests, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    model = daskkm.fit_sweep(store, [2], n_init=1, random_state=0).models[2]
    found = model.predict(store).compute()
    writing = store.open_label_targets({"k": 2}, distances=False)
    labels, _ = writing.__enter__()
    labels[:] = found
    assert world.ingest(place, world.others).status == 0
    with pytest.raises(StoreError):
        writing.__exit__(None, None, None)
    assert tree(place) == tree(world.other)


@pytest.mark.parametrize("distances", [False, True])
def test_label_after_killed_label_removes_leftovers(
    world: Ingests, place: Path, distances: bool
) -> None:
    """The kill comes at several events, with and without distances."""
    shutil.copytree(world.whole, place)
    model = daskkm.fit_sweep(daskkm.open_store(place), [2], n_init=1, random_state=0).models[2]
    model.save(place.with_name("m.zarr"))
    expected = model.predict(daskkm.open_store(place)).compute()
    daskkm.open_store(place).label(model, distances=True)
    args: Any = ("label", "m.zarr", "--store", place, "--scheduler", "threads")
    flags = ("--distances",) if distances else ()
    events = world.run(*args, *flags, cwd=place.parent).events
    ends = []
    for part in range(5):
        at = random.Random(part).randrange(events * part // 5, events * (part + 1) // 5) + 1
        daskkm.open_store(place).label(model, distances=True)
        ends.append(world.run(*args, *flags, cwd=place.parent, at=at, number=signal.SIGKILL).status)
        with commit.lock_location(
            place / "labels" / "2", LABELS
        ):  # restores labels that were set aside
            np.testing.assert_array_equal(daskkm.open_store(place).labels(2).compute(), expected)
        daskkm.open_store(place).label(model)
        assert [entry.name for entry in (place / "labels").glob("*2*")] == ["2"]
        assert not list((place / "distances").glob("*2*"))
    assert ends.count(-signal.SIGKILL) >= 4
    assert verify_store(place) == []
