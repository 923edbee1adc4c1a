"""GPA, HVA and offset that do not go together: misplaced mappings, odd sizes before, and cuts in the wrong place.

A region (one allocation: a RAMBlock, a zone) has one HVA for its offset 0. Its slots are congruent for a page size
where gpa - offset equals that HVA modulo the page. So a region whose gpa - offset is a multiple of the page needs an
aligned HVA; one that starts at an odd GPA suffers from what lies before it; and one whose slots differ among themselves
is cut in the wrong place, whatever the HVA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.findings.value import Bytes, Finding, gained_by, lost_to, remapped, usable
from guestmem.layout.placement import ALIGNED_BASE
from guestmem.layout.reasons import Reason
from guestmem.layout.regions import Regions, region_base
from guestmem.layout.value import Backing, Slot
from guestmem.layout.vmm import words_of
from guestmem.units import KIB, align_down, align_up, format_size

__all__ = ("find_address_findings", "on_pages")


def find_address_findings(coverage: Coverage, regions: Regions) -> Iterator[Finding]:
    """hva-not-congruent, odd-start and split."""
    groups = list(_misaligned_groups(coverage, regions))
    slots = coverage.layout.slots
    fixed = {index: replace(slots[index], hva=None, assumed_hva=None) for _, group in groups for index in group}
    after = remapped(coverage, fixed)
    for page_size, group in groups:
        yield _explain(coverage, regions, group, page_size, gained_by(coverage, group, after))
    for page_size in coverage.host.sizes[1:]:
        yield from _find_splits(coverage, regions, page_size)


def _misaligned_groups(coverage: Coverage, regions: Regions) -> Iterator[tuple[int, list[int]]]:
    """(page size, slots of one region that are not congruent for it), each slot once."""
    explained: set[int] = set()
    for page_size in coverage.host.sizes[1:]:
        for members in regions:
            able = [index for index in members if _able(coverage, index, page_size)]
            group = [index for index in able if index not in explained and _misaligned(coverage, index, page_size)]
            if not group or (len(group) < len(able) and _differ(coverage, able, page_size)):
                continue  # one part of the region is congruent, so it is the cut that is wrong
            explained.update(group)
            yield page_size, group


def on_pages(slot: Slot, page_size: int) -> Slot:
    """The slot as if its region were hugetlb memory of page_size at an aligned HVA."""
    base = ALIGNED_BASE + (slot.offset or 0)
    return replace(slot, hva=None, assumed_hva=base, backing=Backing("hugetlb", page_size))


def _able(coverage: Coverage, index: int, page_size: int) -> bool:
    """Whether the slot is RAM that holds a whole frame of the size, on memory that could be mapped so."""
    slot = coverage.layout.slots[index]
    whole = align_up(slot.gpa, page_size) + page_size <= slot.end
    return whole and not slot.readonly and usable(coverage, slot, page_size)


def _misaligned(coverage: Coverage, index: int, page_size: int) -> bool:
    return any(lost.page_size == page_size and lost.reason is Reason.HVA for lost in coverage.slots[index].lost)


def _differ(coverage: Coverage, indexes: list[int], page_size: int) -> bool:
    return len({_delta(coverage.layout.slots[index]) % page_size for index in indexes}) > 1


def _delta(slot: Slot) -> int:
    return slot.gpa - (slot.offset or 0)


def _explain(coverage: Coverage, regions: Regions, group: list[int], page_size: int, gain: Bytes) -> Finding:
    """The finding for the slots of one region that are not congruent at a level."""
    slots = [coverage.layout.slots[index] for index in group]
    lost = lost_to(coverage, group, Reason.HVA)
    odd = regions.odd_below(slots[0], page_size)
    if odd is None:
        message = _misplaced(slots[0], page_size)
        remedy = words_of(coverage.layout).align_hva(regions, slots[0], page_size)
        return Finding("hva-not-congruent", "warning", message, remedy, tuple(group), lost, gain)
    size = format_size(page_size)
    message = (
        f"{slots[0].allocation} starts at GPA {regions.start(slots[0]):#x}, which is not a multiple of {size}, because "
        f"{odd.allocation} before it has {format_size(regions.allocated(odd))}: with an aligned HVA none "
        f"of it can be mapped with {size} pages or larger"
    )
    remedy = words_of(coverage.layout).resize(regions, odd, page_size)
    return Finding("odd-start", "warning", message, remedy, tuple(group), lost, gain)


def _misplaced(slot: Slot, page_size: int) -> str:
    size, base = format_size(page_size), region_base(slot) or 0
    below = f" (one page below a multiple of {size})" if (base + 4 * KIB) % page_size == 0 else ""
    where = f"HVA {base:#x}"
    if slot.hva is None:
        where = f"assumed HVA, {base % page_size:#x} past a multiple of {size},"
    own = ", also where its pages are those of its guest_memfd" if slot.guest_memfd else ""
    return (
        f"{slot.name}: its {where}{below} and its GPA {_delta(slot):#x} differ by "
        f"{(base - _delta(slot)) % page_size:#x} modulo {size}: none of it can be mapped with {size} pages or larger"
        f"{own}"
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Two slots of one region: above continues below in the region, but not in guest-physical space."""

    below: int
    above: int
    offset: int


def _find_splits(coverage: Coverage, regions: Regions, page_size: int) -> Iterator[Finding]:
    """Cuts that are not multiples of a page size that the memory has, or could have."""
    slots = coverage.layout.slots
    for cut in _cuts(regions):
        low, high = slots[cut.below], slots[cut.above]
        if cut.offset % page_size == 0 or high.gpa % page_size or _delta(low) % page_size:
            continue  # the lower part is misaligned whatever the cut
        gain = _gain_of_moving(coverage, cut, page_size)
        if not gain:
            continue
        now = usable(coverage, low, page_size) and usable(coverage, high, page_size)
        size = format_size(page_size)
        message = (
            f"{high.name} is cut at GPA {low.end:#x} ({format_size(low.end)}), which is not a multiple of {size}: "
            f"no HVA makes both the part below the cut and the part above it congruent"
            f"{'' if now else f' (this matters once the memory has {size} pages)'}"
        )
        remedy = words_of(coverage.layout).cut_elsewhere(low.end, page_size)
        lost = lost_to(coverage, (cut.below, cut.above), Reason.HVA) if now else ()
        yield Finding("split", "warning" if now else "note", message, remedy, (cut.below, cut.above), lost, gain)


def _cuts(regions: Regions) -> Iterator[_Cut]:
    slots = regions.layout.slots
    for members in regions:
        for below, above in pairwise(members):
            low, high = slots[below], slots[above]
            if high.offset is not None and (low.offset or 0) + low.size == high.offset and low.end < high.gpa:
                yield _Cut(below, above, high.offset)


def _gain_of_moving(coverage: Coverage, cut: _Cut, page_size: int) -> Bytes:
    """What both parts map more with such pages behind them if the cut were a multiple of the page."""
    slots = coverage.layout.slots
    low, high = on_pages(slots[cut.below], page_size), on_pages(slots[cut.above], page_size)
    by = cut.offset - align_down(cut.offset, page_size)
    if by >= low.size:
        return ()
    moved = replace(high, size=high.size + by, offset=cut.offset - by, assumed_hva=(high.assumed_hva or 0) - by)
    level = coverage.host.sizes.index(page_size)
    before = cover(coverage.layout.only((low, high)), coverage.host).mapped[level]
    after = cover(coverage.layout.only((replace(low, size=low.size - by), moved)), coverage.host).mapped[level]
    return ((page_size, after - before),) if after > before else ()
