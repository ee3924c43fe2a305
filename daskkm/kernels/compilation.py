"""Compile kernels to machine code, and cache it by all that it was compiled from.

numba compares the source of the file that a function stands in, but not of those whose functions it
compiles in; its index of signatures is read, changed and written by several processes at once; and
it raises at import where no folder can be written. So a file of this cache is named for all that
decides what is in it, among that the sources of all kernels, and there is no index.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Modules whose functions are compiled.
SOURCES = ("compilation", "products", "distances", "assign", "bounds", "metric_sums")

_PACKAGE = Path(__file__).parent
_log = logging.getLogger(__name__)


# Environments that share a checkout keep files of their own.
_ENVIRONMENT = f"{sys.implementation.cache_tag}-numba-{numba.__version__}"


def _digest_sources() -> str:
    """Return a digest of all sources of kernels."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((_PACKAGE / f"{name}.py").read_bytes())
    return digest.hexdigest()


# When this module is imported, and so before those: what is edited later is not what was imported.
_DIGEST = _digest_sources()


def compile_kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function with numba when it is called, without the GIL, and cache the result.

    Parameters
    ----------
    function : callable
    **options
        Of `numba.njit`, as ``@compile_kernel(fastmath=...)``.
    """
    if function is None:
        return functools.partial(compile_kernel, **options)
    jit: Any = numba.njit  # whose types lack an option
    # Wrappers for C would be compiled too, and nothing calls them.
    dispatcher = jit(nogil=True, no_cfunc_wrapper=True, **options)(function)
    dispatcher._cache = _Cache(function)  # as `enable_caching` does
    return dispatcher


class _Cache(NullCache):
    """The cache of one function: a file for each signature and CPU, in numba's interface."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        return None if _find_folder() is None else str(_find_folder())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function, or None, and then say that it is compiled."""
        target_context.refresh()
        if (folder := _find_folder()) is not None:
            try:
                content = (folder / self._file_name(sig, target_context.codegen())).read_bytes()
            except OSError:
                content = b""
            digest, payload = content[:32], content[32:]
            if digest == hashlib.sha256(payload).digest():
                return CompileResult._rebuild(target_context, *pickle.loads(payload))  # noqa: S301
        _announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled function, whole or not at all."""
        if (folder := _find_folder()) is None:
            return
        payload = dumps(data._reduce())
        path = folder / self._file_name(sig, data.codegen)
        partial = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            partial.write_bytes(hashlib.sha256(payload).digest() + payload)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            _warn_unsaved(folder, str(error.strerror or error))
        else:
            _remove_stale(folder)

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file for a signature on a CPU."""
        key = hashlib.sha256(repr((sig, codegen.magic_tuple())).encode()).hexdigest()
        return f"{self._name}-{_ENVIRONMENT}-{_DIGEST[:16]}-{key[:32]}.nbc"


@functools.cache
def _remove_stale(folder: Path) -> None:
    """Delete this environment's files of other sources from the package's folder, once."""
    if folder == _PACKAGE / "__pycache__":
        for path in folder.glob(f"daskkm.*-{_ENVIRONMENT}-*-*.nbc"):
            if path.name.split("-")[-2] != _DIGEST[:16]:
                path.unlink(missing_ok=True)


@functools.cache
def _announce() -> None:
    """Log that compilation takes time, once in a process: each worker that compiles says so."""
    _log.warning("daskkm: kernels are compiled for this CPU, once. This takes 10 to 20 seconds.")


@functools.cache
def _warn_unsaved(folder: Path, problem: str) -> None:
    """Warn that compiled kernels could not be written, once in a process."""
    msg = f"{folder}: compiled kernels could not be cached ({problem}). They are compiled again."
    warnings.warn(msg, stacklevel=2)


def _candidate_folders() -> Iterator[Path]:
    """Yield folders that outlive a restart of the machine, best first."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen).absolute()
    yield _PACKAGE / "__pycache__"
    yield Path(AppDirs("daskkm", appauthor=False).user_cache_dir)


@functools.cache
def _find_folder() -> Path | None:
    """Return the first folder that can be written to, or None; warn unless it is a lasting one."""
    candidates = list(_candidate_folders())
    for folder in candidates:
        if folder.is_absolute() and _is_writable(folder):
            return folder
    tried = ", ".join(map(str, candidates))
    hint = f"Cannot write to {tried}; NUMBA_CACHE_DIR names another folder."
    try:
        temporary = Path(tempfile.gettempdir(), f"daskkm-{os.getuid()}")
        temporary.mkdir(mode=0o700, exist_ok=True)
        if _is_private(temporary) and _is_writable(temporary):
            warnings.warn(f"compiled kernels: cached in {temporary}. {hint}", stacklevel=2)
            return temporary
    except OSError:  # there is no folder for temporary files either
        pass
    warnings.warn(f"compiled kernels: not cached, compiled in every process. {hint}", stacklevel=2)
    return None


def _is_writable(folder: Path) -> bool:
    """Return True if a file can be made in a folder, after making the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _is_private(folder: Path) -> bool:
    """Return True if only this user can put files into a folder: what is read there is run."""
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )
