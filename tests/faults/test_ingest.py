"""Ingests that are killed, find no space, or meet others: a whole store or none, and resumed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click import ClickException
from PIL import Image

import daskkm
from daskkm.cli.sweep import command as sweep_command
from daskkm.errors import StoreError
from daskkm.kmeans import model
from daskkm.storage import commit
from daskkm.storage.records import ImageRecord
from daskkm.storage.tile_store import LABELS
from daskkm.storage.verification import verify_store
from daskkm.storage.writer import StoreWriter, open_writer
from tests.processes import Process, once_iterations_began

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daskkm.kmeans.model import FittedModel
    from tests.forks import Done, Forks

pytestmark = pytest.mark.faults


def save(folder: Path, seed: int) -> Path:
    """Three images of 12, 6 and 12 tiles of 8 x 8."""
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


class World:
    """Images, the stores that they and others make, and commands that are stopped."""

    def __init__(self, home: Path, forked: Forks) -> None:
        self._forked = forked
        self.home = home
        self.images, self.others = save(home / "pictures", 1), save(home / "others", 2)
        self.whole, self.other = home / "whole" / "t.zarr", home / "other" / "t.zarr"
        for folder, store in ((self.images, self.whole), (self.others, self.other)):
            store.parent.mkdir()
            assert self.ingest(store, folder).status == 0

    def run(self, *args: str | Path, **said: Any) -> Done:
        return self._forked.run(*args, **said)

    def ingest(self, store: Path, images: Path | None = None, **stop: Any) -> Done:
        """Run the command, with seven tiles a chunk; events are counted where the store is.

        It overwrites only where an older store is, or was moved away by a run that was killed.
        """
        flags: list[str | Path] = [images or self.images, "--store", store, "--tile", "8"]
        if store.exists() or any(store.parent.glob(f"{store.name}.*.old")):
            flags.append("--overwrite")
        return self._forked.run("ingest", *flags, cwd=store.parent, chunk=7 * 64, **stop)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forked: Forks) -> World:
    return World(tmp_path_factory.mktemp("world"), forked)


@pytest.fixture
def place(world: World, tmp_path: Path) -> Iterator[Path]:
    """Where a test puts its store, in a folder of its own."""
    folder = world.home / tmp_path.name
    folder.mkdir()
    yield folder / "t.zarr"
    shutil.rmtree(folder)


def assert_old_or_whole_or_none(world: World, place: Path) -> None:
    """What anyone finds who opens the store."""
    if place.exists():
        daskkm.open_store(place).check()
        assert tree(place) in (tree(world.whole), tree(world.other))
    else:
        with pytest.raises(StoreError, match="there is no store"):
            daskkm.open_store(place)


def kill_and_run_again(world: World, place: Path, at: int) -> tuple[bool, bool, int]:
    """Whether it was killed, the older store was there then, and how many chunks were kept."""
    killed = world.ingest(place, at=at, number=signal.SIGKILL)
    # Threads make folders, so that now and then there is an event less, and an end before it.
    assert killed.status in {-signal.SIGKILL, 0}, killed.lines
    assert_old_or_whole_or_none(world, place)
    was_old = place.exists() and tree(place) == tree(world.other)
    noted = noted_chunks(place)
    done = world.ingest(place)
    assert done.status == 0, done.lines
    assert tree(place) == tree(world.whole), at
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"], at
    # It goes on where it was: what was written is not written again.
    assert {chunk: (place / chunk).stat().st_ino for chunk in noted} == noted
    return killed.status != 0, was_old, len(noted)


def test_killed_at_any_moment_and_run_again(world: World, place: Path) -> None:
    events = world.ingest(place).events
    assert events > 100
    ends, kept = [], []
    for part in range(14):  # a moment that a seed chooses in each
        shutil.rmtree(place)
        at = random.Random(part).randrange(events * part // 14, events * (part + 1) // 14) + 1
        killed, _, n = kill_and_run_again(world, place, at)
        ends.append(killed)
        kept.append(n)
    assert sum(ends) >= 12
    assert kept[0] == 0
    assert max(kept) == 5
    assert sum(kept) > 15


def test_killed_about_the_exchange_with_an_older_store(world: World, place: Path) -> None:
    """The moment from which the older store is not there is looked for, half by half."""
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


def noted_chunks(place: Path) -> dict[str, int]:
    """The chunks of tiles that an ingest that was cut short says are written, and their inodes."""
    partial = place.with_name("t.zarr.partial")
    if not (partial / "tiles" / "zarr.json").exists():
        return {}
    said = json.loads((partial / "zarr.json").read_text())["attributes"]["daskkm"]
    written = 30 if said["complete"] else said.get("written", 0)
    chunks = [f"tiles/c/{i}/0/0" for i in range(-(-written // 7))]
    return {chunk: (partial / chunk).stat().st_ino for chunk in chunks}


def at_half(world: World, place: Path) -> int:
    """The number of an event at which about half of the chunks are written."""
    events = world.ingest(place).events
    shutil.rmtree(place)
    return events // 3


def test_terminated_and_run_again(world: World, place: Path) -> None:
    ended = world.ingest(place, at=at_half(world, place), number=signal.SIGTERM)
    assert (ended.status, ended.lines) == (143, ["terminated"])
    assert noted_chunks(place)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("present", [False, True], ids=["new", "replaced"])
def test_no_space_from_any_moment_on(world: World, place: Path, present: bool) -> None:
    events = world.ingest(place).events
    for part in range(4):
        at = random.Random(part).randrange(events * part // 5, events * (part + 1) // 5) + 1
        shutil.rmtree(place, ignore_errors=True)
        if present:
            shutil.copytree(world.other, place)
        ended = world.ingest(place, at=at, full=True)
        assert ended.status == 1, at
        (said,) = ended.lines
        assert "t.zarr: the store cannot be written (" in said
        assert "No space left on device" in said
        assert "make room" in said
        assert_old_or_whole_or_none(world, place)
        assert place.exists() == present
        assert world.ingest(place).status == 0
        assert tree(place) == tree(world.whole)
        assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize("limit", [300, 1000])
def test_a_file_that_may_not_be_so_large(world: World, place: Path, limit: int) -> None:
    """300 bytes are less than a chunk, 1000 less than what the store says of its images."""
    ended = world.ingest(place, most=limit)
    assert ended.status == 1
    assert "t.zarr: the store cannot be written ([Errno 27] File too large" in ended.lines[0]
    assert bool(noted_chunks(place)) == (limit == 1000)
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)


def test_of_two_at_once_the_second_is_refused(world: World, place: Path) -> None:
    """Whatever images it has, and in whatever process, thread or container."""
    flags = ("-m", "daskkm.ingest", world.others, "--store", place, "--tile", "8")
    with open_writer(place, 1, (8, 8), ()) as first:
        with Process(*flags) as second:
            assert second.wait() == 1
        (said,) = second.lines
        assert "t.zarr: another run is writing this store; wait until it has ended" in said
        with pytest.raises(StoreError, match="another run is writing this store"):
            daskkm.create_store(world.images, place, tile=8)
        with pytest.raises(StoreError, match="no store yet: an ingest was cut short, or is under"):
            daskkm.open_store(place)
        first.append(ImageRecord("a", 1, "", (8, 8), (0, 0)), np.full((1, 8, 8), 7, np.uint8))
    assert daskkm.open_store(place).features().compute().tolist() == [[7] * 64]
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("edited", r"t\.zarr\.partial: .* 1 image changed \(s_1\.png\)\. Go on with the same"),
        ("added", r"1 image added \(s_0\.png\)\. Go on"),
        ("removed", r"1 image removed \(s_1\.png\)\. Go on"),
        ("tile", r"there: tiles of 8 x 8, not 4 x 4\. Go on"),
    ],
)
def test_other_images_are_not_mixed_with_those_before(
    world: World, place: Path, change: str, said: str
) -> None:
    images = Path(shutil.copytree(world.images, place.parent / "pictures"))
    assert world.ingest(place, images, at=at_half(world, place), number=signal.SIGKILL).status == -9
    assert noted_chunks(place)
    tile = 4 if change == "tile" else 8
    if change == "edited":
        shutil.copy(world.others / "s_1.png", images)
    elif change == "added":
        shutil.copy(world.others / "s_1.png", images / "s_0.png")
    elif change == "removed":
        (images / "s_1.png").unlink()
    with pytest.raises(StoreError, match=said) as refused:
        daskkm.create_store(images, place, tile=tile)
    assert refused.value.options == ("overwrite=True",)
    assert noted_chunks(place)
    after = daskkm.create_store(images, place, tile=tile, overwrite=True)
    fresh = daskkm.create_store(images, place.with_name("fresh.zarr"), tile=tile)
    np.testing.assert_array_equal(after.tiles[:], fresh.tiles[:])
    assert after.images == fresh.images
    assert sorted(entry.name for entry in place.parent.iterdir()) == [
        *("fresh.zarr", "pictures", "t.zarr")
    ]


def test_a_chunk_that_was_lost_meanwhile_is_written_again(world: World, place: Path) -> None:
    assert world.ingest(place, at=at_half(world, place), number=signal.SIGKILL).status == -9
    (place.with_name("t.zarr.partial") / "tiles" / "c" / "0" / "0" / "0").unlink()
    assert world.ingest(place).status == 0
    assert tree(place) == tree(world.whole)


@pytest.mark.parametrize("file", ["zarr.json", "tiles/zarr.json", "tiles/c/0/0/0"])
def test_one_bit_of_what_is_gone_on_with(world: World, place: Path, file: str) -> None:
    assert world.ingest(place, at=at_half(world, place), number=signal.SIGKILL).status == -9
    partial = place.with_name("t.zarr.partial")
    kept = shutil.copytree(partial, place.with_name("kept"))
    whole = (kept / file).read_bytes()
    resumed = 0
    for part in range(12):
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
        (said,) = done.lines
        assert done.status == 1
        assert re.match(r"error: .*t\.zarr\.partial: ", said), said
        assert not place.exists()
    assert resumed == 12 or file == "zarr.json"


def test_a_link_in_the_place_of_what_is_begun_is_not_followed(world: World, place: Path) -> None:
    (place.parent / "mine").mkdir()
    place.with_name("t.zarr.partial").symlink_to(place.parent / "mine")
    ended = world.ingest(place)
    assert ended.status == 1
    assert (
        "t.zarr.partial: this is not a store of daskkm's to be replaced (it is a link)"
        in (ended.lines[0])
    )
    assert not list((place.parent / "mine").iterdir())


def test_a_link_within_what_is_begun_is_not_written_through(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is written yet, and so nothing is read again."""

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "append", fail)
        with pytest.raises(MemoryError):
            daskkm.create_store(world.images, place, 8)
    (place.parent / "mine").mkdir()
    chunks = place.with_name("t.zarr.partial") / "tiles" / "c"
    chunks.symlink_to(place.parent / "mine")
    with pytest.warns(UserWarning, match=r"t\.zarr\.partial: .* damaged and begins anew \(.*link"):
        daskkm.create_store(world.images, place, 8).check()
    assert not list((place.parent / "mine").iterdir())
    assert not verify_store(place)


