"""Looks at hosts: 40 VMs of 4 GiB, and one of 64 GiB wholly in 4K pages, over page tables that are made up in memory.

The reader copies each table out of a dictionary; a real one adds what reading costs (the BPF program: see the last
line, measured where this machine allows it).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import median_us, say
from guestmem.host.survey import survey

if TYPE_CHECKING:
    from kernel_world import World

__all__ = ("looks",)

_HVA, _GIB = 0x7F00_0000_0000, 1 << 30
_PAGES = 4096  # that the reader is asked for at once


def looks() -> None:
    """CPU time of whole looks without the kernel's types and symbols; then those, and a reader, by themselves."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    for name, vms, size in (("40 VMs of 4 GiB, all by 4K", 40, 4 * _GIB), ("a VM of 64 GiB, all by 4K", 1, 64 * _GIB)):
        world = _world(vms, size)
        tables = vms * (size // (2 << 20))
        seconds = _look_s(world, size)
        say(f"guestmem host, {name}", f"{seconds:.2f} s CPU", f"{tables:,} page tables of 4K entries")
    _real()


def _world(vms: int, size: int) -> World:
    """Every VM wholly mapped by 4K; the tables of the last level are one page of memory."""
    from kernel_world import PRESENT, Slot, World

    world = World()
    full = world.link(world.table(dict.fromkeys(range(512), PRESENT | 0x77)))
    gib = world.link(world.table(dict.fromkeys(range(512), full)))
    root = world.table({0: world.link(world.table(dict.fromkeys(range(size // _GIB), gib)))})
    for number in range(vms):
        low = [Slot(0, 0xA0000, _HVA, number=0), Slot(0x100000, size - 0x100000, _HVA + 0x100000, number=1)]
        world.add_vm(low, root, counted=(0, 0, 0), pid=number + 1)
    return world


def _look_s(world: World, size: int) -> float:
    from kernel_world import WorldProcesses

    from guestmem.host.mappings import HostMapping

    kernel = world.kernel()
    processes = WorldProcesses(HostMapping(_HVA, _HVA + size, "anonymous", thp=True), huge=False)
    start = time.process_time()
    report = survey(kernel, processes)
    spent = time.process_time() - start
    if any(vm.note for vm in report.vms):
        raise RuntimeError(f"the made-up host is not read: {report.vms[0].note}")
    return spent


def _real() -> None:
    from guestmem.errors import BackendUnavailable
    from guestmem.host.bpf import BpfMemory
    from guestmem.host.structs import load_structs
    from guestmem.host.symbols import read_symbols

    try:
        types = median_us(load_structs, 3) / 1000
        symbols = median_us(read_symbols, 3) / 1000
        memory = BpfMemory()
    except (BackendUnavailable, OSError) as reason:
        say("guestmem host, a reader of this kernel", "skipped", str(reason))
        return
    task = memory.current_task() & -4096
    rate = _PAGES * 1e6 / median_us(lambda: memory.read_pages([task] * _PAGES), 20)
    memory.close()
    say("guestmem host, starting", f"{types + symbols:.0f} ms", f"types {types:.0f} ms, symbols {symbols:.0f} ms")
    say("guestmem host, tables by BPF", f"{rate:,.0f} a second", f"32,768 of a 64 GiB VM: {32768 / rate:.2f} s")
