"""The state of one VM: struct kvm, its memslots and its guest_memfds, which point at one another.

This module holds state and what keeps it consistent; what a call checks and does is in the modules of the calls. A file
belongs for ever to the VM that made it and keeps that VM alive; a memslot knows the file it is bound to and the file
knows its slots (``bindings``), and neither keeps the other alive.

Whether a frame is private is said by attributes, which belong to the VM's frames or, with in-place conversion, to the
pages of the file: ``Vm.private_until`` looks where they are.

Invariants (``check_invariants``): no two slots of an address space share a frame; bindings lie inside the file and do
not overlap; nothing is mapped outside a slot or outside a binding, nothing private is mapped where the attribute says
shared and the other way round, and every leaf shows what its slot says it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guestmem.errors import EHWPOISON, HostSignal, KvmError
from guestmem.geometry import Geometry
from guestmem.model.checks import Check, observed, require
from guestmem.model.contents import Contents
from guestmem.model.files import GUEST_MEMFD, OpenFile
from guestmem.model.hostmem import AddressSpace
from guestmem.model.mmio import MmioCache
from guestmem.model.pagecache import PageCache
from guestmem.model.pools import HostPools
from guestmem.model.profiles import Machine, Profile, converts_in_place, has_private_mem, offers_private_mem
from guestmem.model.stage2 import Stage2
from guestmem.rules import Binding, Rule
from guestmem.runmap import RunMap
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
)
from guestmem.units import align_down, align_up

if TYPE_CHECKING:
    from guestmem.model.restrictedmem.file import Observer

__all__ = ("AddressSpaceSlots", "BindableFile", "GuestMemfd", "Memslot", "Vm", "VmSlots")


# -- memslots --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False, repr=False)
class Memslot:
    """struct kvm_memory_slot: frames [base_gfn, base_gfn + npages), pgoff in base pages of its file."""

    as_id: int
    id: int
    base_gfn: int
    npages: int
    flags: int
    userspace_addr: int
    gmem: GuestMemfd | None = None  # None again once the file is closed
    pgoff: int = 0
    gmem_only: bool = False  # every guest access goes to the file (KVM_MEMSLOT_GMEM_ONLY)
    observer: Observer | None = None  # under restrictedmem, what it left with its file

    @property
    def end_gfn(self) -> int:
        """One past the last frame."""
        return self.base_gfn + self.npages

    @property
    def readonly(self) -> bool:
        """Guest stores exit as MMIO."""
        return bool(self.flags & KVM_MEM_READONLY)

    @property
    def log_dirty(self) -> bool:
        """Dirty pages are logged, which forbids huge mappings."""
        return bool(self.flags & KVM_MEM_LOG_DIRTY_PAGES)

    @property
    def can_be_private(self) -> bool:
        """Whether the slot was created with a guest_memfd (kvm_slot_can_be_private)."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)

    def __str__(self) -> str:
        frames = f"guest frames [{self.base_gfn:#x}, {self.end_gfn:#x})"
        return f"slot {self.as_id}:{self.id} ({frames}, flags={self.flags:#x}, userspace_addr={self.userspace_addr:#x})"

    __repr__ = __str__


