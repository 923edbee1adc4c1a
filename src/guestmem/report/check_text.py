"""The text form of ``guestmem check``: a table, a picture of guest-physical space, assumptions and findings."""

from __future__ import annotations

from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from guestmem.layout.check import Checked
from guestmem.layout.coverage import Coverage, SlotCoverage, best_possible
from guestmem.layout.findings import Finding
from guestmem.layout.verdict import closing_line, lost_at_second, verdict
from guestmem.report.console import columns, print_stripped
from guestmem.report.picture import cells, windows
from guestmem.report.words import gain_text, leaves_text, lost_text
from guestmem.text import counted, percent, safe
from guestmem.units import format_size, size_text

__all__ = ("print_checked",)

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
# One character and colour per level, the base page first: shade grows with the page size.
_SHADES = (("░", "red"), ("▓", "yellow"), ("█", "green"), ("█", "bright_green"))
_PLAIN_SHADES = ".+##"
_UNMAPPED = "!"
_ONLY_VERBOSE = ("low-memory",)  # nothing can be done about it
_ALIKE = 3  # more findings of one kind than that are told by the first
_SINGLY = 4  # more VMs than that are lines of a table


def print_checked(out: Console, checked: list[Checked], *, rows: int, title: str, verbose: bool = False) -> None:
    """Print the answer for every layout, or for many of them one table.

    At most ``rows`` slots of each (0: all of them, every finding and every layout). verbose adds the first
    megabytes as a picture of their own and the notes that nothing can be done about.
    """
    if len(checked) <= _SINGLY or not rows:
        for one in checked:
            print_stripped(out, _report(one, rows, title, out, verbose))
    if len(checked) > 1:
        print_stripped(out, Padding(_vms(checked, rows), (0, 0, 1, 0)))
        print_stripped(out, Text(closing_line(checked), style="bold"))


def _report(one: Checked, rows: int, title: str, out: Console, verbose: bool) -> RenderableType:
    layout = one.layout
    what = layout.machine or layout.format
    head = Text.assemble((safe(layout.source), "bold"), ": ", (safe(verdict(one)), _style(one)))
    parts: list[RenderableType] = [head]
    findings = [finding for finding in one.findings if verbose or finding.id not in _ONLY_VERBOSE]
    if findings and findings[0].severity != "note":
        parts.append(Padding(_advice(findings.pop(0)), (0, 0, 0, 2)))
    title = f"{safe(what)}, {counted(len(layout.slots), 'slot')}, {title}"
    parts.append(Padding(Text(title, style="dim"), (1, 0, 0, 2)))
    if layout.slots:
        parts += [Padding(_table(one.coverage, rows), (1, 0, 0, 2)), Padding(_summary(one), (1, 0, 0, 2))]
        parts.append(Padding(_picture(one.coverage, out, verbose), (1, 0, 0, 2)))
    if layout.assumptions:
        parts.append(Padding(_assumptions(one), (1, 0, 0, 2)))
    if findings:
        parts.append(Padding(_findings(one, findings, rows), (1, 0, 0, 2)))
    return Padding(Group(*parts), (0, 0, 1, 0))


def _style(one: Checked) -> str:
    return "green" if one.severity in (None, "note") else _STYLES[one.severity]


def _advice(first: Finding) -> Table:
    """Why it is so, and what to change."""
    table = columns("what", "text", wide=("text",), header=False)
    table.add_row(Text("why", style="bold"), Text.assemble(safe(first.message), (f" [{first.id}]", "dim")))
    table.add_row(Text("fix", style="bold green"), Text(_remedy(first)))
    return table


def _remedy(finding: Finding) -> str:
    return safe(finding.remedy) + (f" (gains {gain_text(finding.gain)})" if finding.gain else "")


def _vms(checked: list[Checked], rows: int) -> Table:
    """One line for each VM, those that lose most first."""
    ordered = sorted(checked, key=lost_at_second, reverse=True)
    shown = ordered[:rows] if rows else ordered
    table = columns("VM", "memory", "lost", "answer", right=("memory", "lost"), wide=("VM", "answer"))
    for one in shown:
        lost = lost_at_second(one)
        cells = (safe(one.layout.source), size_text(one.coverage.size), size_text(lost) if lost else "-")
        table.add_row(*map(Text, cells), Text(safe(verdict(one)), style=_style(one)))
    if len(shown) < len(ordered):
        table.add_row(f"{len(ordered) - len(shown)} more (--all)")
    return table


