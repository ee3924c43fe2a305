"""Draws of tiles in passes: which blocks hold the next candidates of a seeding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from daskkm import kernel, seeding
from daskkm.blocks import gathered, joined
from daskkm.seeding import Drawn, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from dask.delayed import Delayed
    from numpy.typing import NDArray

    from daskkm.seeding import Trial


def trials(
    X: da.Array,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
    *,
    weights: da.Array | None = None,
) -> Delayed:
    """Try candidates for the next centroid of each seeding, and draw the next ones, lazily.

    Parameters
    ----------
    X, weights
        As for `daskkm.blocks.statistics`.
    trials : sequence of Trial
        One a seeding.
    n_draws : int
        How many tiles to draw, without replacement, each with probability proportional to its
        weight times its squared distance to the nearest of the centroids.
    seed, step : int
        What the draws depend on, beside the place of the seeding and of the tiles.

    Returns
    -------
    Delayed tuple of Outcome
        One a seeding.
    """

    def merge(outcomes: list[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
        """Add up what the candidates leave, and keep the first of the draws."""
        return tuple(
            Outcome(
                [sum(of_one) for of_one in zip(*(o.potentials for o in blocks), strict=True)],
                [
                    joined(of_one).first(n_draws)
                    for of_one in zip(*(o.drawn for o in blocks), strict=True)
                ],
            )
            for blocks in zip(*outcomes, strict=True)
        )

    return gathered(
        _one_trials,
        X,
        weights,
        merge,
        trials=dask.delayed(list(trials), pure=True, traverse=False),
        n_draws=n_draws,
        seed=seed,
        step=step,
    )


def drawn(weights: da.Array, n: int, seed: int) -> Delayed:
    """Draw n tiles with probability proportional to their weight, lazily, from that alone.

    Parameters
    ----------
    weights : dask array of shape (n_tiles,), int64 or float64
    n, seed : int

    Returns
    -------
    Delayed list of Drawn
        Independent draws of one each; as its tile, the weight.
    """

    def merge(found: list[list[Drawn]]) -> list[Drawn]:
        return [joined(of_one).first(1) for of_one in zip(*found, strict=True)]

    return gathered(_one_drawn, weights[:, None], None, merge, n=n, seed=seed)


def _one_drawn(weights: NDArray[Any], first: int, *, n: int, seed: int) -> list[Drawn]:
    return [
        Drawn.race(
            weights, first, seeding.arrivals(seed, i, 0, first, len(weights)), weights[:, 0], 1
        )
        for i in range(n)
    ]


# What overflows is refused by the first pass that measures the tiles.
@np.errstate(over="ignore", invalid="ignore")
def _one_trials(
    tiles: NDArray[Any],
    first: int,
    weights: NDArray[Any] | None = None,
    *,
    trials: Sequence[Trial],
    n_draws: int,
    seed: int,
    step: int,
) -> tuple[Outcome, ...]:
    """Return what the candidates of each seeding leave of a block, and draw from it."""
    kind = kernel.statistics_dtype(tiles.dtype, None if weights is None else weights.dtype)
    outcomes = []
    for place, (chosen, candidates) in enumerate(trials):
        left = kernel.distances_to_all(tiles, candidates)
        if len(chosen):
            own = kernel.label_block(tiles, chosen, np.array([0, len(chosen)]))[:, 0]
            left = np.minimum(left, kernel.squared_distances(tiles, chosen, own)[:, None])
        if weights is not None:
            left *= weights[:, None]
        arrivals = seeding.arrivals(seed, place, step, first, len(tiles))
        drawn = [Drawn.race(tiles, first, arrivals, mass, n_draws) for mass in left.T]
        outcomes.append(Outcome(left.astype(kind).sum(axis=0).tolist(), drawn))
    return tuple(outcomes)
