"""Kernels against the reference, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daskkm.kernels import assign
from daskkm.kernels.distances import distances_to_all, find_nearest_two, squared_distances
from daskkm.kernels.dtypes import check_exact
from daskkm.kernels.prepared_stack import prepare_stack
from tests import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTEGERS = ("uint8", "int8", "uint16", "int16")
FLOATS = ("float32", "float64")


def extreme_values(rng: np.random.Generator, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return difficult values of a dtype: extremes, their neighbours, small numbers."""
    if dtype.kind == "f":
        scale = 10.0 ** rng.integers(-3, 4)
        return np.concatenate([[0, 1, -1], rng.normal(0, scale, 5)]).astype(dtype)
    limits = np.iinfo(dtype)
    some = rng.integers(limits.min, limits.max, 3, endpoint=True)
    return np.array([limits.min, limits.min + 1, limits.max - 1, limits.max, 0, 1, *some], dtype)


def make_tiles(rng: np.random.Generator, kind: str, n: int, d: int, dtype: str) -> NDArray[Any]:
    kind_of = np.dtype(dtype)
    values = extreme_values(rng, kind_of)
    if kind == "constant":
        return np.asarray(np.repeat(rng.choice(values, (n, 1)), d, axis=1))
    if kind == "duplicates":
        return rng.choice(values, (3, d))[rng.integers(0, 3, n)]
    if kind == "binary":
        return rng.choice(values[[0, 3]], (n, d))
    if kind == "narrow":
        steps = rng.integers(0, 3, (n, d)).astype(kind_of)
        return np.asarray(values[0] + steps, kind_of)
    return rng.choice(values, (n, d))


def make_stack(
    rng: np.random.Generator, kind: str, tiles: NDArray[Any], total: int, d: int
) -> NDArray[np.float64]:
    """Return centroids with ties and near-ties: tiles, midpoints, copies, neighbours."""
    if not len(tiles):
        return rng.normal(0, 100, (total, d))
    first = tiles[rng.integers(0, len(tiles), total)].astype(np.float64)
    second = tiles[rng.integers(0, len(tiles), total)].astype(np.float64)
    if kind == "tiles":
        return first
    if kind == "midpoints":
        return (first + second) / 2
    if kind == "copies":
        return np.repeat(first[:1], total, axis=0)
    if kind == "neighbours":
        return np.asarray((first + second) / 2 * (1 + rng.integers(-2, 3, (total, d)) * 2.0**-52))
    if kind == "close":  # near the resolution of 16-bit weights, or closer
        apart = (1 + np.abs(first).max()) * 10.0 ** rng.integers(-9, 0)
        return np.asarray(first[:1] + rng.normal(0, apart, (total, d)))
    if kind == "outside":
        return np.asarray((first - second) * rng.choice([-2, 3, 1e4], (total, 1)))
    if kind == "huge" and tiles.dtype.kind != "f":
        return np.asarray(first * 10.0 ** rng.choice([0, 20, 150, 200, 300], (total, 1)))
    return first + rng.normal(0, 1 + float(np.abs(first).mean()), (total, d))


