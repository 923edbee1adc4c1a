"""The SARIF 2.1.0 form of ``guestmem check``, which code review tools show at the file.

One result per finding with its remedy; the location is the source file, the logical locations are the slots.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from guestmem.layout.check import Checked
from guestmem.layout.findings import IDS, Finding
from guestmem.report.json_text import json_text
from guestmem.units import format_size
from guestmem.version import __version__

__all__ = ("sarif_of", "to_sarif")

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(checked: list[Checked]) -> str:
    """The log as JSON text."""
    return json_text(sarif_of(checked))


def sarif_of(checked: list[Checked]) -> dict[str, Any]:
    """The log as plain values."""
    results = [_result(one, finding) for one in checked for finding in one.findings]
    rules = [{"id": id, "shortDescription": {"text": text}} for id, text in IDS.items()]
    driver = {"name": "guestmem", "semanticVersion": __version__, "rules": rules}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _result(one: Checked, finding: Finding) -> dict[str, Any]:
    layout = one.layout
    gain = ", ".join(f"{format_size(size)} at {format_size(page)}" for page, size in finding.gain)
    text = f"{finding.message}. Remedy: {finding.remedy}." + (f" Gains {gain}." if gain else "")
    slots = [layout.slots[index] for index in finding.slots]
    # Code review tools show a result at a line only, and a finding is about all of the file.
    place = {"artifactLocation": {"uri": _uri(layout.source)}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": place}
    if slots:
        location["logicalLocations"] = [
            {"name": slot.name, "fullyQualifiedName": f"{slot.gpa:#x}-{slot.end:#x}", "kind": "memslot"}
            for slot in slots
        ]
    return {
        "ruleId": finding.id,
        "ruleIndex": list(IDS).index(finding.id),
        "level": finding.severity,
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"guestmem/v1": f"{finding.id}:{','.join(f'{slot.gpa:#x}' for slot in slots)}"},
    }


def _uri(source: str) -> str:
    """A file's name as a relative URI reference; live sources and parts of files keep their text."""
    return quote(PurePath(source.partition("#")[0]).as_posix(), safe="/:", errors="surrogateescape")
