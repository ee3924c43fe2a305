"""Golden digests: results on integer tiles stay the same to the last bit from commit to commit.

Each digest stands for the centroids, counts, inertia and labels of every k, for two chunkings.
Digests named "command" stand for `sweep.json` and the labels that the commands write for the sample
images. ``python -m tests.test_golden`` writes all digests anew, after a change that is meant to
change results.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import daskkm
from daskkm.cli import main
from tests.conftest import ROOT

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN = ROOT / "tests" / "golden.json"
CHUNKS = (997, 2000)
KS = (2, 5)
SEEDED = ("k-means++", "k-means||", "random")
DTYPES = ("uint8", "int8", "uint16", "int16")


def sample() -> NDArray[np.uint8]:
    """Return the tiles of the sample images, cut by NumPy alone: (5610, 256)."""
    sheets = [np.asarray(Image.open(path)) for path in sorted((ROOT / "images").glob("*.png"))]
    cut = [
        sheet[: sheet.shape[0] // 16 * 16, : sheet.shape[1] // 16 * 16]
        .reshape(sheet.shape[0] // 16, 16, sheet.shape[1] // 16, 16)
        .swapaxes(1, 2)
        .reshape(-1, 256)
        for sheet in sheets
    ]
    return np.concatenate(cut)


def as_dtype(tiles: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return the tiles over the range of an integer dtype."""
    shifted = tiles.astype(np.int64) * (257 if "16" in dtype else 1)
    return (shifted + np.iinfo(dtype).min).astype(dtype)


def digest(result: daskkm.SweepResult, X: da.Array) -> str:
    """Return the SHA-256 of all that a sweep found, and of the labels that it leads to."""
    found = hashlib.sha256()
    for k, model in sorted(result.models.items()):
        found.update(json.dumps([k, model.inertia_.hex(), model.n_iter_, model.restart_]).encode())
        for values in (model.cluster_centers_, model.counts_, model.predict(X).compute()):
            found.update(f"{values.dtype.str}{values.shape}".encode())
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def starts(tiles: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Return initial centroids that are given: tiles of the sample."""
    return {k: tiles[:: len(tiles) // k][:k] for k in KS}


def fit(tiles: NDArray[Any], init: str, weighted: bool, chunk: int, **options: Any) -> str:
    """Return the digest of a sweep over tiles in such chunks."""
    X = da.from_array(tiles, chunks=(chunk, -1))
    weights = np.arange(len(tiles)) % 4 if weighted else None
    start = starts(tiles) if init == "array" else init
    settings = {"n_init": 3, "random_state": 7, "sample_weight": weights, **options}
    return digest(daskkm.fit_sweep(X, KS, init=start, **settings), X)


def large(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return more tiles than are seeded in memory, none of them twice in the same place."""
    return np.concatenate([np.roll(tiles, shift, axis=1) for shift in range(7)])


def cases() -> dict[str, Any]:
    """Return the name of each case, and what gives its digest for tiles in such chunks."""
    tiles = sample()
    many = large(tiles)
    found: dict[str, Any] = {}
    for dtype, init, weighted in product(DTYPES, (*SEEDED, "array"), (False, True)):
        name = f"{dtype} {init}{' weighted' * weighted}"
        part = as_dtype(tiles[::4], dtype)
        found[name] = lambda chunk, p=part, i=init, w=weighted: fit(p, i, w, chunk)
    found["sample"] = lambda chunk: fit(tiles, "k-means++", False, chunk)
    for init, coarse in product(SEEDED, (False, True)):
        found[f"large {init}{' coarse' * coarse}"] = lambda chunk, i=init, c=coarse: fit(
            many, i, False, 10 * chunk, n_init=2, coarse=c, max_iter=5
        )
    return found


CASES = cases()


def command_digests(folder: str) -> dict[str, str]:
    """Return the digests of what the commands write for the sample images."""
    images = os.path.relpath(ROOT / "images", folder)
    before = Path.cwd()
    os.chdir(folder)  # paths are in sweep.json
    try:
        options = ["--images", images, "--store", "t.zarr", "--out", "out", "--sheet-classes"]
        args = ["sweep", *options, "--scheduler", "threads", "-q"]
        done = CliRunner().invoke(main.group, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written = {"command sweep.json": Path("out/sweep.json").read_bytes()}
        store = daskkm.open_store("t.zarr")
        for k in (3, 5):
            store.label(daskkm.load_model(f"out/{k}/model.zarr"))
            written[f"command labels {k}"] = store.labels(k).compute().tobytes()
    finally:
        os.chdir(before)
    return {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}


@pytest.mark.parametrize("name", CASES)
def test_golden_digest_of_integer_tiles_is_unchanged_for_two_chunkings(name: str) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    assert [CASES[name](chunk) for chunk in CHUNKS] == [expected] * len(CHUNKS)


def test_golden_digests_of_the_commands_are_unchanged(tmp_path: Path) -> None:
    digests = command_digests(str(tmp_path))
    golden = json.loads(GOLDEN.read_text())
    assert digests == {name: golden[name] for name in digests}
    assert golden.keys() == CASES.keys() | digests.keys()


if __name__ == "__main__":
    digests = {name: run(CHUNKS[0]) for name, run in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        digests |= command_digests(folder)
    GOLDEN.write_text(json.dumps(digests, indent=1) + "\n")
