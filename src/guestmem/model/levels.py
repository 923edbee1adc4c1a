"""At which level a fault is mapped, and what forbids every level above.

Going down from the largest leaf size, a level is taken when no limit forbids it; base pages always work. The limits are
the kernel's (kvm_mmu_hugepage_adjust, kvm_alloc_memslot_metadata, hugepage_has_attrs), plus, for files with huge
folios, the three nobody checks yet: the rule, congruence of GPA and file offset, and containment in the binding. The
last one holds whatever rule is in force: it is what keeps a folio that was rounded down from leaving the bound range.
GPA and userspace_addr must agree for pages of a file too, as "1G page support" 31/51 (May 2025) keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guestmem.geometry import Geometry
from guestmem.model.checks import note
from guestmem.model.page_fault import Fault
from guestmem.units import align_down

__all__ = ("LIMITS", "Limit", "host_mapping", "mapping_order")


@dataclass(frozen=True, slots=True)
class Limit:
    """One reason why a level may be forbidden. allows(fault, order) decides for the block of that order."""

    name: str
    rule: str
    allows: Callable[[Fault, int], bool]


def mapping_order(fault: Fault, limits: tuple[Limit, ...] | None = None) -> int:
    """The order of the leaf that the fault installs, by ``LIMITS`` or others."""
    geometry = fault.vm.geometry
    for order in reversed(geometry.orders):
        if order == 0:
            break
        for limit in LIMITS if limits is None else limits:
            if not limit.allows(fault, order):
                note("no-leaf", _say, geometry, order, limit)
                break
        else:
            return order
    return 0


def _say(geometry: Geometry, order: int, obstacle: Limit) -> str:
    return f"{geometry.name_of(order)}: {obstacle.name}, {obstacle.rule}"


def _folio(fault: Fault, order: int) -> bool:
    return fault.gmem is None or fault.folio_order >= order


def _rule(fault: Fault, order: int) -> bool:
    gmem, slot = fault.gmem, fault.slot
    if gmem is None or slot is None or not fault.vm.profile.huge:
        return True
    shift = fault.vm.page_shift
    binding = gmem.binding(slot.base_gfn << shift, slot.npages << shift, slot.pgoff << shift, slot.userspace_addr)
    return fault.vm.rule.fault_order(binding, fault.index << shift, fault.folio_order) >= order


def _dirty_log(fault: Fault, order: int) -> bool:
    return fault.slot is not None and not fault.slot.log_dirty


def _head(fault: Fault, order: int) -> bool:
    return fault.slot is not None and align_down(fault.gfn, 1 << order) >= fault.slot.base_gfn


def _tail(fault: Fault, order: int) -> bool:
    return fault.slot is not None and align_down(fault.gfn, 1 << order) + (1 << order) <= fault.slot.end_gfn


def _hva_congruent(fault: Fault, order: int) -> bool:
    slot = fault.slot  # where the pages are from does not matter: the mark is the slot's (kvm_alloc_memslot_metadata)
    return slot is not None and not (slot.base_gfn - (slot.userspace_addr >> fault.vm.page_shift)) & ((1 << order) - 1)


def _offset_congruent(fault: Fault, order: int) -> bool:
    return fault.gmem is None or not (fault.gfn - fault.index) & ((1 << order) - 1)


def _contained(fault: Fault, order: int) -> bool:
    if fault.gmem is None or fault.slot is None:
        return True
    first = align_down(fault.index, 1 << order)
    return fault.slot.pgoff <= first and first + (1 << order) <= fault.slot.pgoff + fault.slot.npages


def _uniform(fault: Fault, order: int) -> bool:
    first = align_down(fault.gfn, 1 << order)
    return fault.vm.is_uniform(first, first + (1 << order))


def _sound(fault: Fault, order: int) -> bool:
    if fault.gmem is None:
        return True
    first = align_down(fault.index, 1 << order)
    return not fault.gmem.cache.poisoned.overlaps(first, first + (1 << order))


def host_mapping(fault: Fault, order: int) -> bool:
    """Whether the host maps the whole block by one page of its own, where the page is the host's."""
    if fault.gmem is not None:
        return True
    run = fault.vm.host.vmas.run_at(fault.hva)
    if run is None or run[2].page_order < order:
        return False
    size = fault.vm.geometry.page_size(order)
    first = align_down(fault.hva, size)
    return run[0] <= first and first + size <= run[1]


def _nx(fault: Fault, order: int) -> bool:
    return not (fault.fetch and fault.vm.machine.nx_huge_pages)


LIMITS: tuple[Limit, ...] = (
    Limit("folio-order", "the file's folio is smaller than the level", _folio),
    Limit("rule", "the alignment rule allows less for this folio", _rule),
    Limit("dirty-logging", "the slot logs dirty pages one by one", _dirty_log),
    Limit("slot-head", "the frame's block begins before the slot", _head),
    Limit("slot-tail", "the frame's block ends after the slot", _tail),
    Limit("hva-congruent", "GPA and userspace_addr differ modulo the level", _hva_congruent),
    Limit("offset-congruent", "GPA and file offset differ modulo the level", _offset_congruent),
    Limit("contained", "the folio reaches outside the bound range", _contained),
    Limit("attributes-uniform", "some pages of the block are private and some shared", _uniform),
    Limit("page-poisoned", "the block contains a poisoned page", _sound),
    Limit("host-mapping", "the host maps the address with smaller pages", host_mapping),
    Limit("nx-hugepages", "instruction fetches are mapped by base pages (NX hugepage workaround)", _nx),
)
