"""The README is true: its commands, options, output, code and map. So is what docs/ promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from daskkm.cli.main import group
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
CONTEXT = click.Context(group)
COMMANDS = {name: group.get_command(CONTEXT, name) for name in group.list_commands(CONTEXT)}


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


LINES = [line for block in blocks("console") for line in block.splitlines()]


def options(command: click.Command | None) -> dict[str, click.Option]:
    assert command is not None
    return {p.opts[0]: p for p in command.params if isinstance(p, click.Option)}


def test_every_option_has_help_and_is_in_the_readme() -> None:
    for name, command in COMMANDS.items():
        assert command is not None
        assert command.help, name
        for flag, option in options(command).items():
            assert option.help, f"{name} {flag}"
            assert re.search(rf"{flag}\b", README), f"{flag} is not in the README"


def test_the_table_of_options_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| (.*?) \|", README, re.MULTILINE)
    sweep = options(COMMANDS["sweep"])
    assert {flag for flag, _ in rows} == set(sweep)
    for flag, default in rows:
        value = sweep[flag].default
        if sweep[flag].is_flag:
            assert default == "off", flag
        elif isinstance(value, (int, float)):
            assert float(default) == value, flag
        elif isinstance(value, (str, Path)):
            assert default.strip("`") == str(value), flag
        elif isinstance(value, tuple):  # an option that may be given several times
            assert [default.strip("`")] == list(map(str, value)), flag
        else:  # an option that is left out
            assert default.replace("one, in", "one worker in") in str(sweep[flag].help), flag


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_one_that_exists(line: str) -> None:
    for part in line.split(" && "):
        words = part.split()
        if "daskkm" not in part:
            assert words[0] in ("python3", ".venv/bin/pip", ".venv/bin/python", "dask"), part
            continue
        module = next(word for word in words if word.startswith("daskkm."))
        known = options(COMMANDS[module.split(".")[1]])
        for word in words[words.index(module) + 1 :]:
            if word.startswith("--"):
                assert word in known, part


def test_the_output_that_is_shown_is_what_the_command_prints(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    shown = next(block for block in blocks("") if "inertia" in block).splitlines()
    run = subprocess.run(
        [sys.executable, "-m", "daskkm.sweep", "--scheduler", "local"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = run.stdout.splitlines()
    assert printed[:-1] == shown[:-1]
    seconds = re.compile(r"[\d.]+ s;")
    assert seconds.sub("", printed[-1]) == seconds.sub("", shown[-1])


def test_the_python_runs(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    (code,) = blocks("python")
    code += "assert X.shape == (5610, 256) and X.dtype == 'uint8'\n"
    code += "assert labels.compute().max() == 4\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_paths_and_links_lead_somewhere() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    mapped = re.findall(r"`((?:daskkm|tests|benchmarks|docs|images)/[^`]*)`", README)
    assert len(linked) > 3
    assert len(mapped) > 5
    for path in [*linked, *mapped]:
        assert (ROOT / path).exists(), path


def test_the_gate_runs_the_readmes_test_command() -> None:
    found = subprocess.run(
        ["bash", "-c", (ROOT / ".ci" / "run").read_text().split("\ntests=$(")[1].split(")\n")[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() in LINES
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_what_is_promised_of_faults_is_shown_by_tests_of_the_fault_suite() -> None:
    of_suite: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        whole = any(ast.unparse(line) == "pytestmark = pytest.mark.faults" for line in tree.body)
        for line in tree.body:
            if isinstance(line, ast.FunctionDef) and (
                whole or "pytest.mark.faults" in map(ast.unparse, line.decorator_list)
            ):
                of_suite.add(line.name)
    promises = (ROOT / "docs" / "reliability.md").read_text()
    assert set(re.findall(r"`(?:(?:\w+/)?test_\w+\.py)?(?:::)?(test_\w+)`", promises)) <= of_suite
