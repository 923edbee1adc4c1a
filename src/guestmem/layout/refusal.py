"""Which slots of a layout KVM would refuse: the model's own checks of the region ioctl, asked for each slot in turn.

A layout says neither in which order its slots were set nor which slots were there before, so each is asked as a new
slot, in the layout's order: of two that collide the lower one (by address space, then GPA) is there and the other is
refused. A refused slot is not there, so nothing collides with it, whatever refused it, the alignment rule included.

Of what a layout does not say nothing is refused that some machine or VM would accept: GPAs reach 2**64, user space has
five-level paging, there are two address spaces, an unknown HVA is 0, an unknown file is as large as files can be, and
the VM may have private memory.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from guestmem.errors import KvmError
from guestmem.geometry import Geometry
from guestmem.model.checks import require
from guestmem.model.profiles import NEXT, V7_2, Machine, Profile
from guestmem.model.region_checks import ARGUMENT_CHECKS, DELETE_CHECKS, Region, RegionRequest, require_new_slot
from guestmem.model.vm import AddressSpaceSlots, BindableFile, Memslot, VmSlots
from guestmem.rules import Rule
from guestmem.uapi import KVM_X86_SW_PROTECTED_VM
from guestmem.units import KIB

if TYPE_CHECKING:
    from guestmem.layout.coverage import Host
    from guestmem.layout.value import Layout, Slot

__all__ = ("is_by_rule", "refusals")

_USER_LIMIT = (1 << 56) - 4 * KIB  # five-level paging, the largest any x86 kernel has
_MAX_FILE_SIZE = 1 << 63  # a file's size is positive as a signed number (kvm_gmem_create)
_SPACES = 2  # KVM_MAX_NR_ADDRESS_SPACES


def refusals(layout: Layout, host: Host) -> dict[int, KvmError]:
    """Index into layout.slots -> the errno, check and values with which the host's kernel refuses that slot."""
    vm = _Slots(host.profile or (NEXT if host.files.page_size else V7_2), host.geometry, host.files.rule)
    files: dict[str, BindableFile] = {}
    found: dict[int, KvmError] = {}
    for index, slot in enumerate(layout.slots):
        request = RegionRequest(vm, _region(slot), _file(vm, layout, slot, host, files) if slot.guest_memfd else None)
        try:
            require(ARGUMENT_CHECKS, request)
            if slot.size:
                require_new_slot(request)
            else:
                require(DELETE_CHECKS, request)
        except KvmError as refused:
            found[index] = refused.with_traceback(None)
        else:
            vm.add(request)
    return found


def is_by_rule(refused: KvmError) -> bool:
    """Whether it was the alignment rule that refused."""
    return refused.check.startswith("rule:")


class _Ascending(AddressSpaceSlots):
    """The slots of an address space that are asked in ascending order: only the last one can overlap the next."""

    last: Memslot | None = None

    def overlapping(self, start_gfn: int, end_gfn: int, ignore: Memslot | None) -> Memslot | None:
        return self.last if self.last is not None and start_gfn < self.last.end_gfn else None


class _Slots(VmSlots):
    """A VM with the slots that were accepted so far."""

    def __init__(self, profile: Profile, geometry: Geometry, rule: Rule) -> None:
        super().__init__(KVM_X86_SW_PROTECTED_VM, profile, _machine(geometry), rule)
        self.ascending = [_Ascending() for _ in range(_SPACES)]
        self.spaces = list(self.ascending)

    def add(self, request: RegionRequest) -> None:
        """The slot was accepted: it and its binding are there from now on."""
        region = request.region
        slot = Memslot(region.as_id, region.id, request.base_gfn, request.npages, region.flags, region.userspace_addr)
        self.ascending[slot.as_id].last = slot
        self.slot_pages += slot.npages
        if region.wants_gmem:
            first = region.offset >> self.page_shift
            request.gmem.bindings.set(first, first + slot.npages, slot)


@cache
def _machine(geometry: Geometry) -> Machine:
    return Machine(gpa_bits=64, user_limit=_USER_LIMIT, geometry=geometry)


def _region(slot: Slot) -> Region:
    number = slot.number or 0
    if not 0 <= number <= 0xFFFF:
        number = 0xFFFF  # no argument of the ioctl holds it; refused as it is
    place = slot.address_space << 16 | number
    return Region(2, place, slot.flags, slot.gpa, slot.size, slot.hva or 0, offset=slot.offset or 0)


def _file(vm: _Slots, layout: Layout, slot: Slot, host: Host, files: dict[str, BindableFile]) -> BindableFile:
    """The file a slot is bound to; one of its own where the layout does not name it."""
    named = layout.file_of(slot)
    if named is None:
        return BindableFile(vm, _MAX_FILE_SIZE, vm.page_size)
    if (file := files.get(named.name)) is None:
        page_size = (named.page_size or host.files.page_size) if host.files.page_size else vm.page_size
        file = files[named.name] = BindableFile(vm, named.size or _MAX_FILE_SIZE, page_size)
    return file
