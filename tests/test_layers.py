"""Rooms of the package: imports only go down, and packages load where they are used."""

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

# From the top down: a module imports only its own room and those below.
ROOMS = ("cli", "report", "kmeans", "images", "passes", "storage", "kernels", "base")
ENTRIES = {"__init__", "__main__", "sweep", "ingest", "label", "verify"}
BASE = {"errors", "parameters", "block_sizes"}

# A store grows by `TileStore.append`, a method of a lower room that needs an upper one.
APPEND = ("storage.tile_store", "daskkm.images.ingest.append_images")

ERRORS = [name for name in vars(errors) if name.endswith("Error")]

# Packages that only some rooms import, beside the standard library and NumPy.
ONLY = {
    "click": {"cli"},
    "rich": {"cli"},
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "sklearn": {"kmeans"},
    "distributed": {"passes", "base"},
    "dask": {"cli", "kmeans", "images", "passes", "storage"},
    "zarr": {"storage"},
    "PIL": {"images", "report"},
}


def room(module: str) -> str:
    """Return the room of a module, by its dotted name within the package."""
    first = module.split(".", maxsplit=1)[0]
    return first if first in ROOMS else "entry" if first in ENTRIES else "base"


def modules() -> list[str]:
    """Return the dotted name of each module, without "daskkm"."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def imports(module: str) -> set[str]:
    """Return the names that a module imports, also those imported for types only."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_package_root_holds_entries_and_base_modules_only() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == ENTRIES | BASE


@pytest.mark.parametrize("module", [name for name in modules() if room(name) != "entry"])
def test_imports_of_a_module_go_down(module: str) -> None:
    own = ROOMS.index(room(module))
    for name in imports(module):
        if name.startswith("daskkm."):
            target = room(name.removeprefix("daskkm."))
            if (module, name) == APPEND:
                continue
            assert target == "entry" or ROOMS.index(target) >= own, f"{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_packages_are_imported_by_their_rooms_only(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module)} & ONLY.keys()
    assert [name for name in outside if room(module) not in ONLY[name]] == []


HELP = "import runpy, sys; sys.argv = ['', '--help']; runpy.run_module('{}', run_name='__main__')"
HEAVY = {"numpy", "dask", "distributed", "zarr", "numba", "sklearn", "bokeh"}


@pytest.mark.parametrize(
    "steps",
    [
        {
            "import daskkm": {"numpy", "dask", "zarr", "numba", "sklearn", "click", "PIL"},
            "from daskkm import fit_sweep, assess": {
                *("numba", "zarr", "distributed", "sklearn", "bokeh", "PIL"),
            },
            "from daskkm import KMeans, load_model": {
                *("numba", "zarr", "distributed", "bokeh", "PIL"),
            },
        },
        {
            "import daskkm; daskkm.open_store('tiles.zarr').features()": {
                *("numba", "distributed", "sklearn", "bokeh", "PIL"),
            },
            "from daskkm import open_store, create_store": {
                *("numba", "distributed", "sklearn", "bokeh"),
            },
        },
        {HELP.format("daskkm.sweep"): HEAVY, HELP.format("daskkm.label"): HEAVY},
    ],
    ids=["fits", "stores", "help"],
)
def test_import_of_a_name_loads_no_package_that_it_does_not_use(
    steps: dict[str, set[str]], digits: daskkm.TileStore
) -> None:
    """Steps of one process: each may load at least the packages that earlier steps may load."""
    code = (
        "import contextlib, sys\n"
        "for step in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit): exec(step, {})\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *steps],
        capture_output=True,
        text=True,
        check=True,
        cwd=digits.path.parent,
    )
    for loaded, (step, forbidden) in zip(run.stderr.splitlines(), steps.items(), strict=True):
        assert not forbidden & set(loaded.split()), step
        assert ("daskkm.cli.options" in loaded) == ("help" in step)


def test_errors_are_all_public() -> None:
    assert set(ERRORS) <= set(daskkm.__all__)


@pytest.mark.parametrize("name", sorted({*daskkm.__all__} - {*ERRORS} | {"DaskkmError"}))
def test_public_names_all_have_an_example(name: str) -> None:
    # The option --doctest-modules runs the examples.
    documented = inspect.getdoc(getattr(daskkm, name)) or ""
    assert "\nExamples\n--------\n" in documented
    assert ">>> " in documented
