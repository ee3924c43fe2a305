"""What several test modules share."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import dask
import numpy as np
import pytest
from distributed.utils import get_mp_context
from hypothesis import HealthCheck, settings
from PIL import Image

import daskkm
from daskkm import block_sizes
from tests.forks import compile_all_kernels, forks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daskkm.storage.tile_store import TileStore
    from tests.forks import Forks

ROOT = Path(__file__).parent.parent

# Commands that tests start print a line for each pass.
os.environ["DASKKM_PROGRESS_SECONDS"] = "0"

# Workers that tests start here are forks of one process that has imported what they need, and are
# there at once; those of commands and of schedulers apart are spawned, as dask does by itself.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
get_mp_context().set_forkserver_preload(
    ["distributed", "daskkm.kmeans.sweep", "daskkm.kmeans.assessment"]
)

# How long an example takes says how busy the machine is.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Set up for several processes: compile kernels before all do so at once, and limit threads."""
    if getattr(config.option, "numprocesses", None):
        # Threads of scikit-learn and NumPy in several processes would wait for a core, spinning.
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        compile_all_kernels()


@pytest.fixture
def override_sizes() -> Iterator[Callable[..., None]]:
    """A function that changes sizes of `daskkm.block_sizes` by name until the end of the test."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(block_sizes.override(**changes))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """The sample images, ingested."""
    return daskkm.create_store(ROOT / "images", tmp_path_factory.mktemp("digits") / "tiles.zarr")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three small images of random pixels: 12 + 6 + 12 tiles of 8 x 8."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, shape in (("s_2.png", (16, 24)), ("s_10.png", (32, 24)), ("s_1.png", (24, 32))):
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def forked() -> Iterator[Forks]:
    """A process of which commands are forks."""
    with forks() as found:
        yield found
