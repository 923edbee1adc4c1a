"""The text form of ``guestmem rules``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from guestmem.layout.bound import RuleVerdict, Verdicts
from guestmem.report.console import columns, print_stripped
from guestmem.report.words import leaves_text
from guestmem.text import counted, safe
from guestmem.units import format_size, size_text

__all__ = ("PACKING_WORDS", "print_verdicts", "sizes")

PACKING_WORDS = {"one-file": "one file for all RAM, as the VMM packs it", "per-slot": "one file per slot, offset 0"}


def print_verdicts(out: Console, verdicts: list[Verdicts], *, slots: bool) -> None:
    """Print a table of rules for every layout and packing; with ``slots`` also which slots each rule refuses."""
    for one in verdicts:
        print_stripped(out, _report(one, slots))


def _report(one: Verdicts, slots: bool) -> RenderableType:
    slots_, page = counted(len(one.layout.slots), "RAM slot"), format_size(one.page_size)
    what = f"  {slots_}, {PACKING_WORDS[one.packing]}, {page} pages"
    head = Text.assemble((safe(one.layout.source), "bold"), what)
    numbers = ("refused", *(f"with {format_size(size)}" for size in sizes(one)), "leaves")
    table = columns("rule", *numbers, right=numbers)
    for verdict in one.rules:
        table.add_row(*_row(one, verdict))
    best = [size_text(size) for size in one.best[1 : len(sizes(one)) + 1]]
    table.add_row("best possible", "", *best, "", style="dim")
    parts: list[RenderableType] = [head, Padding(table, (1, 0, 1, 2))]
    if slots:
        parts.append(Padding(Text("\n".join(_refusals(one)) or "no rule refuses a slot"), (0, 0, 1, 2)))
    return Group(*parts)


def sizes(one: Verdicts) -> list[int]:
    """The page sizes above the base page that files of this page size can give."""
    return [size for size in one.geometry.page_sizes[1:] if size <= one.page_size]


def _row(one: Verdicts, verdict: RuleVerdict) -> list[str]:
    """Rule, slots refused, bytes by each size, leaves."""
    coverage = verdict.coverage
    mapped = [size_text(size) for size in coverage.mapped[1 : len(sizes(one)) + 1]]
    refused = f"{verdict.refused} of {len(verdict.refusals)}" if verdict.refused else "-"
    return [verdict.rule.name, refused, *mapped, leaves_text(coverage.host.sizes, coverage.leaves)]


def _refusals(one: Verdicts) -> Iterator[str]:
    for verdict in one.rules:
        for slot, why in zip(one.layout.slots, verdict.refusals, strict=True):
            if why is not None:
                yield f"{verdict.rule.name} refuses {safe(slot.region)} at GPA {slot.gpa:#x}: {why}"
