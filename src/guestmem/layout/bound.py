"""A layout as if its RAM were private: every slot of it bound to a guest_memfd, and judged under every alignment rule.

Packing "one-file" puts all RAM into one file the way the VMM packs it: regions end to end in the order of their lowest
GPA, each slot at its offset in its region. Packing "per-slot" gives every slot a file of its own, offset 0. Read-only
slots (firmware, flash) and video memory stay as they are, since a guest_memfd slot can be neither read-only nor logged;
a slot that shows bytes which another slot shows already cannot be bound a second time and stays too. HVAs count as
congruent: whoever maps the file chooses them, and no rule looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from guestmem.geometry import Geometry
from guestmem.layout.binding import FileLimits
from guestmem.layout.coverage import Coverage, HostLimits, best_possible, cover
from guestmem.layout.refusal import is_by_rule
from guestmem.layout.value import File, Layout, Range, Slot
from guestmem.layout.vmm import DISPLAY
from guestmem.rules import RULES, Rule
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES

__all__ = ("PACKINGS", "Packing", "RuleVerdict", "Verdicts", "as_bound", "judge")

Packing = Literal["one-file", "per-slot"]
PACKINGS: tuple[Packing, ...] = ("one-file", "per-slot")


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule makes of the bound slots: why it refuses each (None: accepted), and the coverage under it."""

    rule: Rule
    refusals: tuple[str | None, ...]
    coverage: Coverage

    @property
    def refused(self) -> int:
        """How many slots the rule refuses."""
        return sum(why is not None for why in self.refusals)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Every rule against one layout: the layout holds only the bound slots; best is bytes by size at the very best."""

    layout: Layout
    packing: Packing
    page_size: int
    geometry: Geometry
    best: tuple[int, ...]
    rules: tuple[RuleVerdict, ...]


def as_bound(layout: Layout, packing: Packing) -> Layout:
    """The RAM slots of the layout, bound to guest_memfds and all private."""
    chosen = list(_bindable(layout))
    bound = _packed(chosen) if packing == "one-file" else [_in_file(slot, f"slot {slot.gpa:#x}", 0) for slot in chosen]
    files = tuple(File(name) for name in dict.fromkeys(slot.file for slot in bound) if name is not None)
    private = tuple(Range(slot.gpa, slot.end) for slot in bound)
    return replace(layout, slots=tuple(bound), files=files, private=private, remarks=())


def judge(
    layout: Layout, packing: Packing, page_size: int, geometry: Geometry, rules: Sequence[Rule] = RULES
) -> Verdicts:
    """Judge the layout's RAM, bound to files made of page_size pages, under every rule."""
    bound = as_bound(layout, packing)
    found = []
    for rule in rules:
        files = FileLimits(page_size, rule)
        coverage = cover(bound, HostLimits(geometry, files=files))
        found.append(RuleVerdict(rule, tuple(_refusals(coverage)), coverage))
    best = best_possible(cover(bound, HostLimits(geometry, files=FileLimits())))
    capped = tuple(bytes_ if size <= page_size else 0 for size, bytes_ in zip(geometry.page_sizes, best, strict=True))
    return Verdicts(bound, packing, page_size, geometry, capped, tuple(found))


def _refusals(coverage: Coverage) -> Iterator[str | None]:
    """Why each slot is refused: by the rule in its own words, else by the check that KVM makes before any rule."""
    for index, slot in enumerate(coverage.layout.slots):
        refused = coverage.refused.get(index)
        if refused is None:
            yield None
        elif is_by_rule(refused):
            yield coverage.host.files.limit(slot, File(slot.file or ""), coverage.host.geometry).refusal
        else:
            yield f"KVM refuses the slot with {refused}"


def _bindable(layout: Layout) -> Iterator[Slot]:
    """RAM slots, without those that show the same bytes of a region again."""
    shown: dict[str, list[tuple[int, int]]] = {}
    for slot in layout.slots:
        if slot.readonly or slot.region == DISPLAY or slot.address_space:
            continue
        start = slot.offset or 0
        ranges = shown.setdefault(slot.name, [])
        if all(start + slot.size <= first or last <= start for first, last in ranges):
            ranges.append((start, start + slot.size))
            yield slot


def _packed(slots: list[Slot]) -> list[Slot]:
    """Regions end to end in one file, in the order in which they first appear in guest-physical space."""
    sizes: dict[str, int] = {}
    for slot in slots:
        sizes[slot.name] = max(sizes.get(slot.name, 0), (slot.offset or 0) + slot.size)
    bases, at = {}, 0
    for name, size in sizes.items():
        bases[name] = at
        at += size
    return [_in_file(slot, "ram", bases[slot.name] + (slot.offset or 0)) for slot in slots]


def _in_file(slot: Slot, file: str, offset: int) -> Slot:
    flags = (slot.flags & ~KVM_MEM_LOG_DIRTY_PAGES) | KVM_MEM_GUEST_MEMFD
    return replace(slot, file=file, offset=offset, flags=flags, region=slot.name, hva=None, assumed_hva=None)
