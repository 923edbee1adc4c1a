"""``guestmem trace report`` for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from guestmem.report.console import columns, print_stripped
from guestmem.text import counted, safe
from guestmem.trace.summary import LEVEL_SIZES, TracedVm, TraceSlot, TraceSummary
from guestmem.units import format_size

__all__ = ("head_lines", "print_trace", "why_small")


def print_trace(out: Console, name: str, found: TraceSummary) -> None:
    """The answer in one line, then each VM slot by slot, then what belongs to no VM."""
    for line in head_lines(name, found):
        print_stripped(out, Text(line))
    for vm in found.vms.values():
        print_stripped(out, Text(f"\n  VM {vm.kvm:#x}{', destroyed' if vm.destroyed else ''}"))
        _slots(out, vm, faults="mapped" in found.events)
        if vm.failed:
            print_stripped(out, Text(f"    {counted(vm.failed, 'fault')} mapped nothing: retried, or no memory"))
    for line in _rest(found):
        print_stripped(out, Text(line))


def head_lines(name: str, found: TraceSummary) -> Iterator[str]:
    """What the trace is, what it lost, and how many leaves there were."""
    assert found.first is not None
    assert found.last is not None
    seconds = (found.last - found.first) / 10**9
    events = counted(found.events.total(), "event")
    vms = counted(len(found.vms), "VM") if found.vms else "VMs not told apart: there are no probes"
    yield f"{safe(name)}: {events} in {seconds:.3f} s, {vms}"
    if found.lost_at:
        at = ", ".join("the start" if time is None else f"{time / 10**9:.6f} s" for time in found.lost_at[:3])
        more = f" and {len(found.lost_at) - 3} more places" if len(found.lost_at) > 3 else ""
        yield f"  lost  {found.lost:,} events or more, after {at}{more}: nothing below is complete"
    if found.tables.exact:
        yield f"  leaves  at most {_leaves(found.most)}; at the end {_leaves(found.tables.count())}"
        if found.exact:
            yield "          exact: every change of the tables is in the trace"
        elif found.tables.unknown:
            gone = found.tables.unknown
            yield f"          not exact: {gone:,} that went had come before the trace, or unseen"
    else:
        yield "  leaves  not counted: record kvm_tdp_mmu_spte_changed and kvm_mmu_split_huge_page too"


def _leaves(counts: dict[int, int]) -> str:
    parts = [
        f"{counts[level]:,} of {format_size(LEVEL_SIZES[level])}" for level in sorted(counts) if level in LEVEL_SIZES
    ]
    return ", ".join(reversed(parts)) or "none"


def _slots(out: Console, vm: TracedVm, *, faults: bool) -> None:
    levels = ("1G", "2M", "4K") if faults else ()
    why = "why 4K" if faults else ""
    table = columns("  ", "slot", "gpa", "size", *levels, "zapped", why, right=(*levels, "zapped", "slot"), wide=(why,))
    for slot in vm.slots.values():
        counts = [str(slot.faults[level] or "-") for level in (3, 2, 1)] if faults else []
        where = f"{slot.gpa:#x}" if slot.size else "?"
        size, zapped = (format_size(value) if value else "-" for value in (slot.size, slot.zapped))
        table.add_row("  ", str(slot.id), where, size, *counts, zapped, why_small(slot))
    print_stripped(out, table)
    if not faults:
        print_stripped(out, Text("    faults are not told by slot: record the probe mapped too (docs/trace.md)"))


def why_small(slot: TraceSlot) -> str:
    """Why faults of the slot were answered by 4K, and what happened to it."""
    said = [f"{cause.text} ({count})" for cause, count in slot.causes.most_common()]
    if slot.logs:
        said.append(f"dirty logging on, {counted(slot.logs, 'time')}")
    if slot.deleted:
        said.append("deleted")
    return "; ".join(said) or "-"


def _rest(found: TraceSummary) -> Iterator[str]:
    yield ""
    if "mapped" not in found.events:
        yield f"  faults by level    {_leaves(dict(found.levels))}"
    splits = {level: count for level, count in found.tables.splits.items() if level in LEVEL_SIZES}
    yield f"  splits             {_leaves(splits)}"
    zappers = ", ".join(f"{safe(task)} ({count})" for task, count in found.zappers.most_common(5))
    yield f"  host ranges gone   {zappers or 'none'}"
    hot = ", ".join(f"{first:#x} ({count})" for first, count in found.hottest()[:5])
    yield f"  hottest 2M frames  {hot or 'none was faulted in more than once'}"
