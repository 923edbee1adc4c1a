"""The shape of guest-physical space: pieces in the first megabyte, ends inside a frame, frames that two slots share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from guestmem.layout.coverage import Coverage
from guestmem.layout.findings.value import Bytes, Finding, usable
from guestmem.layout.reasons import Reason
from guestmem.layout.regions import Regions
from guestmem.layout.value import Slot
from guestmem.layout.vmm import words_of
from guestmem.text import counted
from guestmem.units import MIB, align_down, format_size

__all__ = ("find_shape_findings",)

_PARTIAL = (Reason.SHARED_FRAME, Reason.HEAD, Reason.TAIL)
_LOW = MIB  # the PC's first megabyte, where VGA, option ROMs and firmware live
_VGA_HOLE = (0xA0000, 0xC0000)


def find_shape_findings(coverage: Coverage, regions: Regions) -> Iterator[Finding]:
    """low-memory, odd-end and frame-shared."""
    if len(coverage.host.sizes) > 1:
        yield from _find_low_memory(coverage)
        yield from _find_shared_frames(coverage)
        yield from _find_odd_ends(coverage, regions)


def _find_low_memory(coverage: Coverage) -> Iterator[Finding]:
    layout = coverage.layout
    low = [index for index, slot in enumerate(layout.slots) if slot.gpa < _LOW and slot.address_space == 0]
    if len(low) < 2:
        return
    pieces = [layout.slots[index] for index in low]
    vga_hole = not any(slot.gpa < _VGA_HOLE[1] and slot.end > _VGA_HOLE[0] for slot in pieces)
    roms = sum(slot.readonly for slot in pieces)
    pam = sum(not slot.readonly and _VGA_HOLE[1] <= slot.gpa for slot in pieces)
    what = [f"{len(pieces)} slots start in the first megabyte"]
    what += ["a hole for VGA at 0xa0000-0xbffff"] if vga_hole else []
    what += [counted(roms, "ROM piece")] if roms else []
    what += [f"{pam} pieces of RAM from 0xc0000 on, as PAM shadowing makes them"] if pam > 1 else []
    sizes = coverage.host.sizes[1:]
    first = [f"the first {format_size(size)} with {format_size(size)} pages" for size in sizes]
    never = f"KVM can never map {' or '.join(first)}"
    remedy = words_of(layout).spare_low_memory(vga_hole=vga_hole)
    lost = _lost_in_first_frames(coverage)
    yield Finding("low-memory", "note", f"{', '.join(what)}: {never}", remedy, tuple(low), lost)


def _lost_in_first_frames(coverage: Coverage) -> Bytes:
    """Bytes lost to partial frames inside the first frame of each size."""
    found = []
    for level, size in enumerate(coverage.host.sizes[1:], 1):
        inside = [item for item in coverage.slots if item.slot.gpa < size and item.slot.address_space == 0]
        segments = [segment for item in inside for segment in item.segments[level] if segment.start < size]
        lost = sum(min(segment.end, size) - segment.start for segment in segments if segment.reason in _PARTIAL)
        found.append((size, lost))
    return tuple(found)


def _find_shared_frames(coverage: Coverage) -> Iterator[Finding]:
    """Slots that touch inside a frame although both could be mapped with such pages."""
    layout = coverage.layout
    page_size = coverage.host.sizes[1]
    for (low_index, low), (high_index, high) in pairwise(enumerate(layout.slots)):
        touching = low.end == high.gpa and low.address_space == high.address_space
        if not touching or high.gpa % page_size == 0 or high.gpa < page_size or not _large(coverage, low, high):
            continue
        frame = align_down(high.gpa, page_size)
        message = (
            f"{low.name} and {high.name} meet at {high.gpa:#x}, inside a {format_size(page_size)} frame: "
            "it is mapped page by page in both"
        )
        remedy = f"let them meet at {frame:#x} or {frame + page_size:#x}"
        if low.region == high.region and _continues(low, high):
            remedy = "make one slot of the two: the HVA of the second continues that of the first"
        lost = ((page_size, min(high.end, frame + page_size) - max(low.gpa, frame)),)
        yield Finding("frame-shared", "note", message, remedy, (low_index, high_index), lost, lost)


def _large(coverage: Coverage, *slots: Slot) -> bool:
    page_size = coverage.host.sizes[1]
    return all(slot.size >= page_size and usable(coverage, slot, page_size) for slot in slots)


def _continues(low: Slot, high: Slot) -> bool:
    return low.likely_hva is not None and high.likely_hva == low.likely_hva + low.size and low.flags == high.flags


def _find_odd_ends(coverage: Coverage, regions: Regions) -> Iterator[Finding]:
    """Regions of RAM that start at a whole frame and end inside one that nothing else fills."""
    page_size = coverage.host.sizes[1]
    for members in regions:
        index = members[-1]
        slot = coverage.layout.slots[index]
        odd = slot.end % page_size and (slot.gpa - (slot.offset or 0)) % page_size == 0
        if not odd or slot.readonly or not _large(coverage, slot) or regions.touched_above(slot):
            continue
        tail = slot.end % page_size
        message = (
            f"{slot.name} ends at {slot.end:#x}, inside a {format_size(page_size)} frame: its last "
            f"{format_size(tail)} are mapped page by page"
        )
        remedy = words_of(coverage.layout).resize(regions, slot, page_size)
        yield Finding("odd-end", "note", message, remedy, (index,), ((page_size, tail),))
