"""The README is true: its commands, output, code and links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conftest import ROOT
from tests.documents import DOCS, README, code_blocks, shell_lines

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TEXT = README.read_text()


def test_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 130


def test_output_shown_is_the_output_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    shown = next(block for block in code_blocks(TEXT, "") if "inertia" in block).splitlines()
    command = next(line for line in shell_lines(TEXT) if "daskkm.sweep" in line)
    words = command.rpartition(" && ")[2].split()[1:]
    run = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    printed = run.stdout.splitlines()
    assert printed[:-1] == shown[:-1]
    seconds = re.compile(r"[\d.]+ s;")
    assert seconds.sub("", printed[-1]) == seconds.sub("", shown[-1])
    content = json.loads((tmp_path / "centroids" / "sweep.json").read_text())
    described = (DOCS / "reference" / "results.md").read_text()
    for key in (*content, *content["models"][0]):
        assert f"`{key}`" in described, f"{key} is not in docs/reference/results.md"


def test_python_runs_with_the_results_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").symlink_to(ROOT / "images")
    (code,) = code_blocks(TEXT, "python")
    code += "assert X.shape == (5610, 256) and X.dtype == 'uint8'\n"
    code += "assert labels.shape == (5610,) and labels.dtype == 'int32'\n"
    code += "assert labels.compute().max() == 4 and quality[5].silhouette > 0\n"
    code += "assert (daskkm.load_model('model.zarr').cluster_centers_ == "
    code += "model.cluster_centers_).all()\n"
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_gate_runs_the_test_command_of_the_readme() -> None:
    gate = ROOT / ".ci" / "run"
    find_line = gate.read_text().split("\ntests=$(")[1].split(")\n")[0]
    found = subprocess.run(
        ["bash", "-c", find_line], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() in shell_lines(TEXT)
    assert os.access(gate, os.X_OK)
