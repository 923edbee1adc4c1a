"""A guest access that stage 2 cannot answer: from the faulting frame to a leaf, or to an exit.

The fault is a sequence of steps, in the kernel's order (kvm_mmu_do_page_fault, kvm_faultin_pfn, kvm_tdp_mmu_map).
``resolve`` runs them through; anything that interleaves faults with invalidations runs them one by one. A step returns
None to go on or the FaultResult that ends the fault.
"""

from __future__ import annotations

from collections.abc import Callable

from guestmem.errors import HostSignal, KvmError, errno_name
from guestmem.model.checks import note
from guestmem.model.levels import mapping_order
from guestmem.model.page_fault import HOST_ERROR, MAPPED, MMIO, NO_PAGE, RETRY, Fault, FaultResult
from guestmem.model.stage2 import Leaf
from guestmem.model.vm import Memslot
from guestmem.uapi import PROT_READ, PROT_WRITE
from guestmem.units import align_down

__all__ = (
    "STEPS",
    "Step",
    "get_host_page",
    "look_up_slot",
    "read_attribute",
    "recheck",
    "remember_mmio",
    "resolve",
    "sample_invalidations",
)


Step = Callable[[Fault], FaultResult | None]


def read_attribute(fault: Fault) -> FaultResult | None:
    """Take the access as private where the frame's attribute says so (kvm_mmu_page_fault, software-protected VMs).

    A reserved fault counts as shared whatever the attribute says: emulated MMIO is shared only.
    """
    vm = fault.vm
    fault.private = not fault.reserved and vm.has_private_mem and vm.is_private(fault.gfn)
    note("read-attribute", _say_attribute, fault)
    return None


def look_up_slot(fault: Fault) -> FaultResult | None:
    """Find the memslot of the frame (kvm_vcpu_gfn_to_memslot)."""
    fault.slot = fault.vm.spaces[0].by_gfn.get(fault.gfn)
    note("look-up-slot", _say_slot, fault)
    return None


def sample_invalidations(fault: Fault) -> FaultResult | None:
    """Remember how many invalidations there were, before looking at anything they protect (kvm_faultin_pfn)."""
    fault.mmu_seq = fault.vm.mmu_seq
    note("sample-invalidations", "mmu_invalidate_seq={}".format, fault.mmu_seq)
    return None


def compare_attribute(fault: Fault) -> FaultResult | None:
    """The attribute may have changed since it was read; then user space hears of it (kvm_faultin_pfn)."""
    vm = fault.vm
    if fault.private != vm.is_private(fault.gfn):
        note("compare-attribute", "the access counts as {}, the frame is not".format, _kind(fault))
        return NO_PAGE
    return None


def get_page(fault: Fault) -> FaultResult | None:
    """Get the page from the file or from the host's mapping (kvm_mmu_faultin_pfn)."""
    slot = fault.slot
    if slot is None:
        return NO_PAGE if fault.private else remember_mmio(fault)
    if fault.private or slot.gmem_only:
        return _get_file_page(fault, slot)
    return get_host_page(fault, slot)


def remember_mmio(fault: Fault) -> FaultResult:
    """No slot has the frame: the access is one to a device."""
    vm = fault.vm
    if fault.gfn < 1 << (vm.machine.gpa_bits - vm.page_shift):  # beyond, nothing can be cached
        vm.mmio.remember(fault.gfn)
    return MMIO


def _get_file_page(fault: Fault, slot: Memslot) -> FaultResult | None:
    gmem = slot.gmem
    if gmem is None:
        was = "lost its file" if slot.can_be_private else "has no guest_memfd"
        note("get-page", "slot {} {}".format, slot.id, was)
        return NO_PAGE
    fault.gmem, fault.source = gmem, gmem
    fault.index = fault.gfn - slot.base_gfn + slot.pgoff
    try:
        fault.folio_order = gmem.get_page(fault.index)
    except KvmError as refused:
        note("get-page", str, refused)
        return FaultResult("memory_fault", refused.errno or 0)
    note("get-page", _say_folio, fault)
    return None


