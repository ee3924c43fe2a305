"""Streams of random numbers: a function of seed, purpose and tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from daskkm.passes import seeds
from daskkm.passes.seeds import Purpose, exponentials, generator, init_function_state


@given(st.integers(0, 2**40), st.lists(st.integers(0, 9), max_size=9), st.integers(0, 3))
def test_exponentials_of_any_blocks_are_those_of_the_whole(
    first: int, lengths: list[int], step: int
) -> None:
    parts, start = [], first
    for n in lengths:
        parts.append(exponentials(7, 1, step, start, n))
        start += n
    whole = exponentials(7, 1, step, first, start - first)
    np.testing.assert_array_equal(np.concatenate([*parts, []]), whole)
    assert (whole > 0).all()


def test_exponentials_are_exponential_and_their_streams_independent() -> None:
    streams = [
        exponentials(*names, 0, 200_000) for names in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for stream in streams:
        for t in (0.01, 0.5, 1, 3):  # five standard deviations
            assert np.mean(stream > t) == pytest.approx(np.exp(-t), abs=5 * 0.5 / 200_000**0.5)
    correlation = np.corrcoef([*streams, np.roll(streams[0], 1)])
    assert np.abs(correlation - np.eye(5)).max() < 5 / 200_000**0.5


def test_minus_log_is_that_of_numpy_to_12_digits() -> None:
    u = np.concatenate(
        [np.geomspace(2.0**-53, 0.999, 100_000), 1 - np.geomspace(2.0**-53, 0.1, 999)]
    )
    np.testing.assert_allclose(seeds._minus_log(u), -np.log(u), rtol=1e-12)


def test_generator_of_another_seed_purpose_or_name_is_another_stream() -> None:
    streams = [(0, Purpose.SAMPLE), (1, Purpose.SAMPLE), (0, Purpose.RESTART, 0)]
    streams += [(0, Purpose.RESTART, 1), (0, Purpose.FIRST_CENTROID, 0)]
    drawn = [float(generator(*names).random()) for names in streams]  # type: ignore[arg-type]
    assert len(set(drawn)) == len(streams)
    assert drawn == [float(generator(*names).random()) for names in streams]  # type: ignore[arg-type]


def test_init_function_state_differs_by_seed_k_and_restart() -> None:
    names = [(0, 2, 0), (1, 2, 0), (0, 3, 0), (0, 2, 1)]
    drawn = [init_function_state(*each).random_sample() for each in names]
    assert len(set(drawn)) == len(names)
    assert init_function_state(*names[0]).random_sample() == drawn[0]