# Both sides of the ends of the CPU's vectors and of the features transposed at once.
VECTORS = [n + off for n in (8, 16, 32, 64, 256, 512) for off in (-1, 0, 1)]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 70), st.integers(0, 200)),
    d=st.one_of(st.integers(1, 40), st.integers(1, 800), st.sampled_from(VECTORS)),
    ks=st.one_of(
        st.lists(st.integers(1, 7), min_size=1, max_size=6),
        st.lists(st.integers(1, 300), min_size=1, max_size=1),
    ),
    dtype=st.one_of(st.sampled_from(INTEGERS[:2]), st.sampled_from(INTEGERS + FLOATS)),
    tile_kind=st.sampled_from(["any", "constant", "duplicates", "binary", "narrow"]),
    stack_kind=st.sampled_from(
        ["any", "tiles", "midpoints", "copies", "neighbours", "close", "outside", "huge"]
    ),
)
def test_label_block_of_any_tiles_equals_the_reference(
    seed: int, n: int, d: int, ks: list[int], dtype: str, tile_kind: str, stack_kind: str
) -> None:
    rng = np.random.default_rng(seed)
    tiles = make_tiles(rng, tile_kind, n, d, dtype)
    stack = make_stack(rng, stack_kind, tiles, sum(ks), d)
    offsets = np.cumsum([0, *ks])

    labels = assign.label_block(tiles, stack, offsets)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, reference.labels(tiles, stack, offsets))

    statistics = assign.block_statistics(tiles, stack, offsets)
    expected = reference.statistics(tiles, stack, offsets)
    assert statistics.dtype == expected.dtype
    if np.dtype(dtype).kind == "f":
        np.testing.assert_array_equal(statistics[:, -2], expected[:, -2])
        size = np.abs(tiles.astype(np.float64)).max(initial=0)
        np.testing.assert_allclose(statistics, expected, rtol=1e-12, atol=1e-12 * n * size)
    else:
        np.testing.assert_array_equal(statistics, expected)


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [("float32", e) for e in (-44, -38, -23, -19, 0, 18, 19, 30, 37)]
    + [("float64", e) for e in (-320, -200, -162, -38, 0, 38, 150, 154, 300)],
)
def test_label_block_of_extreme_floats_equals_the_reference(dtype: str, exponent: int) -> None:
    rng = np.random.default_rng(0)
    tiles = (rng.normal(0, 1, (40, 9)) * 10.0**exponent).astype(dtype)
    stack = tiles[rng.integers(0, 40, 12)].astype(np.float64) * rng.choice([1, 0.5, 1e-3], (12, 1))
    offsets = np.array([0, 5, 12])
    np.testing.assert_array_equal(
        assign.label_block(tiles, stack, offsets), reference.labels(tiles, stack, offsets)
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "float32"])
def test_label_panel_of_random_tiles_rarely_asks_the_reference(dtype: str) -> None:
    """All other tests would pass with a bound so wide that the reference always decides."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 128, (2000, 256)).astype(dtype)
    stack = rng.integers(0, 128, (5, 256)).astype(np.float64)
    prepared = prepare_stack(tiles.dtype, stack, np.array([0, 5]))
    work, pairs = assign.allocate_workspace(tiles, prepared)
    decided = 0
    for start in range(0, 2000, 64):
        panel = tiles[start : start + 64]
        assign.label_panel(panel, prepared, work, pairs)
        leads = work.second.astype(float) - work.best.astype(float) > work.bounds
        decided += int(leads[: len(panel)].sum())
    assert decided > 0.99 * 2000


@pytest.mark.parametrize(
    ("dtype", "d", "far"),
    [
        (("uint8", "int8")[(i + j) % 2], d, far)
        for i, d in enumerate([1, 2, 33, 256, 2000, 20_001])
        for j, far in enumerate([1, 1e3, 1e9, 1e30])
    ],
)
def test_prepare_stack_of_8_bit_tiles_fits_scores_in_int32(dtype: str, d: int, far: float) -> None:
    limits = np.iinfo(dtype)
    tiles = np.array([[limits.min], [limits.max]], dtype).repeat(d, axis=1)
    tiles = np.vstack([tiles, np.where(np.arange(d) % 2, tiles[:1], tiles[1:])])
    stack = np.vstack([tiles * far, [tiles.mean(axis=0)], [np.arange(d) % 7]])
    offsets = np.array([0, 2, 5])
    prepared = prepare_stack(tiles.dtype, stack, offsets)
    weights = np.abs(prepared.weights.view(np.int16).astype(np.int64))
    peak = max(-int(limits.min), int(limits.max))
    assert (peak * weights.sum(axis=1) + np.abs(prepared.bias.astype(np.int64)) < 2**31).all()
    # The unit is as small as possible: numbers use a fourth of 16 bits or a fourth of 32.
    room = peak * weights.sum(axis=1) + np.abs(prepared.bias.astype(np.int64))
    for lo, hi in ((0, 2), (2, 5)):
        assert weights[lo:hi].max() > 2**13 or room[lo:hi].max() > 2**29 - peak * d
    np.testing.assert_array_equal(
        assign.label_block(tiles, stack, offsets), reference.labels(tiles, stack, offsets)
    )


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_prepare_stack_of_8_bit_tiles_bounds_the_error_of_scores(dtype: str) -> None:
    """Compare scores with exact ones, for a tile along the error of the weights."""
    rng = np.random.default_rng(0)
    limits, d = np.iinfo(dtype), 256
    stack = rng.uniform(limits.min, limits.max, (2, d))
    prepared = prepare_stack(np.dtype(dtype), stack, np.array([0, 2]))
    means = stack.mean(axis=0)
    whole = prepared.weights.view(np.int16).astype(float)
    unit = 2.0 ** round(float(np.log2(np.median(-2 * (stack - means) / whole))))
    off = whole - -2 * (stack - means) / unit
    tile = np.where(off[0] > off[1], limits.max, limits.min).astype(dtype)[None]
    work, pairs = assign.allocate_workspace(tile, prepared)
    assign.label_panel(tile, prepared, work, pairs)
    exact = np.square(tile - stack).sum(axis=1) / unit
    error = abs(float(work.scores[0, 0]) - float(work.scores[1, 0]) - (exact[0] - exact[1]))
    assert 0.2 * work.bounds[0] < error < work.bounds[0]


def test_block_statistics_without_avx512_equals_the_reference(tmp_path: Path) -> None:
    """Run products and sums of a CPU without AVX-512 on this one."""
    code = """
