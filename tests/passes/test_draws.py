"""Draws in passes: those of the definition, in any blocks, with notes or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daskkm.passes import draws
from daskkm.passes.draws import Trial
from daskkm.passes.seeds import exponentials
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_definition(
    tiles: NDArray[Any], weights: NDArray[Any] | None, candidates: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[Any]]:
    """Return the nearest candidate of each tile (the first), its squared distance, the weight."""
    distances = reference.distances(tiles, candidates.astype(np.float64))
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
def test_rounds_in_any_blocks_draw_and_weigh_by_definition(
    seed: int, cuts: list[int], dtype: str, weighted: bool, keep: bool, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 100, (distinct, 3)).astype(dtype)[rng.integers(0, distinct, 60)]
    weights = rng.integers(0, 4, 60) if weighted else None
    chunks = tuple(np.diff([0, *sorted(cuts), 60]).tolist())
    X = da.from_array(tiles, chunks=(chunks, -1))
    lazy = None if weights is None else da.from_array(weights, chunks=(chunks,))
    with dask.config.set(scheduler="sync"):
        rounds = draws.Rounds(X, lazy, None, keep=keep, on_pass=lambda: None)
        candidates = tiles[:1]
        for step in (1, 2, 3):
            _, nearest, each = by_definition(tiles, weights, candidates)
            mass = nearest * each
            arrivals = np.full(60, np.inf)
            np.divide(exponentials(seed, 0, step, 0, 60), mass, arrivals, where=mass > 0)
            first = np.argsort(arrivals, kind="stable")[:4]
            drawn = rounds.draw(candidates, 4, seed, step)
            # No tile is drawn once all lie on a candidate, and then a pass measures nothing new.
            assert drawn.indices.tolist() == first[np.isfinite(arrivals[first])].tolist()
            np.testing.assert_array_equal(drawn.tiles, tiles[drawn.indices])
            candidates = np.concatenate([candidates, drawn.tiles])
        weight_of_each = rounds.weigh(candidates)
    labels, _, each = by_definition(tiles, weights, candidates)
    assert weight_of_each.tolist() == np.bincount(labels, each, len(candidates)).tolist()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    weighted=st.booleans(),
    n_chosen=st.integers(0, 4),
)
def test_try_candidates_in_any_blocks_measures_and_draws_by_definition(
    seed: int, cuts: list[int], dtype: str, weighted: bool, n_chosen: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 100, (60, 3)).astype(dtype)
    weights = rng.integers(0, 4, 60) if weighted else None
    chunks = tuple(np.diff([0, *sorted(cuts), 60]).tolist())
    X = da.from_array(tiles, chunks=(chunks, -1))
    lazy = None if weights is None else da.from_array(weights, chunks=(chunks,))
    picks = [rng.choice(60, n_chosen + 2, replace=False) for _ in range(2)]
    wide = tiles.astype(np.float64)
    trials = [Trial(wide[rows[:n_chosen]], wide[rows[n_chosen:]]) for rows in picks]
    outcomes = draws.try_candidates(X, trials, 3, seed, 2, weights=lazy).compute(scheduler="sync")
    for seeding, ((chosen, candidates), outcome) in enumerate(zip(trials, outcomes, strict=True)):
        times = exponentials(seed, seeding, 2, 0, 60)
        for candidate, potential, drawn in zip(candidates, *outcome, strict=True):
            mass = by_definition(tiles, weights, np.vstack([chosen, candidate]))
            mass = mass[1] * mass[2]
            assert potential == pytest.approx(mass.sum())
            arrivals = np.divide(times, mass, np.full(60, np.inf), where=mass > 0)
            first = np.argsort(arrivals, kind="stable")[:3]
            assert drawn.indices.tolist() == first[np.isfinite(arrivals[first])].tolist()
            np.testing.assert_array_equal(drawn.tiles, tiles[drawn.indices])


def test_draw_by_weight_draws_in_proportion_whatever_the_blocks() -> None:
    weights = da.from_array(np.array([0.0, 1, 4, 9, 0] * 100), chunks=500)
    drawn = draws.draw_by_weight(weights, 2000, 0).compute(scheduler="sync")
    counts = np.bincount([int(each.indices[0]) % 5 for each in drawn], minlength=5)
    np.testing.assert_allclose(counts / 2000, np.array([0, 1, 4, 9, 0]) / 14, atol=0.05)
    for chunk in (7, 33):
        again = draws.draw_by_weight(weights.rechunk(chunk), 20, 0).compute(scheduler="sync")
        assert [each.indices[0] for each in again] == [each.indices[0] for each in drawn[:20]]
