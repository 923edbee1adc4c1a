"""How sure an answer is: what is mapped for certain, what only if something that the source does not say is so.

Certain is what remains when everything unknown turns out badly: no transparent huge pages, and memory of an unknown HVA
where no large page fits. Hugetlb memory begins at a multiple of its pages wherever it is. The difference to the
coverage is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.value import Slot
from guestmem.units import KIB

__all__ = ("Certainty", "certainty_of")


@dataclass(frozen=True, slots=True)
class Certainty:
    """Bytes mapped for certain with each size or larger, and what the rest hangs on.

    on_thp, on_hva: bytes of slots that could have the second size but for which the source does not say whether
    transparent huge pages are granted, or where they are in the host's address space.
    """

    mapped: tuple[int, ...]
    on_thp: int
    on_hva: int


def certainty_of(coverage: Coverage) -> Certainty:
    """What of a coverage is certain, and on what the rest hangs."""
    layout, host = coverage.layout, coverage.host
    worst = replace(layout, slots=tuple(map(_worst, layout.slots)))
    sure = cover(worst, replace(host, thp=False))
    on_thp = on_hva = 0
    if len(host.sizes) > 1:
        for item, least in zip(coverage.slots, sure.slots, strict=True):
            open_bytes = item.mapped[1] - least.mapped[1]
            if open_bytes and item.slot.backing.page_size < host.sizes[1] and item.slot.backing.thp is None:
                on_thp += open_bytes
            if open_bytes and item.slot.hva is None:
                on_hva += open_bytes
    return Certainty(sure.mapped, on_thp, on_hva)


def _worst(slot: Slot) -> Slot:
    """The slot as if its unknown HVA was congruent with its GPA for no large page."""
    if slot.hva is not None or slot.backing.kind == "hugetlb":
        return slot
    return replace(slot, assumed_hva=slot.gpa + 4 * KIB)
