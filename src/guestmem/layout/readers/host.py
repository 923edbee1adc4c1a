"""VMs as ``guestmem host`` saw them: slots out of the kernel, and the host's memory behind them as it is.

What other sources leave open is known here: HVAs, what the memory is, whether the host may give it huge pages and
where it has. Open stays which pages are private, unless the VM's type has no private memory.
"""

from __future__ import annotations

from typing import get_args

from guestmem.host.document import BackingEntry, HostReport, HostSlot, HostVm
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import private_assumption
from guestmem.layout.text import decode_json
from guestmem.layout.value import Backing, BackingKind, File, Layout, Slot
from guestmem.uapi import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP
from guestmem.units import KIB, U64, is_power_of_two

__all__ = ("read", "to_layouts")

_DEFAULT_VM = 0  # KVM_X86_DEFAULT_VM: no private memory
_KINDS: tuple[BackingKind, ...] = get_args(BackingKind)


def read(source: str, data: bytes) -> list[Layout]:
    """The VMs of a file that ``guestmem host --save`` or ``--json`` wrote."""
    found = to_layouts(source, decode_json(source, data, HostReport))
    if not found:
        raise LayoutError(source, "holds no VM whose slots were read")
    return found


def to_layouts(source: str, report: HostReport) -> list[Layout]:
    """A layout for each VM whose slots were read; LayoutError where none of several could be."""
    unread = [vm for vm in report.vms if vm.totals.size is None]
    if unread and len(unread) == len(report.vms):
        raise LayoutError(source, f"the slots of process {unread[0].pid} could not be read: {unread[0].note}")
    several = len(report.vms) > 1
    return [
        _layout(f"{source}: VM {index + 1}, process {vm.pid}" if several else source, vm)
        for index, vm in enumerate(report.vms)
        if vm.totals.size is not None
    ]


def _layout(source: str, vm: HostVm) -> Layout:
    slots = tuple(_slot(source, f"slots[{index}]", slot) for index, slot in enumerate(vm.slots))
    flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED if vm.type == _DEFAULT_VM else 0
    files = {
        name: File(name, slot.guest_memfd.size, flags)
        for slot in vm.slots
        if slot.guest_memfd is not None and (name := _file_name(slot))
    }
    private, notes = ((), ()) if vm.type == _DEFAULT_VM else private_assumption(list(slots))
    machine = f"{vm.name}, process {vm.pid}"
    return Layout(
        source, "guestmem-host", slots, tuple(files.values()), private, assumptions=notes, vmm=vm.vmm, machine=machine
    )


def _slot(source: str, field: str, slot: HostSlot) -> Slot:
    if not 0 < slot.size < U64:
        raise LayoutError(source, "needed a size in bytes", field=f"{field}.size", value=slot.size)
    file = _file_name(slot) or None
    offset = slot.offset if slot.guest_memfd is None else slot.guest_memfd.offset
    return Slot(
        gpa=_address(source, f"{field}.gpa", slot.gpa),
        size=slot.size,
        hva=_address(source, f"{field}.hva", slot.hva),
        flags=slot.flags,
        region=file or slot.region,
        offset=_address(source, f"{field}.offset", offset),
        file=file,
        backing=_backing(source, f"{field}.backing", slot.backing),
        number=slot.slot,
        address_space=slot.address_space,
    )


def _file_name(slot: HostSlot) -> str:
    return "" if slot.guest_memfd is None else f"guest_memfd-{slot.guest_memfd.inode}"


def _backing(source: str, field: str, backing: BackingEntry | None) -> Backing:
    if backing is None:
        return Backing()
    if not is_power_of_two(backing.page_size) or backing.page_size < 4 * KIB:
        raise LayoutError(source, "needed a page size", field=f"{field}.page_size", value=backing.page_size)
    kind: BackingKind = next((kind for kind in _KINDS if kind == backing.kind), "unknown")
    huge = [
        (_address(source, f"{field}.huge", start), _address(source, f"{field}.huge", end))
        for start, end in backing.huge or ()
    ]
    return Backing(kind, backing.page_size, backing.thp, tuple(sorted(huge)))


def _address(source: str, field: str, text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not text.startswith("0x") or not 0 <= value < U64:
        raise LayoutError(source, "needed an address, as in 0x100000", field=field, value=text)
    return value
