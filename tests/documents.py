"""README, documentation pages and commands, for tests that compare them."""

from __future__ import annotations

import re

import click

from daskkm.cli.main import group
from tests.conftest import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
GENERATED = DOCS / "reference" / "api"
PAGES = sorted(
    path
    for path in (*DOCS.rglob("*.md"), *DOCS.rglob("*.rst"))
    if GENERATED not in path.parents and DOCS / "_templates" not in path.parents
)

_CONTEXT = click.Context(group)
COMMANDS = {name: group.get_command(_CONTEXT, name) for name in group.list_commands(_CONTEXT)}


def flags(command: click.Command | None) -> dict[str, click.Option]:
    """Return the options of a command by each of their flags."""
    assert command is not None
    found = [param for param in command.params if isinstance(param, click.Option)]
    return {flag: option for option in found for flag in (*option.opts, *option.secondary_opts)}


def code_blocks(text: str, language: str) -> list[str]:
    """Return the code of each fenced block of a language."""
    found = re.findall(r"^```(\S*).*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def shell_lines(text: str) -> list[str]:
    """Return each line of shell in a page: of console blocks and of shell cells."""
    cells = [code for code in code_blocks(text, "{code-cell}") if "%%bash\n" in code]
    shell = [cell.partition("%%bash\n")[2] for cell in cells]
    joined = "\n".join(code_blocks(text, "console") + shell).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]
