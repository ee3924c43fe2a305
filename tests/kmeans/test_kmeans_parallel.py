"""Number of candidates of k-means||."""

from __future__ import annotations

from daskkm.kmeans.kmeans_parallel import n_candidates


def test_n_candidates_is_10_k_but_no_more_than_4000_or_2_and_a_half_k() -> None:
    sizes = [n_candidates(k) for k in range(1, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[:400] == [1 + 10 * k for k in range(1, 401)]
    assert all(2.5 * k - 5 < size <= max(4001, 2.5 * k + 1) for k, size in enumerate(sizes, 1))
