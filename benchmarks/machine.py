"""The machine and the versions that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "daskkm",
    "numpy",
    "dask",
    "distributed",
    "zarr",
    "numba",
    "scikit-learn",
    "dask-ml",
    "faiss-cpu",
)
# Those that kernels choose by.
_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "asimd", "asimddp")


def describe() -> dict[str, Any]:
    """Return CPU, memory, system and versions; what is not installed is left out."""
    return {"machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    """Return the CPU's model, cores, flags of interest and the memory in GB."""
    said = _cpuinfo()
    flags = (said.get("flags") or said.get("Features") or "").split()
    return {
        "cpu": said.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
