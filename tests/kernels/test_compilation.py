"""The cache of machine code: files, folders, damage, concurrent processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from daskkm.kernels import compilation
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

PRODUCTS = """
from daskkm.kernels.compilation import compile_kernel

@compile_kernel
def add_one(x):
    return x + 1
"""
KERNEL = """
from daskkm.kernels.compilation import compile_kernel
from daskkm.kernels.simd_products import add_one

@compile_kernel
def total(x):
    return add_one(x)
"""


def create_package(folder: Path) -> Path:
    """Create a package with daskkm's decorator and kernels that compile quickly."""
    package = folder / "installed" / "daskkm" / "kernels"
    package.mkdir(parents=True)
    shutil.copy(compilation.__file__, package)
    (package.parent / "__init__.py").touch()
    sources = {"__init__": "", "bounds": "", "simd_products": PRODUCTS, "assign": KERNEL}
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    return package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a package without a cache."""
    return create_package(tmp_path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a package that has run once, with four files in its cache, and its messages."""
    package = create_package(tmp_path_factory.mktemp("compiled"))
    output, errors = run(package, "print(total(1), total(2.0))")
    assert output == "2 3.0"
    assert len(machine_code(package)) == 4
    return package, errors


@pytest.fixture
def cached(compiled: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a copy of the package that has run."""
    package, _ = compiled
    shutil.copytree(package.parents[1], tmp_path / "installed")
    return tmp_path / "installed" / "daskkm" / "kernels"


def start(package: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python with the package, and with ``total`` imported."""
    places = {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}
    inherited = {name: value for name, value in os.environ.items() if name not in places}
    paths = {"PYTHONPATH": str(package.parents[1]), "HOME": str(package.parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", f"from daskkm.kernels.assign import total\n{code}"],
        cwd=package.parents[1],
        env={**inherited, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(package: Path, code: str, **environment: str) -> tuple[str, str]:
    """Run Python with the package; return standard output and standard error."""
    process = start(package, code, **environment)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    return output.strip(), errors


def machine_code(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_compile_kernel_announces_compilation_but_not_loading(
    compiled: tuple[Path, str], cached: Path
) -> None:
    _, errors = compiled
    assert errors.count("\n") == 1
    assert "kernels are compiled for this CPU, once" in errors
    # An announcement of loading would come first, and be the only one of the process.
    code = "import sys\nprint(total(1), total(2.0)); print('loaded', file=sys.stderr); total(1j)"
    output, errors = run(cached, code)
    assert output == "2 3.0"
    first, second = errors.splitlines()
    assert first == "loaded"
    assert "kernels are compiled for this CPU, once" in second


@pytest.mark.parametrize("edited", ["simd_products", "assign", "bounds"])
def test_cache_after_edit_of_any_source_is_not_used(cached: Path, edited: str) -> None:
    path = cached / f"{edited}.py"
    before = path.stat()
    changes = {"simd_products": ("x + 1", "x + 7"), "assign": ("add_one(x)", "add_one(8)")}
    path.write_text(path.read_text().replace(*changes.get(edited, ("", ""))) or "# edited\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for bytecode in cached.glob("__pycache__/*.pyc"):
        bytecode.unlink()
    output, errors = run(cached, "print(total(1))")
    assert output == {"simd_products": "8", "assign": "9", "bounds": "2"}[edited]
    assert "compiled" in errors
    assert len(machine_code(cached)) == 2  # files of other sources are deleted


def test_cache_of_several_environments_keeps_the_files_of_all(cached: Path) -> None:
    others = (
        "import sys; sys.implementation.cache_tag = 'other-1'",
        "import numba as n; n.__version__ = '9.9'",
    )
    for n_files, other in zip((6, 8), others, strict=True):
        (cached.parent / "__init__.py").write_text(other)
        assert "are compiled" in run(cached, "total(1)")[1]
        assert len(machine_code(cached)) == n_files
    (cached.parent / "__init__.py").write_text("")
    assert run(cached, "print(total(1))") == ("2", "")


def test_cache_with_damaged_files_compiles_again(cached: Path) -> None:
    files = machine_code(cached)
    for path, damage in zip(files, ("emptied", "cut", "changed", "changed"), strict=True):
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"emptied": b"", "cut": whole[:middle], "changed": flipped}[damage])
    damaged = [path.read_bytes() for path in files]
    assert run(cached, "print(total(1), total(2.0))")[0] == "2 3.0"
    assert all(path.read_bytes() != data for path, data in zip(files, damaged, strict=True))
    assert run(cached, "print(total(1), total(2.0))") == ("2 3.0", "")


def test_cache_with_read_only_package_is_in_the_home_folder(package: Path, tmp_path: Path) -> None:
    (package / "__pycache__").write_text("not a folder")
    output, errors = run(package, "print(total(1))", HOME=str(tmp_path / "home"))
    assert output == "2"
    assert errors.count("\n") == 1  # no warning
    assert machine_code(tmp_path / "home")
    assert run(package, "print(total(1))", HOME=str(tmp_path / "home")) == ("2", "")


@pytest.mark.parametrize("home", [{"HOME": "/dev/null/home"}, {"XDG_CACHE_HOME": "~"}], ids=str)
def test_cache_without_writable_folder_warns_once_and_compiles(
    package: Path, tmp_path: Path, home: dict[str, str]
) -> None:
    (package / "__pycache__").write_text("not a folder")
    output, errors = run(package, "print(total(1), total(2.0))", **home)
    assert output == "2 3.0"
    assert errors.count("UserWarning: compiled kernels: compiled in every process") == 1
    assert "Set NUMBA_CACHE_DIR" in errors
    assert not machine_code(tmp_path)


def test_cache_with_numba_cache_dir_is_there(package: Path, tmp_path: Path) -> None:
    run(package, "total(1)", NUMBA_CACHE_DIR=str(tmp_path / "named"))
    assert machine_code(tmp_path / "named")
    assert not machine_code(package)


def test_cache_on_full_disk_warns_and_leaves_no_file(package: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    output, errors = run(package, f"{limit}{ignore}print(total(1), total(2.0))")
    assert output == "2 3.0"
    assert errors.count("UserWarning") == 1
    assert "(File too large)" in errors
    assert not [path for path in package.rglob("daskkm.*") if path.is_file()]


def test_cache_of_concurrent_processes_has_the_code_of_all(package: Path) -> None:
    calls = ["total(1)", "total(2.0)", "total(1j)"]
    everyone = "print(*(f() for f in ({})))"
    processes = []
    for first in range(2):
        order = ", ".join(f"lambda: {call}" for call in calls[first:] + calls[:first])
        processes.append(start(package, everyone.format(order)))
    ended = [process.communicate(timeout=DEADLINE) for process in processes]
    expected = ["2", "3.0", "(1+1j)"]
    for first, (output, errors) in enumerate(ended):
        assert output.split() == expected[first:] + expected[:first], errors
    assert run(package, f"print({', '.join(calls)})") == (" ".join(expected), "")