def test_what_is_beside_and_no_ones_of_ours_is_not_touched(world: World, place: Path) -> None:
    partial = place.with_name("t.zarr.partial")
    partial.mkdir()
    (partial / "thesis.tex").write_text("precious")
    ended = world.ingest(place)
    assert ended.status == 1
    assert "t.zarr.partial: this is not a store of daskkm's to be replaced" in ended.lines[0]
    assert tree(partial) == {"thesis.tex": b"precious"}
    shutil.rmtree(partial)
    lock = place.with_name("t.zarr.lock")
    lock.write_text("precious")
    assert world.ingest(place).status == 0
    assert lock.read_text() == "precious"
    # Nor where the store is up to date, or a sweep asks how large the tiles are to be.
    partial.mkdir()
    (partial / "thesis.tex").write_text("precious")
    assert world.ingest(place).status == 0
    with pytest.raises(ClickException, match="this is not a store of daskkm's to be replaced"):
        sweep("--store", place, "--images", world.images, out=place.with_name("out"))
    assert tree(partial) == {"thesis.tex": b"precious"}


def test_where_there_are_no_locks_one_writer_is_enough(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    assert len(daskkm.create_store(world.images, place, tile=8)) == 30
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]
    # What another may be writing just now is left.
    shutil.copytree(place, place.with_name("t.zarr.partial"))
    daskkm.create_store(world.images, place, tile=8)
    assert place.with_name("t.zarr.partial").exists()


