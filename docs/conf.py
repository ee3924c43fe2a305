"""Configuration of the documentation site: ``sphinx-build -W -b html docs site``.

The build needs no network. Each tutorial runs in a temporary folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import click

project = "daskkm"
author = "The daskkm developers"
project_copyright = "2026, The daskkm developers"
release = version = importlib.metadata.version("daskkm")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_click",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
nitpicky = True
# Single backticks in docstrings are links to public names, else code. All other links must resolve.
default_role = "autolink"
nitpick_ignore_regex = [("py:obj", r"(?!daskkm\.\w+$).*")]

# Docstrings give types with shapes, so signatures omit types.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_default_options = {"members": True, "exclude-members": "set_fit_request, set_score_request"}
numpydoc_show_class_members = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# Kernels inherit the environment: paths to commands and to tutorials/prepare.py.
for name, folder in (
    ("PATH", Path(sys.executable).parent),
    ("PYTHONPATH", Path(__file__).parent / "tutorials"),
):
    os.environ[name] = os.pathsep.join(filter(None, (str(folder), os.environ.get(name))))
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress, which differs from run to run

html_theme = "pydata_sphinx_theme"
html_title = "daskkm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options: dict[str, Any] = {
    "navigation_depth": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
}

_SHELL = "%%bash\n"


def show_shell_cells_as_commands(app: Any, document: nodes.document) -> None:  # noqa: ARG001
    """Remove the first line of each shell cell, a magic of the notebook."""
    for block in document.findall(nodes.literal_block):
        source = block.astext()
        if source.startswith(_SHELL):
            block.children = [nodes.Text(source.removeprefix(_SHELL))]
            block.rawsource = source.removeprefix(_SHELL)
            block["language"] = "bash"


def describe_options(app: Any, ctx: click.Context, lines: list[str]) -> None:  # noqa: ARG001
    """Describe each option as ``--help`` does, with its default."""
    ctx.show_default = True
    ctx.help_option_names = ctx.command.context_settings["help_option_names"]
    lines.clear()
    for param in ctx.command.get_params(ctx):
        record = param.get_help_record(ctx)
        if param.param_type_name == "option" and record is not None:
            lines += [f".. option:: {record[0]}", "", f"   {record[1]}", ""]


def setup(app: Any) -> None:
    """Register the functions above."""
    app.connect("doctree-read", show_shell_cells_as_commands)
    app.connect("sphinx-click-process-options", describe_options)