import numpy as np, llvmlite.binding
llvmlite.binding.get_host_cpu_features = llvmlite.binding.targets.FeatureMap
from daskkm.kernels import assign, simd_products
from tests import reference
assert (simd_products.LANES, simd_products.VECTORS) == (8, 2)
rng = np.random.default_rng(0)
for dtype, n, d in (("uint8", 150, 300), ("int8", 70, 33), ("uint16", 70, 41)):
    limits = np.iinfo(dtype)
    tiles = rng.integers(limits.min, limits.max, (n, d), dtype, endpoint=True)
    stack, offsets = rng.uniform(limits.min, limits.max, (12, d)), np.array([0, 5, 12])
    expected = reference.statistics(tiles, stack, offsets)
    np.testing.assert_array_equal(assign.block_statistics(tiles, stack, offsets), expected)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_label_block_of_zero_tiles_returns_empty_results(dtype: str) -> None:
    tiles = np.empty((0, 4), dtype)
    stack, offsets = np.arange(12.0).reshape(3, 4), np.array([0, 1, 3])
    assert assign.label_block(tiles, stack, offsets).shape == (0, 2)
    statistics = assign.block_statistics(tiles, stack, offsets)
    assert statistics.shape == (3, 6)
    assert not statistics.any()


def test_block_statistics_of_other_layouts_has_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 2**16, (50, 8), np.uint16)
    stack, offsets = tiles[:6] * 1.0, np.array([0, 2, 6])
    expected = assign.block_statistics(tiles, stack, offsets)
    frozen = tiles.copy()
    frozen.flags.writeable = False
    wide = np.zeros((50, 16), np.uint16)
    wide[:, ::2] = tiles
    for other in (frozen, np.asfortranarray(tiles), wide[:, ::2], tiles.astype(">u2")):
        np.testing.assert_array_equal(assign.block_statistics(other, stack, offsets), expected)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("end", ["min", "max"])
def test_block_statistics_of_many_extreme_tiles_does_not_overflow(dtype: str, end: str) -> None:
    value = int(getattr(np.iinfo(dtype), end))
    tiles = np.full((140_000, 33), value, dtype)
    statistics = assign.block_statistics(tiles, np.zeros((1, 33)), np.array([0, 1]))
    assert statistics.tolist() == [[140_000 * value] * 33 + [140_000, 140_000 * 33 * value**2]]


def test_squared_distances_of_labels_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (30, 256), np.uint8)
    centroids = rng.normal(128, 50, (4, 256))
    labels = assign.label_block(tiles, centroids, np.array([0, 4]))[:, 0]
    np.testing.assert_array_equal(
        squared_distances(tiles, centroids, labels),
        reference.distances(tiles, centroids).min(axis=1),
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(0, 20), st.integers(120, 270)),
    d=st.one_of(st.integers(1, 40), st.integers(1, 300)),
    k=st.integers(1, 40),
    dtype=st.sampled_from(INTEGERS + FLOATS),
    tile_kind=st.sampled_from(["any", "constant", "duplicates", "binary", "narrow"]),
    stack_kind=st.sampled_from(["any", "tiles", "midpoints", "neighbours"]),
)
def test_distances_to_all_of_any_tiles_equals_the_reference(
    seed: int, n: int, d: int, k: int, dtype: str, tile_kind: str, stack_kind: str
) -> None:
    rng = np.random.default_rng(seed)
    tiles = make_tiles(rng, tile_kind, n, d, dtype)
    centroids = make_stack(rng, stack_kind, tiles, k, d)
    found = distances_to_all(tiles, centroids)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, reference.distances(tiles, centroids))
    labels = rng.integers(0, k, n).astype(np.int32)
    own = squared_distances(tiles, centroids, labels)
    np.testing.assert_array_equal(own, found[np.arange(n), labels])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("d", [1, 33025, 33026])  # both sides of the limit of int32
