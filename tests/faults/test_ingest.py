"""Test that interrupted and concurrent ingests and appends resume to the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
from PIL import Image

import daskkm
from daskkm.block_sizes import override
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import ImageError, StoreError
from daskkm.storage import locks
from daskkm.storage.locations import LocalLocation, ObjectLocation, ZarrLocation, as_location
from daskkm.storage.tile_store import is_present
from daskkm.storage.verification import verify_store
from tests.locations import KINDS, SHARED_KINDS, new_location, tree
from tests.processes import Process, once_iterations_began

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daskkm.storage.locations import Location
    from tests.forks import Done, Forks

pytestmark = pytest.mark.faults
CHUNK = 7 * 64  # seven tiles


def save(folder: Path, seed: int) -> Path:
    """Write three images of 12, 6 and 12 tiles of 8 x 8, with times that are settled."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for name, shape in (("s_1.png", (24, 32)), ("s_2.png", (16, 24)), ("s_10.png", (32, 24))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
        os.utime(folder / name, (seed, seed))
    return folder


def list_chunks(store: Path) -> dict[Path, int]:
    """Return the chunks of tiles with their inodes."""
    chunks = (store / "tiles" / "c").rglob("[0-9]*/0/0")
    return {path: path.stat().st_ino for path in chunks}


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

        The command overwrites an older store.
        """
        flags: list[str | Path] = [images or self.images, "--store", store, "--tile", "8"]
        if is_present(as_location(store)):
            flags.append("--overwrite")
        flags += ["--scheduler", "threads"]
        return self._forked.run("ingest", *flags, cwd=store.parent, chunk=CHUNK, **stop)

    def append(self, store: Path, *images: Path, **stop: Any) -> Done:
        flags: list[str | Path] = ["--store", store, "--append", "--scheduler", "threads"]
        return self._forked.run("ingest", *images, *flags, cwd=store.parent, chunk=CHUNK, **stop)


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
    if is_present(as_location(place)):
        daskkm.open_store(place).check()
        found = {name: data for name, data in tree(place).items() if not name.startswith("ingest/")}
        assert found in (tree(world.whole), tree(world.other))
    else:
        with pytest.raises(StoreError, match=r"does not exist|is not complete|not a store\."):
            daskkm.open_store(place)


def seeded_moments(events: int, parts: int) -> Iterator[int]:
    """Yield one seeded event in each part of a run."""
    for part in range(parts):
        first, last = events * part // parts, events * (part + 1) // parts
        yield random.Random(part).randrange(first, max(first + 1, last)) + 1


# Commands killed by the system


@pytest.mark.parametrize("present", [False, True], ids=["new", "replaced"])
def test_ingest_killed_at_any_moment_is_resumed(world: Ingests, place: Path, present: bool) -> None:
    if present:
        shutil.copytree(world.other, place)
    events = world.ingest(place).events
    assert events > 60
    ends, kept = [], []
    for at in seeded_moments(events, 8):
        shutil.rmtree(place)
        if present:
            shutil.copytree(world.other, place)
        killed = world.ingest(place, at=at, number=signal.SIGKILL)
        # The number of events varies by one, since threads create folders.
        assert killed.status in {-signal.SIGKILL, 0}, killed.lines
        assert_complete_or_missing(world, place)
        was_partial = not is_present(as_location(place))
        chunks = list_chunks(place) if was_partial else {}
        n_records = len(list((place / "ingest").glob("*-*.json"))) if was_partial else 0
        done = world.ingest(place)
        assert done.status == 0, done.lines
        assert tree(place) == tree(world.whole), at
        assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"], at
        ends.append(killed.status)
        # Chunks of recorded images are not written again.
        same = chunks.items() & list_chunks(place).items()
        kept.append(len(same))
        if n_records == 3:
            assert len(same) == len(chunks)
    assert ends.count(-signal.SIGKILL) >= 7
    assert max(kept) >= 4


def test_append_killed_at_any_moment_leaves_the_store_and_is_resumed(
    world: Ingests, place: Path
) -> None:
    old = place.with_name("old.zarr")
    assert world.ingest(old, world.images / "s_1.png").status == 0
    more = [world.images / name for name in ("s_2.png", "s_10.png")]
    model = daskkm.fit_sweep(daskkm.open_store(old), [2], n_init=1, random_state=0).models[2]
    daskkm.open_store(old).label(model)
    labels = daskkm.open_store(old).labels(2).compute()
    X = daskkm.open_store(old).features().compute()
    shutil.copytree(old, place)
    events = world.append(place, *more).events
    whole = tree(place)
    assert daskkm.open_store(place).digest == daskkm.open_store(world.whole).digest
    ends = []
    for at in seeded_moments(events, 8):
        shutil.rmtree(place)
        shutil.copytree(old, place)
        killed = world.append(place, *more, at=at, number=signal.SIGKILL)
        ends.append(killed.status)
        store = daskkm.open_store(place)
        if len(store) == 12:
            np.testing.assert_array_equal(store.features().compute(), X)
            np.testing.assert_array_equal(store.labels(2).compute(), labels)
            assert store.verify() == []
        done = world.append(place, *more)
        assert done.status == 0, done.lines
        assert {n: f for n, f in tree(place).items() if not n.startswith("ingest/")} == whole, at
        assert daskkm.open_store(place).verify() == []
    assert ends.count(-signal.SIGKILL) >= 7


def find_middle_event(world: Ingests, place: Path) -> int:
    """Return the number of an event at which about half of the chunks are written."""
    events = world.ingest(place).events
    shutil.rmtree(place)
    return events // 3


def ingest_half(world: Ingests, place: Path, images: Path | None = None) -> None:
    at = find_middle_event(world, place)
    assert world.ingest(place, images, at=at, number=signal.SIGKILL).status == -signal.SIGKILL
    assert list_chunks(place)


def test_ingest_after_sigterm_is_resumed(world: Ingests, place: Path) -> None:
    ended = world.ingest(place, at=find_middle_event(world, place), number=signal.SIGTERM)
    assert (ended.status, ended.lines) == (143, ["terminated"])
    assert list_chunks(place)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


def test_ingest_on_full_disk_is_resumed(world: Ingests, place: Path) -> None:
    events = world.ingest(place).events
    for at in list(seeded_moments(events, 6))[:5]:
        shutil.rmtree(place, ignore_errors=True)
        ended = world.ingest(place, at=at, full=True)
        assert ended.status == 1, at
        (message,) = ended.lines
        assert "t.zarr: the store cannot be written" in message
        assert "No space left on device" in message
        assert "Make room" in message
        assert_complete_or_missing(world, place)
        assert not is_present(as_location(place))
        assert world.ingest(place).status == 0
        assert tree(place) == tree(world.whole)
        assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


def test_append_on_full_disk_leaves_the_store(world: Ingests, place: Path) -> None:
    assert world.ingest(place, world.images / "s_1.png").status == 0
    before = daskkm.open_store(place)
    X = before.features().compute()
    for at in (2, 30):
        ended = world.append(place, world.images, at=at, full=True)
        assert ended.status == 1
        assert "t.zarr: the store cannot be written" in ended.lines[0]
        np.testing.assert_array_equal(daskkm.open_store(place).features().compute(), X)
        assert daskkm.open_store(place).verify() == []
    assert world.append(place, world.images).status == 0
    assert tree(place) == tree(world.whole)


@pytest.mark.parametrize("limit", [300, 1800])
def test_ingest_with_a_limit_of_file_size_is_resumed(
    world: Ingests, place: Path, limit: int
) -> None:
    """300 bytes are less than a chunk; 1800 bytes are less than the metadata of the store."""
    ended = world.ingest(place, most=limit)
    assert ended.status == 1
    assert "t.zarr: the store cannot be written (File too large" in ended.lines[0]
    assert bool(list_chunks(place)) == (limit == 1800)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)


# Interrupts at each write, for every kind of location


@pytest.fixture
def small() -> Iterator[None]:
    """Chunks of seven tiles, and one thread."""
    sizes = {"chunk_bytes": CHUNK, "remote_chunk_bytes": CHUNK, "table_rows": 8}
    with override(**sizes), dask.config.set(scheduler="sync"):
        yield


class Writes:
    """Keys written so far; the write number `last` is interrupted."""

    def __init__(self, last: int = 1 << 30) -> None:
        self.keys: list[str] = []
        self._last = last

    def add(self, location: Location) -> None:
        if len(self.keys) == self._last:
            raise KeyboardInterrupt
        if not location.name.endswith(".lock"):
            self.keys.append(str(location))

    def chunks(self) -> list[str]:
        return [key for key in self.keys if "/tiles/c/" in key]


def record(monkeypatch: pytest.MonkeyPatch, last: int = 1 << 30) -> Writes:
    writes = Writes(last)

    def patch(kind: type, name: str) -> None:
        put = getattr(kind, name)

        def write(self: Any, *args: Any) -> None:
            writes.add(self)
            put(self, *args)

        monkeypatch.setattr(kind, name, write)

    for kind, name in ((LocalLocation, "write"), (ObjectLocation, "_put"), (ZarrLocation, "write")):
        patch(kind, name)
    return writes


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_ingest_interrupted_at_each_write_is_resumed(
    world: Ingests, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_location(kind) as location, monkeypatch.context() as patched:
        writes = record(patched)
        daskkm.create_store(world.images, location, 8)
        expected = tree(location)
        total, n_chunks = len(writes.keys), len(writes.chunks())
    assert n_chunks == 5
    rewritten = []
    for last in range(total):
        with new_location(kind) as location:
            with monkeypatch.context() as patched:
                first = record(patched, last)
                with pytest.raises(KeyboardInterrupt):
                    daskkm.create_store(world.images, location, 8)
            assert not is_present(location)
            if last:
                with pytest.raises(StoreError, match=r"is not complete: an ingest was interrupted"):
                    daskkm.open_store(location)
            with monkeypatch.context() as patched:
                second = record(patched)
                # Without a size of tiles, the size is that of the partial store.
                daskkm.create_store(world.images, location, None if last else 8)
            assert tree(location) == expected, last
            assert set(first.chunks()) | set(second.chunks()) == set(writes_of(location))
            rewritten.append(len(set(first.chunks()) & set(second.chunks())))
            assert location.parent.names() == {"x.zarr"}
    # Only chunks of an image that was not recorded yet are written again.
    assert max(rewritten) <= 2
    assert rewritten[-10:] == [0] * 10


def writes_of(location: Location) -> list[str]:
    return [str(location / name) for name in location.sizes() if name.startswith("tiles/c/")]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_append_interrupted_at_each_write_leaves_the_store_and_is_resumed(
    world: Ingests, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_image = world.images / "s_1.png"
    with new_location(kind) as location:
        daskkm.create_store(world.images, location, 8)
        expected = tree(location)
        with new_location(kind) as other, monkeypatch.context() as patched:
            store = daskkm.create_store(first_image, other, 8)
            writes = record(patched)
            store.append(world.images)
            total = len(writes.keys)
            assert tree(other) == expected
    for last in range(0, total, 1 if kind == "memory" else 3):
        with new_location(kind) as location:
            store = daskkm.create_store(first_image, location, 8)
            X = store.features().compute()
            with monkeypatch.context() as patched:
                record(patched, last)
                with pytest.raises(KeyboardInterrupt):
                    store.append(world.images)
            found = daskkm.open_store(location)
            assert found.digest == store.digest
            np.testing.assert_array_equal(found.features().compute(), X)
            np.testing.assert_array_equal(store.features().compute(), X)
            assert found.verify() == []
            found.append(world.images)
            assert tree(location) == expected, last


def make_variants(folder: Path) -> list[list[Path]]:
    """Return lists of images of the same names, some with other pixels, of other shapes, or bad."""
    shapes = [(24, 32), (16, 24), (32, 24), (8, 8), (24, 24)]
    pool = {}
    for seed in range(4):
        (folder / f"v{seed}").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for i, shape in enumerate(shapes):
            path = folder / f"v{seed}" / f"i_{i}.png"
            Image.fromarray(rng.integers(0, 256, shape[:: -1 if seed == 2 else 1], np.uint8)).save(
                path
            )
            if seed == 3:  # the header is intact
                path.write_bytes(path.read_bytes()[:-40])
            os.utime(path, (1000, 1000))
            pool[seed, i] = path
    rng = np.random.default_rng(9)
    variants = []
    for _ in range(12):
        names = np.flatnonzero(rng.random(len(shapes)) < 0.8)
        order = rng.permutation(names) if rng.random() < 0.2 else names
        seeds = rng.choice(4, len(shapes), p=[0.5, 0.25, 0.15, 0.1])
        variants.append([pool[int(seeds[i]), int(i)] for i in order])
    good = [paths for paths in variants if any(path.parent.name != "v3" for path in paths)]
    return [*good, [pool[0, i] for i in range(len(shapes))]]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("kind", "seed"), [("local", 0), ("memory", 1), ("memory", 2)])
def test_ingests_of_changing_images_never_mix_their_tiles(
    tmp_path: Path, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several ingests of different images are interrupted, in turn, over the same partial store."""
    variants = make_variants(tmp_path)
    settings: Any = {"tile": 8, "on_bad": "skip"}
    expected: dict[int, Any] = {}
    rng = random.Random(seed)
    for _ in range(8):
        with new_location(kind) as location:
            pair = rng.sample(range(len(variants)), 2)
            turns = [rng.choice(pair) for _ in range(4)]
            for turn in turns:
                with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
                    record(patched, rng.randrange(1, 30))
                    daskkm.create_store(variants[turn], location, **settings, overwrite=True)
            store = daskkm.create_store(variants[turns[0]], location, **settings, overwrite=True)
            if turns[0] not in expected:
                with new_location(kind) as fresh:
                    daskkm.create_store(variants[turns[0]], fresh, **settings)
                    expected[turns[0]] = tree(fresh)
            assert store.verify() == []
            found = {n: data for n, data in tree(location).items() if not n.startswith("ingest/")}
            assert found == expected[turns[0]], (turns, variants[turns[0]])