def sweep(*flags: str | Path, out: Path) -> None:
    settings = ("--k", "2", "--n-init", "1", "--scheduler", "threads", "--out", str(out))
    sweep_command.main([*map(str, flags), *settings], standalone_mode=False)


def test_a_sweep_goes_on_with_an_ingest_that_was_killed(world: World, place: Path) -> None:
    assert world.ingest(place, at=at_half(world, place), number=signal.SIGKILL).status == -9
    out = place.with_name("out")
    with pytest.raises(
        ClickException, match=r"t\.zarr: there is no store yet: an ingest was cut short"
    ):
        sweep("--store", place, out=out)
    assert not place.exists()
    sweep("--store", place, "--images", world.images, out=out)
    # The tiles are as large as the ingest was told.
    store = daskkm.open_store(place)
    whole = daskkm.open_store(world.whole)
    assert (store.tile, store.images) == (whole.tile, whole.images)
    np.testing.assert_array_equal(store.tiles[:], whole.tiles[:])
    assert not place.with_name("t.zarr.partial").exists()


def test_a_sweep_never_cuts_anew_what_was_begun(world: World, place: Path) -> None:
    """Whenever the ingest was killed, a sweep keeps its size of tiles or says that it cannot."""
    events = world.ingest(place).events
    refused = 0
    for at in [*range(1, 25, 2), events // 2]:
        shutil.rmtree(place, ignore_errors=True)
        assert world.ingest(place, at=at, number=signal.SIGKILL).status == -9
        begun = place.with_name("t.zarr.partial").exists()
        flags = ("--images", world.images, "--k", "2", "--n-init", "1", "--scheduler", "threads")
        done = world.run("sweep", "--store", place, *flags, cwd=place.parent)
        if done.status:
            assert "how large its tiles are is not known; run it again" in done.lines[-1]
            refused += 1
            assert world.ingest(place).status == 0
        assert daskkm.open_store(place).tile == ((8, 8) if begun else (16, 16))
    assert 0 < refused < 6


def test_a_sweep_does_not_choose_between_a_store_and_one_of_other_tiles(
    world: World, place: Path
) -> None:
    assert world.ingest(place, at=at_half(world, place), number=signal.SIGKILL).status == -9
    daskkm.create_store(world.images, place.with_name("u.zarr"), tile=4)
    place.with_name("u.zarr").rename(place)
    flags = ("--store", place, "--images", world.images)
    with pytest.raises(ClickException, match=r"tiles are 4 x 4, but an ingest of 8 x 8 was cut"):
        sweep(*flags, out=place.with_name("out"))
    assert daskkm.open_store(place).tile == (4, 4)
    assert noted_chunks(place)
    # Of the same size it goes on with what was begun, of the images that are there now.
    shutil.rmtree(place)
    shutil.copytree(world.other, place)
    with pytest.raises(ClickException, match=r"t\.zarr: .*: 3 images changed .*--overwrite"):
        sweep(*flags, out=place.with_name("out"))
    sweep(*flags, "--overwrite", out=place.with_name("out"))
    assert [image.sha256 for image in daskkm.open_store(place).images] == [
        image.sha256 for image in daskkm.open_store(world.whole).images
    ]
    assert not place.with_name("t.zarr.partial").exists()


def test_what_was_begun_goes_when_the_older_store_is_what_is_asked_for(
    world: World, place: Path
) -> None:
    assert world.ingest(place, at=at_half(world, place), number=signal.SIGKILL).status == -9
    shutil.copytree(world.whole, place)
    assert world.ingest(place).status == 0
    assert [entry.name for entry in place.parent.iterdir()] == ["t.zarr"]
    assert tree(place) == tree(world.whole)


def test_more_images_than_a_store_speaks_of_are_refused_before_any_is_read(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In chunks as they are here.
    whole = (daskkm.create_store(world.images, place, tile=8).path / "zarr.json").stat().st_size
    shutil.rmtree(place)
    for most, said in ((300, "takes [0-9]+ bytes, more than 300; make several"), (whole, "")):
        monkeypatch.setattr("daskkm.storage.metadata.NODE_BYTES", most)
        if said:
            with pytest.raises(StoreError, match=rf"t\.zarr: what there is to say .*{said}"):
                daskkm.create_store(world.images, place, tile=8)
            assert not list(place.parent.iterdir())
        else:
            assert len(daskkm.create_store(world.images, place, tile=8)) == 30


def test_readers_of_a_store_that_is_replaced_never_mix_the_two(world: World, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    X = store.features()
    before = X.compute()
    first = X[:7].compute()
    assert world.ingest(place, world.others).status == 0
    for read in (X[7:14].compute, store.provenance, store.provenance_of("row").compute):
        with pytest.raises(StoreError, match=r"t\.zarr: it was replaced while it was being"):
            read()
    with pytest.raises(StoreError, match="replaced"):
        daskkm.fit_sweep(store, [2], n_init=1)
    np.testing.assert_array_equal(first, before[:7])
    # The same images again are the same tiles.
    assert world.ingest(place).status == 0
    np.testing.assert_array_equal(X.compute(), before)
    # Where chunks cannot be read, that it was replaced is what is said.
    daskkm.create_store(world.images, place, tile=4, overwrite=True)
    with pytest.raises(StoreError, match="it was replaced"):
        X.compute()


def test_readers_of_labels_that_are_replaced_never_mix_the_two(world: World, place: Path) -> None:
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
        with pytest.raises(StoreError, match="/3: it was replaced while it was being read; run"):
            read()
    assert not np.array_equal(store.labels(3).compute()[:7], first)
    store.label(one, distances=True)  # the same again
    np.testing.assert_array_equal(labels[:7].compute(), first)
    # Where the store is another, its labels are too, though they be of the same model.
    daskkm.create_store(world.others, place, tile=8, overwrite=True)
    daskkm.open_store(place).label(one)
    with pytest.raises(StoreError, match=r"t\.zarr: it was replaced"):
        labels.compute()
    before = tree(place)
    with pytest.raises(StoreError, match=r"t\.zarr: it was replaced"):
        store.label(one)
    assert tree(place) == before


def test_an_ingest_between_two_passes_of_a_sweep(world: World, place: Path) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    settings: Any = {"n_init": 1, "random_state": 0, "cache": "never"}
    settings |= {"init": "random", "max_iter": 100, "tol": 0.0}
    undisturbed = daskkm.fit_sweep(store, [2], **settings)

    def ingest(images: Path) -> Callable[[daskkm.Pass], None]:
        def run() -> None:
            assert world.ingest(place, images).status == 0

        return once_iterations_began(run)

    # Of the same images there is nothing to do.
    result = daskkm.fit_sweep(store, [2], **settings, on_pass=ingest(world.images))
    assert result.models[2].inertia_ == undisturbed.models[2].inertia_
    with pytest.raises(StoreError, match="it was replaced while it was being read"):
        daskkm.fit_sweep(store, [2], **settings, on_pass=ingest(world.others))


def test_labels_that_are_written_in_the_middle_of_the_exchange(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task makes a folder anew where the old store was, and the new one is not yet."""
    shutil.copytree(world.other, place)
    older = daskkm.open_store(place)
    rename = Path.rename
    gaps: list[Path] = []

    with ExitStack() as stack:
        target, _ = stack.enter_context(older.writing_labels({"k": 2}, distances=False))

        def renamed(self: Path, to: Path) -> Path:
            moved = rename(self, to)
            if self == place and not gaps:
                gaps.append(to)
                target.array[:] = 0  # what a task does that found its folder just before
                assert (place / "labels").exists()
            return moved

        monkeypatch.setattr(Path, "rename", renamed)
        found = daskkm.create_store(world.images, place, 8, overwrite=True)
        assert gaps
        with pytest.raises(StoreError, match="it is not there"):
            stack.close()
    assert [image.sha256 for image in found.images] == [
        image.sha256 for image in daskkm.open_store(world.whole).images
    ]
    assert not verify_store(place)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_labels_never_go_to_a_store_that_took_the_place(
    world: World, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.whole, place)
    store = daskkm.open_store(place)
    model = daskkm.fit_sweep(store, [2], n_init=1, random_state=0).models[2]
    found = model.predict(store).compute()
    writing = store.writing_labels({"k": 2}, distances=False)
    labels, _ = writing.__enter__()
    labels[:] = found
    assert world.ingest(place, world.others).status == 0
    with pytest.raises(StoreError):
        writing.__exit__(None, None, None)
    assert tree(place) == tree(world.other)


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    """Of a model, whatever it was doing; what it had moved away comes back."""
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from daskkm.kmeans import model
        from daskkm.storage import commit, nodes
        from tests.faults.test_ingest import fitted
        kind, place = model._kind(), Path(sys.argv[1])
        fitted().save(place)
        with commit.beside(place, kind) as partial, commit.set_aside(place, kind):
            nodes.create_group(partial, kind)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    place = tmp_path / "model.zarr"
    with Process("-c", code, place) as killed:
        assert killed.wait() == -9, killed.lines
    assert not place.exists()
    assert len(list(tmp_path.iterdir())) == 3
    other = daskkm.fit_sweep(np.eye(4, dtype=np.uint8), [3], random_state=0).models[3]
    with commit.beside(place, model._kind()):
        saved = daskkm.load_model(place)
        assert saved.n_clusters == 2
        # While there is a writer, another does not take its things for those of a dead one.
        other.save(place)
        assert len(list(tmp_path.glob("*.partial"))) == 0
    assert daskkm.load_model(place).n_clusters == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zarr"]


@pytest.mark.parametrize("distances", [False, True])
def test_what_a_killed_run_left_of_labels_goes_with_the_next(
    world: World, place: Path, distances: bool
) -> None:
    """With distances or without, whenever it was killed, and whatever the next one writes."""
    shutil.copytree(world.whole, place)
    model = daskkm.fit_sweep(daskkm.open_store(place), [2], n_init=1, random_state=0).models[2]
    model.save(place.with_name("m.zarr"))
    expected = model.predict(daskkm.open_store(place)).compute()
    daskkm.open_store(place).label(model, distances=True)
    args: Any = ("label", "m.zarr", "--store", place, "--scheduler", "threads")
    flags = ("--distances",) if distances else ()
    events = world.run(*args, *flags, cwd=place.parent).events
    ends = []
    for part in range(8):
        at = random.Random(part).randrange(events * part // 8, events * (part + 1) // 8) + 1
        daskkm.open_store(place).label(model, distances=True)
        ends.append(world.run(*args, *flags, cwd=place.parent, at=at, number=signal.SIGKILL).status)
        with commit.held(place / "labels" / "2", LABELS):  # what was moved away comes back
            np.testing.assert_array_equal(daskkm.open_store(place).labels(2).compute(), expected)
        daskkm.open_store(place).label(model)
        assert [entry.name for entry in (place / "labels").glob("2*")] == ["2"]
        assert not list((place / "distances").glob("2*"))
    assert ends.count(-signal.SIGKILL) >= 7
    assert verify_store(place) == []


def fitted() -> FittedModel:
    return daskkm.fit_sweep(np.eye(4, dtype=np.uint8), [2], random_state=0).models[2]
