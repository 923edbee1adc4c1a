"""The memslots of a QEMU that is described but not running: by libvirt's XML or by a command line.

Left out: what firmware changes, slots of devices, and pflash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from guestmem.layout.placement import (
    ALIGNED_BASE,
    DEFAULT_HUGE_ASSUMPTION,
    PAGE_BELOW_BASE,
    hva_assumption,
    private_assumption,
)
from guestmem.layout.qemu_machine import (
    PROTECTED_FIRMWARE,
    Device,
    QemuMachine,
    Ram,
    device_memory,
    machine_slots,
    place_devices,
)
from guestmem.layout.value import Assumption, File, Layout, ReaderRemark, Slot
from guestmem.uapi import KVM_MEM_GUEST_MEMFD
from guestmem.units import format_size

__all__ = ("QemuVm", "lay_out")

_ASK = "qmp: or the monitor of the running VM has it"


@dataclass(slots=True)
class QemuVm:
    """What decides the slots. devices: with how much of each is plugged, bytes; protected: "sev-snp", "tdx" or ""."""

    machine: QemuMachine
    nodes: Sequence[Ram]
    devices: list[tuple[Device, int]] = field(default_factory=list)
    vga: bool = False
    most_below_4g: int | None = None
    protected: str = ""
    default_huge: bool = False  # a default huge page size was assumed
    notes: list[Assumption] = field(default_factory=list)


def lay_out(source: str, format: str, vmm: str, vm: QemuVm) -> Layout:
    """The memslots QEMU would set for the VM before its firmware runs."""
    slots = machine_slots(vm.machine, vm.nodes, vga=vm.vga, most_below_4g=vm.most_below_4g, protected=vm.protected)
    placed, remarks = _devices(vm, max(slot.end for slot in slots))
    slots, hva_notes = _place([_bind(slot, vm) for slot in (*slots, *placed)])
    private, private_notes = private_assumption(slots)
    text = f"addresses are computed for the machine {vm.machine.family} as before its firmware runs"
    notes = [Assumption("gpa", text), *vm.notes]
    if vm.default_huge:
        notes.append(DEFAULT_HUGE_ASSUMPTION)
    if vm.protected:
        text = f"the firmware's size is not in the source: it is taken as {format_size(PROTECTED_FIRMWARE)}"
        notes.append(Assumption("slots", text, "qmp: of the running VM"))
    return Layout(
        source,
        format,
        tuple(slots),
        files=tuple(File(name) for name in sorted({slot.file for slot in slots if slot.file})),
        private=private,
        assumptions=(*notes, *hva_notes, *private_notes),
        remarks=tuple(remarks),
        vmm=vmm,
        machine=vm.machine.family,
    )


def _devices(vm: QemuVm, ram_end: int) -> tuple[list[Slot], list[ReaderRemark]]:
    """Memory devices as slots; a remark for each that QEMU has no room for where it is asked to be."""
    start = device_memory(ram_end)
    remarks = []
    fitting: list[tuple[Device, int]] = []
    for device, plugged in vm.devices:
        if device.gpa is None or device.gpa >= start:
            fitting.append((device, plugged))
            continue
        message = (
            f"{device.ram.name} at GPA {device.gpa:#x}: QEMU refuses the device before KVM is asked, because its range "
            f"for memory devices begins at {start:#x}"
        )
        remedy = f"leave its address (base= of <address>, addr= of the device) out, or give it one from {start:#x} on"
        remarks.append(ReaderRemark("refused", "error", message, remedy))
    sizes = {id(device): plugged for device, plugged in fitting}
    return [
        Slot(gpa, sizes[id(device)], region=device.ram.name, offset=0, backing=device.ram.backing)
        for device, gpa in place_devices(ram_end, [device for device, _ in fitting])
        if sizes[id(device)]
    ], remarks


def _bind(slot: Slot, vm: QemuVm) -> Slot:
    """A confidential guest has one guest_memfd per RAMBlock, bound at the offset in the block."""
    if not vm.protected or slot.readonly:
        return slot
    return replace(slot, flags=slot.flags | KVM_MEM_GUEST_MEMFD, file=f"guest_memfd of {slot.region}")


def _place(slots: list[Slot]) -> tuple[list[Slot], list[Assumption]]:
    low = [slot.region for slot in slots if slot.backing.kind in ("shmem", "file")]
    placed = [
        replace(slot, assumed_hva=(PAGE_BELOW_BASE if slot.region in low else ALIGNED_BASE) + (slot.offset or 0))
        for slot in slots
    ]
    rest = list(dict.fromkeys(slot.region for slot in slots if slot.region not in low))
    notes = [hva_assumption(rest, "aligned to 2M or to the hugetlb page, as QEMU maps RAM", _ASK)] if rest else []
    if low:
        how = "one page below a 2M boundary, where QEMU's memfd and file backends usually land"
        notes.append(hva_assumption(list(dict.fromkeys(low)), how, _ASK))
    return placed, notes
