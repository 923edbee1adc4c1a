"""The answer for a fleet: totals, what is lost to which reason in how many VMs, and the VMs that lose most."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from guestmem.layout.fleet import FleetSums
from guestmem.layout.reasons import Reason
from guestmem.layout.value import Severity
from guestmem.report.as_json import FleetEntry, FleetLost, WorstVm
from guestmem.report.as_text import print_stripped
from guestmem.report.words import percent, size_text
from guestmem.text import safe
from guestmem.units import format_size

__all__ = ("entry_of", "print_fleet", "severity_of")

_WORST = 10
_ERRORS = (Reason.REFUSED, Reason.NO_FILE, Reason.RULE)
_WARNINGS = (Reason.HVA, Reason.BACKING, Reason.MIXED, Reason.OFFSET, Reason.BINDING)


def entry_of(sums: FleetSums) -> FleetEntry:
    """The fleet as typed values."""
    sizes = [format_size(size) for size in sums.host.sizes]
    return FleetEntry(
        sums.fleet.source,
        sums.fleet.format,
        len(sums.fleet.names),
        sums.fleet.slots,
        sums.size,
        dict(zip(sizes, sums.mapped, strict=True)),
        [
            FleetLost(name, reason.value, lost, vms)
            for level, name in enumerate(sizes)
            for reason, (lost, vms) in sums.lost(level).items()
        ],
        [WorstVm(*one) for one in sums.worst(_WORST)],
    )


def severity_of(sums: FleetSums) -> Severity | None:
    """The severity that a fleet counts for: what its VMs lose at the second level, or are refused."""
    if any(reason in sums.lost(0) for reason in _ERRORS):
        return "error"
    lost = sums.lost(1) if len(sums.host.sizes) > 1 else {}
    if any(reason in lost for reason in _WARNINGS):
        return "warning"
    return "note" if lost else None


def print_fleet(out: Console, entry: FleetEntry) -> None:
    """Print totals, reasons and the worst VMs."""
    head = Text.assemble((safe(entry.source), "bold"), f"  {entry.vms:,} VMs, {entry.slots:,} slots, ")
    head.append(size_text(entry.size))
    totals = [
        f"by {level}: {size_text(mapped)} ({percent(mapped, entry.size)})" for level, mapped in entry.levels.items()
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
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("not by", "because", "bytes", "VMs"):
        table.add_column(name, justify="right" if name in ("bytes", "VMs") else "left", no_wrap=True)
    for lost in entry.lost:
        reason = Reason(lost.reason).text
        table.add_row(lost.level, reason, size_text(lost.bytes), f"{lost.vms:,}")
    return table


def _worst(entry: FleetEntry) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    level = list(entry.levels)[1]
    table.add_column("VMs that lose most", no_wrap=True)
    table.add_column("size", justify="right")
    table.add_column(f"not by {level}", justify="right")
    for vm in entry.worst:
        table.add_row(Text(safe(vm.name)), size_text(vm.size), size_text(vm.lost))
    return table
