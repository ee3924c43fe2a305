"""Locations: local paths, URLs and Zarr stores, read and written in the same way.

This is the only module that tells files from objects. Every write is atomic. Every error is an
OSError.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from daskkm.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import (  # type: ignore[attr-defined]
        Buffer,
        Callable,
        Collection,
        Iterator,
        Mapping,
    )

    from zarr.abc.store import Store

# s3://bucket, simplecache::s3://bucket, and s3:/bucket, the text of a Path of a URL.
# A scheme has at least two letters. ./s3:/bucket is a local folder.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/+(.*)", re.DOTALL)
SCHEMES = ("s3", "gs", "az", "http", "https", "memory")
_ATTEMPTS = 5
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{32}\.partial")

LocationLike: TypeAlias = "str | os.PathLike[str] | Location | Store"


class ConflictError(OSError):
    """An object that another writer has changed."""


class Location(ABC):
    """A file or folder: of a local disk, an object store, or a Zarr store.

    `read` and `write` raise FileNotFoundError, or another OSError with the cause.
    """

    is_local = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the path."""

    @property
    @abstractmethod
    def parent(self) -> Location:
        """Location of the folder."""

    @abstractmethod
    def __truediv__(self, key: str) -> Location:
        """Return the location of a file or folder below this one."""

    @abstractmethod
    def read(self) -> Buffer:
        """Return the content of a file."""

    @abstractmethod
    def write(self, *parts: Buffer) -> None:
        """Write a file atomically; replace an older one."""

    @abstractmethod
    def swap(self, old: bytes | None, new: bytes) -> None:
        """Replace the content `old`, or None for a missing file, or raise ConflictError.

        For a local file, the caller holds a lock.
        """

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file below this folder, by relative path."""

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of files and folders in this folder; empty if it does not exist."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file, or a folder with all files below it, if present."""

    @abstractmethod
    def open_zarr(self) -> tuple[Store, str]:
        """Return a read-only Zarr store and the path of this location in it."""

    def open(self) -> BinaryIO:
        """Open a file for reading."""
        return io.BytesIO(self.read())

    def read_head(self, n: int) -> bytes:
        """Return the first n bytes of a file, or all of a shorter file."""
        with self.open() as file:
            return file.read(n)

    def read_into(self, buffer: memoryview) -> Buffer:  # noqa: ARG002
        """Return the content of a file, if local the first bytes in `buffer`."""
        return self.read()

    def prefetch(self) -> None:  # noqa: B027
        """Ask the system to read a file ahead, if it can."""

    def resolve(self) -> Location:
        """Return the location without links."""
        return self

    def is_file(self) -> bool:
        """Return True if a file exists."""
        try:
            self.read()
        except FileNotFoundError:
            return False
        return True

    def exists(self) -> bool:
        """Return True if a file or a folder with content exists."""
        return self.is_file() or bool(self.names())


