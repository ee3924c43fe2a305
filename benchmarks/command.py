"""The sweep of the README, start to finish, as a user runs it the second time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import data
from benchmarks.timing import Case, Outcome, interleaved

COMMAND = ["-m", "daskkm.sweep", "--scheduler", "local"]


def measure(folder: Path, *, rounds: int, n_init: int = 16) -> list[Case]:  # noqa: ARG001
    """Time the command, with the store that an earlier run left."""
    command = [*COMMAND, *(["--n-init", str(n_init)] if n_init != 16 else [])]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "images").symlink_to(data.ROOT / "images")
        path = os.pathsep.join(filter(None, (str(data.ROOT), os.environ.get("PYTHONPATH"))))

        def work() -> Outcome:
            subprocess.run(  # noqa: S603 (our own command)
                [sys.executable, *command],
                cwd=place,
                env=os.environ | {"PYTHONPATH": path},
                check=True,
                capture_output=True,
            )
            said = json.loads((place / "centroids" / "sweep.json").read_text())
            inertias = [model["inertia"] for model in said["models"]]
            return Outcome(said={"passes": said["passes"], "inertia": inertias})

        found = interleaved({"daskkm": work}, rounds, warm=rounds > 1)
    what = f"python {' '.join(command)}"
    sizes = {"tiles": len(data.digits()), "rounds": rounds, "n_init": n_init}
    where = "a new process; a scheduler and a worker in it"
    return [Case(what, where, "daskkm", found, sizes)]
