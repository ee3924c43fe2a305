"""Tiles that stay in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from daskkm import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# Of each tile and model.
BOUND_BYTES = 8


class Resident:
    """A block of tiles that stays in a worker's memory from pass to pass."""

    def __init__(self, tiles: NDArray[Any]) -> None:
        self.tiles = tiles

    @classmethod
    def of(cls, block: Any) -> Self:
        """Make one of a block: an array, or what reads itself as one."""
        return cls(block if isinstance(block, np.ndarray) else block.whole())

    def __iter__(self) -> Iterator[NDArray[Any]]:
        yield self.tiles

    def __sizeof__(self) -> int:
        return self.tiles.nbytes

    def statistics(
        self,
        stack: NDArray[np.float64],
        offsets: NDArray[np.intp],
        models: Sequence[int],
    ) -> NDArray[Any]:
        """Return the block's statistics."""
        return kernel.block_statistics(self.tiles, stack, offsets)
