"""A guest access under restrictedmem, where it is not as in later kernels.

Source: v10 8/9 "KVM: Handle page fault for private memory", and kvm_mmu_hugepage_adjust of Linux 6.1. What an access
counts as is the frame's attribute, as with the test-only patches of the time and for the VM type of upm; an explicit
shared bit of the guest's, which hardware has, is not modelled, so access and attribute never differ.

A private page is mapped at the level of its folio, whatever the host maps and wherever the offset is. Nothing compares
GPA and offset: where they differ, the frame number of the page is rounded down to the level, and the leaf shows other
pages than its frames own.
"""

from __future__ import annotations

import errno

from guestmem.errors import KvmError
from guestmem.model import levels
from guestmem.model.checks import note
from guestmem.model.fault import (
    Step,
    get_host_page,
    look_up_slot,
    read_attribute,
    recheck,
    remember_mmio,
    sample_invalidations,
)
from guestmem.model.levels import LIMITS, Limit, mapping_order
from guestmem.model.page_fault import MAPPED, Fault, FaultResult
from guestmem.model.restrictedmem.attributes import is_uniform
from guestmem.model.stage2 import Leaf
from guestmem.rules import OrMetadata
from guestmem.units import align_down, format_size

__all__ = ("LIMITS_2023", "STEPS_2023")

EXIT: FaultResult = FaultResult("memory_fault")  # reason 38, and KVM_RUN returns 0
SPINS: FaultResult = FaultResult("spins", errno.EINTR)


def get_page(fault: Fault) -> FaultResult | None:
    """Get the page from the file or from the host's mapping (kvm_faultin_pfn, v10 8/9)."""
    slot = fault.slot
    if not fault.private:
        return remember_mmio(fault) if slot is None else get_host_page(fault, slot)
    if slot is None or slot.observer is None:
        note("get-page", "{}".format, "no slot has the frame" if slot is None else f"slot {slot.id} has no file")
        return EXIT
    file = slot.observer.file
    if fault.write and slot.readonly:
        note("get-page", "slot {} is read-only, and the access is made again and again".format, slot.id)
        return SPINS
    fault.source, fault.index, fault.writable = file, fault.gfn - slot.base_gfn + slot.pgoff, not slot.readonly
    try:
        fault.folio_order = file.get_page(fault.index)
    except KvmError as refused:
        note("get-page", str, refused)
        return SPINS if file.revision.page_error == "retry" else FaultResult("host_error", refused.errno or 0)
    note("get-page", _say_folio, fault)
    return None


def decide_level(fault: Fault) -> FaultResult | None:
    """Choose the largest leaf that nothing forbids (kvm_mmu_hugepage_adjust)."""
    fault.order = mapping_order(fault, LIMITS_2023)
    note("decide-level", fault.vm.geometry.name_of, fault.order)
    return None


def map_leaf(fault: Fault) -> FaultResult | None:
    """Install the leaf: from the page's number rounded down to the level, whether that is the frame's page or not."""
    vm, source = fault.vm, fault.source
    assert source is not None
    start = align_down(fault.gfn, 1 << fault.order)
    page = fault.index if fault.private else fault.hva >> vm.page_shift
    shown = fault.index - (page - align_down(page, 1 << fault.order))
    fault.leaf = Leaf(fault.order, source, start - shown, fault.private, fault.writable)
    vm.stage2.map(fault.gfn, fault.leaf)
    vm.mmio.forget(start, start + (1 << fault.order))
    if shown != fault.index - (fault.gfn - start):
        note("wrong-page", _say_wrong, fault, start, shown)
    elif fault.private:
        note("in-binding", _say_binding, fault, shown)
    return MAPPED


def _folio(fault: Fault, order: int) -> bool:
    return not fault.private or fault.folio_order >= order


def _metadata(fault: Fault, order: int) -> bool:
    """GPA and userspace_addr agree; v10's metadata puts another comparison in the place of this one."""
    slot, vm = fault.slot, fault.vm
    if slot is None or (slot.observer is not None and isinstance(vm.rule, OrMetadata)):
        return slot is not None
    return not (slot.base_gfn ^ (slot.userspace_addr >> vm.page_shift)) & ((1 << order) - 1)


def _rule(fault: Fault, order: int) -> bool:
    slot, vm = fault.slot, fault.vm
    if slot is None or slot.observer is None:
        return True
    shift = vm.page_shift
    gpa, size, offset = slot.base_gfn << shift, slot.npages << shift, slot.pgoff << shift
    binding = slot.observer.file.binding(gpa, size, offset, slot.userspace_addr)
    return vm.rule.fault_order(binding, (fault.gfn - slot.base_gfn << shift) + offset, order) >= order


def _host_mapping(fault: Fault, order: int) -> bool:
    return fault.private or levels.host_mapping(fault, order)


def _as_later(name: str) -> Limit:
    return next(limit for limit in LIMITS if limit.name == name)


LIMITS_2023: tuple[Limit, ...] = (
    Limit("folio-order", "the file's folio is smaller than the level", _folio),
    _as_later("dirty-logging"),
    _as_later("slot-head"),
    _as_later("slot-tail"),
    Limit("hva-congruent", "GPA and userspace_addr differ modulo the level", _metadata),
    Limit("rule", "the alignment rule allows less for this slot", _rule),
    Limit("attributes-uniform", "the block is marked as partly private", is_uniform),
    Limit("host-mapping", "the host maps the address with smaller pages", _host_mapping),
    _as_later("nx-hugepages"),
)

STEPS_2023: tuple[Step, ...] = (
    read_attribute,
    look_up_slot,
    sample_invalidations,
    get_page,
    recheck,
    decide_level,
    map_leaf,
)


def _say_folio(fault: Fault) -> str:
    size = fault.vm.geometry.page_size(fault.folio_order)
    at = fault.index * fault.vm.page_size
    return f"file offset {at:#x} is in the {format_size(size)} folio at offset {align_down(at, size):#x}"


def _say_owned(fault: Fault) -> str:
    slot, page = fault.slot, fault.vm.page_size
    assert slot is not None
    return f"the slot has [{slot.pgoff * page:#x}, {(slot.pgoff + slot.npages) * page:#x})"


def _say_wrong(fault: Fault, start: int, shown: int) -> str:
    page, size = fault.vm.page_size, 1 << fault.order
    frames = f"gpa [{start * page:#x}, {(start + size) * page:#x})"
    mine = fault.index - (fault.gfn - start)
    return (
        f"{frames} shows file [{shown * page:#x}, {(shown + size) * page:#x}) instead of "
        f"[{mine * page:#x}, {(mine + size) * page:#x}); {_say_owned(fault)}"
    )


def _say_binding(fault: Fault, shown: int) -> str:
    page = fault.vm.page_size
    return f"shows file [{shown * page:#x}, {(shown + (1 << fault.order)) * page:#x}); {_say_owned(fault)}"
