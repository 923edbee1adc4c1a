"""Names for what slots are windows on: the mappings of the VMM, neighbours of one object taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guestmem.host.mappings import HostMapping

__all__ = ("NamedMemory", "region_of")


@dataclass(frozen=True, slots=True)
class NamedMemory:
    """A stretch of one object in the VMM's address space; start is the HVA of its first byte."""

    name: str
    start: int


def region_of(hva: int, mappings: Sequence[HostMapping]) -> NamedMemory:
    """The region that holds an address: mappings that touch and are of one object (madvise cuts them) are one."""
    at = next((index for index, item in enumerate(mappings) if item.start <= hva < item.end), None)
    if at is None:
        return NamedMemory("", hva)
    first = at
    while first and _continues(mappings[first - 1], mappings[first]):
        first -= 1
    start = mappings[first].start
    path = mappings[at].path.removesuffix(" (deleted)").removeprefix("/memfd:").rpartition("/")[2]
    return NamedMemory(f"{path or mappings[at].kind}@{start:x}", start)


def _continues(low: HostMapping, high: HostMapping) -> bool:
    if low.end != high.start or (low.kind, low.path, low.page_size) != (high.kind, high.path, high.page_size):
        return False
    return not low.path or low.offset + low.end - low.start == high.offset