def get_host_page(fault: Fault, slot: Memslot) -> FaultResult | None:
    """Get the page from the host's mapping at the slot's userspace_addr (hva_to_pfn)."""
    vm = fault.vm
    if fault.write and slot.readonly:
        note("get-page", "slot {} is read-only: the store becomes MMIO".format, slot.id)
        return MMIO
    fault.hva = slot.userspace_addr + (fault.gfn - slot.base_gfn) * vm.page_size
    vma = vm.host.vmas.get(fault.hva)
    # A page that may be written as it is there is taken without a look at the mapping (hva_to_pfn_fast), unless the
    # slot is read-only. Else, unlike for a load by the process, a read needs PROT_READ itself (check_vma_flags).
    if vma is None or not (
        vma.prot & (PROT_WRITE if fault.write else PROT_READ)
        or (not slot.readonly and vm.host.is_writable(vma, fault.hva))
    ):
        note("get-page", "hva {:#x} is {}".format, fault.hva, "not mapped" if vma is None else "protected")
        return HOST_ERROR
    offset, page = fault.hva - vma.delta, align_down(fault.hva, vm.page_size)
    try:
        vm.host.fault_in(vma, page, page + vm.page_size, write=fault.write)
    except HostSignal as signal:
        note("get-page", str, signal)
        return HOST_ERROR
    fault.source, fault.index = vma.source, offset // vm.page_size
    fault.writable = vm.host.is_writable(vma, fault.hva) and not slot.readonly
    note("get-page", "hva {:#x}, host mapping of order {}".format, fault.hva, vma.page_order)
    return None


def recheck(fault: Fault) -> FaultResult | None:
    """With the MMU lock held: was the frame invalidated since (mmu_invalidate_retry_gfn)?"""
    vm = fault.vm
    if vm.mmu_seq != fault.mmu_seq or vm.invalidating(fault.gfn):
        return RETRY
    return None


def decide_level(fault: Fault) -> FaultResult | None:
    """Choose the largest leaf that nothing forbids (kvm_mmu_hugepage_adjust)."""
    fault.order = mapping_order(fault)
    note("decide-level", fault.vm.geometry.name_of, fault.order)
    return None


def map_leaf(fault: Fault) -> FaultResult | None:
    """Install the leaf (kvm_tdp_mmu_map)."""
    slot, source = fault.slot, fault.source
    assert slot is not None
    assert source is not None
    start = align_down(fault.gfn, 1 << fault.order)
    assert slot.base_gfn <= start, f"bug in guestmem: leaf at {start:#x} begins before {slot!r}"
    assert start + (1 << fault.order) <= slot.end_gfn, f"bug in guestmem: leaf at {start:#x} ends after {slot!r}"
    fault.leaf = Leaf(fault.order, source, fault.gfn - fault.index, fault.private, fault.writable)
    fault.vm.stage2.map(fault.gfn, fault.leaf)
    fault.vm.mmio.forget(start, start + (1 << fault.order))
    return MAPPED


STEPS: tuple[Step, ...] = (
    read_attribute,
    look_up_slot,
    sample_invalidations,
    compare_attribute,
    get_page,
    recheck,
    decide_level,
    map_leaf,
)


def resolve(fault: Fault, steps: tuple[Step, ...] = STEPS) -> FaultResult:
    """Run the steps until one ends the fault; again, if getting the page was itself an invalidation."""
    while True:
        result = _once(fault, steps)
        if result != RETRY or fault.vm.invalidating(fault.gfn):
            return result


def _once(fault: Fault, steps: tuple[Step, ...]) -> FaultResult:
    for step in steps:
        result = step(fault)
        if result is not None:
            note("outcome", _say_result, fault, result)
            return result
    raise AssertionError("bug in guestmem: the last step of a fault must end it")


def _say_folio(fault: Fault) -> str:
    page = fault.vm.page_size
    first = align_down(fault.index, 1 << fault.folio_order)
    size = fault.vm.geometry.name_of(fault.folio_order)
    return f"file offset {fault.index * page:#x} is in the {size} folio at offset {first * page:#x}"


def _say_attribute(fault: Fault) -> str:
    why = ": an MMIO entry is cached for it, and slots have changed since" if fault.reserved else ""
    return f"gfn {fault.gfn:#x} counts as {_kind(fault)}{why}"


def _kind(fault: Fault) -> str:
    return "private" if fault.private else "shared"


def _say_slot(fault: Fault) -> str:
    return str(fault.slot) if fault.slot else f"no slot has gfn {fault.gfn:#x}"


def _say_result(fault: Fault, result: FaultResult) -> str:
    if result.kind == "mapped":
        return f"mapped by a {fault.vm.geometry.name_of(fault.order)} leaf"
    return result.kind if not result.errno else f"{result.kind} {errno_name(result.errno)}"
