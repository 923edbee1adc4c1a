"""A better place for every private slot: file offsets, HVA alignment and, where allowed, GPAs.

The plan binds RAM to guest_memfds made of one page size and finds, under a rule, the offsets with the fewest page-table
leaves and the least file space; slots that may move go up to the next GPA at which they hold the most whole pages. What
the plan calls optimal is so among all offsets for the given GPAs, and is compared with exhaustive search in the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from guestmem.layout.bound import as_bound
from guestmem.layout.coverage import Coverage, HostLimits, best_possible, cover
from guestmem.layout.planning.offsets import Choice, best_choice
from guestmem.layout.planning.packing import pack
from guestmem.layout.value import File, Layout, Range, Slot
from guestmem.units import align_up

__all__ = ("FilePlan", "Plan", "as_planned", "bound_now", "hva_modulus", "make_plan")


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One guest_memfd of the plan, bytes: size is a multiple of its page, holes are unbound below the last binding."""

    name: str
    size: int
    bound: int
    holes: int
    optimal: bool


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
    slots = [
        replace(slot, file=slot.name, offset=(slot.offset or 0) - starts[slot.name]) for slot in packed.slots
    ]
    return replace(packed, slots=tuple(slots), files=tuple(File(name) for name in starts))


def make_plan(layout: Layout, host: HostLimits, *, movable: Collection[str] = (), one_file: bool = False) -> Plan:
    """Plan the private slots of a layout for a host whose guest_memfds have host.files.page_size pages."""
    bound = bound_now(layout, one_file=one_file)
    fixed = [slot for slot in layout.slots if not any(slot.gpa == one.gpa for one in bound.slots)]
    placed = _with_moved_gpas(list(bound.slots), fixed, host, movable)
    choices = [best_choice(slot, host) for slot in placed]
    refused = tuple(index for index, choice in enumerate(choices) if choice is None)
    files, slots = [], list(placed)
    for name in dict.fromkeys(slot.file for slot in placed):
        members = [index for index, slot in enumerate(placed) if slot.file == name and choices[index] is not None]
        file, offsets = _plan_file(name or "", [choice for index in members if (choice := choices[index])], host)
        files.append(file)
        for index, offset in zip(members, offsets, strict=True):
            slots[index] = replace(slots[index], offset=offset)
    planned = cover(as_planned(bound, slots, host, files), host)
    return Plan(cover(bound, host), planned, bound.slots, tuple(slots), tuple(files), refused)


def as_planned(bound: Layout, slots: Sequence[Slot], host: HostLimits, files: Sequence[FilePlan]) -> Layout:
    """The bound layout with other slots and files."""
    made = tuple(File(file.name, file.size, page_size=host.files.page_size) for file in files)
    private = tuple(Range(slot.gpa, slot.end) for slot in slots)
    return replace(bound, slots=tuple(slots), files=made, private=private)


def _plan_file(name: str, choices: list[Choice], host: HostLimits) -> tuple[FilePlan, tuple[int, ...]]:
    page_size = host.files.page_size
    packed = pack(choices)
    offsets, end = packed.offsets, packed.end
    own = _own_offsets(choices)
    if own is not None and align_up(own[1], page_size) <= align_up(end, page_size):  # as good: nothing has to change
        offsets, end = own
    bound = sum(choice.slot.size for choice in choices)
    return FilePlan(name, max(align_up(end, page_size), page_size), bound, end - bound, packed.optimal), offsets


def _own_offsets(choices: Sequence[Choice]) -> tuple[tuple[int, ...], int] | None:
    """The offsets that the slots have now and where they end, if each is one of the best and none overlap."""
    offsets = tuple(choice.slot.offset or 0 for choice in choices)
    ranges = sorted((at, at + choice.slot.size) for at, choice in zip(offsets, choices, strict=True))
    disjoint = all(low[1] <= high[0] for low, high in pairwise(ranges))
    if not disjoint or not all(choice.serves(at) for at, choice in zip(offsets, choices, strict=True)):
        return None
    return offsets, max((end for _, end in ranges), default=0)


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
