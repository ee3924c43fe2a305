"""Prepare the folder and the kernel of a tutorial: ``%load_ext prepare``.

The sample images appear as ``images``, as in a clone. Shell cells print the output in one piece,
unlike the magic of IPython.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def bash(line: str, cell: str) -> None:  # noqa: ARG001
    """Run a cell by bash, print its standard output, and fail with its status."""
    command = ["bash", "-c", cell]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(run.stdout, end="")


def load_ipython_extension(shell: Any) -> None:
    """Register the magic of shell cells and link the sample images."""
    shell.register_magic_function(bash, "cell")
    Path("images").symlink_to(Path(__file__).parents[2] / "images")
