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
from guestmem.report.console import columns, print_stripped
from guestmem.report.picture import cells, windows
from guestmem.report.words import gain_text, leaves_text, lost_text, percent, size_text
from guestmem.text import counted, safe
from guestmem.units import format_size

__all__ = ("print_checked",)

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
# One character and colour per level, the base page first: shade grows with the page size.
_SHADES = (("░", "red"), ("▓", "yellow"), ("█", "green"), ("█", "bright_green"))
_PLAIN_SHADES = ".+##"
_UNMAPPED = "!"


def print_checked(out: Console, checked: list[Checked], *, rows: int, title: str) -> None:
    """Print the answer for every layout; at most ``rows`` slots and as many findings of each (0: all)."""
    for one in checked:
        print_stripped(out, _report(one, rows, title, out))


def _report(one: Checked, rows: int, title: str, out: Console) -> RenderableType:
    layout = one.layout
    what = layout.machine or layout.format
    head = Text.assemble(
        (safe(layout.source), "bold"), f"  {safe(what)}, {counted(len(layout.slots), 'slot')}, ", title
    )
    parts: list[RenderableType] = [head]
    if layout.slots:
        parts += [Padding(_table(one.coverage, rows), (1, 0, 0, 2)), Padding(_summary(one.coverage), (1, 0, 0, 2))]
        parts.append(Padding(_picture(one.coverage, out), (1, 0, 0, 2)))
    if layout.assumptions:
        parts.append(Padding(_assumptions(one), (1, 0, 0, 2)))
    parts.append(Padding(_findings(one, rows), (1, 0, 1, 2)))
    return Group(*parts)


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


def _summary(coverage: Coverage) -> Text:
    """Totals by level, with what is lost and what the same layout could reach."""
    sizes, size = coverage.host.sizes, coverage.size
    best = best_possible(coverage)
    leaves = (
        f"in at least {leaves_text(sizes, coverage.leaves)} leaves" if any(coverage.leaves) else "nothing can be mapped"
    )
    lines = [f"total {size_text(size)}, {leaves}"]
    for level in range(1, len(sizes)):
        mapped = coverage.mapped[level]
        line = (
            f"with {format_size(sizes[level])} pages: {size_text(mapped)} of {size_text(size)}, {percent(mapped, size)}"
        )
        if best[level] > mapped:
            line += f" (at best {size_text(best[level])})"
        lost = lost_text(coverage.lost, sizes[level])
        lines.append(f"{line}; lost: {lost}" if lost else line)
    return Text("\n".join(lines))


def _picture(coverage: Coverage, out: Console) -> Text:
    plain = "utf" not in (out.encoding or "").lower()
    width = max(20, min(100, out.width - 24))
    text = Text()
    for start, end in windows(coverage):
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


def _findings(one: Checked, rows: int) -> RenderableType:
    if not one.findings:
        return Text("no findings", style="green")
    table = columns("severity", "finding", wide=("finding",), header=False)
    shown = one.findings[:rows] if rows else one.findings  # the most severe come first
    for finding in shown:
        table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), _finding(finding))
    if len(shown) < len(one.findings):
        counts = Counter(finding.id for finding in one.findings[rows:])
        more = ", ".join(f"{count} {id}" for id, count in counts.most_common())
        table.add_row("", f"{len(one.findings) - rows} more findings: {more} (--all)")
    return table


def _finding(finding: Finding) -> Text:
    text = Text.assemble(
        (finding.id, "bold"), f": {safe(finding.message)}\n", ("remedy: ", "green"), safe(finding.remedy)
    )
    if finding.gain:
        text.append(f" (gains {gain_text(finding.gain)})")
    return text
