"""How sure an answer is: what is mapped for certain, what only if something that the source does not say is so.

Certain is what remains when everything unknown turns out badly: no transparent huge pages, and memory of an unknown HVA
where no large page fits. Hugetlb memory begins at a multiple of its pages wherever it is. The difference to the
coverage is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guestmem.layout.coverage import Coverage, SlotCoverage, cover
from guestmem.layout.value import Layout, Slot
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
    least = {
        index: _least(item, host.sizes) for index, item in enumerate(coverage.slots) if _is_plain(layout, item.slot)
    }
    others = [index for index in range(len(coverage.slots)) if index not in least]
    worst = cover(layout.only(_worst(layout.slots[index]) for index in others), replace(host, thp=False))
    for index, item in zip(others, worst.slots, strict=True):
        least[index] = tuple(map(min, item.mapped, coverage.slots[index].mapped))
    on_thp = on_hva = 0
    for index, item in enumerate(coverage.slots) if len(host.sizes) > 1 else ():
        unsure = item.mapped[1] - least[index][1]
        if unsure and item.slot.backing.page_size < host.sizes[1] and item.slot.backing.thp is None:
            on_thp += unsure
        if unsure and item.slot.hva is None:
            on_hva += unsure
    sums = (sum(mapped) for mapped in zip(*least.values(), strict=True)) if least else (0 for _ in host.sizes)
    return Certainty(tuple(sums), on_thp, on_hva)


def _is_plain(layout: Layout, slot: Slot) -> bool:
    """Whether all its pages come from one mapping of the host, of which no more is known."""
    return not (slot.guest_memfd or slot.backing.huge or layout.private_in(slot.gpa, slot.end))


def _least(item: SlotCoverage, sizes: Sequence[int]) -> tuple[int, ...]:
    """What a plain slot maps at least: what pages of its backing can, where its HVA is known or a multiple of them."""
    backing, base = item.slot.backing, sizes[0]
    placed = item.slot.hva is not None or backing.kind == "hugetlb"
    return tuple(
        mapped if size == base or (placed and backing.page_size >= size) else 0
        for size, mapped in zip(sizes, item.mapped, strict=True)
    )


def _worst(slot: Slot) -> Slot:
    """The slot as if its unknown HVA was congruent with its GPA for no large page."""
    if slot.hva is not None or slot.backing.kind == "hugetlb":
        return slot
    return replace(slot, assumed_hva=slot.gpa + 4 * KIB)
