"""The text and Markdown forms of ``guestmem rules``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from guestmem.layout.bound import RuleVerdict, Verdicts
from guestmem.report.as_text import print_stripped
from guestmem.report.words import leaves_text, safe, size_text
from guestmem.rules import RULES
from guestmem.units import format_size

__all__ = ("print_verdicts", "to_markdown")

_PACKINGS = {"one-file": "one file for all RAM, as the VMM packs it", "per-slot": "one file per slot, offset 0"}


def print_verdicts(out: Console, verdicts: list[Verdicts], *, slots: bool) -> None:
    """Print a table of rules for every layout and packing; with ``slots`` also which slots each rule refuses."""
    for one in verdicts:
        print_stripped(out, _report(one, slots))


def to_markdown(verdicts: list[Verdicts], command: str) -> str:
    """A page: what the rules are, then a table for every layout and packing."""
    lines = [
        "# Every alignment rule on every sample layout",
        "",
        f"Made by `{command}`; do not edit. Each RAM slot is taken as bound to a guest_memfd made of",
        f"{format_size(verdicts[0].page_size) if verdicts else '1G'} pages, all private, as the profile `next` would",
        "map it. `by 2M` and `by 1G` are the bytes that can be mapped with pages of that size or larger; *best* is",
        "what the guest-physical layout allows at the very best.",
        "",
        "| rule | who | when | statement |",
        "| --- | --- | --- | --- |",
        *(f"| {rule.name} | {rule.author} | {rule.date} | {rule.statement} |" for rule in RULES),
    ]
    for one in verdicts:
        lines += ["", *_markdown(one)]
    return "\n".join(lines) + "\n"


def _report(one: Verdicts, slots: bool) -> RenderableType:
    head = Text.assemble(
        (safe(one.layout.source), "bold"),
        f"  {len(one.layout.slots)} RAM slots, {_PACKINGS[one.packing]}, {format_size(one.page_size)} pages",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("rule", no_wrap=True)
    for name in ("refused", *(f"by {format_size(size)}" for size in _sizes(one)), "leaves"):
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in one.rules:
        table.add_row(*_row(one, verdict))
    best = [size_text(size) for size in one.best[1 : len(_sizes(one)) + 1]]
    table.add_row("best possible", "", *best, "", style="dim")
    parts: list[RenderableType] = [head, Padding(table, (1, 0, 1, 2))]
    if slots:
        parts.append(Padding(Text("\n".join(_refusals(one)) or "no rule refuses a slot"), (0, 0, 1, 2)))
    return Group(*parts)


def _sizes(one: Verdicts) -> list[int]:
    return [size for size in one.geometry.page_sizes[1:] if size <= one.page_size]


def _row(one: Verdicts, verdict: RuleVerdict) -> list[str]:
    coverage = verdict.coverage
    mapped = [size_text(size) for size in coverage.mapped[1 : len(_sizes(one)) + 1]]
    refused = f"{verdict.refused} of {len(verdict.refusals)}" if verdict.refused else "-"
    return [verdict.rule.name, refused, *mapped, leaves_text(coverage.host.sizes, coverage.leaves)]


def _refusals(one: Verdicts) -> Iterator[str]:
    for verdict in one.rules:
        for slot, why in zip(one.layout.slots, verdict.refusals, strict=True):
            if why is not None:
                yield f"{verdict.rule.name} refuses {safe(slot.region)} at GPA {slot.gpa:#x}: {why}"


def _markdown(one: Verdicts) -> Iterator[str]:
    yield f"## {one.layout.source}: {_PACKINGS[one.packing]}"
    yield ""
    columns = ["rule", "refused", *(f"by {format_size(size)}" for size in _sizes(one)), "leaves"]
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for verdict in one.rules:
        yield f"| {' | '.join(_row(one, verdict))} |"
    best = [size_text(size) for size in one.best[1 : len(_sizes(one)) + 1]]
    yield f"| *best* | | {' | '.join(best)} | |"
