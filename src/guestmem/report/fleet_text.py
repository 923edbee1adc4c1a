"""The answer for a fleet: totals, what is lost to which reason in how many VMs, and the VMs that lose most."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from guestmem.layout.reasons import Reason
from guestmem.report.check_json import FleetEntry
from guestmem.report.console import columns, print_stripped
from guestmem.text import counted, percent, safe
from guestmem.units import size_text

__all__ = ("print_fleet",)


def print_fleet(out: Console, entry: FleetEntry) -> None:
    """Print totals, reasons and the worst VMs."""
    head = Text.assemble(
        (safe(entry.source), "bold"), f"  {counted(entry.vms, 'VM')}, {counted(entry.slots, 'slot')}, "
    )
    head.append(size_text(entry.size))
    totals = [
        f"with {level} pages: {size_text(mapped)} ({percent(mapped, entry.size)})"
        for level, mapped in entry.levels.items()
    ]
    parts: list[RenderableType] = [
        head,
        Padding(Text("\n".join(totals[1:])), (1, 0, 1, 2)),
        Padding(_lost(entry), (0, 0, 1, 2)),
    ]
    if entry.worst:
        parts.append(Padding(_worst(entry), (0, 0, 1, 2)))
    print_stripped(out, Group(*parts))


def _lost(entry: FleetEntry) -> Table:
    table = columns("not with", "because", "bytes", "VMs", right=("bytes", "VMs"))
    for lost in entry.lost:
        table.add_row(lost.level, Reason(lost.reason).text, size_text(lost.bytes), f"{lost.vms:,}")
    return table


def _worst(entry: FleetEntry) -> Table:
    without = f"not with {list(entry.levels)[1]}"
    table = columns("VMs that lose most", "size", without, right=("size", without))
    for vm in entry.worst:
        table.add_row(Text(safe(vm.name)), size_text(vm.size), size_text(vm.lost))
    return table