@pytest.mark.usefixtures("small")
def test_ingest_of_image_that_returns_does_not_keep_the_tiles_of_another(
    world: Ingests, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is replaced by another of its shape, and is then restored."""
    names = ("s_1.png", "s_2.png", "s_10.png")
    images = [world.images / name for name in names]
    for last in range(1, 9):
        for paths, n in ((images, 9), ([world.others / names[0], *images[1:]], last)):
            with monkeypatch.context() as patched:
                record(patched, n)
                with pytest.raises(KeyboardInterrupt):
                    daskkm.create_store(paths, place, 8)
        daskkm.create_store(images, place, 8)
        assert tree(place) == tree(world.whole)
        shutil.rmtree(place)


@pytest.mark.usefixtures("small")
def test_ingest_of_fewer_images_over_a_partial_store_pads_the_last_chunk(
    world: Ingests, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [world.images / name for name in ("s_1.png", "s_2.png", "s_10.png")]
    with monkeypatch.context() as patched:
        record(patched, 9)  # all chunks and records
        with pytest.raises(KeyboardInterrupt):
            daskkm.create_store(paths, place, 8)
    assert len(list_chunks(place)) == 5
    daskkm.create_store(paths[:2], place, 8)
    daskkm.create_store(paths[:2], place.with_name("fresh.zarr"), 8)
    assert tree(place) == tree(place.with_name("fresh.zarr"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [1, 512])
def test_bad_image_found_while_decoding_is_left_out(
    tmp_path: Path, kind: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "a", 1)
    paths = [folder / name for name in ("s_1.png", "s_2.png", "s_10.png")]
    for bad in paths:
        whole = bad.read_bytes()
        good = [path for path in paths if path != bad]
        with (
            new_location(kind) as location,
            new_location(kind) as other,
            override(ingested_images=group, block_bytes_max=64 * group),
        ):
            expected = daskkm.create_store(good, other, 8)
            bad.write_bytes(whole[:-40])  # the header is intact
            with pytest.raises(ImageError, match=rf"{bad.name}: the image cannot be read"):
                daskkm.create_store(paths, location, 8)
            assert not is_present(location)
            store = daskkm.create_store(paths, location, 8, on_bad="skip")
            assert store.digest == expected.digest
            assert [file.name for file in store.skipped] == [bad.name]
            found, wanted = tree(location), tree(other)
            for files in (found, wanted):
                files.pop("zarr.json")
            assert {n: f for n, f in found.items() if not n.startswith("skipped/")} == wanted
            assert store.verify() == []
            # The file is read again once it is whole.
            bad.write_bytes(whole)
            with pytest.raises(StoreError, match=rf"1 image changed \({bad.name}\)"):
                daskkm.create_store(paths, location, 8)


@pytest.mark.usefixtures("small")
def test_ingest_of_bad_images_only_raises_and_writes_no_store(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", 1)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="cannot be read"):
        daskkm.create_store(folder, tmp_path / "t.zarr", 8, on_bad="skip")
    assert not is_present(as_location(tmp_path / "t.zarr"))


# Two writers


def test_ingest_during_another_write_is_refused(world: Ingests, place: Path) -> None:
    """The second ingest may have the same or other images, in the same or another process."""
    flags = (
        "-m",
        "daskkm.ingest",
        world.others,
        "--store",
        place,
        "--tile",
        "8",
        "--scheduler",
        "threads",
    )
    with locks.lock(as_location(place), StoreError("busy")):
        with Process(*flags) as second:
            assert second.wait() == 1
        (message,) = second.lines
        assert "t.zarr: another run is writing this store. Wait until the run ends" in message
        with pytest.raises(StoreError, match="another run is writing this store"):
            daskkm.create_store(world.images, place, tile=8)
    store = daskkm.create_store(world.images, place, tile=8)
    with locks.lock(as_location(place), StoreError("busy")):
        with pytest.raises(StoreError, match="another run is writing this store"):
            store.append(world.others)
        assert daskkm.create_store(world.images, place).digest == store.digest  # writes nothing
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_ingests_at_once_write_one_store(
    world: Ingests, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LEASE_SECONDS", 0.6)
    with new_location(kind) as location, override(chunk_bytes=CHUNK, remote_chunk_bytes=CHUNK):
        start, errors = threading.Barrier(3), []

        def ingest(images: Path) -> None:
            start.wait()
            try:
                daskkm.create_store(images, location, 8)
            except StoreError as error:
                errors.append(str(error))

        threads = [
            threading.Thread(target=ingest, args=(images,))
            for images in (world.images, world.others, world.images)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) < 3
        for error in errors:
            assert (
                "another run is writing this store" in error
                or "another run has written a store" in error
                or "the store has other content" in error
            )
        store = daskkm.open_store(location)
        digests = [daskkm.open_store(path).digest for path in (world.whole, world.other)]
        assert store.digest in digests
        whole = (world.whole, world.other)[digests.index(store.digest)]
        expected = daskkm.open_store(whole).features().compute()
        np.testing.assert_array_equal(store.features().compute(), expected)
        assert store.verify() == []
        assert location.parent.names() == {"x.zarr"}


# What a killed run left


@pytest.mark.parametrize("file", ["ingest/tile.json", "record", "tiles/c/0/0/0"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "missing"])
def test_ingest_after_damage_of_the_partial_store_repairs_it(
    world: Ingests, place: Path, file: str, damage: str
) -> None:
    ingest_half(world, place)
    (record_file, *_) = (place / "ingest").glob("*-*.json")
    path = record_file if file == "record" else place / file
    whole = path.read_bytes()
    kept = shutil.copytree(place, place.with_name("kept"))
    for part in range(3 if damage in {"bit", "cut"} else 1):
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        at = random.Random(part).randrange(8 * len(whole))
        if damage == "missing":
            path.unlink()
        elif damage == "bit":
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
        else:
            path.write_bytes(whole[: at // 8 if damage == "cut" else 0])
        done = world.ingest(place)
        assert done.status == 0, done.lines
        assert tree(place) == tree(world.whole)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed", "tile"])
def test_ingest_of_other_images_over_a_partial_store_is_done(
    world: Ingests, place: Path, change: str
) -> None:
    images = Path(shutil.copytree(world.images, place.parent / "pictures"))
    ingest_half(world, place, images)
    tile = 4 if change == "tile" else 8
    if change == "edited":
        shutil.copy(world.others / "s_1.png", images)
    elif change == "added":
        shutil.copy(world.others / "s_1.png", images / "s_0.png")
    elif change == "removed":
        (images / "s_1.png").unlink()
    elif change == "renamed":
        (images / "s_1.png").rename(images / "s_0.png")
    with override(chunk_bytes=CHUNK, table_rows=8):
        daskkm.create_store(images, place, tile)
        daskkm.create_store(images, place.with_name("fresh.zarr"), tile)
    assert tree(place) == tree(place.with_name("fresh.zarr"))
    assert sorted(entry.name for entry in place.parent.iterdir()) == [
        *("fresh.zarr", "pictures", "t.zarr")
    ]


def test_ingest_with_a_link_as_partial_folder_keeps_the_target(world: Ingests, place: Path) -> None:
    (place.parent / "mine").mkdir()
    place.mkdir()
    (place / "ingest").symlink_to(place.parent / "mine")
    assert world.ingest(place).status == 0
    assert not list((place.parent / "mine").iterdir())
    assert tree(place) == tree(world.whole)


def test_ingest_beside_other_files_keeps_the_files(world: Ingests, place: Path) -> None:
    for name in ("ingest", "tiles", "images"):
        (place / name).mkdir(parents=True)
        (place / name / "thesis.tex").write_text("precious")
        ended = world.ingest(place)
        assert ended.status == 1
        assert "t.zarr: not a store that daskkm may replace" in ended.lines[0]
        assert f"holds {name}/thesis.tex" in ended.lines[0]
        assert tree(place) == {f"{name}/thesis.tex": b"precious"}
        shutil.rmtree(place)
    lock = place.with_name("t.zarr.lock")
    lock.write_text("precious")
    assert world.ingest(place).status == 0
    assert lock.read_text() == "precious"


def sweep(*flags: str | Path, out: Path) -> None:
    settings = ("--k", "2", "--n-init", "1", "--scheduler", "threads", "--out", str(out))
    sweep_command.main([*map(str, flags), *settings], standalone_mode=False)


def test_sweep_after_killed_ingest_resumes_the_ingest(world: Ingests, place: Path) -> None:
    ingest_half(world, place)
    out = place.with_name("out")
    with pytest.raises(
        StoreError, match=r"t\.zarr: the store is not complete: an ingest was interrupted"
    ):
        sweep("--store", place, out=out)
    assert not is_present(as_location(place))
    with override(chunk_bytes=CHUNK, table_rows=8):
        sweep("--store", place, "--images", world.images, out=out)
    # The sweep keeps the size of tiles of the ingest.
    assert daskkm.open_store(place).tile == (8, 8)
    assert tree(place) == tree(world.whole)


def test_sweep_after_killed_ingest_keeps_the_size_of_tiles(world: Ingests, place: Path) -> None:
    events = world.ingest(place).events
    for at in [*range(1, 13, 4), events // 2]:
        shutil.rmtree(place, ignore_errors=True)
        assert world.ingest(place, at=at, number=signal.SIGKILL).status == -9
        is_partial = (place / "ingest" / "tile.json").exists()
        flags = ("--images", world.images, "--k", "2", "--n-init", "1", "--scheduler", "threads")
        done = world.run("sweep", "--store", place, *flags, cwd=place.parent)
        assert done.status == 0, done.lines
        assert daskkm.open_store(place).tile == ((8, 8) if is_partial else (16, 16))


# Readers of a store that is replaced


def test_read_of_replaced_store_is_refused(world: Ingests, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    X = store.features()
    before = X.compute()
    first = X[:7].compute()
    assert world.ingest(place, world.others).status == 0
    with pytest.raises(StoreError, match=r"replaced during a read"):
        X[7:14].compute()
    with pytest.raises(StoreError, match="replaced"):
        daskkm.fit_sweep(store, [2], n_init=1)
    np.testing.assert_array_equal(first, before[:7])
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
    assert one.inertia_ != other.inertia_
    store.label(one, distances=True)
    labels, distances = store.labels(3), store.distances(3)
    first = labels[:7].compute()
    store.label(other, distances=True)
    for read in (labels[7:].compute, distances.compute):
        with pytest.raises(StoreError, match=r"/3: replaced during a read\. Open"):
            read()
    assert not np.array_equal(store.labels(3).compute()[:7], first)
    # Labels of a replaced store are refused, even of the same model.
    labels = store.labels(3)
    daskkm.create_store(world.others, place, tile=8, overwrite=True)
    daskkm.open_store(place).label(other)
    with pytest.raises(StoreError, match=r"t\.zarr.*: replaced"):
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

    def run(action: Callable[[], object]) -> Any:
        return daskkm.fit_sweep(store, [2], **settings, on_pass=once_iterations_began(action))

    # An append changes nothing.
    result = run(lambda: world.append(place, world.others / "s_1.png"))
    assert result.models[2].inertia_ == undisturbed.models[2].inertia_
    with pytest.raises(StoreError, match="replaced during a read"):
        run(lambda: world.ingest(place, world.others))


def test_label_of_replaced_store_writes_nothing(world: Ingests, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    model = daskkm.fit_sweep(store, [2], n_init=1, random_state=0).models[2]
    found = model.predict(store).compute()
    writing = store.open_label_targets({"k": 2}, distances=False)
    labels, _ = writing.__enter__()
    labels[0:30] = found
    assert world.ingest(place, world.others).status == 0
    with pytest.raises(StoreError, match=r"t\.zarr.*: replaced"):
        writing.__exit__(None, None, None)
    assert tree(place) == tree(world.other)


@pytest.mark.parametrize("grown", [False, True], ids=["other model", "grown store"])
def test_label_killed_at_any_moment_is_resumed(world: Ingests, place: Path, grown: bool) -> None:
    """Labels of the same model stay while the labels of new tiles are written."""
    assert world.ingest(place, world.images / "s_1.png").status == 0
    store = daskkm.open_store(place)
    old, model = (
        daskkm.fit_sweep(store, [2], n_init=1, random_state=seed).models[2] for seed in (0, 3)
    )
    old = model if grown else old
    model.save(place.with_name("m.zarr"))
    store.label(old, distances=True)
    before = old.predict(store).compute()
    assert world.append(place, world.images).status == 0
    kept = shutil.copytree(place, place.with_name("kept.zarr"))
    expected = model.predict(daskkm.open_store(place)).compute()
    args: Any = ("label", "m.zarr", "--store", place, "--scheduler", "threads", "--distances")
    events = world.run(*args, cwd=place.parent).events
    whole = without_partial(tree(place))
    ends = []
    for at in seeded_moments(events, 6):
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        ends.append(world.run(*args, cwd=place.parent, at=at, number=signal.SIGKILL).status)
        found = daskkm.open_store(place)
        if grown:
            np.testing.assert_array_equal(read_labels(found)[:12], before)
        else:
            with suppress(StoreError):  # the labels of the other model are gone
                assert read_labels(found).tolist() in (
                    expected.tolist(),
                    [*before.tolist(), *[-1] * 18],
                )
        assert verify_store(as_location(place)) == []
        done = world.run(*args, cwd=place.parent)
        assert done.status == 0, done.lines
        np.testing.assert_array_equal(read_labels(daskkm.open_store(place)), expected)
        assert verify_store(as_location(place)) == []
        assert without_partial(tree(place)) == whole, at
    assert ends.count(-signal.SIGKILL) >= 5


def read_labels(store: daskkm.TileStore) -> Any:
    """Return labels, also of a store that has grown."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* tiles have no labels")
        return store.labels(2).compute()


def without_partial(files: dict[str, Any]) -> dict[str, Any]:
    """Return files without what a kill during a write left."""
    return {name: data for name, data in files.items() if not name.endswith(".partial")}
