"""The JSON form of ``guestmem host``: the report itself, which --save writes too and check reads back."""

from __future__ import annotations

from guestmem.host.document import HostReport, host_schema
from guestmem.report.json_text import json_text

__all__ = ("host_schema", "to_json")


def to_json(report: HostReport) -> str:
    """The report as one JSON document."""
    return json_text(report)
