"""Streams of random numbers, one for each seed and purpose.

A draw depends on the seed of the fit, the purpose, the restart and the tile only, not on chunks or
workers. NumPy's seed sequences keep streams apart.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Purpose(IntEnum):
    """Purposes of random numbers. A new purpose must not disturb the streams of the others."""

    SAMPLE = 0
    RESTART = 1
    FIRST_CENTROID = 2
    RACE = 3
    INIT_FUNCTION = 4


def generator(seed: int, purpose: Purpose, *names: int) -> np.random.Generator:
    """Return the generator of a stream; `names` distinguish streams of one purpose."""
    return np.random.default_rng([seed, purpose, *names])


def init_function_state(seed: int, k: int, restart: int) -> np.random.RandomState:
    """Return the random state for a user's init function, of scikit-learn's type."""
    sequence = np.random.SeedSequence([seed, Purpose.INIT_FUNCTION, k, restart])
    return np.random.RandomState(sequence.generate_state(4))


def exponentials(seed: int, seeding: int, step: int, first: int, n: int) -> NDArray[np.float64]:
    """Return the exponential variates of tiles, above 0, independent of blocks.

    Parameters
    ----------
    seed, seeding, step : int
        Seed of the fit, restart and pass: each triple has a stream of its own.
    first, n : int
        Global index of the first tile, and number of tiles.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    sequence = np.random.SeedSequence([seed, Purpose.RACE, seeding, step])
    key = sequence.generate_state(2, np.uint64)
    # Philox is a function of a counter. Each count stands for four numbers.
    bits = np.random.Philox(key=key, counter=first // 4).random_raw(first % 4 + n)[first % 4 :]
    # Uniform in (0, 1): the middles of 2**52 cells.
    return _minus_log(np.asarray(((bits >> np.uint64(12)) + 0.5) * 2.0**-52, np.float64))


def _minus_log(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log(u) for u in (0, 1), to 13 digits and to the same bits on every CPU.

    NumPy's logarithm depends on the vector units of the CPU. With u = m 2**e and
    s = (1 - m) / (1 + m), at most 1/3, -log(m) = 2 (s + s**3 / 3 + s**5 / 5 + ...).
    """
    m, e = np.frexp(u)
    s = (1 - m) / (1 + m)
    square = s * s
    total = np.zeros_like(s)
    for i in range(25, 0, -2):
        total = total * square + 1 / i
    return np.asarray(2 * s * total - e * 0.6931471805599453)
