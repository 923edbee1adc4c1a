"""The text form of ``guestmem plan``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from guestmem.layout.planning.migration import Migration
from guestmem.layout.planning.plan import FilePlan, Plan, hva_modulus
from guestmem.report.console import columns, print_stripped
from guestmem.text import counted, safe
from guestmem.units import format_size, size_text

__all__ = ("print_plans",)


def print_plans(out: Console, plans: Iterable[tuple[Plan, Migration | None]]) -> None:
    """Print every plan, and what a migration has to move."""
    for plan, migration in plans:
        print_stripped(out, _plan(plan, migration))


def _plan(plan: Plan, migration: Migration | None) -> RenderableType:
    files = plan.planned.host.files
    what = f"  guest_memfds with {format_size(files.page_size)} pages under the rule {files.rule.name}"
    head = Text.assemble((safe(plan.now.layout.source), "bold"), what)
    right = ("GPA", "size", "offset now", "planned")
    table = columns("GPA", "size", "region", "file", "offset now", "planned", "HVA", right=right)
    for index in range(len(plan.slots_now)):
        table.add_row(*(Text(safe(cell)) for cell in _row(plan, index)))
    parts: list[RenderableType] = [head, Padding(table, (1, 0, 1, 2))]
    parts.append(Padding(Text("\n".join(_totals(plan))), (0, 0, 1, 2)))
    if migration is not None:
        parts.append(Padding(Text("\n".join(_migration(migration))), (0, 0, 1, 2)))
    return Group(*parts)


def _row(plan: Plan, index: int) -> list[str]:
    now, new = plan.slots_now[index], plan.slots_planned[index]
    gpa = f"{now.gpa:#x}" if now.gpa == new.gpa else f"{now.gpa:#x} to {new.gpa:#x}"
    old_offset, offset = f"{now.offset or 0:#x}", f"{new.offset or 0:#x}"
    planned = "refused" if index in plan.refused else "same" if old_offset == offset else offset
    modulus = hva_modulus(new, plan.planned.host)
    hva = f"multiple of {format_size(modulus)}"
    if new.gpa % modulus:
        hva = f"{new.gpa % modulus:#x} past a {hva}"
    return [gpa, format_size(now.size), now.region, new.file or "", old_offset, planned, hva]


def _totals(plan: Plan) -> Iterator[str]:
    levels = zip(plan.planned.host.sizes, plan.now.mapped, plan.planned.mapped, plan.best, strict=True)
    for size, now, planned, best in [*levels][1:]:
        if best:
            reached = "which is the best possible" if planned == best else f"at best {size_text(best)} without a rule"
            yield f"with {format_size(size)} pages: {size_text(now)} now, {size_text(planned)} planned, {reached}"
    unmapped = f" (and {counted(plan.refused_now, 'slot')} refused)" if plan.refused_now else ""
    yield f"leaves: {sum(plan.now.leaves):,} now{unmapped}, {sum(plan.planned.leaves):,} planned"
    yield from map(_file, plan.files)
    if plan.refused:
        refused = [plan.slots_now[index] for index in plan.refused]
        where = ", ".join(f"{safe(slot.region)} at {slot.gpa:#x}" for slot in refused)
        yield f"the rule accepts no offset for {where}"


def _file(file: FilePlan) -> str:
    least = "the least possible" if file.least else "not proved to be the least possible"
    holes = f", {size_text(file.holes)} in holes, which cost nothing" if file.holes else ", no holes"
    return f"file {safe(file.name)}: {size_text(file.size)}, {least}; {size_text(file.bound)} bound{holes}"


def _migration(migration: Migration) -> Iterator[str]:
    page = format_size(migration.after.host.files.page_size)
    moves = {name: why for name, why in zip(migration.names, migration.why, strict=True) if why is not None}
    stays = counted(migration.why.count(None), "offset")
    yield f"on a host with {page} pages {stays} can stay, {len(moves)} must move"
    for name, why in moves.items():
        yield f"  {safe(name)}: {why}"
    for step in migration.steps:
        move = step.move
        where = {
            "copy": f"{move.source:#x} to {move.target:#x}",
            "save": f"{move.source:#x} to scratch space",
            "restore": f"scratch space to {move.target:#x}",
        }[step.kind]
        yield f"  {step.kind} {size_text(move.size)} of {safe(migration.names[move.slot])}: {where}"
    scratch = "no scratch space"
    if migration.scratch:
        scratch = f"{size_text(migration.scratch)} of scratch space (not proved to be the least possible)"
    if moves:
        yield f"  the moves copy {size_text(migration.moved)} and need {scratch}"
    before, after = sum(migration.before.leaves), sum(migration.after.leaves)
    yield f"  leaves there: {before:,} with the present offsets, {after:,} after the moves"
    yield from (f"  {_file(file.file)}" for file in migration.files)
