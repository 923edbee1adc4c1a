"""A fleet: the layouts of many VMs in one file, judged together.

Simple VMs (see ``vector``) go through numpy, the others through the scalar coverage; the sums are the same either way.
A fleet holds no findings of single VMs: its worst VMs are named, to be looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from guestmem.layout.budget import MAX_SLOTS, within
from guestmem.layout.coverage import HostLimits, cover
from guestmem.layout.reasons import Reason
from guestmem.layout.value import Backing, File, Layout, Range, Severity, Slot
from guestmem.layout.vector import Columns, Flags, Sums, cover_columns, simple_vms
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import U64_MAX

__all__ = ("Fleet", "FleetSums", "check_fleet")

_ERRORS = (Reason.REFUSED, Reason.NO_FILE, Reason.RULE)
_WARNINGS = (Reason.HVA, Reason.BACKING, Reason.MIXED, Reason.OFFSET, Reason.BINDING)


@dataclass(frozen=True, slots=True)
class Fleet:
    """VMs by name, the columns of those that may be simple, and the layouts of those that are not."""

    source: str
    format: str
    names: list[str]
    columns: Columns
    others: Mapping[int, Layout] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many slots all VMs have."""
        return len(self.columns) + sum(len(layout.slots) for layout in self.others.values())


@dataclass(frozen=True, slots=True)
class FleetSums:
    """The verdict: sums by VM, and how many VMs the scalar path judged."""

    fleet: Fleet
    host: HostLimits
    sums: Sums
    scalar: int

    @property
    def size(self) -> int:
        """Bytes of all VMs."""
        return int(sum(self.sums.size.tolist()))

    @property
    def mapped(self) -> tuple[int, ...]:
        """Bytes that can be mapped with each size or larger."""
        return tuple(int(sum(values.tolist())) for values in self.sums.mapped)

    def lost(self, level: int) -> dict[Reason, tuple[int, int]]:
        """For a level: reason -> bytes lost, and how many VMs lose any to it; in the order of the reasons."""
        found = self.sums.lost[level]
        return {
            reason: (int(sum(found[reason].tolist())), int(np.count_nonzero(found[reason])))
            for reason in Reason
            if reason in found
        }

    @property
    def severity(self) -> Severity | None:
        """The severity that the fleet counts for: what its VMs lose at the second level, or are refused."""
        if any(reason in self.lost(0) for reason in _ERRORS):
            return "error"
        lost = self.lost(1) if len(self.host.sizes) > 1 else {}
        if any(reason in lost for reason in _WARNINGS):
            return "warning"
        return "note" if lost else None

    def worst(self, count: int, level: int = 1) -> list[tuple[str, int, int]]:
        """(name, bytes, bytes that cannot be mapped at the level) of the VMs that lose most, the worst first."""
        gone = self.sums.size - self.sums.mapped[level]
        order = np.argsort(gone, kind="stable")[::-1][:count]
        return [(self.fleet.names[at], int(self.sums.size[at]), int(gone[at])) for at in order.tolist() if gone[at]]


def check_fleet(fleet: Fleet, host: HostLimits) -> FleetSums:
    """Judge every VM."""
    vms = len(fleet.names)
    within(fleet.source, int(np.bincount(fleet.columns.vm).max(initial=0)), MAX_SLOTS, "slots of one VM")
    columns = fleet.columns.sorted()
    simple = simple_vms(columns, vms, host.geometry.base_page_size)
    if host.files.page_size:  # the vectorised path knows guest_memfds of released kernels only
        simple[columns.vm[columns.from_file]] = False
    simple[list(fleet.others)] = False
    sums = cover_columns(columns.rows(simple[columns.vm]), vms, host)
    for index, layout in _scalar_layouts(fleet, columns, simple):
        _add(sums, index, layout, host)
    return FleetSums(fleet, host, sums, int(vms - simple.sum()))


def _scalar_layouts(fleet: Fleet, columns: Columns, simple: Flags) -> Iterator[tuple[int, Layout]]:
    yield from fleet.others.items()
    ends = np.searchsorted(columns.vm, np.arange(len(fleet.names)), side="right")  # columns are sorted by VM
    for index in np.flatnonzero(~simple).tolist():
        if index not in fleet.others:
            start = ends[index - 1] if index else 0
            yield index, _layout_of(fleet, columns.rows(np.arange(start, ends[index])), index)


def _layout_of(fleet: Fleet, rows: Columns, index: int) -> Layout:
    """The layout of one VM of the columns."""
    slots = []
    for row in range(len(rows)):
        bound = bool(rows.from_file[row])
        flags = KVM_MEM_LOG_DIRTY_PAGES * bool(rows.dirty_log[row]) | KVM_MEM_GUEST_MEMFD * bound
        slots.append(
            Slot(
                gpa=int(rows.gpa[row]),
                size=int(rows.size[row]),
                hva=int(rows.hva[row]) if rows.has_hva[row] else None,
                flags=flags,
                offset=0 if bound else None,
                file=f"row {row}" if bound else None,
                backing=Backing("unknown" if rows.transparent[row] else "file", int(rows.page_size[row])),
                address_space=int(rows.space[row]),
            )
        )
    bound_slots = [slot for slot in slots if slot.file is not None]
    return Layout(
        fleet.names[index],
        fleet.format,
        tuple(slots),
        files=tuple(File(slot.file) for slot in bound_slots if slot.file is not None),
        private=tuple(Range(slot.gpa, slot.end) for slot in bound_slots),
    )


def _add(sums: Sums, index: int, layout: Layout, host: HostLimits) -> None:
    """Put a VM that the scalar path judged into the sums."""
    coverage = cover(layout, host)
    sums.size[index] = min(coverage.size, U64_MAX)
    for level, mapped in enumerate(coverage.mapped):
        sums.mapped[level][index] = min(mapped, U64_MAX)
    for lost in coverage.lost:
        by_reason = sums.lost[host.sizes.index(lost.page_size)]
        by_reason.setdefault(lost.reason, np.zeros(len(sums.size), np.uint64))[index] = min(lost.size, U64_MAX)
