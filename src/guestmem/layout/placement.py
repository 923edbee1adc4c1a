"""Where a VMM's memory lands in its address space when the format does not say: what is assumed instead.

An assumed HVA is meaningful only modulo page sizes. What each program does was observed on real runs or read in its
source (QEMU: memory aligned to 2M when anonymous, to the file's page size otherwise, which puts plain memfd and file
mappings one page below a 2M boundary because a guard page follows them).
"""

from __future__ import annotations

from guestmem.layout.value import Assumption, Range, Slot
from guestmem.units import KIB, MIB

__all__ = (
    "ALIGNED_BASE",
    "DEFAULT_HUGE",
    "DEFAULT_HUGE_ASSUMPTION",
    "PAGE_BELOW_BASE",
    "THP_ASSUMPTION",
    "hva_assumption",
    "private_assumption",
)

ALIGNED_BASE = 0x7F00_0000_0000  # a multiple of every page size
PAGE_BELOW_BASE = ALIGNED_BASE - 4 * KIB  # ends in fff000
DEFAULT_HUGE = 2 * MIB
DEFAULT_HUGE_ASSUMPTION = Assumption(
    "backing", "the default huge page size of the host is taken as 2M", "--backing hugetlb:SIZE"
)
THP_ASSUMPTION = Assumption(
    "thp",
    "the source does not say whether transparent huge pages are granted: memory with 4K pages counts as possibly 2M",
    "--thp never",
)
_HVA_OPTION = "--hva REGION=ADDRESS, --hva-align SIZE"


def hva_assumption(regions: list[str], how: str, ask: str = "") -> Assumption:
    """The HVAs of these regions are not in the source and are taken as ``how``; ``ask`` says what has them."""
    shown = ", ".join(regions[:4]) + (f" and {len(regions) - 4} more" if len(regions) > 4 else "")
    text = f"the HVA of {shown or 'every slot'} is not in the source: it is taken as {how}"
    return Assumption("hva", f"{text}; {ask}" if ask else text, _HVA_OPTION)


def private_assumption(slots: list[Slot]) -> tuple[tuple[Range, ...], tuple[Assumption, ...]]:
    """Every byte of the slots bound to a guest_memfd counts as private: the source does not say what is."""
    bound = [Range(slot.gpa, slot.end) for slot in slots if slot.guest_memfd]
    if not bound:
        return (), ()
    text = "memory attributes are not in the source: all pages of guest_memfd slots are taken as private"
    return tuple(bound), (Assumption("attributes", text, "--attributes shared|private"),)
