"""Cached blocks: bounds change no bit and save most of the work."""

from __future__ import annotations

import pickle
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daskkm.kernels import assign
from daskkm.kernels.bounds import CachedBlock
from daskkm.kernels.statistics import Statistics
from daskkm.kmeans import lloyd
from tests import reference
from tests.kernels.test_assign import INTEGERS, make_stack, make_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskkm.storage.tile_store import TileStore


def move(
    rng: np.random.Generator, kind: str, tiles: NDArray[Any], stack: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return moved centroids: hardly moved, moved far away, exchanged."""
    if kind == "still":
        return stack.copy()
    if kind == "swap":
        return stack[rng.permutation(len(stack))]
    if kind == "one":
        one = stack.copy()
        one[rng.integers(len(stack))] += rng.normal(0, 3, stack.shape[1])
        return one
    if kind == "jump":
        return make_stack(rng, "any", tiles, *stack.shape)
    scale = {"hair": 1e-13, "little": 1e-2, "some": 3.0}[kind]
    return np.asarray(stack + rng.normal(0, scale, stack.shape))


@settings(max_examples=75, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 200),
    d=st.one_of(st.integers(1, 20), st.integers(1, 300)),
    ks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from(INTEGERS),
    tile_kind=st.sampled_from(["any", "constant", "duplicates", "binary", "narrow"]),
    stack_kind=st.sampled_from(["any", "tiles", "midpoints", "copies", "neighbours"]),
    moves=st.lists(
        st.sampled_from(["still", "hair", "little", "some", "one", "swap", "jump"]), max_size=8
    ),
)
def test_cached_block_after_any_moves_equals_the_reference(
    seed: int,
    n: int,
    d: int,
    ks: list[int],
    dtype: str,
    tile_kind: str,
    stack_kind: str,
    moves: list[str],
) -> None:
    rng = np.random.default_rng(seed)
    tiles = make_tiles(rng, tile_kind, n, d, dtype)
    block = CachedBlock(tiles)
    stacks = [make_stack(rng, stack_kind, tiles, k, d) for k in ks]
    models = list(range(len(ks)))
    for kind in ["still", *moves]:
        stacks = [move(rng, kind, tiles, stack) for stack in stacks]
        if len(models) > 1 and rng.random() < 0.2:  # one model is done
            del models[(gone := int(rng.integers(len(models))))], stacks[gone]
        stack, offsets = np.concatenate(stacks), np.cumsum([0, *map(len, stacks)])
        found = block.statistics(stack, offsets, models)
        np.testing.assert_array_equal(found, reference.statistics(tiles, stack, offsets))
        # The caller may change the result.
        found[:] = -1


@pytest.mark.parametrize("k", [2, 5, 150])
def test_cached_block_in_a_fit_gives_the_same_steps(digits: TileStore, k: int) -> None:
    tiles = digits.features().compute()[:1000]
    block = CachedBlock(tiles)

    def plain(stack: NDArray[Any], offsets: NDArray[Any], models: Any) -> Statistics:
        return Statistics(assign.block_statistics(tiles, stack, offsets))

    def bounded(stack: NDArray[Any], offsets: NDArray[Any], models: Any) -> Statistics:
        return Statistics(block.statistics(stack, offsets, models))

    fits: list[list[Statistics]] = [[], []]
    for measure, fit in zip((plain, bounded), fits, strict=True):
        lloyd.iterate(
            [tiles[:k] * 1.0],
            measure,
            lambda *_: [],
            max_iter=30,
            tol=0,
            on_steps=lambda steps, fit=fit: fit.append(steps[0].statistics),  # type: ignore[misc]
        )
    assert len(fits[0]) == len(fits[1]) > 3
    for one, other in zip(*fits, strict=True):
        np.testing.assert_array_equal(one.table, other.table)


def test_cached_block_with_large_gaps_does_not_read_tiles_again(digits: TileStore) -> None:
    tiles = digits.features().compute()
    stack, offsets = tiles[::1200] * 1.0, np.array([0, 5])
    tiles = tiles.copy()
    block = CachedBlock(tiles)
    first = block.statistics(stack, offsets, [0])
    assert block._last_pass is not None
    safe = block._last_pass.gaps[0] > 1e5
    assert safe.mean() > 0.5
    tiles[safe] = 0  # if they were read, the statistics would change
    np.testing.assert_array_equal(block.statistics(stack + 1e-3, offsets, [0]), first)


def test_cached_block_with_other_models_or_pickled_has_the_same_bits(digits: TileStore) -> None:
    tiles = digits.features().compute()[:600]
    block = CachedBlock(tiles)
    stack, offsets = tiles[::50][:12] * 1.0, np.array([0, 5, 12])
    expected = assign.block_statistics(tiles, stack, offsets)
    # New models, of other sizes, in another order; a block sent to another process.
    for models in ([0, 1], [1, 2], [3, 4]):
        np.testing.assert_array_equal(block.statistics(stack, offsets, models), expected)
    reordered = block.statistics(stack[[*range(5, 12), *range(5)]], np.array([0, 7, 12]), [4, 3])
    np.testing.assert_array_equal(reordered[7:], expected[:5])
    sent = pickle.loads(pickle.dumps(block))
    assert len(pickle.dumps(block)) < tiles.nbytes + 1000
    np.testing.assert_array_equal(sent.statistics(stack, offsets, [3, 4]), expected)


def test_cached_block_with_huge_centroids_equals_the_kernel(digits: TileStore) -> None:
    tiles = digits.features().compute()[:200]
    block = CachedBlock(tiles)
    for size in (1e300, 1.0, 1e160, 1.0):
        stack = tiles[:4] * size
        np.testing.assert_array_equal(
            block.statistics(stack, np.array([0, 4]), [0]),
            assign.block_statistics(tiles, stack, np.array([0, 4])),
        )


def exact_gaps(
    tiles: NDArray[Any], stack: NDArray[np.float64], labels: NDArray[Any]
) -> list[Fraction]:
    """Return the squared distance to the nearest other centroid minus that to the own, exactly."""
    gaps = []
    for tile, own in zip(tiles.tolist(), labels.tolist(), strict=True):
        distances = [
            sum((x - Fraction(c)) ** 2 for x, c in zip(tile, centroid, strict=True))
            for centroid in stack.tolist()
        ]
        gaps.append(min(d - distances[own] for j, d in enumerate(distances) if j != own))
    return [Fraction(gap) for gap in gaps]


@settings(max_examples=75, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(1, 3),
    k=st.integers(2, 4),
    dtype=st.sampled_from(INTEGERS),
    kind=st.sampled_from(["hop", "noise", "drift", "hair"]),
    alike=st.booleans(),
)
def test_cached_block_bound_never_exceeds_the_exact_gap(
    seed: int, d: int, k: int, dtype: str, kind: str, alike: bool
) -> None:
    """Compare in exact fractions, whatever kernel, reference and bounds round."""
    rng = np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    tiles = rng.integers(limits.min, limits.max, (6, d), endpoint=True).astype(dtype)
    stack = tiles[rng.integers(0, 6, k)] + rng.normal(0, rng.choice([1e-6, 1, 100]), (k, d))
    if alike:
        stack[1:] = stack[0] + rng.normal(0, 1e-9, (k - 1, d))
    block, step, middle = CachedBlock(tiles), rng.normal(0, 100, (k, d)), tiles.mean(axis=0)
    for _ in range(6):
        block.statistics(stack, np.array([0, k]), [0])
        assert block._last_pass is not None
        (bounds,), (labels,) = block._last_pass.gaps, block._last_pass.labels
        for bound, gap in zip(bounds.tolist(), exact_gaps(tiles, stack, labels), strict=True):
            assert bound == -np.inf or Fraction(bound) <= gap
        stack = {
            "hop": 2 * middle - stack,
            "noise": stack + rng.normal(0, rng.choice([1e-3, 1, 100]), (k, d)),
            "drift": stack + step,
            "hair": stack + rng.normal(0, 1e-12, (k, d)) * np.abs(stack),
        }[kind]


def test_cached_block_after_200_adverse_moves_keeps_valid_bounds() -> None:
    """Centroids hop over the middle: rounding scales with c, not with the sum that cancels."""
    tiles = np.full((8, 1), 40_000, np.uint16)
    rng = np.random.default_rng(0)
    block, stack = CachedBlock(tiles), np.array([[60_000.0], [20_000.0 - 1e-7]])
    for side in [1, -1] * 100:
        tried = 40_000 + side * (20_000 + rng.uniform(-1e-3, 1e-3, (200, 1, 1)) + [[0], [1e-7]])
        tried[:, 1] = 80_000 - tried[:, 1]
        # The move whose rounding would raise the bound most.
        changes = ((tried - stack) * (tried + stack - 80_000.0)).sum(axis=2)
        exact = [
            float(
                sum(
                    s * ((Fraction(c) - 40_000) ** 2 - (Fraction(b) - 40_000) ** 2)
                    for s, c, b in zip(
                        (1, -1), new[:, 0].tolist(), stack[:, 0].tolist(), strict=True
                    )
                )
            )
            for new in tried
        ]
        stack = tried[np.argmin(changes[:, 0] - changes[:, 1] - exact)]
        block.statistics(stack, np.array([0, 2]), [0])
        assert block._last_pass is not None
        (bounds,), (labels,) = block._last_pass.gaps, block._last_pass.labels
        (gap, *_) = exact_gaps(tiles[:1], stack, labels[:1])
        assert bounds[0] == -np.inf or Fraction(float(bounds[0])) <= gap


def test_cached_block_with_200_and_1_centroids_equals_the_kernel(digits: TileStore) -> None:
    tiles = digits.features().compute()[:800]
    block, rng = CachedBlock(tiles), np.random.default_rng(0)
    offsets = np.array([0, 200, 201])
    stack = tiles[rng.permutation(800)[:201]] * 1.0
    for scale in (0, 1, 0.1, 20, 1e-3):
        stack = stack + rng.normal(0, scale, stack.shape)
        np.testing.assert_array_equal(
            block.statistics(stack, offsets, [0, 1]),
            assign.block_statistics(tiles, stack, offsets),
        )
    # One centroid leaves nothing to measure again.
    assert block._last_pass is not None
    assert (block._last_pass.gaps[1] > 1e37).all()
