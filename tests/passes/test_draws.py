"""Rounds of k-means||: the same draws from notes of any blocks, or from none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from daskkm.passes.reader import Reader, made_all
from hypothesis import given, settings
from hypothesis import strategies as st

from daskkm.kernels import assign
from daskkm.kmeans import seeding
from daskkm.kmeans.init import Settings, starts
from daskkm.passes import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_definition(
    tiles: NDArray[Any], weights: NDArray[Any] | None, candidates: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[Any]]:
    """Of each tile the first of the nearest candidates, its squared distance, and the weight."""
    wide = candidates.astype(np.float64)
    distances = np.square(tiles.astype(np.float64)[:, None] - wide).sum(axis=2)
    each = np.ones(len(tiles), int) if weights is None else weights
    return distances.argmin(axis=1), distances.min(axis=1), each


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    weighted=st.booleans(),
    keep=st.booleans(),
    distinct=st.integers(1, 60),
)
def test_rounds_draw_and_weigh_by_definition(
    seed: int, cuts: list[int], dtype: str, weighted: bool, keep: bool, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 100, (distinct, 3)).astype(dtype)[rng.integers(0, distinct, 60)]
    weights = rng.integers(0, 4, 60) if weighted else None
    chunks = tuple(np.diff([0, *sorted(cuts), 60]).tolist())
    X = da.from_array(tiles, chunks=(chunks, -1))
    lazy = None if weights is None else da.from_array(weights, chunks=(chunks,))
    with dask.config.set(scheduler="sync"):
        rounds = draws.Rounds(X, lazy, None, keep=keep)
        candidates = tiles[:1]
        for step in (1, 2, 3):
            _, nearest, each = by_definition(tiles, weights, candidates)
            mass = nearest * each
            arrivals = np.full(60, np.inf)
            np.divide(seeding.arrivals(seed, 0, step, 0, 60), mass, arrivals, where=mass > 0)
            first = np.argsort(arrivals, kind="stable")[:4]
            drawn = rounds.draw(candidates, 4, seed, step)
            # Once all tiles lie on a candidate, none are drawn, and a pass measures nothing new.
            assert drawn.indices.tolist() == first[np.isfinite(arrivals[first])].tolist()
            np.testing.assert_array_equal(drawn.tiles, tiles[drawn.indices])
            candidates = np.concatenate([candidates, drawn.tiles])
        found, left = rounds.weigh(candidates)
    labels, nearest, each = by_definition(tiles, weights, candidates)
    assert found.tolist() == np.bincount(labels, each, len(candidates)).tolist()
    assert left == pytest.approx(nearest @ each)


@pytest.mark.parametrize("k", [2, 7])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_each_candidate_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, k: int, dtype: str
) -> None:
    measured = []
    label_block = assign.label_block

    def counting(tiles: NDArray[Any], stack: NDArray[Any], *args: Any) -> NDArray[Any]:
        measured.append(len(tiles) * len(stack))
        return label_block(tiles, stack, *args)

    monkeypatch.setattr("daskkm.passes.draws.assign.label_block", counting)
    tiles = np.random.default_rng(0).integers(0, 256, (400, 3)).astype(dtype)
    call = Settings.checked([k], 1, "k-means||", 5, 0, 0, coarse=False)
    with dask.config.set(scheduler="sync"):
        reader = Reader(da.from_array(tiles, chunks=(100, -1)))
        reader.prepare(*call.most(reader))
        passes = starts(reader, call)
        done = next(done for done in passes if getattr(done.seeding, "weights", None) is not None)
        assert sum(measured) == 400 * seeding.pool_size(k)
        assert len(made_all(passes)) == 1
    assert done.number == 7


def test_a_pool_costs_no_more_than_is_said() -> None:
    sizes = [seeding.pool_size(k) for k in range(1, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[:400] == [1 + 10 * k for k in range(1, 401)]
    assert all(2.5 * k - 5 < size <= max(4001, 2.5 * k + 1) for k, size in enumerate(sizes, 1))
