"""guest_memfd: the file whose pages only the guest may touch (virt/kvm/guest_memfd.c).

A file belongs for ever to the VM that made it and keeps that VM alive; the memslots bound to it do not keep it alive.
``bindings`` maps file indexes to the slot that owns them. Invariant: bindings lie inside the file and do not overlap.

Profile ``next`` adds a page size and a backing, chosen by creation flags (``uapi.GUEST_MEMFD_FLAG_HUGE_PAGES``).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guestmem.errors import EHWPOISON, HostSignal, KvmError
from guestmem.model.checks import Check
from guestmem.model.contents import Contents
from guestmem.model.files import GUEST_MEMFD, OpenFile
from guestmem.model.pagecache import Backing, PageCache
from guestmem.runmap import RunMap
from guestmem.uapi import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    GUEST_MEMFD_FLAG_HUGE_PAGES,
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GUEST_MEMFD_FLAG_SHMEM,
    GUEST_MEMFD_HUGE_MASK,
    GUEST_MEMFD_HUGE_SHIFT,
)
from guestmem.units import format_size, to_s64

if TYPE_CHECKING:
    from guestmem.model.memslots import Memslot
    from guestmem.model.vm import Vm

__all__ = (
    "CREATE_CHECKS",
    "FALLOCATE_CHECKS",
    "CreateRequest",
    "FallocateRequest",
    "GuestMemfd",
    "create",
    "fallocate",
)

_SIZE_FIELD = GUEST_MEMFD_HUGE_MASK << GUEST_MEMFD_HUGE_SHIFT


class GuestMemfd(OpenFile):
    """One guest_memfd. size is in bytes, indexes (pgoff) in base pages."""

    __slots__ = ("bindings", "cache", "flags", "size", "vm")

    def __init__(self, vm: Vm, size: int, flags: int, page_order: int, backing: Backing) -> None:
        super().__init__(GUEST_MEMFD)
        self.source = self
        self.vm = vm
        self.size = size
        self.flags = flags
        self.cache = PageCache(size >> vm.page_shift, page_order, backing, vm.geometry, vm.pools)
        self.bindings: RunMap[Memslot] = RunMap()
        vm.get()

    @property
    def page_size(self) -> int:
        """The page size asked for when the file was created, bytes."""
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
        if not self.flags & GUEST_MEMFD_FLAG_INIT_SHARED:
            raise HostSignal("SIGBUS", "the file was created without INIT_SHARED: all its memory is private")
        shift = self.vm.page_shift
        first, last = start >> shift, min(((end - 1) >> shift) + 1, self.cache.npages)
        poison = next(self.cache.poisoned.runs(first, last), None)
        sound = last if poison is None else poison[0]
        if first < sound:
            try:
                self.cache.populate(first, sound)
            except KvmError as refused:
                raise HostSignal("SIGBUS", str(refused)) from refused
        if poison is not None:
            raise HostSignal("SIGBUS", f"the page at offset {poison[0] << shift:#x} is poisoned")
        if end > self.size:
            raise HostSignal("SIGBUS", f"offset {end - 1:#x} is past the end of the file, {self.size:#x}")

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE on a mapping is a punch hole."""
        self.punch_hole(start >> self.vm.page_shift, end >> self.vm.page_shift)
        return True

    def get_page(self, index: int) -> int:
        """Order of the folio behind a guest access (__kvm_gmem_get_pfn); ENOMEM, EHWPOISON."""
        order = self.cache.get_folio(index)
        if self.cache.poisoned and self.cache.poisoned.get(index):
            raise KvmError(EHWPOISON, f"the page at file index {index:#x} is poisoned", check="page-not-poisoned")
        return order

    def punch_hole(self, start: int, end: int) -> None:
        """Free indexes [start, end): guests lose their mappings first, then the host, then the pages go."""
        self._invalidate(start, end)
        self.vm.host.file_changed(self, start << self.vm.page_shift, end << self.vm.page_shift)
        self.cache.punch(start, end)

    def poison(self, index: int) -> None:
        """Memory failure hits the page at index (kvm_gmem_error_folio); nothing happens to a hole."""
        if self.cache.folio_order(index) is not None:
            self._invalidate(index, index + 1)
            self.vm.host.file_changed(self, index << self.vm.page_shift, (index + 1) << self.vm.page_shift)
            self.cache.poison(index)

    def bind(self, slot: Memslot, pgoff: int) -> None:
        """Give [pgoff, pgoff + npages) to a slot; the checks were made."""
        slot.gmem, slot.pgoff, slot.gmem_only = self, pgoff, self.supports_mmap
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
        self.bindings.check_invariants()
        for start, end, slot in self.bindings:
            assert slot.gmem is self, f"bug in guestmem: {slot!r} does not know its file"
            assert (start, end) == (slot.pgoff, slot.pgoff + slot.npages), f"bug in guestmem: {slot!r} bound elsewhere"

    def _invalidate(self, start: int, end: int) -> None:
        for first, last, slot in list(self.bindings.runs(start, end)):
            to_gfn = slot.base_gfn - slot.pgoff
            if slot.as_id == 0:  # nothing is mapped for other address spaces
                self.vm.invalidate(first + to_gfn, last + to_gfn)


