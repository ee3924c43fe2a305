"""The documentation is complete and true: names, flags, commands, links and promises.

The gate builds the site with warnings as errors, which checks links between pages and runs the
tutorials. These tests compare the sources with the package.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import TYPE_CHECKING

import distributed.cli.dask_scheduler as dask_scheduler
import distributed.cli.dask_worker as dask_worker
import pytest

import daskkm
from tests.conftest import ROOT
from tests.documents import COMMANDS, DOCS, PAGES, README, code_blocks, flags, shell_lines

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = [README, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *PAGES]
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read_all(paths: list[Path]) -> str:
    return "\n".join(path.read_text() for path in paths)


def sources(folder: str) -> str:
    return read_all(sorted((ROOT / folder).rglob("*.py")))


def test_reference_lists_every_public_name_once() -> None:
    api = (DOCS / "reference" / "api.rst").read_text()
    errors = (DOCS / "reference" / "errors.rst").read_text()
    listed = [
        name
        for block in api.split(".. autosummary::")[1:]
        for name in re.findall(r"^   (\w+)$", block, re.MULTILINE)
    ]
    listed += re.findall(r"^\.\. autoexception:: (\w+)$", errors, re.MULTILINE)
    assert sorted(listed) == sorted(daskkm.__all__)


@pytest.mark.parametrize("name", daskkm.__all__)
def test_docstring_names_every_parameter_and_field(name: str) -> None:
    public = getattr(daskkm, name)
    documented = inspect.getdoc(public) or ""
    expected: list[str] = []
    if dataclasses.is_dataclass(public):
        expected += [field.name for field in dataclasses.fields(public)]
    elif inspect.isfunction(public):
        expected += inspect.signature(public).parameters
    for parameter in expected:
        assert re.search(rf"^{parameter}\b.* :", documented, re.MULTILINE), parameter


def test_reference_of_commands_covers_the_whole_group() -> None:
    page = (DOCS / "reference" / "commands.rst").read_text()
    assert ".. click:: daskkm.cli.main:group" in page
    assert ":nested: full" in page
    for name, command in COMMANDS.items():
        assert command is not None
        assert command.help, name
        for flag, option in flags(command).items():
            assert option.help, f"{name} {flag}"


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_flag_in_prose_exists(path: Path) -> None:
    known = {flag for command in COMMANDS.values() for flag in flags(command)}
    known |= {"--help"}
    known |= {flag for tool in (dask_scheduler, dask_worker) for flag in flags(tool.main)}
    known |= set(re.findall(r'"(--[a-z-]+)"', sources("benchmarks")))
    assert set(FLAG.findall(path.read_text())) <= known


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_command_line_exists(path: Path) -> None:
    for line in shell_lines(path.read_text()):
        for command in re.split(r" && | \|\| ", line):
            if found := re.search(r"(?:-m daskkm\.|\bdaskkm )(\w+)(.*)", command):
                known = flags(COMMANDS[found[1]])
                assert set(FLAG.findall(found[2])) <= set(known), command


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_python_is_valid(path: Path) -> None:
    text = path.read_text()
    cells = [code for code in code_blocks(text, "{code-cell}") if "%%bash" not in code]
    for code in [*code_blocks(text, "python"), *cells]:
        ast.parse("\n".join(line for line in code.splitlines() if line[:1] not in (":", "%")))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_link_and_path_resolves(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"\W+", "-", title.lower()) for title in titles}, link
    for name in re.findall(r"`((?:daskkm|tests|benchmarks|docs|images)/[^`*{}]*)`", text):
        assert (ROOT / name.partition("::")[0]).exists(), name


def test_environment_page_lists_every_variable() -> None:
    page = (DOCS / "reference" / "environment.md").read_text()
    variables = set(re.findall(r"\bDASKKM_[A-Z_]+\b", sources("daskkm")))
    assert variables
    assert {name for name in variables if name not in page} == set()


def test_every_promise_names_a_test_of_the_fault_suite() -> None:
    suite: set[str] = set()
    located: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        whole = any(ast.unparse(line) == "pytestmark = pytest.mark.faults" for line in tree.body)
        for line in tree.body:
            if isinstance(line, ast.FunctionDef) and (
                whole or "pytest.mark.faults" in map(ast.unparse, line.decorator_list)
            ):
                suite.add(line.name)
                located.add(f"{path.relative_to(ROOT / 'tests')}::{line.name}")
    promises = (DOCS / "reliability.md").read_text()
    named = set(re.findall(r"`(?:(?:\w+/)?test_\w+\.py)?(?:::)?(test_\w+)`", promises))
    assert named
    assert named - suite == set()
    assert set(re.findall(r"`(\w+/test_\w+\.py::test_\w+)`", promises)) - located == set()
    for file in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)`", promises):
        assert (ROOT / "tests" / file).exists(), file
