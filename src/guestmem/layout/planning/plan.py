"""A better place for every private slot: file offsets, HVA alignment and, where allowed, GPAs.

The plan binds RAM to guest_memfds made of one page size and looks, under a rule, for the offsets with the fewest
page-table leaves, then for little file space; slots that may move go up to the next GPA at which they hold the most
whole pages. What the plan brings is the coverage of the planned layout. It is not proved to be the least.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from guestmem.layout.bound import as_bound
from guestmem.layout.budget import MAX_PLANNED, within
from guestmem.layout.coverage import Coverage, HostLimits, best_possible, cover
from guestmem.layout.planning.offsets import cost_at, laid_out
from guestmem.layout.value import File, Layout, Range, Slot
from guestmem.units import align_up

__all__ = ("FilePlan", "Plan", "as_planned", "bound_now", "by_file", "hva_modulus", "make_plan")


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One guest_memfd of the plan, bytes: size is a multiple of page_size, holes are unbound below the last binding."""

    name: str
    size: int
    bound: int
    holes: int
    page_size: int

    @property
    def least(self) -> bool:
        """Whether the bound bytes alone fill so many pages; else the size is not proved to be the least."""
        return self.size == whole_pages(self.bound, self.page_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """The layout as it is bound now and as planned, both judged, and its slots one by one in the same order.

    refused are indexes of slots that the rule accepts nowhere; they keep their offset.
    """

    now: Coverage
    planned: Coverage
    slots_now: tuple[Slot, ...]
    slots_planned: tuple[Slot, ...]
    files: tuple[FilePlan, ...]
    refused: tuple[int, ...]

    @property
    def best(self) -> tuple[int, ...]:
        """Bytes by size that no offset can exceed for the planned GPAs."""
        best, page_size = best_possible(self.planned), self.planned.host.files.page_size
        sizes = self.planned.host.sizes
        return tuple(bytes_ if size <= page_size else 0 for size, bytes_ in zip(sizes, best, strict=True))

    @property
    def refused_now(self) -> int:
        """How many slots KVM would refuse as they are bound now."""
        return sum(item.mapped[0] == 0 for item in self.now.slots)


def hva_modulus(slot: Slot, host: HostLimits) -> int:
    """The largest page that the slot holds whole: its HVA should agree with its GPA modulo that."""
    whole = (size for size in host.sizes if size <= host.files.page_size and _whole(slot, size))
    return max(whole, default=host.geometry.base_page_size)


def bound_now(layout: Layout, *, one_file: bool) -> Layout:
    """The layout's private slots as they are bound, or as the VMM would pack them; one file per region or for all."""
    own = [slot for slot in layout.slots if slot.guest_memfd and slot.file is not None]
    if own and not one_file:
        private = tuple(Range(slot.gpa, slot.end) for slot in own)
        files = tuple(replace(file, page_size=0) for file in layout.files)  # the plan decides about pages
        return replace(layout, slots=tuple(own), files=files, private=private, remarks=())
    packed = as_bound(layout, "one-file")
    if one_file:
        return packed
    starts: dict[str, int] = {}
    for slot in packed.slots:
        starts[slot.name] = min(starts.get(slot.name, slot.offset or 0), slot.offset or 0)
    slots = [replace(slot, file=slot.name, offset=(slot.offset or 0) - starts[slot.name]) for slot in packed.slots]
    return replace(packed, slots=tuple(slots), files=tuple(File(name) for name in starts))


def make_plan(layout: Layout, host: HostLimits, *, movable: Collection[str] = (), one_file: bool = False) -> Plan:
    """Plan the private slots of a layout for a host whose guest_memfds have host.files.page_size pages."""
    bound = bound_now(layout, one_file=one_file)
    within(layout.source, len(bound.slots), MAX_PLANNED, "slots to plan for")
    taken = {slot.gpa for slot in bound.slots}
    fixed = [slot for slot in layout.slots if slot.gpa not in taken]
    anywhere = [replace(slot, hva=None, assumed_hva=None) for slot in bound.slots]  # the plan asks for aligned HVAs
    placed = _with_moved_gpas(anywhere, fixed, host, movable)
    slots, files = list(placed), []
    refused: set[int] = set()
    for name, members in by_file(placed).items():
        offsets = _offsets([placed[index] for index in members], host)
        for index, offset in zip(members, offsets, strict=True):
            slots[index] = replace(slots[index], offset=slots[index].offset if offset is None else offset)
        refused.update(index for index, offset in zip(members, offsets, strict=True) if offset is None)
        files.append(file_of(name or "", [slots[index] for index in members if index not in refused], host))
    planned = cover(as_planned(bound, slots, host, files), host)
    return Plan(cover(bound, host), planned, bound.slots, tuple(slots), tuple(files), tuple(sorted(refused)))


def by_file(slots: Sequence[Slot]) -> dict[str | None, list[int]]:
    """The indexes of the slots that each file has, in order."""
    found: dict[str | None, list[int]] = {}
    for index, slot in enumerate(slots):
        found.setdefault(slot.file, []).append(index)
    return found


def as_planned(bound: Layout, slots: Sequence[Slot], host: HostLimits, files: Sequence[FilePlan]) -> Layout:
    """The bound layout with other slots and files."""
    made = tuple(File(file.name, file.size, page_size=host.files.page_size) for file in files)
    private = tuple(Range(slot.gpa, slot.end) for slot in slots)
    return replace(bound, slots=tuple(slots), files=made, private=private)


def whole_pages(size: int, page_size: int) -> int:
    """The size of a file that holds so many bytes: whole pages, and one at least."""
    return max(align_up(size, page_size), page_size)


def file_of(name: str, slots: Sequence[Slot], host: HostLimits) -> FilePlan:
    """The file that holds these bindings."""
    page_size, end, bound = host.files.page_size, _end(slots), sum(slot.size for slot in slots)
    return FilePlan(name, whole_pages(end, page_size), bound, end - bound, page_size)


def _offsets(slots: Sequence[Slot], host: HostLimits) -> tuple[int | None, ...]:
    """Offsets for slots that share a file; those that they have, if others are no better or shorten a page only."""
    found = laid_out(slots, host)
    able = [(slot, replace(slot, offset=at)) for slot, at in zip(slots, found, strict=True) if at is not None]
    now, new = [slot for slot, _ in able], [slot for _, slot in able]
    ranges = sorted((slot.offset or 0, (slot.offset or 0) + slot.size) for slot in now)
    disjoint = all(low[1] <= high[0] for low, high in pairwise(ranges))
    page_size = host.files.page_size
    longer = whole_pages(_end(now), page_size) > whole_pages(_end(new), page_size)
    if longer or not disjoint or any(_cost(old, host) > _cost(better, host) for old, better in able):
        return found
    return tuple(None if at is None else slot.offset or 0 for slot, at in zip(slots, found, strict=True))


def _cost(slot: Slot, host: HostLimits) -> float:
    cost = cost_at(slot, slot.offset or 0, host)
    return inf if cost is None else cost


def _end(slots: Sequence[Slot]) -> int:
    return max(((slot.offset or 0) + slot.size for slot in slots), default=0)


def _with_moved_gpas(
    slots: list[Slot], fixed: Sequence[Slot], host: HostLimits, movable: Collection[str]
) -> list[Slot]:
    """Slots that may move, at the next free GPA where they hold more whole pages; in ascending order of GPA.

    fixed are the slots that no plan is made for (firmware, video memory), which are in the way all the same.
    """
    for index, slot in enumerate(slots):
        if slot.name not in movable:
            continue
        others = [*fixed, *(other for at, other in enumerate(slots) if at != index)]
        for page_size in reversed([size for size in host.sizes if size <= host.files.page_size]):
            if slot.size >= page_size and _whole(slot, page_size) < slot.size // page_size:
                slots[index] = slot = replace(slot, gpa=_free_gpa(slot, page_size, others))
                break
    return slots


def _whole(slot: Slot, page_size: int) -> int:
    return max(0, slot.end // page_size - -(-slot.gpa // page_size))


def _free_gpa(slot: Slot, page_size: int, others: Sequence[Slot]) -> int:
    gpa = align_up(slot.gpa, page_size)
    for other in sorted(others, key=lambda other: other.gpa):
        if gpa < other.end and other.gpa < gpa + slot.size:
            gpa = align_up(other.end, page_size)
    return gpa
