"""``run``, ``diff``, ``fuzz`` and ``explain`` as JSON: the shapes that programs read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from guestmem.recordings.diff import Collected, Difference, Group, grouped
from guestmem.recordings.run import FileReport
from guestmem.recordings.writer import lines_of
from guestmem.report.json_text import json_text

if TYPE_CHECKING:
    from guestmem.explain import Explanation
    from guestmem.fuzz.campaign import Campaign, Figures

__all__ = ("diff_json", "explain_json", "fuzz_json", "run_json")


def run_json(reports: list[FileReport]) -> str:
    """The counts of each recording, and every difference."""
    files = [
        {
            "file": report.file,
            "profile": ", ".join(report.profiles),
            "sequences": report.sequences,
            "operations": report.operations,
            "agreed": report.agreed,
            "known_divergences": report.known_divergences,
            "not_issued": report.skipped.total(),
            "differences": len(report.differences),
        }
        for report in reports
    ]
    differences = [each for report in reports for each in report.differences]
    return json_text({"format": "guestmem-run/1", "files": files, "differences": differences})


def explain_json(file: str, sequence: str, operation: int, explanations: list[Explanation]) -> str:
    """One operation, once for every profile and touch."""
    where = {"format": "guestmem-explain/1", "file": file, "sequence": sequence, "operation": operation}
    return json_text({**where, "explanations": explanations})


def diff_json(collected: Collected, a: str, b: str) -> str:
    """The counts, and the differences by cause."""
    return json_text(
        {
            "format": "guestmem-diff/1",
            "a": a,
            "b": b,
            "sequences": collected.sequences,
            "operations": collected.operations,
            "not_issued": collected.skipped,
            "new": _groups(collected.new),
            "known": _groups(collected.known),
        }
    )


def fuzz_json(campaign: Campaign, figures: Figures, groups: list[Group]) -> str:
    """The counts, the seeds that differ, and the smallest difference of each cause."""
    return json_text(
        {
            "format": "guestmem-fuzz/1",
            "a": campaign.a.name,
            "b": campaign.b.name,
            "sequences": figures.sequences,
            "operations": figures.operations,
            "not_issued": figures.skipped,
            "known": dict(figures.known),
            "differ": figures.differ,
            "ended": figures.ended,
            "new": list(map(_group, groups)),
        }
    )


def _groups(differences: Iterable[Difference]) -> list[dict[str, object]]:
    return [_group(group) for group in grouped(differences)]


def _group(group: Group) -> dict[str, object]:
    smallest = group.smallest
    return {
        "cause": group.cause,
        "sequences": group.count,
        "recording": [msgspec.Raw(line.encode()) for line in lines_of(smallest.begin, smallest.operations)],
        "touch": smallest.touch,
        "a": smallest.a,
        "b": smallest.b,
        "reason": smallest.reason,
    }
