"""What backs the pages: too small host pages, dirty logging, guest_memfd of released kernels, mixed attributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.findings.addresses import on_pages
from guestmem.layout.findings.value import Finding, gained_by, lost_to, remapped
from guestmem.layout.reasons import Reason
from guestmem.layout.regions import Regions
from guestmem.layout.vmm import DISPLAY, words_of
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import MIB, align_down, align_up, format_size

__all__ = ("find_memory_findings",)

_SMALL = 64 * MIB  # dirty-logged device memory up to this size is not worth a warning


def find_memory_findings(coverage: Coverage, regions: Regions) -> Iterator[Finding]:
    """no-guest-memfd, backing-too-small, dirty-logging, order-0 and mixed-attributes."""
    yield from _find_no_file(coverage)
    for page_size in coverage.host.sizes[1:]:
        yield from _find_small_backing(coverage, regions, page_size)
    yield from _find_dirty_logging(coverage)
    yield from _find_order_0(coverage)
    yield from _find_mixed(coverage)


def _losing(coverage: Coverage, reason: Reason) -> tuple[int, ...]:
    return tuple(index for index, item in enumerate(coverage.slots) if any(lost.reason is reason for lost in item.lost))


def _find_no_file(coverage: Coverage) -> Iterator[Finding]:
    slots = _losing(coverage, Reason.NO_FILE)
    lost = lost_to(coverage, slots, Reason.NO_FILE)
    if lost:
        size = format_size(lost[0][1])
        message = (
            f"{size} of private memory is in slots without a guest_memfd: an access to it ends in a memory fault exit"
        )
        remedy = "bind a guest_memfd to the slots, or make the ranges shared"
        yield Finding("no-guest-memfd", "error", message, remedy, slots, lost)


def _find_small_backing(coverage: Coverage, regions: Regions, page_size: int) -> Iterator[Finding]:
    """What memory of larger pages at an aligned HVA would bring."""
    layout, host = coverage.layout, coverage.host
    small = {
        index: on_pages(slot, page_size)
        for index, slot in enumerate(layout.slots)
        if host.largest(slot.backing) < page_size <= slot.size and not (slot.readonly or slot.guest_memfd)
    }
    brought = cover(layout.only(small.values()), host).mapped[host.sizes.index(page_size)]
    if not brought:
        return
    size = format_size(page_size)
    kinds = ", ".join(dict.fromkeys(_kind(coverage, index) for index in small))
    message = (
        f"{kinds} cannot be mapped with {size} pages; if the host memory had them, {format_size(brought)} could be"
    )
    lost = tuple(pair for pair in lost_to(coverage, small, Reason.BACKING, Reason.HVA) if pair[0] == page_size)
    yield Finding(
        "backing-too-small",
        "warning" if page_size == host.sizes[1] else "note",
        message,
        words_of(layout).larger_pages_for(regions, [layout.slots[index] for index in small], page_size),
        tuple(small),
        lost,
        ((page_size, brought),),
    )


def _kind(coverage: Coverage, index: int) -> str:
    backing = coverage.layout.slots[index].backing
    if backing.kind == "hugetlb":
        return f"hugetlb memory with {format_size(backing.page_size)} pages"
    what = "memory with 4K pages" if backing.kind == "unknown" else f"{backing.kind} memory"
    return f"{what} without transparent huge pages" if backing.thp is False else what


def _find_dirty_logging(coverage: Coverage) -> Iterator[Finding]:
    layout, page_size = coverage.layout, coverage.host.sizes[1]
    logged = {index: slot for index, slot in enumerate(layout.slots) if slot.dirty_log and slot.size >= page_size}
    if not logged:
        return
    names = ", ".join(dict.fromkeys(slot.name for slot in logged.values()))
    size = sum(slot.size for slot in logged.values())
    off = {index: replace(slot, flags=slot.flags & ~KVM_MEM_LOG_DIRTY_PAGES) for index, slot in logged.items()}
    harmless = size <= _SMALL or all(slot.region == DISPLAY for slot in logged.values())
    yield Finding(
        "dirty-logging",
        "note" if harmless else "warning",
        f"{names}: dirty logging is on for {format_size(size)}, mapped page by page as long as it is",
        words_of(layout).no_dirty_logging(next(iter(logged.values()))),
        tuple(logged),
        lost_to(coverage, logged, Reason.DIRTY_LOG),
        gained_by(coverage, off, remapped(coverage, off)),
    )


def _find_order_0(coverage: Coverage) -> Iterator[Finding]:
    slots = _losing(coverage, Reason.ORDER_0)
    lost = lost_to(coverage, slots, Reason.ORDER_0)
    if lost:
        message = (
            f"{format_size(lost[0][1])} come from guest_memfds, which hand out single pages in every released kernel: "
            "they are mapped page by page whatever the layout"
        )
        remedy = "nothing to change in the layout; 'guestmem rules' and --profile next show what huge pages would bring"
        yield Finding("order-0", "note", message, remedy, slots, lost)


def _find_mixed(coverage: Coverage) -> Iterator[Finding]:
    slots = _losing(coverage, Reason.MIXED)
    lost = lost_to(coverage, slots, Reason.MIXED)
    if not lost:
        return
    page_size, size = lost[0]
    frames = f"{size // page_size} frames of {format_size(page_size)}"
    message = f"{frames} hold private and shared pages and are mapped page by page"
    yield Finding("mixed-attributes", "warning", message, _convert(coverage, page_size), slots, lost)


def _convert(coverage: Coverage, page_size: int) -> str:
    """The first conversions that would make frames uniform."""
    odd = [run for run in coverage.layout.private if run.start % page_size or run.end % page_size]
    wide = [
        f"{run.start:#x}-{run.end:#x} to {align_down(run.start, page_size):#x}-{align_up(run.end, page_size):#x}"
        for run in odd[:3]
    ]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"convert whole frames of {format_size(page_size)}: widen the private range {', '.join(wide)}{more}"
