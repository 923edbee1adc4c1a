"""KVM_SET_MEMORY_ATTRIBUTES while it is replayed: which ranges are private after the next call."""

from __future__ import annotations

from collections.abc import Iterable

from guestmem.layout.value import Range, merged

__all__ = ("with_attribute",)


def with_attribute(private: Iterable[Range], changed: Range, value: bool) -> list[Range]:
    """The private ranges after ``changed`` became private (value True) or shared.

    >>> with_attribute([Range(0, 8)], Range(2, 4), False)
    [Range(start=0, end=2), Range(start=4, end=8)]
    """
    kept = [
        part
        for run in private
        for part in (Range(run.start, min(run.end, changed.start)), Range(max(run.start, changed.end), run.end))
    ]
    return list(merged([*kept, changed] if value else kept))
