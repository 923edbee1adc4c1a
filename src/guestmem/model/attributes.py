"""KVM_SET_MEMORY_ATTRIBUTES: private or shared, per guest frame.

Attributes belong to frames of the VM, not to memslots: they exist where no slot is and survive slots. A frame without
a value is shared. The kernel also keeps a "mixed" mark per hugepage range of each slot (hugepage_has_attrs in
arch/x86/kvm/mmu/mmu.c); the mark says no more than that the range is not uniform, so here it is computed when asked.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.model.checks import Check, flags_zero, require
from guestmem.model.vm import Vm
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64

__all__ = ("AttributesRequest", "set_attributes")

_SOURCE = "kvm_vm_ioctl_set_mem_attributes"


@dataclass(frozen=True, slots=True)
class AttributesRequest:
    """The ioctl's argument: address and size in bytes."""

    vm: Vm
    address: int
    size: int
    attributes: int
    flags: int


def _supported(request: AttributesRequest) -> int:
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if request.vm.has_private_mem else 0


CHECKS: tuple[Check[AttributesRequest], ...] = (
    Check(
        "kernel-has-attributes",
        errno.ENOTTY,
        "the kernel is built with a VM type that has private memory",
        "kvm_vm_ioctl (CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES)",
        lambda r: r.vm.has_attributes,
        lambda r: f"VM types offered: {', '.join(map(str, r.vm.machine.vm_types))}",
        "use a kernel with KVM_SW_PROTECTED_VM, or hardware with private memory",
    ),
    flags_zero(_SOURCE),
    Check(
        "attributes-supported",
        errno.EINVAL,
        "only attributes that the VM supports may be set",
        _SOURCE,
        lambda r: r.attributes & ~_supported(r) == 0,
        lambda r: f"attributes={r.attributes:#x} supported={_supported(r):#x}",
        "private memory needs a VM type that has it; KVM_CAP_MEMORY_ATTRIBUTES on the VM tells",
    ),
    Check(
        "range-not-empty",
        errno.EINVAL,
        "size must not be 0 and address + size must not reach 2**64",
        _SOURCE,
        lambda r: r.size != 0 and r.address + r.size < U64,
        lambda r: f"address={r.address:#x} size={r.size:#x}",
    ),
    Check(
        "range-page-aligned",
        errno.EINVAL,
        "address and size must be multiples of the page size",
        _SOURCE,
        lambda r: not (r.address | r.size) & (r.vm.page_size - 1),
        lambda r: f"address={r.address:#x} size={r.size:#x} page={r.vm.page_size:#x}",
    ),
)


def set_attributes(request: AttributesRequest) -> None:
    """Check the request, then set the attributes of its range (kvm_vm_set_mem_attributes).

    A range that has them already is left alone, mappings included. Otherwise every mapping of the whole range goes,
    also of frames that keep their value.
    """
    require(CHECKS, request)
    vm = request.vm
    start, end = request.address >> vm.page_shift, (request.address + request.size) >> vm.page_shift
    if request.attributes:
        if vm.attributes.covers(start, end, request.attributes):
            return
    elif not vm.attributes.overlaps(start, end):
        return
    vm.invalidate(start, end)
    if request.attributes:
        vm.attributes.set(start, end, request.attributes)
    else:
        vm.attributes.clear(start, end)
