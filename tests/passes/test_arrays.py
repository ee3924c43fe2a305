"""Blocks of arrays in memory and of mapped files: views, never copies."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskkm.errors import FitError
from daskkm.passes.arrays import MappedFile, as_arrays, in_blocks, pickling_by_reference
from daskkm.passes.runner import PassRunner
from daskkm.passes.tiles import Tiles
from tests.passes.kinds import mapped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PIXELS = np.random.default_rng(1).integers(0, 256, (60, 4), np.uint8)


def test_blocks_of_an_array_in_memory_share_its_memory() -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    runner = PassRunner(given, scheduler="threads", cache="always")
    runner.prepare(1, 1)
    for part in dask.compute(*Tiles.of(given).array.to_delayed().ravel(), scheduler="threads"):
        assert np.shares_memory(part, given)
    for block in dask.compute(*runner.blocks.to_delayed().ravel(), scheduler="threads"):
        assert np.shares_memory(block.tiles, given)


def test_block_pickled_has_its_own_rows_only(tmp_path: Path) -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    blocks = Tiles.of(given).in_blocks(1).to_delayed().ravel()
    assert len(blocks) == 4
    assert len(pickle.dumps(blocks[0].compute(scheduler="sync"))) < given.nbytes / 3
    given = mapped(given, tmp_path)
    for array in (Tiles.of(given).in_blocks(1), Tiles.of(given).array):
        assert len(cloudpickle.dumps(dict(array.dask))) < 1 << 14


def test_block_pickled_by_reference_shares_memory() -> None:
    given = np.zeros((1 << 16, 256), np.uint8)
    (block, *_) = Tiles.of(given).in_blocks(1).to_delayed().ravel()
    block = block.compute(scheduler="sync")
    with pickling_by_reference():
        sent = pickle.dumps(block)
    assert np.shares_memory(pickle.loads(sent).whole()[0], given)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        runner = PassRunner(given, cache="always")
        runner.prepare(1, 1)
        resident = client.compute(runner.blocks.to_delayed().ravel()[0]).result()
        assert np.shares_memory(resident.tiles, given)


def test_mapped_file_of_a_view_has_the_rows_of_the_view(tmp_path: Path) -> None:
    given = mapped(PIXELS, tmp_path)
    for view in (given, given[5:50], given[::2], given[:, 1:3], given[3:].view(np.int8)):
        file = MappedFile.of(view)
        assert file is not None
        np.testing.assert_array_equal(file[1 : len(view)], view[1:])
    for other in (PIXELS, given[::-1], given + np.uint8(0), given[0], given[:0], [[1]]):
        assert MappedFile.of(other) is None
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[0] = 7
    assert MappedFile.of(changed) is None
    (tmp_path / "x.npy").unlink()
    assert MappedFile.of(given) is None
    np.testing.assert_array_equal(Tiles.of(given).array.compute(), PIXELS)


def test_mapped_file_that_changed_or_is_missing_is_an_error(tmp_path: Path) -> None:
    file = MappedFile.of(mapped(PIXELS, tmp_path))
    assert file is not None
    np.save(tmp_path / "x.npy", PIXELS[:30])
    with pytest.raises(FitError, match=r"x\.npy: the file of X has changed"):
        file[0:2]
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FitError, match=r"x\.npy.*cannot be read"):
        file[0:2]


MEMORY = """
import resource, sys, dask, numpy as np, daskkm
dask.config.set(scheduler="threads", num_workers=2)
X = np.load(sys.argv[1], mmap_mode="r")
peaks = []
for part in (X[: len(X) // 20], X):
    model = daskkm.KMeans(2, max_iter=2, random_state=0, init=part[:2], n_init=1).fit(part)
    model.fitted_model.predict(part)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_fit_of_a_mapped_file_takes_no_memory_for_it(tmp_path: Path) -> None:
    tiles = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1 << 20, 160))
    tiles[::2] = 200
    tiles.flush()
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    more = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert more < tiles.nbytes / 3


@pytest.mark.parametrize("order", ["C", "F"])
def test_in_blocks_of_any_order_reads_pieces_in_the_order_of_rows(
    override_sizes: Callable[..., None], order: Any
) -> None:
    override_sizes(piece_bytes=4 * 7)
    X = in_blocks(np.asarray(PIXELS, order=order), 4 * 25, np.int16)
    assert X.chunks == ((12, 12, 12, 12, 12), (4,))
    blocks: list[Any] = list(dask.compute(*X.to_delayed().ravel(), scheduler="sync"))
    assert [len(piece) for piece in blocks[0]] == [3, 3, 3, 3]
    tiles = np.concatenate([piece for block in blocks for piece in block])
    assert tiles.dtype == np.int16
    np.testing.assert_array_equal(tiles, PIXELS)
    whole, lengths = blocks[1].whole()
    np.testing.assert_array_equal(whole, PIXELS[12:24])
    assert lengths == [3, 3, 3, 3]


def test_as_arrays_of_no_tiles_is_one_empty_block() -> None:
    assert as_arrays(PIXELS[:0]).compute(scheduler="sync").shape == (0, 4)
