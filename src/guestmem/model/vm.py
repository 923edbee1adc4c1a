"""The state of one VM (struct kvm): slots, attributes, stage 2, files, and the invalidation that ties them together.

Invariants (``check_invariants``): nothing is mapped outside a slot or outside a binding, nothing private is mapped
where the attribute says shared and the other way round, and every leaf shows what its slot says it should.
"""

from __future__ import annotations

from guestmem.geometry import Geometry
from guestmem.model import binding, dirtylog
from guestmem.model.gmem import GuestMemfd
from guestmem.model.hostmem import AddressSpace
from guestmem.model.memslots import AddressSpaceSlots, Memslot
from guestmem.model.mmio import MmioCache
from guestmem.model.pools import HostPools
from guestmem.model.profiles import Machine, Profile, has_private_mem
from guestmem.model.stage2 import Stage2
from guestmem.rules import Rule
from guestmem.runmap import RunMap
from guestmem.uapi import KVM_X86_DEFAULT_VM

__all__ = ("Vm",)


class Vm:
    """One VM. Descriptors of the VM, of its vCPUs and of its guest_memfds keep it alive."""

    def __init__(
        self, type: int, profile: Profile, machine: Machine, rule: Rule, host: AddressSpace, pools: HostPools
    ) -> None:
        self.type = type
        self.profile = profile
        self.machine = machine
        self.rule = rule
        self.binding_checks = binding.checks(profile, rule)
        self.host = host
        self.pools = pools
        self.geometry: Geometry = machine.geometry
        self.page_size: int = self.geometry.base_page_size
        self.page_shift: int = self.page_size.bit_length() - 1
        self.has_private_mem = has_private_mem(type)
        self.has_attributes = any(has_private_mem(offered) for offered in machine.vm_types)
        spaces = 2 if machine.smm and not self.has_private_mem else 1
        self.spaces = [AddressSpaceSlots() for _ in range(spaces)]
        self.slot_pages = 0
        self.had_slots = False
        self.attributes: RunMap[int] = RunMap()
        self.stage2 = Stage2(self.geometry)
        self.mmio = MmioCache()
        self.gmems: list[GuestMemfd] = []
        self.vcpu_ids: set[int] = set()
        self.mmu_seq = 0  # mmu_invalidate_seq
        self.mmu_invalidations: list[tuple[int, int]] = []  # in progress
        self.root_generation = 0  # grows when every root is thrown away (kvm_mmu_zap_all_fast)
        self.slot_zap_all = type == KVM_X86_DEFAULT_VM  # KVM_X86_QUIRK_SLOT_ZAP_ALL, which a VM can switch off
        self.references = 1
        host.on_invalidate.append(self._host_invalidate)

    # -- lifetime ----------------------------------------------------------------------------------------------------

    def get(self) -> None:
        """Take a reference (kvm_get_kvm)."""
        self.references += 1

    def put(self) -> None:
        """Drop a reference; the last one destroys the VM (kvm_destroy_vm)."""
        self.references -= 1
        if self.references == 0:
            self.host.on_invalidate.remove(self._host_invalidate)
            self.stage2 = Stage2(self.geometry)

    # -- invalidation ------------------------------------------------------------------------------------------------

    def invalidate_begin(self, start_gfn: int, end_gfn: int) -> None:
        """Begin an invalidation: faults on the range retry until it ends; its leaves go now."""
        self.mmu_invalidations.append((start_gfn, end_gfn))
        self.stage2.zap(start_gfn, end_gfn)

    def invalidate_end(self, start_gfn: int, end_gfn: int) -> None:
        """End an invalidation."""
        self.mmu_seq += 1
        self.mmu_invalidations.remove((start_gfn, end_gfn))

    def invalidate(self, start_gfn: int, end_gfn: int) -> None:
        """A whole invalidation, for callers whose change cannot be seen half done."""
        self.invalidate_begin(start_gfn, end_gfn)
        self.invalidate_end(start_gfn, end_gfn)

    def invalidating(self, gfn: int) -> bool:
        """Whether an invalidation of gfn is in progress."""
        return any(start <= gfn < end for start, end in self.mmu_invalidations)

    def _host_invalidate(self, start: int, end: int) -> None:
        """The host unmaps addresses [start, end): every slot that shows them loses the mappings (the mmu notifier)."""
        for slot in self.spaces[0].by_id.values():
            first = max(start, slot.userspace_addr)
            last = min(end, slot.userspace_addr + slot.npages * self.page_size)
            if first < last:
                to_gfn = slot.base_gfn - (slot.userspace_addr >> self.page_shift)
                self.invalidate((first >> self.page_shift) + to_gfn, ((last - 1) >> self.page_shift) + to_gfn + 1)

    # -- memslots ----------------------------------------------------------------------------------------------------

    def insert_slot(self, slot: Memslot) -> None:
        """Make a checked slot visible."""
        self.spaces[slot.as_id].insert(slot)
        self.slot_pages += slot.npages
        self.had_slots = True
        self.mmio.generation += 1

    def delete_slot(self, slot: Memslot) -> None:
        """Remove a slot, its mappings and its binding; the file keeps its pages."""
        self.drop_mappings_of(slot)
        self.spaces[slot.as_id].remove(slot)
        self.slot_pages -= slot.npages
        if slot.gmem is not None:
            slot.gmem.unbind(slot)

    def move_slot(self, slot: Memslot, base_gfn: int, flags: int) -> None:
        """Put a slot whose mappings are gone elsewhere."""
        space = self.spaces[slot.as_id]
        space.remove(slot)
        slot.base_gfn, slot.flags = base_gfn, flags
        space.insert(slot)

    def set_slot_flags(self, slot: Memslot, flags: int) -> None:
        """Switch dirty logging: on, huge mappings are split; off, they come back at once or at the next fault."""
        was_logging = slot.log_dirty
        self.mmio.generation += 1
        slot.flags = flags
        if slot.as_id == 0 and slot.log_dirty and not was_logging:
            dirtylog.begin(self, slot)
        elif slot.as_id == 0 and was_logging and not slot.log_dirty:
            dirtylog.end(self, slot)

    def drop_mappings_of(self, slot: Memslot) -> None:
        """A slot goes or moves (kvm_arch_flush_shadow_memslot): default VMs drop every mapping they have.

        Unless they disabled that quirk, or have private memory: then only what the slot maps goes.
        """
        self.mmio.generation += 1
        if self.slot_zap_all:
            self.root_generation += 1
            self.mmio.clear()
            self.invalidate(0, 1 << (self.machine.gpa_bits - self.page_shift))
        elif slot.as_id == 0:
            self.invalidate(slot.base_gfn, slot.end_gfn)
