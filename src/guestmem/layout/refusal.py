"""Which slots of a layout KVM would refuse: the model's own checks of the region ioctl, asked for each slot in turn.

A layout says neither in which order its slots were set nor which slots were there before, so each is asked as a new
slot, in the layout's order: of two that collide the lower one (by address space, then GPA) is there and the other is
refused. A refused slot is not there, so nothing collides with it, whatever refused it, the alignment rule included.

Of what a layout does not say nothing is refused that some machine or VM would accept: GPAs reach 2**52 on x86-64 and
2**64 elsewhere, user space has five-level paging, there are two address spaces, an unknown HVA is 0, an unknown file is
as large as files can be, and the VM may have private memory.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING

from guestmem.errors import KvmError
from guestmem.geometry import X86_64, X86_64_512G, Geometry
from guestmem.layout.value import File, Layout, Slot
from guestmem.model.checks import require
from guestmem.model.profiles import NEWEST, NEXT, Machine
from guestmem.model.region_checks import ARGUMENT_CHECKS, DELETE_CHECKS, Region, RegionRequest, new_slot_checks
from guestmem.model.vm import AddressSpaceSlots, BindableFile, Memslot, VmSlots
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_X86_SW_PROTECTED_VM
from guestmem.units import KIB, S64_MAX, align_down

if TYPE_CHECKING:
    from guestmem.layout.coverage import HostLimits

__all__ = ("is_by_rule", "machine_of", "refusals")

_USER_LIMIT = (1 << 56) - 4 * KIB  # five-level paging, the largest any x86 kernel has
_X86_GPA_BITS = 52  # kvm_mmu_max_gfn: no x86 machine maps more
_SPACES = 2  # KVM_MAX_NR_ADDRESS_SPACES


def refusals(layout: Layout, host: HostLimits) -> dict[int, KvmError]:
    """Index into layout.slots -> the errno, check and values with which the host's kernel refuses that slot."""
    profile = host.profile or (NEXT if host.files.page_size else NEWEST)
    spaces = [_Ascending() for _ in range(_SPACES)]
    vm = VmSlots(KVM_X86_SW_PROTECTED_VM, profile, machine_of(host.geometry), host.files.rule, spaces)
    files: dict[str, _File] = {}
    found: dict[int, KvmError] = {}
    for index, slot in enumerate(layout.slots):
        file = _file(vm, layout, slot, host, files) if slot.flags & KVM_MEM_GUEST_MEMFD else None
        request = RegionRequest(vm, _region(slot), file)
        try:
            require(ARGUMENT_CHECKS, request)
            require(new_slot_checks(request) if slot.size else DELETE_CHECKS, request)
        except KvmError as refused:
            found[index] = refused.with_traceback(None)
        else:
            spaces[slot.address_space].last = request
            vm.slot_pages += request.npages
            if file is not None:
                file.bind(request)
    return found


def is_by_rule(refused: KvmError) -> bool:
    """Whether it was the alignment rule that refused."""
    return refused.check.startswith("rule:")


class _Ascending(AddressSpaceSlots):
    """The slots of an address space that are asked in ascending order: only the last one can overlap the next."""

    def __init__(self) -> None:
        self.last: RegionRequest | None = None

    def overlapping(self, start_gfn: int, end_gfn: int, ignore: Memslot | None) -> Memslot | None:
        last = self.last
        return last.slot() if last is not None and start_gfn < last.base_gfn + last.npages else None


class _File(BindableFile):
    """A file and what was bound of it, ascending, up to base page ``_end``."""

    def __init__(self, vm: VmSlots, size: int, page_size: int) -> None:
        super().__init__(vm, size, page_size)
        self._starts: list[int] = []
        self._bound: list[RegionRequest] = []
        self._end = 0

    def bind(self, request: RegionRequest) -> None:
        """The request was accepted."""
        start = request.region.offset >> self.vm.page_shift
        place = bisect_right(self._starts, start)
        self._starts.insert(place, start)
        self._bound.insert(place, request)
        self._end = max(self._end, start + request.npages)

    def bound_in(self, start: int, end: int) -> tuple[int, int, Memslot] | None:
        if start >= self._end:
            return None
        place = bisect_right(self._starts, start)
        for at in range(max(place - 1, 0), min(place + 1, len(self._starts))):
            first, request = self._starts[at], self._bound[at]
            if first < end and start < first + request.npages:
                return max(first, start), min(first + request.npages, end), request.slot()
        return None


@cache
def machine_of(geometry: Geometry) -> Machine:
    """The largest machine there is of a geometry."""
    gpa_bits = _X86_GPA_BITS if geometry in (X86_64, X86_64_512G) else 64
    return Machine(gpa_bits=gpa_bits, user_limit=_USER_LIMIT, geometry=geometry)


def _region(slot: Slot) -> Region:
    place = _u16(slot.address_space) << 16 | _u16(slot.number or 0)
    return Region(2, place, slot.flags, slot.gpa, slot.size, slot.hva or 0, offset=slot.offset or 0)


def _u16(number: int) -> int:
    """The number as half of the ioctl's field; one that does not fit becomes the largest, which is refused too."""
    return number if 0 <= number <= 0xFFFF else 0xFFFF


def _file(vm: VmSlots, layout: Layout, slot: Slot, host: HostLimits, files: dict[str, _File]) -> _File:
    """The file a slot is bound to; one of its own where the layout does not name it."""
    file = files.get(slot.file or "")
    if file is not None:
        return file
    named = layout.file_of(slot) or File("")
    page_size = (named.page_size or host.files.page_size) if host.files.page_size else vm.page_size
    # The largest size there is: positive as a signed number (kvm_gmem_create).
    file = _File(vm, named.size or align_down(S64_MAX, page_size), page_size)
    if named.name:
        files[named.name] = file
    return file