@dataclass(slots=True)
class AddressSpaceSlots:
    """The slots of one address space (struct kvm_memslots)."""

    by_id: dict[int, Memslot] = field(default_factory=dict)
    by_gfn: RunMap[Memslot] = field(default_factory=RunMap)

    def insert(self, slot: Memslot) -> None:
        """Add a slot whose frames are free."""
        self.by_id[slot.id] = slot
        self.by_gfn.set(slot.base_gfn, slot.end_gfn, slot)

    def remove(self, slot: Memslot) -> None:
        """Take a slot out."""
        del self.by_id[slot.id]
        self.by_gfn.clear(slot.base_gfn, slot.end_gfn)

    def overlapping(self, start_gfn: int, end_gfn: int, ignore: Memslot | None) -> Memslot | None:
        """A slot other than ``ignore`` with a frame in the range (kvm_check_memslot_overlap)."""
        for _, _, slot in self.by_gfn.runs(start_gfn, end_gfn):
            if slot is not ignore:
                return slot
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError if the two views of the slots differ."""
        self.by_gfn.check_invariants()
        frames = sorted((slot.base_gfn, slot.end_gfn, slot.id) for slot in self.by_id.values())
        assert frames == [(start, end, slot.id) for start, end, slot in self.by_gfn], f"bug in guestmem: {self!r}"


# -- the VM ----------------------------------------------------------------------------------------------------------


class VmSlots:
    """The part of a VM that the region ioctl looks at: what kernel and machine allow, and the memslots there are."""

    def __init__(
        self, type: int, profile: Profile, machine: Machine, rule: Rule, spaces: Sequence[AddressSpaceSlots]
    ) -> None:
        self.type = type
        self.profile = profile
        self.machine = machine
        self.rule = rule
        self.geometry: Geometry = machine.geometry
        self.page_size: int = self.geometry.base_page_size
        self.page_shift: int = self.page_size.bit_length() - 1
        self.has_private_mem = has_private_mem(type)
        self.in_place = converts_in_place(profile, machine)  # attributes belong to the files
        self.spaces = spaces
        self.slot_pages = 0


class Vm(VmSlots):
    """One VM. Descriptors of the VM, of its vCPUs and of its guest_memfds keep it alive."""

    def __init__(
        self, type: int, profile: Profile, machine: Machine, rule: Rule, host: AddressSpace, pools: HostPools
    ) -> None:
        everywhere = profile.revision is not None and profile.revision.second_address_space
        spaces = 2 if machine.smm and (everywhere or not has_private_mem(type)) else 1
        super().__init__(type, profile, machine, rule, [AddressSpaceSlots() for _ in range(spaces)])
        self.host = host
        self.pools = pools
        self.has_attributes = offers_private_mem(machine) and (machine.vm_attributes or not profile.in_place)
        self.had_slots = False
        self.attributes: RunMap[int] = RunMap()
        self.stage2 = Stage2(self.geometry)
        self.mmio = MmioCache()
        self.gmems: list[GuestMemfd] = []
        self.vcpu_ids: set[int] = set()
        self.mmu_seq = 0  # mmu_invalidate_seq
        self.mmu_invalidations: list[tuple[int, int]] = []  # in progress
        self.root_generation = 0  # grows when every root is thrown away (kvm_mmu_zap_all_fast)
        self.disabled_quirks = 0  # KVM_X86_QUIRK_*
        self.shutdowns = 0  # how often every vCPU was asked to exit with KVM_EXIT_SHUTDOWN
        self.references = 1
        host.on_invalidate.append(self._host_invalidate)

    def private_until(self, gfn: int, end_gfn: int) -> tuple[bool, int]:
        """Whether the frame is private, and where those after it that are no other than it end, at most at end_gfn.

        Attributes are those of the VM's frames, or of the file bound there (kvm_mem_is_private): then a frame without
        file is shared, and only the first address space counts.
        """
        if not self.in_place:
            return _run_of(self.attributes, gfn, end_gfn)
        run = self.spaces[0].by_gfn.run_at(gfn)
        if run is None:
            return False, next((start for start, _, _ in self.spaces[0].by_gfn.runs(gfn, end_gfn)), end_gfn)
        slot, end_gfn = run[2], min(run[1], end_gfn)
        if slot.gmem is None:
            return False, end_gfn
        to_gfn = slot.base_gfn - slot.pgoff
        private, end = _run_of(slot.gmem.attributes, gfn - to_gfn, end_gfn - to_gfn)
        return private, end + to_gfn

    def is_private(self, gfn: int) -> bool:
        """Whether the frame is private."""
        return self.private_until(gfn, gfn + 1)[0]

    def is_uniform(self, start_gfn: int, end_gfn: int) -> bool:
        """Whether the frames of a slot are all private or all shared."""
        return self.private_until(start_gfn, end_gfn)[1] == end_gfn

    def get(self) -> None:
        """Take a reference (kvm_get_kvm)."""
        self.references += 1

    def put(self) -> None:
        """Drop a reference; the last one destroys the VM (kvm_destroy_vm)."""
        self.references -= 1
        if self.references == 0:
            self.host.on_invalidate.remove(self._host_invalidate)
            self.stage2 = Stage2(self.geometry)
            for slot in [slot for space in self.spaces for slot in space.by_id.values()]:
                if slot.observer is not None:
                    slot.observer.release()

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


def _run_of(attributes: RunMap[int], start: int, end: int) -> tuple[bool, int]:
    run = attributes.run_at(start)
    if run is not None:
        return True, min(run[1], end)
    return False, next((first for first, _, _ in attributes.runs(start, end)), end)


# -- guest_memfd -----------------------------------------------------------------------------------------------------


class BindableFile(OpenFile):
    """The part of a guest_memfd that a binding looks at; this one has nothing bound. size and page_size are bytes."""

    __slots__ = ("page_size", "size", "vm")

    def __init__(self, vm: VmSlots, size: int, page_size: int) -> None:
        super().__init__(GUEST_MEMFD)
        self.vm = vm
        self.size = size
        self.page_size = page_size  # asked for when the file was created

    @property
    def backing_page_size(self) -> int:
        """The largest page the backing takes at the moment, bytes."""
        return self.page_size

    def bound_in(self, start: int, end: int) -> tuple[int, int, Memslot] | None:
        """The first part of indexes [start, end) that a slot has: its start, end and slot."""
        return None

    def binding(self, gpa: int, size: int, offset: int, userspace_addr: int) -> Binding:
        """What a rule may know of a range of the file bound at a GPA; bytes."""
        return Binding(gpa, size, offset, self.page_size, self.backing_page_size, self.vm.geometry, userspace_addr)


class GuestMemfd(BindableFile):
    """One guest_memfd, the file whose pages only the guest may touch (virt/kvm/guest_memfd.c).

    size is in bytes, indexes (pgoff) in base pages.
    """

    __slots__ = ("attributes", "bindings", "cache", "flags")
    vm: Vm

    def __init__(self, vm: Vm, size: int, flags: int, page_size: int, cache: PageCache) -> None:
        super().__init__(vm, size, page_size)
        self.source = self
        self.flags = flags
        self.cache = cache
        self.bindings: RunMap[Memslot] = RunMap()
        self.attributes: RunMap[int] = RunMap()  # of every page, there or not; only in-place conversion changes them
        if not flags & GUEST_MEMFD_FLAG_INIT_SHARED:
            self.attributes.set(0, cache.npages, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        vm.get()
        vm.gmems.append(self)

    @property
    def backing_page_size(self) -> int:
        """The largest page the backing takes, bytes."""
        return self.vm.geometry.page_size(self.cache.page_order)

    @property
    def supports_mmap(self) -> bool:
        """Created with the MMAP flag; then every guest access of its slots goes to the file."""
        return bool(self.flags & GUEST_MEMFD_FLAG_MMAP)

    @property
    def contents(self) -> Contents:
        """The bytes of the file."""
        return self.cache.contents

    def host_fault(self, start: int, end: int) -> None:
        """Host accesses through a mapping (kvm_gmem_fault_user_mapping); SIGBUS unless the pages are shared and sound.

        Pages before the one that fails are there afterwards.
        """
        shift = self.vm.page_shift
        first, last = start >> shift, min(((end - 1) >> shift) + 1, self.cache.npages)
        poison = next((index for index, _, _ in self.cache.poisoned.runs(first, last)), last)
        private = next((index for index, _, _ in self.attributes.runs(first, last)), last)
        if first < min(poison, private):
            try:
                self.populate(first, min(poison, private))
            except KvmError as refused:
                raise HostSignal("SIGBUS", str(refused)) from refused
        if private < last and private <= poison:
            raise HostSignal("SIGBUS", f"the page at offset {private << shift:#x} is private")
        if poison < last:
            raise HostSignal("SIGBUS", f"the page at offset {poison << shift:#x} is poisoned")
        if end > self.size:
            raise HostSignal("SIGBUS", f"offset {end - 1:#x} is past the end of the file, {self.size:#x}")

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE on a mapping is a punch hole."""
        self.punch_hole(start >> self.vm.page_shift, end >> self.vm.page_shift)
        return True

    def get_page(self, index: int) -> int:
        """Order of the folio behind a guest access (__kvm_gmem_get_pfn); ENOMEM, EHWPOISON."""
        order = self.cache.get_folio(index)
        if order and self.vm.in_place:
            self._split_shared(index, index + 1)
            order = self.cache.get_folio(index)
        if self.cache.poisoned or observed():
            require((PAGE_NOT_POISONED,), (self, index))
        return order

    def populate(self, start: int, end: int) -> None:
        """Fill the holes of [start, end) (kvm_gmem_allocate); ENOMEM leaves what was filled so far."""
        try:
            self.cache.populate(start, end)
        finally:
            self._split_shared(start, end)

    def _split_shared(self, start: int, end: int) -> None:
        """Shared pages are base pages: a new folio that has one is split (HugeTLB work in progress, 07fb82367304)."""
        if self.vm.in_place and self.cache.page_order:
            block = 1 << self.cache.page_order
            for first, last in self.attributes.gaps(align_down(start, block), align_up(end, block)):
                self.cache.split(first, last)

    def punch_hole(self, start: int, end: int) -> None:
        """Free indexes [start, end): guests lose their mappings first, then the host, then the pages go."""
        self.invalidate(start, end)
        self.unmap_from_host(start, end)
        self.cache.punch(start, end)

    def poison(self, index: int) -> None:
        """Memory failure hits the page at index (kvm_gmem_error_folio); nothing happens to a hole."""
        if self.cache.folio_order(index) is not None:
            self.invalidate(index, index + 1)
            self.vm.host.memory_failure(self, index << self.vm.page_shift, (index + 1) << self.vm.page_shift)
            self.unmap_from_host(index, index + 1)
            self.cache.poison(index)

    def bound_in(self, start: int, end: int) -> tuple[int, int, Memslot] | None:
        """The first part of indexes [start, end) that a slot has: its start, end and slot."""
        return next(self.bindings.runs(start, end), None)

    def bind(self, slot: Memslot, pgoff: int) -> None:
        """Give [pgoff, pgoff + npages) to a slot; the checks were made."""
        slot.gmem, slot.pgoff, slot.gmem_only = self, pgoff, self.supports_mmap or self.vm.in_place
        self.bindings.set(pgoff, pgoff + slot.npages, slot)

    def unbind(self, slot: Memslot) -> None:
        """Take the range back (kvm_gmem_unbind)."""
        slot.gmem = None
        self.bindings.clear(slot.pgoff, slot.pgoff + slot.npages)

    def release(self) -> None:
        """The last reference is gone: slots lose the file and what they had mapped of it (kvm_gmem_release)."""
        bound = {id(slot): slot for _, _, slot in self.bindings}.values()
        for slot in bound:
            slot.gmem = None
            if slot.as_id == 0:
                self.vm.invalidate(slot.base_gfn, slot.end_gfn)
        self.bindings = RunMap()
        self.vm.gmems.remove(self)
        self.cache.release()
        self.vm.put()

    def check_invariants(self) -> None:
        """Raise AssertionError if pages or bindings are not as they must be."""
        self.cache.check_invariants()
        self.attributes.check_invariants()
        for start, end, order in self.cache.folios if self.vm.in_place else ():
            assert not order or not any(self.attributes.gaps(start, end)), (
                f"bug in guestmem: a shared page in a folio of order {order}, indexes [{start:#x}, {end:#x})"
            )
        self.bindings.check_invariants()
        for start, end, slot in self.bindings:
            assert slot.gmem is self, f"bug in guestmem: {slot!r} does not know its file"
            assert (start, end) == (slot.pgoff, slot.pgoff + slot.npages), f"bug in guestmem: {slot!r} bound elsewhere"

    def unmap_from_host(self, start: int, end: int) -> None:
        """Every mapping of indexes [start, end) in the process goes (unmap_mapping_range)."""
        self.vm.host.file_changed(self, start << self.vm.page_shift, end << self.vm.page_shift)

    def invalidate(self, start: int, end: int) -> None:
        """Guests lose their mappings of indexes [start, end) (kvm_gmem_invalidate_begin)."""
        for first, last, slot in list(self.bindings.runs(start, end)):
            to_gfn = slot.base_gfn - slot.pgoff
            if slot.as_id == 0:  # nothing is mapped for other address spaces
                self.vm.invalidate(first + to_gfn, last + to_gfn)


PAGE_NOT_POISONED: Check[tuple[GuestMemfd, int]] = Check(
    "page-not-poisoned",
    EHWPOISON,
    "the page must not have been hit by a memory failure",
    "__kvm_gmem_get_pfn",
    lambda page: not page[0].cache.poisoned.get(page[1]),
    lambda page: f"file index {page[1]:#x}",
    "punch the page out of the file",
)
