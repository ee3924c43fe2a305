"""Compile kernels to machine code, and cache the code in files.

A file's name contains a digest of the sources of all kernels, and there is no index. numba's own
cache ignores edits of other files with functions that are compiled in. Several processes may write
its index at once, and import raises if no folder is writable.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import sys
import tempfile
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

if TYPE_CHECKING:
    from collections.abc import Callable

_PACKAGE = Path(__file__).parent
_log = logging.getLogger(__name__)

# Environments that share a checkout have separate files.
_ENVIRONMENT = f"{sys.implementation.cache_tag}-numba-{numba.__version__}"

# Sources are read before kernels are imported: later edits do not run.
_SOURCES = b"".join(path.read_bytes() for path in sorted(_PACKAGE.glob("[a-z_]*.py")))
_DIGEST = hashlib.sha256(_SOURCES).hexdigest()[:16]


def compile_kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function with numba on its first call, without the GIL, and cache the result.

    Options are those of `numba.njit`, as in ``@compile_kernel(fastmath=...)``.
    """
    if function is None:
        return functools.partial(compile_kernel, **options)
    jit: Any = numba.njit  # numba's types lack an option
    # Nothing calls a wrapper for C.
    dispatcher = jit(nogil=True, no_cfunc_wrapper=True, **options)(function)
    dispatcher._cache = _Cache(function)  # as `enable_caching` does
    return dispatcher


class _Cache(NullCache):
    """The cache of one function with numba's interface: a file for each signature and CPU."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"

    @property
    def cache_path(self) -> str | None:
        return None if _find_folder() is None else str(_find_folder())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function, or announce a compilation and return None."""
        # A refresh of the context, which a compilation needs and does itself, takes half a second.
        rtsys.initialize(target_context)
        if (folder := _find_folder()) is not None:
            content = b""
            with suppress(OSError):
                content = (folder / self._file_name(sig, target_context.codegen())).read_bytes()
            digest, payload = content[:32], content[32:]
            if digest == hashlib.sha256(payload).digest():
                return CompileResult._rebuild(target_context, *pickle.loads(payload))  # noqa: S301
        _announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled function atomically."""
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
            _warn(f"not written to {folder} ({error.strerror or error}), compiled again each time.")
        else:
            _remove_stale(folder)

    def _file_name(self, sig: Any, codegen: Any) -> str:
        """Return the name of the file for a signature on a CPU."""
        key = hashlib.sha256(repr((sig, codegen.magic_tuple())).encode()).hexdigest()
        return f"{self._name}-{_ENVIRONMENT}-{_DIGEST}-{key[:32]}.nbc"


@functools.cache
def _remove_stale(folder: Path) -> None:
    """Delete files of other sources from the package's folder, once in a process."""
    if folder == _PACKAGE / "__pycache__":
        for path in folder.glob(f"daskkm.*-{_ENVIRONMENT}-*-*.nbc"):
            if path.name.split("-")[-2] != _DIGEST:
                path.unlink(missing_ok=True)


@functools.cache
def _announce() -> None:
    """Log once in a process that compilation takes time."""
    _log.warning("daskkm: kernels are compiled for this CPU, once. This takes 10 to 20 seconds.")


@functools.cache
def _warn(problem: str) -> None:
    """Warn once in a process that compiled kernels are not cached."""
    hint = "Set NUMBA_CACHE_DIR to a folder that can be written to."
    warnings.warn(f"compiled kernels: {problem} {hint}", stacklevel=2)


@functools.cache
def _find_folder() -> Path | None:
    """Return the first writable folder; if there is none, warn and return None."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    folders = [_PACKAGE / "__pycache__", Path(AppDirs("daskkm", appauthor=False).user_cache_dir)]
    folders = [Path(chosen).absolute(), *folders] if chosen else folders
    for folder in folders:
        with suppress(OSError):
            if folder.is_absolute():
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
                return folder
    tried = ", ".join(map(str, folders))
    _warn(f"compiled in every process, since {tried} cannot be written to.")
    return None