# -- KVM_CREATE_GUEST_MEMFD ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """The ioctl's argument; size in bytes. The reserved words are not looked at."""

    vm: Vm
    size: int
    flags: int

    @property
    def wants_huge(self) -> bool:
        """Asks for a page size, which only profile next knows."""
        return self.vm.profile.huge and bool(self.flags & GUEST_MEMFD_FLAG_HUGE_PAGES)

    @property
    def page_size(self) -> int:
        """The page size asked for, bytes; 0 where the field names none."""
        if not self.wants_huge:
            return self.vm.page_size
        logarithm = self.flags >> GUEST_MEMFD_HUGE_SHIFT & GUEST_MEMFD_HUGE_MASK
        return 1 << logarithm if logarithm else 0

    @property
    def backing(self) -> Backing:
        """What happens when the host has no page of that size."""
        if self.flags & GUEST_MEMFD_FLAG_HUGETLB:
            return "hugetlb"
        return "shmem" if self.flags & GUEST_MEMFD_FLAG_SHMEM else "thp"


def valid_flags(vm: Vm, flags: int) -> int:
    """Creation flags the VM takes (kvm_gmem_get_supported_flags; with profile next, those that go together)."""
    valid = vm.profile.gmem_flags_private if vm.has_private_mem else vm.profile.gmem_flags
    if vm.profile.huge:
        valid |= GUEST_MEMFD_FLAG_HUGE_PAGES
        if flags & GUEST_MEMFD_FLAG_HUGE_PAGES:
            valid |= _SIZE_FIELD
            # One backing: with HUGETLB set, SHMEM is no longer valid.
            valid |= GUEST_MEMFD_FLAG_HUGETLB if flags & GUEST_MEMFD_FLAG_HUGETLB else GUEST_MEMFD_FLAG_SHMEM
    return valid


CREATE_CHECKS: tuple[Check[CreateRequest], ...] = (
    Check(
        "flags-supported",
        errno.EINVAL,
        "only creation flags that KVM_CAP_GUEST_MEMFD_FLAGS reports for the VM are valid",
        "kvm_gmem_create",
        lambda r: r.flags & ~valid_flags(r.vm, r.flags) == 0,
        lambda r: f"flags={r.flags:#x} valid={valid_flags(r.vm, r.flags):#x}",
    ),
    Check(
        "page-size-known",
        errno.EINVAL,
        "the page size must be a leaf size of the VM's stage-2 tables",
        "profile next",
        lambda r: r.page_size in r.vm.geometry.page_sizes,
        lambda r: f"page size {r.page_size:#x}, geometry {r.vm.geometry.name}",
        "encode log2 of the page size in bits 26 to 31",
    ),
    Check(
        "size-positive",
        errno.EINVAL,
        "size must be positive as a signed number",
        "kvm_gmem_create",
        lambda r: to_s64(r.size) > 0,
        lambda r: f"size={r.size:#x}",
    ),
    Check(
        "size-aligned",
        errno.EINVAL,
        "size must be a multiple of the file's page size",
        "kvm_gmem_create",
        lambda r: r.size % r.page_size == 0,
        lambda r: f"size={r.size:#x} page={r.page_size:#x}",
        "round the size up; pages that nobody touches cost nothing",
    ),
)


def create(request: CreateRequest) -> GuestMemfd:
    """Make the file of a checked request."""
    vm = request.vm
    gmem = GuestMemfd(vm, request.size, request.flags, vm.geometry.order_of(request.page_size), request.backing)
    vm.gmems.append(gmem)
    return gmem


# -- fallocate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FallocateRequest:
    """fallocate on a guest_memfd, after the generic layer let it through: offset and length (bytes) do not overflow."""

    gmem: GuestMemfd
    mode: int
    offset: int
    length: int


def _allocates(request: FallocateRequest) -> bool:
    return not request.mode & FALLOC_FL_PUNCH_HOLE


FALLOCATE_CHECKS: tuple[Check[FallocateRequest], ...] = (
    Check(
        "mode-supported",
        errno.EOPNOTSUPP,
        "only KEEP_SIZE (allocate) and KEEP_SIZE | PUNCH_HOLE are supported",
        "kvm_gmem_fallocate",
        lambda r: r.mode in (FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE),
        lambda r: f"mode={r.mode:#x}",
        "the size of a guest_memfd never changes: pass FALLOC_FL_KEEP_SIZE",
    ),
    Check(
        "range-page-aligned",
        errno.EINVAL,
        "offset and length must be multiples of the page size",
        "kvm_gmem_fallocate",
        lambda r: not (r.offset | r.length) & (r.gmem.vm.page_size - 1),
        lambda r: f"offset={r.offset:#x} len={r.length:#x} page={r.gmem.vm.page_size:#x}",
    ),
    Check(
        "range-in-file",
        errno.EINVAL,
        "an allocation must lie inside the file; a hole need not",
        "kvm_gmem_allocate",
        lambda r: not _allocates(r) or r.offset + r.length <= r.gmem.size,
        lambda r: f"offset={r.offset:#x} len={r.length:#x} file size {r.gmem.size:#x} ({format_size(r.gmem.size)})",
    ),
)


def fallocate(request: FallocateRequest) -> None:
    """Allocate or punch a checked range; ENOMEM may leave a part allocated."""
    gmem = request.gmem
    start, end = request.offset >> gmem.vm.page_shift, (request.offset + request.length) >> gmem.vm.page_shift
    if _allocates(request):
        gmem.cache.populate(start, end)
    else:
        gmem.punch_hole(start, end)
