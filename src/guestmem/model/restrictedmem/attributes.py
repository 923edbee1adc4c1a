"""KVM_SET_MEMORY_ATTRIBUTES as v10 has it, and the marks of blocks that are only partly private.

The ioctl writes back what is left to do and answers 0 in any case (v10 2/9 "KVM: Introduce per-page memory
attributes"). The marks (v10 7/9 "KVM: Update lpage info when private/shared memory are mixed") belong to private slots;
a block that has one is not mapped whole. Two bugs of theirs are here: the 1G level is not looked at when all that
changed lies in one 2M block (I. Yamahata, 5 December 2022), and a slot made after the attributes has none
(S. Christopherson, Y8HmS2iE4u0Gfkrn@google.com).
"""

from __future__ import annotations

from guestmem.backend import AttributesWritten
from guestmem.model.attributes import ARGUMENT_CHECKS, AttributesRequest, give
from guestmem.model.checks import require
from guestmem.model.page_fault import Fault
from guestmem.model.restrictedmem.file import Observer
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE

__all__ = ("is_uniform", "set_attributes")


def set_attributes(request: AttributesRequest) -> AttributesWritten:
    """Check the request, then set the attributes of its range: address and size as written back, both bytes."""
    require(ARGUMENT_CHECKS, request)
    vm = request.vm
    start, end = request.start >> vm.page_shift, (request.start + request.size) >> vm.page_shift
    vm.invalidate(start, end)
    give(vm.attributes, start, end, request.attributes)
    for slot in vm.spaces[0].by_id.values():
        if slot.observer is not None:
            _mark(slot.observer, start, end, private=bool(request.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE))
    return AttributesWritten(request.start + request.size, 0)


def _mark(observer: Observer, start: int, end: int, *, private: bool) -> None:
    """Mark the first and last block of the range, unmark those between (kvm_update_lpage_private_shared_mixed)."""
    slot, vm = observer.slot, observer.vm
    start, end = max(start, slot.base_gfn), min(end, slot.end_gfn)
    below = 0
    for order in vm.geometry.orders[1:] if start < end else ():
        first, last = start >> order, (end - 1) >> order
        marks = observer.mixed.setdefault(order, set())
        marks.difference_update([block for block in marks if first <= block <= last])
        marks.update(block for block in {first, last} if _is_mixed(observer, block, order, below, private=private))
        if first == last:
            return
        below = order


def _is_mixed(observer: Observer, block: int, order: int, below: int, *, private: bool) -> bool:
    start, end = block << order, (block + 1) << order
    if not below:
        return not observer.vm.is_uniform(start, end)
    if any(start <= mark << below < end for mark in observer.mixed[below]):
        return True
    return any(observer.vm.is_private(frame) != private for frame in range(start, end, 1 << below))


def is_uniform(fault: Fault, order: int) -> bool:
    """Whether the frame's block counts as all private or all shared; in a slot that is not private, always."""
    slot = fault.slot
    if slot is None or slot.observer is None:
        return True
    block = fault.gfn >> order
    if slot.observer.file.revision.marks == "kept":
        return fault.vm.is_uniform(block << order, (block + 1) << order)
    return block not in slot.observer.mixed.get(order, ())
