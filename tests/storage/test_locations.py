"""Test that files and objects are read and written in the same way at each kind of location."""

from __future__ import annotations

import inspect
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore.store
import pytest
from zarr.storage import LocalStore, MemoryStore, ObjectStore

import daskkm
from daskkm.errors import ParameterError
from daskkm.storage import locations
from daskkm.storage.locations import (
    ConflictError,
    LocalLocation,
    ObjectLocation,
    ZarrLocation,
    as_location,
    is_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from daskkm.storage.locations import Location


def test_write_of_parts_replaces_the_file(location: Location) -> None:
    file = location / "a" / "b"
    with pytest.raises(FileNotFoundError):
        file.read()
    for parts in ((b"one", b"", np.arange(3, dtype=np.uint8).data), (b"",), (b"second",)):
        file.write(*parts)
        whole = b"".join(parts)
        assert bytes(file.read()) == whole
        assert bytes(file.read_into(memoryview(bytearray(99)))) == whole
        with file.open() as stream:
            assert stream.read() == whole
    assert location.sizes() == {"a/b": 6}


def test_read_head_returns_the_first_bytes(location: Location) -> None:
    for content in (b"", b"abc", b"abcdef"):
        (location / "file").write(content)
        assert (location / "file").read_head(4) == content[:4]
    with pytest.raises(FileNotFoundError):
        (location / "missing").read_head(4)


def test_names_and_sizes_are_those_of_one_folder(location: Location) -> None:
    assert (location.names(), location.sizes(), location.exists()) == (set(), {}, False)
    for key in ("a/b/c", "a/d", "ab", "e f%20g#h"):
        (location / key).write(key.encode())
    assert location.names() == {"a", "ab", "e f%20g#h"}
    assert (location / "a").names() == {"b", "d"}
    assert (location / "a").sizes() == {"b/c": 5, "d": 3}
    assert location.sizes() == {"a/b/c": 5, "a/d": 3, "ab": 2, "e f%20g#h": 9}
    assert ((location / "a").is_file(), (location / "a").exists()) == (False, True)
    assert ((location / "ab").is_file(), (location / "ab").exists()) == (True, True)
    assert ((location / "z").is_file(), (location / "z").exists()) == (False, False)
    assert (location / "ab").names() == set()
    assert bytes((location / "e f%20g#h").read()) == b"e f%20g#h"


def test_remove_of_file_or_folder_keeps_the_others(location: Location) -> None:
    for key in ("a/b/c", "a/d", "ab", "e"):
        (location / key).write(b"1")
    (location / "a").remove()
    assert location.sizes() == {"ab": 1, "e": 1}
    (location / "ab").remove()
    (location / "missing").remove()
    assert location.sizes() == {"e": 1}


def test_read_below_a_file_is_of_a_missing_file(location: Location) -> None:
    (location / "a").write(b"1")
    with pytest.raises(FileNotFoundError):
        (location / "a" / "b").read()
    with pytest.raises(FileNotFoundError):
        (location / "a" / "b").read_into(memoryview(bytearray(9)))
    assert not (location / "a" / "b").exists()


def test_swap_of_other_content_raises_conflict(location: Location) -> None:
    file = location / "root"
    wrong: bytes | None
    for wrong in (b"x", b""):
        with pytest.raises(ConflictError):
            file.swap(wrong, b"new")
    file.swap(None, b"1")
    for other in (None, b"2"):
        with pytest.raises(ConflictError) as error:
            file.swap(other, b"new")
        assert isinstance(error.value, OSError)
    file.swap(b"1", b"2")
    assert bytes(file.read()) == b"2"


def test_swap_by_many_threads_at_once_has_one_winner() -> None:
    file = as_location("memory://swap") / "root"
    content: bytes | None = None
    for turn in range(20):
        won: list[bytes] = []
        start = threading.Barrier(4)

        def swap(
            name: bytes, content: bytes | None = content, won: Any = won, start: Any = start
        ) -> None:
            start.wait()
            try:
                file.swap(content, name)
            except ConflictError:
                return
            won.append(name)

        threads = [threading.Thread(target=swap, args=(f"{turn} {i}".encode(),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (content,) = won
        assert bytes(file.read()) == content


@pytest.mark.parametrize("old", [None, b"old"])
def test_swap_with_a_lost_answer_is_done(
    monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    file = as_location(f"memory://lost/{old!r}")
    if old:
        file.write(old)
    put: Any = ObjectLocation._put

    def lose(self: ObjectLocation, data: Any, mode: Any) -> None:
        put(self, data, mode)
        msg = "connection closed"
        raise OSError(msg)

    monkeypatch.setattr(ObjectLocation, "_put", lose)
    file.swap(old, b"new")
    assert bytes(file.read()) == b"new"
    with pytest.raises(ConflictError):  # the answer to another writer
        file.swap(old, b"other")


def test_swap_that_never_succeeds_raises_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    file = as_location("memory://never/a")
    attempts = []

    def fail(_: ObjectLocation, data: Any, mode: Any) -> None:
        attempts.append(mode)
        msg = "connection closed"
        raise OSError(msg)

    monkeypatch.setattr(ObjectLocation, "_put", fail)
    with pytest.raises(OSError, match="connection closed"):
        file.swap(None, b"new")
    assert attempts == ["create"] * locations._ATTEMPTS


def test_path_of_location_has_name_and_parent(location: Location) -> None:
    file = location / "a" / "b.txt"
    assert (file.name, file.parent.name, file.parent.parent.name) == ("b.txt", "a", "x.zarr")
    assert file == location / "a/b.txt"
    assert file.parent == location / "a"
    assert hash(file) == hash(location / "a/b.txt")
    assert file != location
    assert file != as_location("other")
    assert str(file).endswith("/a/b.txt")


def test_location_through_pickle_reads_the_same(location: Location) -> None:
    (location / "a").write(b"1")
    there = pickle.loads(pickle.dumps(location))
    assert there == location
    assert (there.name, there.is_local) == (location.name, location.is_local)
    assert bytes((there / "a").read()) == b"1"


def test_local_location_through_pickle_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = as_location("a")
    assert str(location) == "a"
    pickled = pickle.dumps(location)
    (location / "b").write(b"1")
    monkeypatch.chdir("/")
    assert str(pickle.loads(pickled)) == str(tmp_path / "a")
    assert bytes((pickle.loads(pickled) / "b").read()) == b"1"


def test_local_write_that_fails_keeps_the_older_file(tmp_path: Path) -> None:
    file = as_location(tmp_path / "a")
    file.write(b"old")
    with pytest.raises(TypeError):
        file.write(b"new", 5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert bytes(file.read()) == b"old"


def test_local_write_during_reads_is_atomic(tmp_path: Path) -> None:
    file = as_location(tmp_path / "a")
    contents = {bytes([i]) * (1 << i) for i in range(17)}
    file.write(b"")
    ended = threading.Event()
    found = set()

    def read() -> None:
        while not ended.is_set():
            found.add(bytes(file.read()))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(5):
        for content in contents:
            file.write(content)
    ended.set()
    thread.join()
    assert found <= contents | {b""}


def test_remove_partial_files_keeps_other_files(tmp_path: Path) -> None:
    partial = f".a.{'0' * 32}.partial"
    names = {"a", "b/a", ".hidden", "x.partial", f"a.{'0' * 32}.partial", f"labels/{partial}"}
    for name in (partial, f"b/{partial}", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    location = LocalLocation(tmp_path)
    location.remove_partial_files(keep=("labels",))
    assert set(location.sizes()) == names
    location.remove_partial_files()
    assert set(location.sizes()) == names - {f"labels/{partial}"}


def test_remove_of_a_local_link_keeps_the_target(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    as_location(tmp_path / "link").remove()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mine", "a"]


PATHS = ["t.zarr", "a:b", "./s3:/b", "/s3://b", "dir/http://x", "C:/x", "12:30/x", "s3:"]


@pytest.mark.parametrize("path", [*PATHS, *map(Path, ["t.zarr", "a:b", "/s3://b", "dir/s3:/b"])])
def test_as_location_of_a_path_is_local(path: str | Path) -> None:
    assert not is_url(path)
    location = as_location(path)
    assert isinstance(location, LocalLocation)
    assert location.path == Path(path).absolute()
    assert str(location) == str(Path(path))


@pytest.mark.parametrize("url", ["file:///data/t.zarr", Path("file:///data/t.zarr")])
def test_as_location_of_a_file_url_is_local(url: str | Path) -> None:
    assert is_url(url)
    assert as_location(url) == as_location("/data/t.zarr")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://bucket", "memory://bucket"),
        ("memory://bucket/", "memory://bucket"),
        ("memory://bucket/a/t.zarr/", "memory://bucket/a/t.zarr"),
        ("MEMORY://bucket/a", "memory://bucket/a"),
        (Path("memory://bucket/a"), "memory://bucket/a"),
        ("http://127.0.0.1:1/a/t.zarr", "http://127.0.0.1:1/a/t.zarr"),
    ],
)
def test_as_location_of_a_url_is_an_object(url: str | Path, text: str) -> None:
    assert is_url(url)
    location = as_location(url)
    assert isinstance(location, ObjectLocation)
    assert str(location) == text


@pytest.mark.parametrize(
    "url",
    [
        *("simplecache::s3://bucket/t.zarr", "ftp://host/a", "hdfs:/x"),
        *(Path("ftp://host/a"), str(Path("simplecache::s3://bucket/t.zarr"))),
    ],
)
def test_as_location_of_unknown_scheme_is_refused(url: str | Path) -> None:
    with pytest.raises(ParameterError, match=r"unknown scheme of a URL\. Give s3://, gs://, "):
        as_location(url)


def test_as_location_of_wrong_options_or_type_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"s3://b/t: the object store cannot be opened \("):
        as_location("s3://b/t", {"nonsense": "x"})
    for other in (5, None, b"t.zarr"):
        with pytest.raises(ParameterError, match="not a location"):
            as_location(other)  # type: ignore[arg-type]


def test_as_location_of_a_zarr_store_reads_this_store(tmp_path: Path) -> None:
    assert as_location(LocalStore(tmp_path)) == as_location(tmp_path)
    memory = MemoryStore()
    assert isinstance(as_location(memory), ZarrLocation)
    assert as_location(memory) == as_location(memory)
    objects = obstore.store.MemoryStore()
    (as_location(ObjectStore(objects)) / "a").write(b"1")
    assert bytes((as_location(ObjectStore(objects)) / "a").read()) == b"1"
    other = as_location(ObjectStore(obstore.store.MemoryStore()))
    assert other != as_location(ObjectStore(objects))
    assert other.names() == set()
    assert as_location(other) is other


def test_open_zarr_of_location_is_read_only(location: Location) -> None:
    (location / "a").write(b"1")
    store, path = location.open_zarr()
    assert store.read_only or isinstance(location, ZarrLocation)
    assert (path == "") == location.is_local


X = np.arange(8.0).reshape(4, 2)


def fitted() -> daskkm.KMeans:
    return daskkm.KMeans(n_clusters=1, n_init=1).fit(X)


# Keys are a function or method, and a parameter.
CALLS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("create_store", "images"): lambda url: daskkm.create_store(url, "t.zarr"),
    ("create_store", "store"): lambda url: daskkm.create_store("images", url),
    ("open_store", "path"): daskkm.open_store,
    ("load_model", "path"): daskkm.load_model,
    ("KMeans.save", "path"): lambda url: fitted().save(url),
    ("FittedModel.save", "path"): lambda url: fitted().fitted_model.save(path=url),
    ("fit_sweep", "checkpoint"): lambda url: daskkm.fit_sweep(X, [1], n_init=1, checkpoint=url),
    ("TileStore.append", "images"): lambda url: _open_digits().append(url),
}


def _open_digits() -> daskkm.TileStore:
    images = Path(__file__).parent.parent.parent / "images" / "digits_1.png"
    return daskkm.create_store(images, "memory://locations/digits")


def public_functions() -> dict[str, Any]:
    found = {}
    for name in daskkm.__all__:
        value = getattr(daskkm, name)
        if not inspect.isclass(value):
            found[name] = value
        elif value.__module__.startswith("daskkm."):
            found |= {f"{name}.{method}": f for method, f in inspect.getmembers(value, callable)}
    return found


def test_calls_of_this_module_cover_all_public_parameters_of_locations() -> None:
    found = {
        (name, param.name)
        for name, function in public_functions().items()
        if inspect.isfunction(function) and not name.split(".")[-1].startswith("_")
        for param in inspect.signature(function).parameters.values()
        if "LocationLike" in str(param.annotation) or "PathLike" in str(param.annotation)
    }
    assert found == set(CALLS)


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_function_of_unknown_scheme_raises_and_writes_nothing(
    call: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").symlink_to(Path(__file__).parent.parent.parent / "images")
    monkeypatch.chdir(tmp_path)
    for url in ("ftp://host/x", Path("ftp://host/x")):
        with pytest.raises(ParameterError, match="unknown scheme"):
            CALLS[call](url)
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]
