"""Coverage against the levels that real kernels chose: traces of 6.12 and 7.2 (kvm_mmu_spte_requested)."""

from __future__ import annotations

import re

import pytest
from examples import DATA

from guestmem.layout import Backing, Coverage, File, Layout, Slot, cover
from guestmem.uapi import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_GUEST_MEMFD
from guestmem.units import GIB, MIB

_SLOT = re.compile(r"slot (\d) flags (\d) gpa (\S+) size (\S+) hva (\S+) -> 0")
_SPTE = re.compile(r"kvm_mmu_spte_requested: +gfn ([0-9a-f]+) pfn [0-9a-f]+ level (\d)")
# What kvmload.c put behind each slot: THP (seen granted in smaps), THP, THP, hugetlb 2M and 1G, THP, MADV_NOHUGEPAGE.
_BACKINGS = {
    "3": Backing("hugetlb", 2 * MIB),
    "4": Backing("hugetlb", GIB),
    "6": Backing("file"),
}


def layout_of_run(kernel: str) -> Layout:
    """The slots that the run's log shows, with the backings of the program that made it."""
    text = (DATA / "kvm" / f"{kernel}-run.txt").read_text()
    slots = {}
    for number, flags, gpa, size, hva in _SLOT.findall(text.split("--- smaps")[0]):
        backing = _BACKINGS.get(number, Backing("anonymous"))
        slots[number] = Slot(int(gpa, 0), int(size, 0), int(hva, 0), int(flags), backing=backing, number=int(number))
    files: tuple[File, ...] = ()
    if kernel == "kvm72":
        files = (File("g", 4 * MIB, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED),)
        slots["7"] = Slot(0x3A000000, 4 * MIB, 0x7F53BBA00000, KVM_MEM_GUEST_MEMFD, file="g", offset=0)
    assert len(slots) == (8 if kernel == "kvm72" else 7)
    return Layout(kernel, "test", tuple(slots.values()), files=files)


def level_at(coverage: Coverage, gpa: int) -> int:
    """KVM's level number (1, 2, 3) of the largest mapping that coverage allows at gpa."""
    (item,) = [item for item in coverage.slots if item.slot.gpa <= gpa < item.slot.end]
    verdicts = [
        next(segment.reason for segment in segments if segment.start <= gpa < segment.end) for segments in item.segments
    ]
    return max(level for level, reason in enumerate(verdicts, 1) if reason is None)


@pytest.mark.parametrize("kernel", ["kvm612", "kvm72"])
@pytest.mark.parametrize("trace", ["tracecmd-report", "ftrace"])
def test_every_level_a_real_kernel_chose_is_the_one_coverage_gives(kernel: str, trace: str) -> None:
    coverage = cover(layout_of_run(kernel))
    decisions = _SPTE.findall((DATA / "kvm" / f"{kernel}-{trace}.txt").read_text())
    assert {level for _, level in decisions} >= {"1", "2"}
    for gfn, level in decisions:
        assert level_at(coverage, int(gfn, 16) * 4096) == int(level), gfn
