"""How numbers of a report are written for people."""

from __future__ import annotations

from guestmem.layout.coverage import Lost
from guestmem.layout.findings.value import Bytes
from guestmem.units import format_size, size_text

__all__ = ("by_level", "gain_text", "leaves_text", "lost_text", "size_or_dash")


def by_level(sizes: tuple[int, ...], values: tuple[int, ...]) -> dict[str, int]:
    """Values by the name of their page size.

    >>> by_level((4096, 2 << 20), (3, 4))
    {'4K': 3, '2M': 4}
    """
    return {format_size(size): value for size, value in zip(sizes, values, strict=True)}


def size_or_dash(size: int) -> str:
    """A size in a column of them, where "-" is none."""
    return size_text(size) if size else "-"


def leaves_text(sizes: tuple[int, ...], leaves: tuple[int, ...]) -> str:
    """Leaves of each size, the largest first, without the sizes that have none.

    >>> leaves_text((4096, 2 << 20), (3, 4))
    '4 x 2M + 3 x 4K'
    """
    parts = [f"{count:,} x {format_size(size)}" for size, count in zip(sizes, leaves, strict=True) if count]
    return " + ".join(reversed(parts)) or "none"


def lost_text(lost: tuple[Lost, ...], page_size: int) -> str:
    """What is lost at one level: reasons with sizes, the largest first."""
    here = sorted((entry for entry in lost if entry.page_size == page_size), key=lambda entry: -entry.size)
    return ", ".join(f"{entry.reason.value.replace('_', ' ')} {size_text(entry.size)}" for entry in here)


def gain_text(gain: Bytes) -> str:
    """What a remedy brings back.

    >>> gain_text(((2 << 20, 8 << 30),))
    '8G with 2M pages'
    """
    return ", ".join(f"{format_size(size)} with {format_size(page)} pages" for page, size in gain)
