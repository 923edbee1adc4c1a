"""``guestmem check --observed`` for people: what a trace says of each slot, beside what the layout allows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from guestmem.layout.coverage import Coverage
from guestmem.layout.observed import Observed, SlotObserved
from guestmem.report.console import columns, print_stripped
from guestmem.text import counted, safe
from guestmem.units import format_size

__all__ = ("print_observed",)

_NAMED = 2


def print_observed(out: Console, name: str, coverage: Coverage, observed: Observed) -> None:
    """One line that says whether they agree, then the slots that were touched; rows that differ are marked."""
    faults = sum(slot.faults.total() for slot in observed.slots)
    print_stripped(out, Text(f"\n  observed in {safe(name)}: {counted(faults, 'fault')} on its slots"))
    for line in _answers(observed):
        print_stripped(out, Text(f"    {line}"))
    sizes = coverage.host.sizes[::-1]
    numbers = tuple(format_size(size) for size in sizes)
    table = columns("  ", "slot", "gpa", *numbers, "", right=numbers, wide=("",))
    for slot in observed.slots:
        item = coverage.slots[slot.index].slot
        counts = [str(slot.faults[size] or "-") for size in sizes]
        mark = "!" if slot.larger else "<" if slot.smaller else " "
        table.add_row(mark, safe(item.name), f"{item.gpa:#x}", *counts, _differing(slot))
    print_stripped(out, table)


def _answers(observed: Observed) -> Iterator[str]:
    smaller = sum(slot.smaller for slot in observed.slots)
    if smaller:
        yield f"{counted(smaller, 'fault')} got smaller pages than the layout allows (<)"
    if observed.larger:
        yield f"{counted(observed.larger, 'fault')} got larger ones (!): this layout is not what ran"
    if observed.elsewhere:
        yield f"{counted(observed.elsewhere, 'fault')} on no slot of it"
    if not smaller and not observed.larger:
        yield "every one got the page size that the layout allows"


def _differing(slot: SlotObserved) -> str:
    shown = [
        f"{each.gpa:#x} got {format_size(each.got)}, allowed {format_size(each.allowed)}"
        for each in slot.examples[:_NAMED]
    ]
    more = slot.smaller + slot.larger - len(shown)
    return "; ".join([*shown, *([f"{more} more"] if more else [])])
