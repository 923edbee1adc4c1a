"""The JSON form of ``guestmem plan``: where every private slot is and should be, and what a migration moves.

Sizes are bytes. The host address of a slot should be ``hva_residue`` modulo ``hva_modulus``. ``optimal`` of a file:
true where no smaller file is possible, false: not proved. ``least_scratch`` of a migration: true where no scratch space
is needed, false where less is not ruled out. Its steps are in order, copy: within the file, save: to scratch space,
restore: from scratch space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from guestmem.layout.planning.migration import Migration
from guestmem.layout.planning.plan import FilePlan, Plan, hva_modulus
from guestmem.report.json_text import json_text
from guestmem.report.words import by_level

__all__ = ("to_json",)


def to_json(plans: Iterable[tuple[Plan, Migration | None]]) -> str:
    """The plan of each layout, with its migration if one was asked for, as one JSON document."""
    return json_text({"sources": [_source(*one) for one in plans], "format": "guestmem-plan/1"})


def _source(plan: Plan, migration: Migration | None) -> dict[str, Any]:
    host = plan.planned.host
    return {
        "source": plan.now.layout.source,
        "rule": host.files.rule.name,
        "page_size": host.files.page_size,
        "slots": list(_slots(plan)),
        "files": list(map(_file, plan.files)),
        "levels_now": by_level(host.sizes, plan.now.mapped),
        "levels": by_level(host.sizes, plan.planned.mapped),
        "best": by_level(host.sizes, plan.best),
        "leaves_now": sum(plan.now.leaves),
        "leaves": sum(plan.planned.leaves),
        "refused_now": plan.refused_now,
        "migration": None if migration is None else _migration(migration),
    }


def _slots(plan: Plan) -> Iterator[dict[str, Any]]:
    for index, (now, new) in enumerate(zip(plan.slots_now, plan.slots_planned, strict=True)):
        modulus = hva_modulus(new, plan.planned.host)
        yield {
            "region": now.region,
            "size": now.size,
            "file": new.file,
            "gpa": f"{now.gpa:#x}",
            "offset": f"{now.offset or 0:#x}",
            "new_gpa": f"{new.gpa:#x}",
            "new_offset": f"{new.offset or 0:#x}",
            "hva_modulus": modulus,
            "hva_residue": new.gpa % modulus,
            "refused": index in plan.refused,
        }


def _file(file: FilePlan) -> dict[str, Any]:
    return {
        "name": file.name,
        "size": file.size,
        "bound": file.bound,
        "holes": file.holes,
        "optimal": file.least,
    }


def _migration(migration: Migration) -> dict[str, Any]:
    why = list(zip(migration.names, migration.why, strict=True))
    return {
        "page_size": migration.after.host.files.page_size,
        "stays": [name for name, reason in why if reason is None],
        "moves": {name: reason for name, reason in why if reason is not None},
        "moved": migration.moved,
        "scratch": migration.scratch,
        "least_scratch": not migration.scratch,
        "steps": [
            {
                "kind": step.kind,
                "region": migration.names[step.move.slot],
                "source": f"{step.move.source:#x}",
                "target": f"{step.move.target:#x}",
                "size": step.move.size,
            }
            for step in migration.steps
        ],
        "files": [_file(file.file) for file in migration.files],
        "leaves_before": sum(migration.before.leaves),
        "leaves_after": sum(migration.after.leaves),
    }
