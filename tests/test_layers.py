"""Imports only go down a floor, and the commands import only what they use."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import daskkm
from daskkm import errors

PACKAGE = Path(__file__).parent.parent / "daskkm"

FLOORS = (
    ("errors", "interrupts", "locks", "paths", "chunks", "metadata", "compilation", "formats"),
    ("products", "lloyd", "seeding", "tiles", "find", "groups", "plan", "addresses", "parameters"),
    ("kernel", "places", "inputs", "rows"),
    ("spread", "scheduler", "store", "source", "bounds", "quality", "results", "report"),
    ("blocks", "cli", "writer"),
    ("draws", "model"),
    ("reader",),
    ("starts", "checkpoint"),
    ("fit",),
    ("estimator", "assessment", "progress"),
    ("ingest", "verify", "label"),
    ("sweep",),
    ("__init__", "__main__"),
)
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

# What the lower floors may know of the world, beside the standard library.
MAY_IMPORT = {
    "errors": set(),
    "interrupts": set(),
    "locks": set(),
    "paths": set(),
    "places": set(),
    "writer": {"numpy", "zarr"},
    "compilation": {"numba"},
    "products": {"llvmlite", "numba", "numpy"},
    "kernel": {"numpy"},
    "lloyd": {"numpy"},
    "chunks": {"google_crc32c", "numpy", "zarr"},
    "metadata": set(),
    "plan": set(),
    "inputs": {"dask", "numpy"},
    "rows": {"dask", "numpy"},
    "addresses": {"distributed"},
    "parameters": {"numpy"},
    "seeding": {"numpy"},
    "formats": {"numpy", "PIL"},
    "find": set(),
    "tiles": {"numpy", "PIL"},
    "groups": {"numpy", "zarr"},
    "scheduler": {"dask", "distributed", "numpy", "psutil"},
    "source": {"cloudpickle", "dask", "numpy"},
    "bounds": {"numpy"},
    "draws": {"dask", "numpy"},
    "spread": {"numpy"},
    "starts": {"dask", "numpy"},
    "cli": {"click", "dask"},
    "store": {"dask", "numpy", "zarr"},
    "blocks": {"dask", "numpy"},
    "quality": {"numpy"},
    "results": {"numpy", "PIL"},
    "report": {"numpy", "PIL"},
    "model": {"dask", "numpy"},
    "reader": {"dask", "numpy"},
    "fit": {"dask", "numpy"},
    "checkpoint": {"numpy"},
    "assessment": {"dask", "numpy"},
    "estimator": {"dask", "numpy", "sklearn"},
    "progress": {"click", "rich"},
    "ingest": {"click", "numpy"},
    "verify": {"click", "dask", "numpy", "zarr"},
    "label": {"click", "numpy"},
    "sweep": {"click"},
    "__init__": set(),
    "__main__": set(),
}


def imports(module: str) -> set[str]:
    """Every module that is imported anywhere in a file, also for its types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            if node.module == "daskkm":
                found |= {f"daskkm.{alias.name}" for alias in node.names}
            else:
                found.add(node.module or "")
    return found


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(FLOOR)


@pytest.mark.parametrize("module", FLOOR)
def test_imports_go_down(module: str) -> None:
    for name in imports(module):
        if name.startswith("daskkm."):
            target = name.split(".")[1]
            if target in FLOOR:  # __version__ and the like are no modules
                assert FLOOR[target] < FLOOR[module], f"{module} imports {target}"


@pytest.mark.parametrize("module", FLOOR)
def test_what_each_module_knows_of_the_world(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)} - {"daskkm"}
    assert outside - set(sys.stdlib_module_names) == MAY_IMPORT[module]


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import daskkm", {"numpy", "dask", "zarr", "numba", "sklearn", "click", "PIL"}),
        (
            (
                "import runpy, sys; sys.argv = ['sweep', '--help']; "
                "runpy.run_module('daskkm.sweep', run_name='__main__')"
            ),
            {"numpy", "dask", "distributed", "zarr", "numba", "sklearn", "bokeh"},
        ),
        ("from daskkm import fit_sweep", {"zarr", "distributed", "sklearn", "bokeh", "PIL"}),
        (
            (
                "import runpy, sys; sys.argv = ['label', '--help']; "
                "runpy.run_module('daskkm.label', run_name='__main__')"
            ),
            {"numpy", "dask", "distributed", "zarr", "numba", "sklearn", "bokeh"},
        ),
        ("from daskkm import open_store, ingest", {"numba", "distributed", "sklearn", "bokeh"}),
    ],
)
def test_nothing_is_imported_that_is_not_used(statement: str, forbidden: set[str]) -> None:
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules))\n{statement}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not forbidden & set(run.stdout.split())


@pytest.mark.parametrize("name", ["ingest", "label", "verify"])
def test_functions_stay_functions_whatever_is_imported(name: str) -> None:
    code = (
        f"import daskkm, daskkm.{name}; from daskkm.{name} import command; import daskkm.sweep;"
        f"print(daskkm.{name}.__name__, callable(daskkm.{name}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [name, "True"]


def test_every_error_is_public() -> None:
    found = [name for name in vars(errors) if name.endswith("Error")]
    assert set(found) <= set(daskkm.__all__)


@pytest.mark.parametrize("name", daskkm.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    """That they run is what pytest's --doctest-modules sees to."""
    documented = inspect.getdoc(getattr(daskkm, name)) or ""
    assert "\nExamples\n--------\n" in documented
    assert ">>> " in documented