class LocalLocation(Location):
    """A local path; messages show the path as given."""

    is_local = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._given = str(Path(path))
        # Absolute, because workers have other working directories.
        self._path = str(Path(path).absolute())

    def __str__(self) -> str:
        return self._given

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalLocation, (self._path,)

    def __fspath__(self) -> str:
        return self._path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalLocation) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)

    @property
    def path(self) -> Path:
        """Absolute path."""
        return Path(self._path)

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        given = Path(self._given)
        return LocalLocation(given.parent if given.name else self.path.parent)

    def __truediv__(self, key: str) -> LocalLocation:
        # Strings, because there may be many images: a Path takes ten times as long.
        child = object.__new__(LocalLocation)
        child._given = key if self._given == "." else os.path.join(self._given, key)  # noqa: PTH118
        child._path = os.path.join(self._path, key)  # noqa: PTH118
        return child

    def read(self) -> Buffer:
        with _missing_parents_as_missing(), open(self._path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()

    def read_head(self, n: int) -> bytes:
        # A file object takes twice as many calls of the system.
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            return os.read(descriptor, n)
        finally:
            os.close(descriptor)

    def open(self) -> BinaryIO:
        return open(self._path, "rb")  # noqa: PTH123

    def read_into(self, buffer: memoryview) -> Buffer:
        with _missing_parents_as_missing(), open(self._path, "rb", buffering=0) as file:  # noqa: PTH123
            filled = 0
            while n := file.readinto(buffer[filled:]):
                filled += n
            return buffer[:filled]

    def write(self, *parts: Buffer) -> None:
        partial = self.path.with_name(f".{self.name}.{uuid.uuid4().hex}.partial")
        # A link may name a folder that does not exist yet.
        os.makedirs(os.path.realpath(self.path.parent), exist_ok=True)  # noqa: PTH103
        try:
            with partial.open("wb") as file:
                for part in parts:
                    file.write(part)
            partial.replace(self.path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def swap(self, old: bytes | None, new: bytes) -> None:
        present = self.path.read_bytes() if self.path.exists() else None
        if present != old:
            raise ConflictError(errno.EEXIST, "changed by another process", str(self))
        self.write(new)

    def sizes(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118
                with suppress(FileNotFoundError):
                    found[os.path.relpath(path, self.path)] = os.stat(path).st_size  # noqa: PTH116
        return found

    def names(self) -> set[str]:
        try:
            return set(os.listdir(self.path))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink()

    def open_zarr(self) -> tuple[Store, str]:
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True), ""

    def prefetch(self) -> None:
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        with suppress(OSError):  # a later read raises
            file = os.open(self.path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)

    def resolve(self) -> Location:
        with suppress(OSError, RuntimeError):  # a loop of links
            return LocalLocation(self.path.resolve())
        return self

    def is_file(self) -> bool:
        return self.path.is_file()

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def remove_partial_files(self, keep: Collection[str] = ()) -> None:
        """Remove what killed writers left in this folder and below, except in folders of a name."""
        for folder, folders, names in os.walk(self.path):
            if self.path == Path(folder):
                folders[:] = [name for name in folders if name not in keep]
            for name in filter(_PARTIAL.fullmatch, names):
                Path(folder, name).unlink(missing_ok=True)


class ObjectLocation(Location):
    """A key of an object store."""

    def __init__(self, store: Any, url: str, key: str) -> None:
        self._store, self._url, self._key = store, url, key

    def __str__(self) -> str:
        return f"{self._url}/{self._key}".rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectLocation) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._url.startswith("memory:"):
            return _restore_memory_location, (self._url, self._key)
        return _restore_location, (pickle.dumps(self._store), self._url, self._key)

    @property
    def name(self) -> str:
        return PurePosixPath(self._key).name

    @property
    def parent(self) -> Location:
        folder = str(PurePosixPath(self._key).parent)
        return ObjectLocation(self._store, self._url, "" if folder == "." else folder)

    def __truediv__(self, key: str) -> ObjectLocation:
        return ObjectLocation(self._store, self._url, f"{self._key}/{key}".removeprefix("/"))

    def read(self) -> Buffer:
        return self._get()[0]

    def read_head(self, n: int) -> bytes:
        import obstore

        try:
            return bytes(
                self._call(lambda: obstore.get_range(self._store, self._key, start=0, end=n))
            )
        except FileNotFoundError:
            raise
        except OSError:  # an empty object has no range
            return super().read_head(n)

    def _get(self) -> tuple[Buffer, dict[str, Any]]:
        """Return the content and what identifies its version."""
        import obstore

        def get() -> tuple[Buffer, dict[str, Any]]:
            answer = obstore.get(self._store, self._key)
            return answer.bytes(), dict(answer.meta)

        content, meta = self._call(get)
        version = {name: meta.get(name) for name in ("e_tag", "version")}
        return content, {name: value for name, value in version.items() if value}

    def write(self, *parts: Buffer) -> None:
        self._put(b"".join(parts) if len(parts) > 1 else parts[0], "overwrite")

    def _put(self, data: Any, mode: Any) -> None:
        import obstore

        self._call(
            lambda: obstore.put(self._store, self._key, data, mode=mode, use_multipart=False)
        )

    def swap(self, old: bytes | None, new: bytes) -> None:
        # The answer to a put that succeeded may be lost; obstore does not repeat a lost creation.
        problem: OSError = ConflictError(errno.EEXIST, "changed by another process", str(self))
        for _ in range(_ATTEMPTS):
            present, mode = self._get_version()
            if present == new:
                return
            if present != old:
                raise problem
            try:
                self._put(new, mode)
            except OSError as error:
                problem = error
            else:
                return
        raise problem

    def _get_version(self) -> tuple[bytes | None, Any]:
        """Return the content, or None, and the mode of a put that replaces this content only."""
        try:
            content, version = self._get()
        except FileNotFoundError:
            return None, "create"
        return bytes(content), version

    def sizes(self) -> dict[str, int]:
        import obstore

        start = f"{self._key}/" if self._key else ""
        items = self._call(
            lambda: [item for page in obstore.list(self._store, self._key or None) for item in page]
        )
        return {item["path"].removeprefix(start): item["size"] for item in items}

    def names(self) -> set[str]:
        import obstore

        found = self._call(lambda: obstore.list_with_delimiter(self._store, self._key or None))
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {PurePosixPath(path).name for path in paths} - {""}

    def _call(self, function: Callable[[], Any]) -> Any:
        """Call a function of obstore, again if the answer was cut short, which obstore does not."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._translate_errors():
                    return function()
            except OSError as error:
                if "body" not in str(error):
                    raise
                if attempt == _ATTEMPTS:
                    msg = f"{error.strerror}, after {attempt} attempts"
                    raise OSError(error.errno, msg, str(self)) from error
        return None

    def remove(self) -> None:
        import obstore

        keys = [self._key, *((self / name)._key for name in self.sizes())]
        for start in range(0, len(keys), 1000):
            with suppress(FileNotFoundError):
                self._call(partial(obstore.delete, self._store, keys[start : start + 1000]))

    def is_file(self) -> bool:
        import obstore

        try:
            self._call(lambda: obstore.head(self._store, self._key))
        except FileNotFoundError:
            return False
        return True

    def stat(self) -> tuple[int, int]:
        """Return the size, and the time of the last change in nanoseconds."""
        import obstore

        found = self._call(lambda: obstore.head(self._store, self._key))
        return found["size"], int(found["last_modified"].timestamp() * 1e9)

    def open_zarr(self) -> tuple[Store, str]:
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True), self._key

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self)) from error
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise ConflictError(errno.EEXIST, "changed by another process", str(self)) from error
        except OSError:
            raise
        except Exception as error:  # some errors of obstore have no common type
            cause = str(error).split("\n\nDebug source")[0]
            raise OSError(errno.EIO, " ".join(cause.split()), str(self)) from error


class ZarrLocation(Location):
    """A key of a Zarr store that is neither on a local disk nor of obstore."""

    def __init__(self, store: Store, key: str = "") -> None:
        self._store, self._key = store, key

    def __str__(self) -> str:
        return f"{self._store}/{self._key}".rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrLocation) and (self._store, self._key) == (
            other._store,
            other._key,
        )

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return PurePosixPath(self._key).name

    @property
    def parent(self) -> Location:
        folder = str(PurePosixPath(self._key).parent)
        return ZarrLocation(self._store, "" if folder == "." else folder)

    def __truediv__(self, key: str) -> ZarrLocation:
        return ZarrLocation(self._store, f"{self._key}/{key}".removeprefix("/"))

    def read(self) -> Buffer:
        from zarr.core.buffer import default_buffer_prototype

        found = _run(self._store.get(self._key, default_buffer_prototype()))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such key", str(self))
        return memoryview(found.to_bytes())

    def write(self, *parts: Buffer) -> None:
        from zarr.core.buffer import default_buffer_prototype

        data = default_buffer_prototype().buffer.from_bytes(b"".join(parts))
        _run(self._store.set(self._key, data))

    def swap(self, old: bytes | None, new: bytes) -> None:
        present = bytes(self.read()) if self.is_file() else None
        if present != old:
            raise ConflictError(errno.EEXIST, "changed by another process", str(self))
        self.write(new)

    def sizes(self) -> dict[str, int]:
        start = f"{self._key}/" if self._key else ""
        keys = _run(_collect(self._store.list_prefix(start)))
        return {key.removeprefix(start): _run(self._store.getsize(key)) for key in keys}

    def names(self) -> set[str]:
        return set(_run(_collect(self._store.list_dir(self._key))))

    def remove(self) -> None:
        _run(self._store.delete_dir(self._key))
        with suppress(FileNotFoundError):
            _run(self._store.delete(self._key))

    def open_zarr(self) -> tuple[Store, str]:
        return self._store, self._key


def as_location(path: LocationLike, storage_options: Mapping[str, Any] | None = None) -> Location:
    """Return the location of a local path, a URL or a Zarr store.

    Raise ParameterError for a URL of another scheme, options of no object store, or if obstore is
    not installed.
    """
    if isinstance(path, Location):
        return path
    if not isinstance(path, str | os.PathLike):
        return _as_location_in_zarr_store(path)
    text = os.fspath(path)
    match = _URL.match(text)
    scheme = match[1].lower() if match else "file"
    if match is None or scheme == "file":
        return LocalLocation(f"/{match[2]}" if match else text)
    if scheme not in SCHEMES:
        msg = f"{text}: unknown scheme of a URL. Give {', '.join(f'{s}://' for s in SCHEMES)}"
        raise ParameterError(msg)
    root, _, key = match[2].partition("/")
    return ObjectLocation(
        _open_object_store(f"{scheme}://{root}", text, storage_options or {}),
        f"{scheme}://{root}",
        key.rstrip("/"),
    )


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return True if a path is a URL, or a Path of a URL."""
    return _URL.match(os.fspath(path)) is not None


def _open_object_store(root: str, text: str, storage_options: Mapping[str, Any]) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        msg = f"{text}: URLs need obstore. Install with: pip install 'daskkm[cloud]'"
        raise ParameterError(msg) from error
    if root.startswith("memory:"):
        return _open_memory(root)
    if root.startswith("http:"):
        storage_options = {"client_options": {"allow_http": True}, **storage_options}
    try:
        return from_url(root, **storage_options)
    except Exception as error:
        cause = " ".join(str(error).split("\n\nDebug source")[0].split())
        msg = f"{text}: the object store cannot be opened ({cause}). Check URL and storage options"
        raise ParameterError(msg) from error


@lru_cache(None)
def _open_memory(root: str) -> Any:  # noqa: ARG001
    """Return the store of a memory:// URL, the same for all locations of this process."""
    from obstore.store import MemoryStore

    return MemoryStore()


def _restore_memory_location(url: str, key: str) -> ObjectLocation:
    return ObjectLocation(_open_memory(url), url, key)


def _restore_location(pickled: bytes, url: str, key: str) -> ObjectLocation:
    return ObjectLocation(_load_store(pickled), url, key)


@lru_cache(16)
def _load_store(pickled: bytes) -> Any:
    """Return a store, which keeps its connections from task to task."""
    return pickle.loads(pickled)  # noqa: S301 (of this run)


def _as_location_in_zarr_store(store: Any) -> Location:
    from zarr.abc.store import Store
    from zarr.storage import LocalStore, ObjectStore

    if isinstance(store, LocalStore):
        return LocalLocation(store.root)
    if isinstance(store, ObjectStore):
        return ObjectLocation(store.store, str(store.store), "")
    if isinstance(store, Store):
        return ZarrLocation(store)
    msg = f"{type(store).__name__}: not a location. Give a path, a URL or a Zarr store"
    raise ParameterError(msg)


def _run(coroutine: Any) -> Any:
    """Run a coroutine of Zarr; raise each error as an OSError."""
    from zarr.core.sync import sync

    try:
        return sync(coroutine)
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, str(error)) from error


async def _collect(names: Any) -> list[str]:
    return [name async for name in names]


@contextmanager
def _missing_parents_as_missing() -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), error.filename) from error
