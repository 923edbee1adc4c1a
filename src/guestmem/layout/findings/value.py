"""A finding: something in a layout that loses huge mappings or that KVM refuses, with what to change.

``lost`` is what the layout loses for it now; ``gain`` is what the remedy brings back, found by computing the coverage
of the changed slots, never by estimate. Both are (page size, bytes) pairs, ascending.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.reasons import Reason
from guestmem.layout.value import Severity, Slot

__all__ = ("IDS", "SEVERITIES", "Bytes", "Finding", "gained_by", "lost_to", "remapped", "usable")

Bytes = tuple[tuple[int, int], ...]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

# id -> what it is about, for reports that list their rules (SARIF).
IDS = {
    "refused": "KVM refuses the slot",
    "no-guest-memfd": "Private pages without a guest_memfd cannot be mapped",
    "rule-refuses": "The alignment rule refuses the binding",
    "offset-not-congruent": "GPA and guest_memfd offset differ modulo the page size",
    "rule-lowers-level": "The alignment rule allows smaller mappings only",
    "hva-not-congruent": "GPA and host address differ modulo the page size",
    "odd-start": "A region starts inside a huge frame because of the size of the one before it",
    "odd-end": "A region ends inside a huge frame",
    "split": "Memory is cut where the two parts cannot both be congruent",
    "frame-shared": "Two neighbouring slots share a huge frame",
    "low-memory": "The first frames of guest-physical space are cut in pieces",
    "backing-too-small": "The pages of the host memory are too small",
    "dirty-logging": "Dirty-logged memory is mapped page by page",
    "mixed-attributes": "Private and shared pages are in one huge frame",
    "order-0": "guest_memfd hands out single pages in this kernel",
    "slots-missing": "The source does not show every slot",
    "unknown": "What can be mapped hangs on what the source does not say",
    "unused-gap": "Memory is left unused",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; ``slots`` are indexes into the layout's slots, ``id`` a key of IDS."""

    id: str
    severity: Severity
    message: str
    remedy: str
    slots: tuple[int, ...] = ()
    lost: Bytes = ()
    gain: Bytes = ()


def lost_to(coverage: Coverage, indexes: Iterable[int], *reasons: Reason) -> Bytes:
    """Bytes that these slots lose to any of the reasons, by page size."""
    sums: dict[int, int] = {}
    for index in indexes:
        for lost in coverage.slots[index].lost:
            if lost.reason in reasons:
                sums[lost.page_size] = sums.get(lost.page_size, 0) + lost.size
    return tuple(sorted(sums.items()))


def remapped(coverage: Coverage, changes: Mapping[int, Slot]) -> dict[int, tuple[int, ...]]:
    """What each slot maps once changed, by index; GPAs must be the same. The other slots do not matter for that."""
    ordered = sorted(changes)
    after = cover(coverage.layout.only(changes[index] for index in ordered), coverage.host)
    return {index: item.mapped for index, item in zip(ordered, after.slots, strict=True)}


def gained_by(coverage: Coverage, indexes: Iterable[int], after: Mapping[int, tuple[int, ...]]) -> Bytes:
    """What these slots map more when each maps ``after``, by page size above the base page."""
    found = []
    for level, size in enumerate(coverage.host.sizes):
        more = sum(after[index][level] - coverage.slots[index].mapped[level] for index in indexes)
        if level and more > 0:
            found.append((size, more))
    return tuple(found)


def usable(coverage: Coverage, slot: Slot, page_size: int) -> bool:
    """Whether the memory behind the slot, the host's or that of its file, could be mapped with such pages at all."""
    host, file = coverage.host, coverage.layout.file_of(slot)
    of_file = file.page_size or host.files.page_size if file and slot.guest_memfd and host.files.page_size else 0
    return max(host.largest(slot.backing), of_file) >= page_size
