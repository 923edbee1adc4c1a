"""The mappings of a process while its mmaps are replayed: what stands behind a host-virtual address.

Ranges are disjoint; a new mapping replaces what it covers (MAP_FIXED), munmap cuts holes. Addresses are bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace

from guestmem.layout.value import Backing

__all__ = ("Mapping", "MappingTable")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Host-virtual bytes [start, end): a window on ``name`` at ``offset`` with a backing; fd is -1 for anonymous."""

    start: int
    end: int
    name: str
    offset: int
    backing: Backing
    fd: int = -1


class MappingTable:
    """Disjoint mappings, ascending."""

    def __init__(self) -> None:
        self._maps: list[Mapping] = []

    def map(self, mapping: Mapping) -> None:
        """Add a mapping over whatever was there."""
        self.unmap(mapping.start, mapping.end)
        self._maps.insert(bisect_right(self._maps, mapping.start, key=lambda item: item.start), mapping)

    def unmap(self, start: int, end: int) -> None:
        """Cut [start, end) out of every mapping."""
        first = bisect_right(self._maps, start, key=lambda item: item.end)
        last = first
        kept: list[Mapping] = []
        while last < len(self._maps) and self._maps[last].start < end:
            old = self._maps[last]
            if old.start < start:
                kept.append(replace(old, end=start))
            if old.end > end:
                kept.append(replace(old, start=end, offset=old.offset + end - old.start))
            last += 1
        self._maps[first:last] = kept

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds the address."""
        place = bisect_right(self._maps, address, key=lambda item: item.start)
        if place == 0 or self._maps[place - 1].end <= address:
            return None
        return self._maps[place - 1]
