"""Coverage is computed twice: layout.vector for columns, layout.coverage for one layout. The sums are the same."""

from __future__ import annotations

import numpy as np
import pytest
from layouts import PAGE, SMALL

from guestmem.layout import Backing, Coverage, File, HostLimits, Layout, Range, Slot, cover
from guestmem.layout.reasons import Reason
from guestmem.layout.vector import Columns, Sums, cover_columns, simple_vms
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES

VMS = 3000
# What a slot can lose in a VM that the vectorised form takes: wholly shared, or wholly private over base pages.
REASONS = {
    Reason.SHARED_FRAME,
    Reason.HEAD,
    Reason.TAIL,
    Reason.ORDER_0,
    Reason.HVA,
    Reason.BACKING,
    Reason.DIRTY_LOG,
}


def random_columns(random: np.random.Generator) -> Columns:
    """Up to four slots a VM in two address spaces, often side by side in one frame."""
    rows = []
    for vm in range(VMS):
        at = int(random.integers(0, 20))
        for _ in range(random.integers(1, 5)):
            at += (0, 0, 1, 3, 8)[random.integers(5)]
            pages = int(random.integers(1, 60))
            hva = (at, at + 16, int(random.integers(0, 32)))[random.integers(3)]
            has_hva, transparent, dirty, from_file = (random.random(4) < (0.7, 0.5, 0.3, 0.3)).tolist()
            kind = (has_hva, transparent, dirty and not from_file, from_file)  # KVM logs no writes to a guest_memfd
            backing = SMALL.page_sizes[random.integers(3)]
            rows.append((vm, int(random.random() < 0.2), at * PAGE, pages * PAGE, hva * PAGE, backing, *kind))
            at += pages
    types = (np.int64, np.int64, np.uint64, np.uint64, np.uint64, np.uint64, bool, bool, bool, bool)
    names = ("vm", "space", "gpa", "size", "hva", "page_size", "has_hva", "transparent", "dirty_log", "from_file")
    columns = zip(names, types, zip(*rows, strict=True), strict=True)
    return Columns(**{name: np.array(values, dtype) for name, dtype, values in columns}).sorted()


def layout_of(columns: Columns, vm: int) -> Layout:
    """The same VM as a layout."""
    slots = []
    for row in np.flatnonzero(columns.vm == vm).tolist():
        private = bool(columns.from_file[row])
        dirty = KVM_MEM_LOG_DIRTY_PAGES * bool(columns.dirty_log[row])
        slots.append(
            Slot(
                int(columns.gpa[row]),
                int(columns.size[row]),
                int(columns.hva[row]) if columns.has_hva[row] else None,
                flags=dirty | KVM_MEM_GUEST_MEMFD * private,
                offset=0 if private else None,
                file=f"f{row}" if private else None,
                backing=Backing("anonymous" if columns.transparent[row] else "file", int(columns.page_size[row])),
                address_space=int(columns.space[row]),
            )
        )
    bound = [slot for slot in slots if slot.file is not None]
    files = tuple(File(slot.file) for slot in bound if slot.file is not None)
    return Layout("random", "test", tuple(slots), files, tuple(Range(slot.gpa, slot.end) for slot in bound))


def sums_of(sums: Sums, vm: int, host: HostLimits) -> tuple[int, list[int], dict[tuple[int, Reason], int]]:
    """Size, mapped bytes by level and lost bytes by level and reason of one VM."""
    lost = {
        (host.sizes[level], reason): int(values[vm])
        for level, by_reason in enumerate(sums.lost)
        for reason, values in by_reason.items()
        if values[vm]
    }
    return int(sums.size[vm]), [int(values[vm]) for values in sums.mapped], lost


def scalar(coverage: Coverage) -> tuple[int, list[int], dict[tuple[int, Reason], int]]:
    lost = {(each.page_size, each.reason): each.size for each in coverage.lost}
    return coverage.size, list(coverage.mapped), lost


@pytest.mark.parametrize("thp", [False, True])
def test_cover_columns_and_cover_agree_on_every_vm_and_every_reason(*, thp: bool) -> None:
    host = HostLimits(SMALL, thp=thp)
    columns = random_columns(np.random.default_rng(7))
    simple = simple_vms(columns, VMS, PAGE)
    sums = cover_columns(columns, VMS, host)
    seen: set[Reason] = set()
    for vm in np.flatnonzero(simple).tolist():
        vectorised = sums_of(sums, vm, host)
        assert vectorised == scalar(cover(layout_of(columns, vm), host)), vm
        seen |= {reason for _, reason in vectorised[2]}

    assert simple.sum() > VMS // 2
    assert seen == REASONS
    assert set().union(*sums.lost) == REASONS
