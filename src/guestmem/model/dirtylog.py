"""What switching a slot's dirty logging does to its mappings. The log itself is not modelled."""

from __future__ import annotations

from guestmem.model.fault import get_page, look_up_slot
from guestmem.model.levels import mapping_order
from guestmem.model.page_fault import Fault
from guestmem.model.stage2 import Leaf
from guestmem.model.vm import Memslot, Vm
from guestmem.units import align_down

__all__ = ("begin", "end")


def begin(vm: Vm, slot: Memslot) -> None:
    """Logging is on: huge mappings become base pages at once (kvm_mmu_slot_try_split_huge_pages)."""
    vm.stage2.split(slot.base_gfn, slot.end_gfn)


def end(vm: Vm, slot: Memslot) -> None:
    """Logging is off: small mappings of blocks that may be huge are replaced, or only dropped on older kernels.

    kvm_mmu_recover_huge_pages; before it, kvm_mmu_zap_collapsible_sptes.
    """
    smallest_huge = vm.geometry.orders[1] if len(vm.geometry.orders) > 1 else 0
    for start, stop, leaf in list(vm.stage2.leaves.runs(slot.base_gfn, slot.end_gfn)):
        gfn = start
        while gfn < stop:
            fault = Fault(vm, gfn)
            look_up_slot(fault)
            reachable = get_page(fault) is None
            order = mapping_order(fault) if reachable else 0
            size = 1 << max(order, smallest_huge)  # every frame of the smallest huge block meets the same limits
            if order > leaf.order:
                first = align_down(gfn, 1 << order)
                if vm.profile.dirty_log_off_recovers:
                    assert fault.source is not None
                    vm.stage2.map(gfn, Leaf(order, fault.source, gfn - fault.index, False, fault.writable))
                else:
                    vm.stage2.zap(first, first + (1 << order))
            gfn = align_down(gfn, size) + size
