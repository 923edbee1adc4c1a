"""The HTML form of ``guestmem trace report``: one file, no network, no script.

Each leaf size has a row of its own, to its own scale, because a leaf of 1G is as much as 262,144 of 4K. Names come from
traces of strangers and are escaped by the template engine; a content policy forbids any request.
"""

from __future__ import annotations

from typing import Any

from guestmem.report.check_html import page
from guestmem.report.trace_text import head_lines, why_small
from guestmem.text import counted, safe
from guestmem.trace.summary import LEVEL_SIZES, TracedVm, TraceSummary
from guestmem.units import format_size

__all__ = ("to_html",)

_WIDTH, _HEIGHT = 1000, 60
_KINDS = {3: "l2", 2: "l1", 1: "l0"}


def to_html(name: str, found: TraceSummary) -> str:
    """The page."""
    assert found.last is not None
    seen = [*(mark.time for mark in found.marks), *(time for time, _ in found.spans[:1]), found.last]
    start = min(seen)
    length = max(found.last - start, 1)
    return page(
        "trace.html.j2",
        name=safe(name),
        lines=[line.strip() for line in head_lines(name, found)],
        rows=_rows(found, start, length) if found.tables.exact else [],
        marks=[
            {
                "x": f"{(mark.time - start) * _WIDTH / length:.6g}",
                "time": f"{(mark.time - start) / 10**9:.6f} s",
                "text": mark.text if mark.count == 1 else f"{mark.text}, {counted(mark.count, 'time')}",
            }
            for mark in found.marks
        ],
        seconds=f"{length / 10**9:.3f} s",
        vms=[_vm(vm) for vm in found.vms.values()],
        faults="mapped" in found.events,
    )


def _rows(found: TraceSummary, start: int, length: int) -> list[dict[str, str]]:
    return [
        {
            "kind": _KINDS[level],
            "size": format_size(LEVEL_SIZES[level]),
            "most": f"{found.most.get(level, 0):,}",
            "path": _steps(found, level, start, length),
        }
        for level in (3, 2, 1)
    ]


def _steps(found: TraceSummary, level: int, start: int, length: int) -> str:
    """The area under the count of one level, as an SVG path."""
    most = max(found.most.get(level, 0), 1)
    parts, height = [f"M0 {_HEIGHT}"], _HEIGHT
    for time, counts in found.spans:
        x = f"{(time - start) * _WIDTH / length:.6g}"
        new = _HEIGHT - round(counts.get(level, 0) * (_HEIGHT - 4) / most)
        if new != height:
            parts.append(f"L{x} {height}L{x} {new}")
            height = new
    return "".join([*parts, f"L{_WIDTH} {height}L{_WIDTH} {_HEIGHT}Z"])


def _vm(vm: TracedVm) -> dict[str, Any]:
    return {
        "kvm": f"{vm.kvm:#x}",
        "destroyed": vm.destroyed,
        "slots": [
            {
                "id": slot.id,
                "gpa": f"{slot.gpa:#x}" if slot.size else "?",
                "size": format_size(slot.size) if slot.size else "-",
                "faults": [slot.faults[level] or "-" for level in (3, 2, 1)],
                "zapped": format_size(slot.zapped) if slot.zapped else "-",
                "why": why_small(slot),
            }
            for slot in vm.slots.values()
        ],
    }
