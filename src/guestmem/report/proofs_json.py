"""The JSON form of ``guestmem prove``."""

from __future__ import annotations

from typing import Any

from guestmem.proofs.answers import Answer, Asked, claim_named
from guestmem.proofs.solver import version
from guestmem.proofs.verdict import Holds, Unknown
from guestmem.report.json_text import json_text
from guestmem.report.proofs_files import layout, recording
from guestmem.report.proofs_text import numbers_of

__all__ = ("proofs_json",)


def proofs_json(asked: Asked, answers: list[Answer]) -> str:
    """One object: what was asked, and every answer with its numbers."""
    head = {
        "format": "guestmem-prove/1",
        "geometry": asked.geometry.name,
        "solver": version(),
        "limit_s": asked.limit_s,
    }
    return json_text({**head, "answers": [_row(asked, each) for each in answers]})


def _row(asked: Asked, answer: Answer) -> dict[str, Any]:
    verdict = answer.verdict
    row: dict[str, Any] = {"kind": answer.kind, "subject": answer.subject, "rule": answer.rule or None}
    row |= {"verdict": type(verdict).__name__.lower(), "values": dict(numbers_of(verdict))}
    row |= {"of_nothing": isinstance(verdict, Holds) and verdict.vacuous}
    if answer.kind != "implies":
        claim = claim_named(answer.subject)
        row |= {"statement": claim.statement, "assumes": claim.assumes}
    if isinstance(verdict, Unknown):
        row |= {"reason": verdict.reason}
    if answer.explanation:
        place = asked.geometry
        row |= {
            "story": answer.explanation,
            "layout": layout(place, answer),
            "recording": recording(place, answer),
        }
    return row
