"""A slot as a strip of cells, for pictures: what could be mapped, what the host has, what is mapped, place by place.

Each row is a string of at most CELLS characters that stand for equal shares of the slot's 2M frames: "1" for 1G, "2"
for 2M, "4" for 4K, "." for nothing. A cell shows what most of its frames are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ("CELLS", "strip_of")

CELLS = 128
_LETTERS = ".421"  # by level: nothing, 4K, 2M, 1G


def strip_of(levels: NDArray[np.int64]) -> str:
    """One row; ``levels`` has 0 to 3 for each 2M frame.

    >>> strip_of(np.array([1, 2, 2, 0]))
    '422.'
    """
    count = min(CELLS, len(levels))
    if count == len(levels):
        return "".join(_LETTERS[level] for level in levels.tolist())
    cells = np.arange(len(levels)) * count // len(levels)
    sums = np.zeros((count, len(_LETTERS)), np.int64)
    np.add.at(sums, (cells, levels), 1)
    return "".join(_LETTERS[level] for level in sums.argmax(axis=1).tolist())