def _table(coverage: Coverage, rows: int) -> Table:
    sizes = [format_size(size) for size in coverage.host.sizes[1:]]
    levels = [f"with {size}" for size in sizes]
    why = f"why not {sizes[0]}" if sizes else ""
    table = columns("GPA", "size", "region", "HVA", *levels, why, right=("GPA", "size", *levels), wide=(why,))
    shown = coverage.slots[:rows] if rows else coverage.slots
    for item in shown:
        table.add_row(*(Text(safe(cell)) for cell in _row(coverage, item)))
    if len(shown) < len(coverage.slots):
        table.add_row("", f"{len(coverage.slots) - len(shown)} more", "(--all)")
    return table


def _row(coverage: Coverage, item: SlotCoverage) -> list[str]:
    slot = item.slot
    hva = f"{slot.hva:#x}" if slot.hva is not None else "assumed" if slot.assumed_hva is not None else "-"
    name = slot.region or slot.file or "-"
    flags = " ro" * slot.readonly + " log" * slot.dirty_log + " gmem" * slot.guest_memfd
    mapped = [format_size(size) if size else "-" for size in item.mapped[1:]]
    first = coverage.host.sizes[1] if len(coverage.host.sizes) > 1 else coverage.host.sizes[0]
    return [f"{slot.gpa:#x}", format_size(slot.size), name + flags, hva, *mapped, lost_text(item.lost, first)]


def _summary(one: Checked) -> Text:
    """Totals by level in three parts: certain, possible, and not, with what is lost."""
    coverage = one.coverage
    sizes, size = coverage.host.sizes, coverage.size
    best = best_possible(coverage)
    leaves = (
        f"in at least {leaves_text(sizes, coverage.leaves)} leaves" if any(coverage.leaves) else "nothing can be mapped"
    )
    lines = [f"total {size_text(size)}, {leaves}"]
    for level in range(1, len(sizes)):
        mapped, certain = coverage.mapped[level], one.certainty.mapped[level]
        sure, may = size_text(certain), size_text(mapped - certain)
        parts = [f"{sure} certain"] if certain else []
        parts += [f"{may} possible"] if mapped > certain else []
        share = f"{' and '.join(parts) or '0'} of {size_text(size)}, {percent(mapped, size)}"
        line = f"with {format_size(sizes[level])} pages: {share}"
        if best[level] > mapped:
            line += f" (at best {size_text(best[level])})"
        lost = lost_text(coverage.lost, sizes[level])
        lines.append(f"{line}; not: {lost}" if lost else line)
    return Text("\n".join(lines))


def _picture(coverage: Coverage, out: Console, verbose: bool) -> Text:
    plain = "utf" not in (out.encoding or "").lower()
    width = max(20, min(100, out.width - 24))
    text = Text()
    for start, end in windows(coverage) if verbose else windows(coverage)[:1]:
        text.append(f"{start:#x} ")
        for cell in cells(coverage, start, end, width):
            text.append(*_cell(cell, plain))
        text.append(f" {end:#x}\n")
    legend = [*enumerate(coverage.host.sizes), (None, 0)]
    for level, size in legend:
        text.append(*_cell(level, plain))
        text.append(f" {format_size(size)} pages  " if size else " no slot")
    return text


def _cell(level: int | None, plain: bool) -> tuple[str, str]:
    if level is None:
        return ("_" if plain else "·", "dim")
    if level < 0:
        return (_UNMAPPED, "bold red")
    character, style = _SHADES[min(level, len(_SHADES) - 1)]
    return (_PLAIN_SHADES[min(level, len(_PLAIN_SHADES) - 1)] if plain else character, style)


def _assumptions(one: Checked) -> Text:
    lines = ["assumed, because the source does not say:"]
    lines += [f"  {safe(note.text)}" + f" [{note.option}]" * bool(note.option) for note in one.layout.assumptions]
    return Text("\n".join(lines), style="dim")


def _findings(one: Checked, findings: list[Finding], rows: int) -> RenderableType:
    """The findings, the most severe first; of many of one kind the first, and whom the others are about."""
    table = columns("severity", "finding", wide=("finding",), header=False)
    kinds = Counter(finding.id for finding in findings)
    shown: set[str] = set()
    for finding in findings:
        alike = [other for other in findings if other.id == finding.id]
        if rows and kinds[finding.id] > _ALIKE:
            if finding.id not in shown:
                text = Text.assemble(_finding(finding), "\n", _others(one, alike[1:]))
                table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), text)
            shown.add(finding.id)
        else:
            table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), _finding(finding))
    return table


def _others(one: Checked, findings: list[Finding]) -> str:
    slots = one.layout.slots
    names = list(dict.fromkeys(safe(slots[index].name) for finding in findings for index in finding.slots))
    named = f": {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""
    return f"and {len(findings)} more like it{named} (--all)"


def _finding(finding: Finding) -> Text:
    return Text.assemble((finding.id, "bold"), f": {safe(finding.message)}\n", ("remedy: ", "green"), _remedy(finding))