def test_distances_to_all_between_extremes_does_not_overflow(dtype: str, d: int) -> None:
    limits = np.iinfo(dtype)
    tiles = np.array([[limits.min], [limits.max]], dtype).repeat(d, axis=1)
    widest = d * (int(limits.max) - int(limits.min)) ** 2
    found = distances_to_all(tiles, tiles.astype(np.float64))
    assert found.tolist() == [[0, widest], [widest, 0]]
    own = squared_distances(tiles, tiles.astype(np.float64), np.array([1, 1], np.int32))
    assert own.tolist() == [widest, 0]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 150),
    d=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from(INTEGERS),
)
def test_block_statistics_with_whole_weights_equals_repeated_tiles(
    seed: int, n: int, d: int, sizes: list[int], dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    tiles = make_tiles(rng, "any", n, d, dtype)
    offsets = np.cumsum([0, *sizes])
    stack = make_stack(rng, "any", tiles, int(offsets[-1]), d)
    weights = rng.integers(0, 5, n)
    found = assign.block_statistics(tiles, stack, offsets, weights=weights)
    assert found.dtype == np.int64
    repeated = assign.block_statistics(tiles.repeat(weights, axis=0), stack, offsets)
    np.testing.assert_array_equal(found, repeated)
    halves = assign.block_statistics(tiles, stack, offsets, weights=weights / 2)
    np.testing.assert_array_equal(halves[:, :-1], repeated[:, :-1] / 2)
    about = assign.block_statistics(tiles.astype(np.float64), stack, offsets, weights=weights)
    np.testing.assert_allclose(halves[:, -1], about[:, -1] / 2, rtol=1e-12)


def test_block_statistics_with_huge_weights_raises_overflow_error() -> None:
    tiles, stack = np.full((2, 1), 255, np.uint8), np.zeros((1, 1))
    limit = (2**63 - 1) // 255**2 // 2
    offsets = np.array([0, 1])
    assign.block_statistics(tiles, stack, offsets, weights=np.array([limit, limit]))
    with pytest.raises(OverflowError, match="Use at most"):
        assign.block_statistics(tiles, stack, offsets, weights=np.array([limit, limit + 2]))


def test_find_nearest_two_with_ties_returns_the_first() -> None:
    distances = np.array([[3.0, 1, 1, 0.5], [2, 2, 2, 2], [5, 4, 9, 8], [0, 7, 8, 9]])
    found = find_nearest_two(distances)
    assert [part.tolist() for part in found] == [[3, 0, 1, 0], [0.5, 2, 4, 0], [1, 2, 5, 7]]
    _, own, other = find_nearest_two(distances[:, :1])
    assert (own.tolist(), other.tolist()) == ([3, 2, 5, 0], [np.inf] * 4)


def test_distances_to_all_of_nan_and_infinity_equals_the_reference() -> None:
    tiles = np.array([[np.inf, 1, 2], [np.nan, 1, 2], [1e200, 1, 2], [-0.0, 0, 0]])
    centroids = np.array([[0.0, 0, 0], [np.inf, 1, 1]])
    np.testing.assert_array_equal(
        distances_to_all(tiles, centroids), reference.distances(tiles, centroids)
    )


def test_distances_to_all_of_other_shape_raises_value_error() -> None:
    with pytest.raises(ValueError, match="does not match centroids"):
        distances_to_all(np.zeros((2, 2), np.uint8), np.zeros((1, 3)))


def test_check_exact_of_many_16_bit_tiles_raises_overflow_error() -> None:
    check_exact(10**9, 256, np.dtype("uint8"))
    check_exact(10**9, 256, np.dtype("float32"))
    check_exact(8_388_000, 256, np.dtype("uint16"))
    with pytest.raises(OverflowError, match="Use at most 8388"):
        check_exact(10**9, 256, np.dtype("uint16"))


@pytest.mark.parametrize("dtype", ["int32", "float16", "complex128", "bool", "U3"])
def test_label_block_of_unsupported_dtype_raises_type_error(dtype: str) -> None:
    with pytest.raises(TypeError, match="Convert to one of uint8"):
        assign.label_block(np.zeros((2, 2), dtype), np.zeros((1, 2)), np.array([0, 1]))


@pytest.mark.parametrize(
    ("shape", "offsets"), [((1, 3), [0, 1]), ((1, 2), [0, 2]), ((2, 2), [0, 0, 2]), ((2, 2), [1])]
)
def test_label_block_of_mismatched_shapes_raises_value_error(
    shape: tuple[int, int], offsets: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"match centroids|do not divide"):
        assign.label_block(np.zeros((2, 2), np.uint8), np.zeros(shape), np.array(offsets))
