"""One look at the VMs of the host: find them, read slots, walk page tables, judge, compare with KVM's own count."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from guestmem.errors import BackendUnavailable
from guestmem.host.attributes import private_bytes
from guestmem.host.backing import SlotBacking, find_backing
from guestmem.host.document import (
    FORMAT,
    SIZES,
    BackingEntry,
    GuestMemfdEntry,
    HostReport,
    HostSlot,
    HostVm,
    MappedLost,
    SlotStrip,
    VmTotals,
)
from guestmem.host.kernel import KernelView
from guestmem.host.leaves import Leaves
from guestmem.host.memory import Unreadable
from guestmem.host.processes import Processes
from guestmem.host.regions import NamedMemory, region_of
from guestmem.host.shadow import read_reverse_maps
from guestmem.host.slots import KernelSlot, SlotsChanging, read_slots
from guestmem.host.stage2 import find_roots, walk_roots
from guestmem.host.verdict import LostBytes, MappedVerdict, judge_slot
from guestmem.host.vms import Counters, Vm, find_vms, read_counters
from guestmem.units import format_size

__all__ = ("survey",)

_TRIES = 3  # of a whole VM whose slots change while it is walked


def survey(
    kernel: KernelView,
    processes: Processes,
    pid: int | None = None,
    *,
    every_space: bool = False,
    strips: bool = False,
) -> HostReport:
    """Look at every VM, or those of process ``pid``; ``every_space`` lists the slots of SMM's address space too,
    ``strips`` adds a picture of each slot.

    A VM that cannot be read is in the report with a note that says why.
    """
    start = time.monotonic()
    vms = [_look(kernel, processes, vm, every_space, strips) for vm in find_vms(kernel, processes, pid)]
    exact = all(not vm.note and vm.totals.leaves == vm.totals.counted for vm in vms)
    return HostReport(FORMAT, vms, kernel.memory.name, round(time.monotonic() - start, 3), exact)


def _look(kernel: KernelView, processes: Processes, vm: Vm, every_space: bool, strips: bool) -> HostVm:
    name, vmm = processes.name(vm.pid), processes.vmm(vm.pid)
    note = ""
    for _ in range(_TRIES):
        try:
            slots, leaves, counters = _walk(kernel, vm)
            entries = list(_judged(kernel, processes, vm, slots, leaves, strips))
            if read_slots(kernel, vm.address) == slots:
                return _entry(vm, name, vmm, entries, leaves, counters, every_space)
            note = f"slots are changing: other ones after each of {_TRIES} walks"
        except SlotsChanging as changing:
            note = f"slots are changing: {changing}"
        except Unreadable as lost:
            note = f"went away or changed while it was read: {lost}"
        except BackendUnavailable as missing:
            note = str(missing)
            break
    empty = dict.fromkeys(SIZES, 0)
    return HostVm(vm.pid, name, [], VmTotals(None, empty, empty, [], empty, empty), vmm, vm.type, note)


def _walk(kernel: KernelView, vm: Vm) -> tuple[tuple[KernelSlot, ...], Leaves, Counters]:
    slots = read_slots(kernel, vm.address)
    roots = find_roots(kernel, vm.address)
    leaves = walk_roots(kernel, vm.address, roots, slots) if roots else read_reverse_maps(kernel, slots)
    return slots, leaves, read_counters(kernel, vm.address)


def _judged(
    kernel: KernelView, processes: Processes, vm: Vm, slots: tuple[KernelSlot, ...], leaves: Leaves, strips: bool
) -> Iterator[HostSlot]:
    mappings = processes.mappings(vm.pid)
    for slot in slots:
        backing = find_backing(processes, vm.pid, slot, mappings)
        private = private_bytes(kernel, vm.address, slot) if vm.type and slot.guest_memfd else None
        verdict = judge_slot(kernel, slot, leaves.of(slot), backing, private, strip=strips)
        found = _slot(slot, leaves, verdict, backing, region_of(slot.hva, mappings))
        yield found if private is None else msgspec.structs.replace(found, private=int(private.sum()))


def _slot(
    slot: KernelSlot, leaves: Leaves, verdict: MappedVerdict, backing: SlotBacking, region: NamedMemory
) -> HostSlot:
    bound = slot.binding
    return HostSlot(
        f"{slot.gpa:#x}",
        slot.size,
        f"{slot.hva:#x}",
        slot.flags,
        slot.address_space,
        None if bound is None else GuestMemfdEntry(f"{bound.offset:#x}", bound.size, bound.inode),
        dict(zip(SIZES, verdict.possible, strict=True)),
        dict(zip(SIZES, leaves.of(slot).mapped, strict=True)),
        [_lost(lost) for lost in verdict.lost],
        slot.number,
        region.name,
        f"{slot.hva - region.start:#x}",
        BackingEntry(
            backing.kind,
            backing.page_size,
            backing.thp,
            None if backing.unknown else [(f"{start:#x}", f"{end:#x}") for start, end in backing.huge],
        ),
        None if verdict.strip is None else SlotStrip(*verdict.strip),
    )


def _lost(lost: LostBytes) -> MappedLost:
    return MappedLost(format_size(lost.page_size), lost.cause.value, lost.size)


def _entry(
    vm: Vm, name: str, vmm: str, slots: list[HostSlot], leaves: Leaves, counters: Counters, every_space: bool
) -> HostVm:
    main = [slot for slot in slots if slot.address_space == 0]
    lost: dict[tuple[str, str], int] = {}
    for slot in main:
        for item in slot.lost:
            lost[item.level, item.reason] = lost.get((item.level, item.reason), 0) + item.bytes
    totals = VmTotals(
        sum(slot.size for slot in main),
        {size: sum(slot.possible[size] for slot in main) for size in SIZES},
        {size: sum(slot.mapped[size] for slot in main) for size in SIZES},
        [MappedLost(level, reason, size) for (level, reason), size in lost.items()],
        dict(zip(SIZES, leaves.leaves, strict=True)),
        dict(zip(SIZES, (counters.pages_4k, counters.pages_2m, counters.pages_1g), strict=True)),
    )
    unreadable = f"{leaves.unreadable} page tables could not be read" if leaves.unreadable else ""
    return HostVm(vm.pid, name, slots if every_space else main, totals, vmm, vm.type, unreadable)
