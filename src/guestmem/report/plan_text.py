"""The text form of ``guestmem plan``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from guestmem.report.console import columns, print_stripped
from guestmem.report.plan_json import MigrationEntry, PlanEntry, PlannedFile, PlannedSlot
from guestmem.report.words import size_text
from guestmem.text import counted, safe
from guestmem.units import format_size

__all__ = ("print_plans",)


def print_plans(out: Console, entries: list[PlanEntry]) -> None:
    """Print every plan, and what a migration has to move."""
    for entry in entries:
        print_stripped(out, _plan(entry))


def _plan(entry: PlanEntry) -> RenderableType:
    page = format_size(entry.page_size)
    head = Text.assemble((safe(entry.source), "bold"), f"  guest_memfds with {page} pages under the rule {entry.rule}")
    right = ("GPA", "size", "offset now", "planned")
    table = columns("GPA", "size", "region", "file", "offset now", "planned", "HVA", right=right)
    for slot in entry.slots:
        table.add_row(*(Text(safe(cell)) for cell in _row(slot)))
    parts: list[RenderableType] = [head, Padding(table, (1, 0, 1, 2))]
    parts.append(Padding(Text("\n".join(_totals(entry))), (0, 0, 1, 2)))
    if entry.migration is not None:
        parts.append(Padding(Text("\n".join(_migration(entry.migration))), (0, 0, 1, 2)))
    return Group(*parts)


def _row(slot: PlannedSlot) -> list[str]:
    gpa = slot.gpa if slot.gpa == slot.new_gpa else f"{slot.gpa} to {slot.new_gpa}"
    planned = "refused" if slot.refused else "same" if slot.offset == slot.new_offset else slot.new_offset
    hva = f"multiple of {format_size(slot.hva_modulus)}"
    if slot.hva_residue:
        hva = f"{slot.hva_residue:#x} past a {hva}"
    return [gpa, format_size(slot.size), slot.region, slot.file or "", slot.offset, planned, hva]


def _totals(entry: PlanEntry) -> Iterator[str]:
    for level, planned in entry.levels.items():
        now, best = entry.levels_now[level], entry.best[level]
        if level != next(iter(entry.levels)) and best:
            reached = "which is the best possible" if planned == best else f"at best {size_text(best)} without a rule"
            yield f"with {level} pages: {size_text(now)} now, {size_text(planned)} planned, {reached}"
    unmapped = f" (and {counted(entry.refused_now, 'slot')} refused)" if entry.refused_now else ""
    yield f"leaves: {entry.leaves_now:,} now{unmapped}, {entry.leaves:,} planned"
    yield from map(_file, entry.files)
    refused = [slot for slot in entry.slots if slot.refused]
    if refused:
        where = ", ".join(f"{safe(slot.region)} at {slot.gpa}" for slot in refused)
        yield f"the rule accepts no offset for {where}"


def _file(file: PlannedFile) -> str:
    least = "the least possible" if file.optimal else "not proved to be the least possible"
    holes = f", {size_text(file.holes)} in holes, which cost nothing" if file.holes else ", no holes"
    return f"file {safe(file.name)}: {size_text(file.size)}, {least}; {size_text(file.bound)} bound{holes}"


def _migration(migration: MigrationEntry) -> Iterator[str]:
    page = format_size(migration.page_size)
    stays, moves = counted(len(migration.stays), "offset"), len(migration.moves)
    yield f"on a host with {page} pages {stays} can stay, {moves} must move"
    for name, why in migration.moves.items():
        yield f"  {safe(name)}: {why}"
    for step in migration.steps:
        where = {
            "copy": f"{step.source} to {step.target}",
            "save": f"{step.source} to scratch space",
            "restore": f"scratch space to {step.target}",
        }[step.kind]
        yield f"  {step.kind} {size_text(step.size)} of {safe(step.region)}: {where}"
    least = "no scratch space" if migration.least_scratch else f"{size_text(migration.scratch)} of scratch space"
    unproved = "" if migration.least_scratch else " (not proved to be the least possible)"
    if migration.moves:
        yield f"  the moves copy {size_text(migration.moved)} and need {least}{unproved}"
    before, after = migration.leaves_before, migration.leaves_after
    yield f"  leaves there: {before:,} with the present offsets, {after:,} after the moves"
    yield from (f"  {_file(file)}" for file in migration.files)
