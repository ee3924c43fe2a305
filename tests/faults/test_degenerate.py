"""Test that fits of fewer distinct tiles than clusters end soon, with finite results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest

import daskkm
from daskkm.passes.runner import PassRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.forks import Forks

pytestmark = pytest.mark.faults

DTYPES = ("uint8", "int16", "float32")
INITS = ("k-means++", "k-means||", "random")
DISTINCT = np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8)
TILES: dict[str, NDArray[np.uint8]] = {
    "one tile": DISTINCT[:1],
    "all identical": DISTINCT[:1].repeat(40, axis=0),
    "black": np.zeros((40, 5), np.uint8),
    "two distinct": DISTINCT[:2].repeat(20, axis=0),
    "three distinct, one once": DISTINCT[np.r_[0, np.ones(20, int), np.full(19, 2)]],
}


# All tiles meet each init with both samples, and each dtype with one of the inits.
@pytest.mark.parametrize(
    ("name", "dtype", "init", "sample"),
    [
        (name, DTYPES[(i + j) % 3], init, sample)
        for sample in (10, 100)  # fewer and more than all tiles
        for i, name in enumerate(TILES)
        for j, init in enumerate(INITS)
    ],
)
def test_fit_sweep_of_fewer_distinct_tiles_than_clusters_ends_soon(
    name: str, dtype: str, init: str, sample: int, override_sizes: Callable[..., None]
) -> None:
    override_sizes(sample_tiles=sample)
    tiles = TILES[name].astype(dtype)
    X = da.from_array(tiles, chunks=(7, -1))
    distinct = len(np.unique(tiles, axis=0))
    ks = [k for k in (1, 2, 3, 5, 9) if k <= len(tiles)]
    result = daskkm.fit_sweep(X, ks, n_init=2, init=init, max_iter=50, random_state=0)
    assert result.passes < 30
    for k, model in result.models.items():
        assert np.isfinite(model.cluster_centers_).all()
        assert model.counts_.sum() == len(tiles)
        assert (model.counts_ > 0).sum() == min(k, distinct)
        assert model.converged_
        assert model.n_iter_ < 20
        if k >= distinct:
            # The mean of equal floats may differ in the last bit.
            assert model.inertia_ == 0 if dtype != "float32" else model.inertia_ < 1e-6
        labels = model.predict(X).compute()
        np.testing.assert_array_equal(np.bincount(labels, minlength=k), model.counts_)
    found = daskkm.assess(X, result.models)
    for quality in found.values():
        for figure in (quality.calinski_harabasz, quality.davies_bouldin, quality.silhouette):
            assert figure is None or not np.isnan(figure)


@pytest.mark.parametrize(
    ("name", "weights", "dtype"),
    [
        (name, weights, ("uint8", "float32")[(i + j) % 2])
        for i, name in enumerate(TILES)
        for j, weights in enumerate(["fractional", "whole", "huge", "few"])
    ],
)
def test_fit_sweep_of_fewer_distinct_weighted_tiles_than_clusters_ends_soon(
    name: str, weights: str, dtype: str
) -> None:
    # The weighted mean of identical tiles may differ from the tile in the last bit.
    tiles, rng = TILES[name].astype(dtype), np.random.default_rng(2)
    of_each = {
        "fractional": rng.random(len(tiles)),
        "whole": rng.integers(1, 9, len(tiles)),
        "huge": rng.integers(10**11, 6 * 10**11, len(tiles)),
        "few": np.where(np.arange(len(tiles)) % 3, 0, rng.random(len(tiles))),
    }[weights]
    X = da.from_array(tiles, chunks=(7, -1))
    ks = [k for k in (1, 2, 3, 5, 9) if k <= (of_each > 0).sum()]
    found = daskkm.fit_sweep(X, ks, n_init=2, sample_weight=of_each, random_state=0)
    assert found.passes < 30
    for k, model in found.models.items():
        assert np.isfinite(model.cluster_centers_).all()
        assert model.converged_
        assert model.n_iter_ < 20
        filled = (model.counts_ > 0).sum()
        assert filled == min(k, len(np.unique(tiles[of_each > 0], axis=0)))
        np.testing.assert_allclose(model.counts_.sum(), of_each.sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_fit_sweep_with_empty_clusters_in_each_model_shares_their_passes(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    farthest = PassRunner.find_farthest

    def counting(self: PassRunner, stack: Any, offsets: Any, wanted: Any) -> Any:
        asked.append(tuple(wanted))
        return farthest(self, stack, offsets, wanted)

    monkeypatch.setattr(PassRunner, "find_farthest", counting)
    tiles = np.random.default_rng(1).integers(0, 200, (300, 4)).astype(dtype)
    far = {k: np.vstack([tiles[:1], np.full((k - 1, 4), 1e5)]) for k in (2, 3, 9, 40)}
    X = da.from_array(tiles, chunks=(70, -1))
    result = daskkm.fit_sweep(X, list(far), init=far, tol=0.0, max_iter=300)
    for model in result.models.values():
        assert (model.counts_ > 0).all()
        assert model.converged_
        assert model.cluster_centers_.max() < 200
    # All empty clusters after a pass share one more pass.
    assert asked[0] == (1, 2, 8, 39)
    rounds = max(model.n_iter_ for model in result.models.values())
    assert result.passes <= rounds + len(asked) + 1
    assert len(asked) <= rounds


def test_sweep_command_of_fewer_tiles_than_clusters_prints_one_line(
    tmp_path: Path, images: Path, forked: Forks
) -> None:
    args: Any = ("--scheduler", "threads", "--images", images, "--store", "t.zarr")
    assert (
        forked.run(
            *("ingest", images, "--store", "t.zarr", "--tile", "8", "--scheduler", "threads"),
            cwd=tmp_path,
        ).status
        == 0
    )
    done = forked.run("sweep", *args, "--k", "2,31", cwd=tmp_path)
    assert done.status == 1
    assert done.lines[-1] == "error: n_samples=30 should be >= n_clusters=31. Lower k"
    assert not (tmp_path / "centroids" / "2").exists()
    assert forked.run("sweep", *args, "--k", "1,30", cwd=tmp_path).status == 0
