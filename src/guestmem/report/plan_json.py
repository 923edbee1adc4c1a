"""The JSON form of ``guestmem plan``: where every private slot is and should be, and what a migration moves."""

from __future__ import annotations

import msgspec

from guestmem.layout.coverage import Coverage
from guestmem.layout.planning.migration import FileMigration, Migration
from guestmem.layout.planning.plan import FilePlan, Plan, hva_modulus
from guestmem.report.json_text import json_text
from guestmem.units import format_size

__all__ = ("PlanEntry", "entry_of", "to_json")


class PlannedSlot(msgspec.Struct):
    """One slot now and as planned; hva_residue modulo hva_modulus is what its host address should be."""

    region: str
    size: int
    file: str | None
    gpa: str
    offset: str
    new_gpa: str
    new_offset: str
    hva_modulus: int
    hva_residue: int
    refused: bool


class PlannedFile(msgspec.Struct):
    """One guest_memfd; size in bytes; optimal: true where no smaller file is possible, false: not proved."""

    name: str
    size: int
    bound: int
    holes: int
    optimal: bool


class StepEntry(msgspec.Struct):
    """copy: within the file; save: to scratch space; restore: from scratch space."""

    kind: str
    region: str
    source: str
    target: str
    size: int


class MigrationEntry(msgspec.Struct):
    """What a host with larger pages needs: bytes moved, scratch space, steps in order.

    least_scratch: true where none is needed, false where less is not ruled out.
    """

    page_size: int
    stays: list[str]
    moves: dict[str, str]
    moved: int
    scratch: int
    least_scratch: bool
    steps: list[StepEntry]
    files: list[PlannedFile]
    leaves_before: int
    leaves_after: int


class PlanEntry(msgspec.Struct):
    """One layout."""

    source: str
    rule: str
    page_size: int
    slots: list[PlannedSlot]
    files: list[PlannedFile]
    levels_now: dict[str, int]
    levels: dict[str, int]
    best: dict[str, int]
    leaves_now: int
    leaves: int
    refused_now: int
    migration: MigrationEntry | None


class PlanReport(msgspec.Struct):
    """The answer of guestmem plan."""

    sources: list[PlanEntry]
    format: str = "guestmem-plan/1"


def to_json(entries: list[PlanEntry]) -> str:
    """The report as one JSON document."""
    return json_text(PlanReport(entries))


def entry_of(source: str, plan: Plan, migration: Migration | None) -> PlanEntry:
    """One layout's plan as typed values."""
    host = plan.planned.host
    pairs = zip(plan.slots_now, plan.slots_planned, strict=True)
    refused = set(plan.refused)
    slots = []
    for index, (now, new) in enumerate(pairs):
        modulus = hva_modulus(new, host)
        slots.append(
            PlannedSlot(
                now.region,
                now.size,
                new.file,
                f"{now.gpa:#x}",
                f"{now.offset or 0:#x}",
                f"{new.gpa:#x}",
                f"{new.offset or 0:#x}",
                modulus,
                new.gpa % modulus,
                index in refused,
            )
        )
    return PlanEntry(
        source,
        host.files.rule.name,
        host.files.page_size,
        slots,
        [_file(file) for file in plan.files],
        _levels(plan.now),
        _levels(plan.planned),
        {format_size(size): value for size, value in zip(host.sizes, plan.best, strict=True)},
        sum(plan.now.leaves),
        sum(plan.planned.leaves),
        sum(item.mapped[0] == 0 for item in plan.now.slots),
        None if migration is None else _migration(migration),
    )


def _file(file: FilePlan) -> PlannedFile:
    return PlannedFile(file.name, file.size, file.bound, file.holes, file.least)


def _levels(coverage: Coverage) -> dict[str, int]:
    return {format_size(size): value for size, value in zip(coverage.host.sizes, coverage.mapped, strict=True)}


def _migration(migration: Migration) -> MigrationEntry:
    slots = migration.before.layout.slots
    names = [f"{slot.region} at {slot.gpa:#x}" for slot in slots]
    return MigrationEntry(
        migration.after.host.files.page_size,
        [name for name, why in zip(names, migration.why, strict=True) if why is None],
        {name: why for name, why in zip(names, migration.why, strict=True) if why is not None},
        migration.moved,
        max((file.order.scratch for file in migration.files), default=0),
        all(file.order.scratch == 0 for file in migration.files),
        [step for file in migration.files for step in _steps(file, names)],
        [_file(file.file) for file in migration.files],
        sum(migration.before.leaves),
        sum(migration.after.leaves),
    )


def _steps(file: FileMigration, names: list[str]) -> list[StepEntry]:
    return [
        StepEntry(step.kind, names[step.move.slot], f"{step.move.source:#x}", f"{step.move.target:#x}", step.move.size)
        for step in file.order.steps
    ]
