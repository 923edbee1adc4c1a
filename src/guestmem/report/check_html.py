"""The HTML form of ``guestmem check``: one file, no network, readable without scripts.

The map of guest-physical space is drawn to scale as SVG with the reasons as titles; the script only zooms it. Values
are escaped by the template engine, since names come from files of strangers, and a content policy forbids any request.
"""

from __future__ import annotations

from typing import Any

import jinja2

from guestmem.layout.bound import judge
from guestmem.layout.check import Checked
from guestmem.layout.coverage import Coverage, SlotCoverage
from guestmem.layout.reasons import Reason
from guestmem.report.picture import Run, best_runs
from guestmem.report.words import gain_text, leaves_text, size_or_dash
from guestmem.text import safe
from guestmem.units import format_size, size_text
from guestmem.version import __version__

__all__ = (
    "WIDTH",
    "page",
    "to_html",
)

WIDTH = 1_000_000  # units of the map; a page of a 4 GiB guest is one


def to_html(checked: list[Checked], profile: str) -> str:
    """The page for every layout."""
    sizes = checked[0].coverage.host.sizes if checked else ()
    return page(
        "check.html.j2",
        profile=profile,
        gain=gain_text,
        size=size_text,
        levels=[format_size(size) for size in sizes],
        sources=[_source(one) for one in checked],
    )


def page(template: str, **values: Any) -> str:
    """A page from its template; every page knows the version and the width of maps."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("guestmem.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(version=__version__, width=WIDTH, **values)


def _source(one: Checked) -> dict[str, Any]:
    coverage, layout = one.coverage, one.layout
    top = max((slot.end for slot in layout.slots), default=1)
    return {
        "name": safe(layout.source),
        "what": layout.machine or layout.format,
        "size": size_text(coverage.size),
        "leaves": leaves_text(coverage.host.sizes, coverage.leaves),
        "top": top,
        "top_hex": f"{top:#x}",
        "runs": [_run(coverage, run, top) for run in best_runs(coverage)],
        "slots": [_slot(coverage, index) for index in range(len(coverage.slots))],
        "assumptions": layout.assumptions,
        "findings": one.findings,
        **_rules(coverage),
    }


def _run(coverage: Coverage, run: Run, top: int) -> dict[str, str]:
    item = coverage.slots[run.slot]
    why = [
        f"not with {format_size(size)} pages: {reason.text}"
        for size, segments in zip(item.sizes, item.segments, strict=True)
        for reason in [_reason_at(segments, run.start)]
        if reason is not None
    ]
    by = f"with {format_size(item.sizes[run.level])} pages" if run.level >= 0 else "cannot be mapped"
    where = f"{item.slot.name} {run.start:#x}-{run.end:#x} ({size_text(run.end - run.start)})"
    return {
        "kind": _kind(run.level),
        "x": f"{run.start * WIDTH / top:.6g}",
        "width": f"{(run.end - run.start) * WIDTH / top:.6g}",
        "title": "; ".join([f"{where}: {by}", *why]),
    }


def _reason_at(segments: tuple[Any, ...], gpa: int) -> Reason | None:
    found: Reason | None = next(segment.reason for segment in segments if segment.start <= gpa < segment.end)
    return found


def _kind(level: int) -> str:
    return f"l{min(level, 3)}" if level >= 0 else "lx"


def _slot(coverage: Coverage, index: int) -> dict[str, Any]:
    item = coverage.slots[index]
    slot = item.slot
    flags = " read-only" * slot.readonly + " dirty-logged" * slot.dirty_log + " guest_memfd" * slot.guest_memfd
    return {
        "gpa": f"{slot.gpa:#x}",
        "size": format_size(slot.size),
        "region": (slot.region or "-") + flags,
        "hva": f"{slot.hva:#x}" if slot.hva is not None else "assumed" if slot.assumed_hva is not None else "-",
        "mapped": list(map(size_or_dash, item.mapped[1:])),
        "parts": _parts(item),
    }


def _parts(item: SlotCoverage) -> list[dict[str, str]]:
    """The slot's bytes by best level, those of the base page by why they are no larger."""
    parts = []
    above = [*item.mapped[1:], 0]
    for level in reversed(range(1, len(item.sizes))):
        size = item.mapped[level] - above[level]
        why = ", ".join(
            f"{lost.reason.text} {size_text(lost.size)}"
            for lost in item.lost
            if level + 1 < len(item.sizes) and lost.page_size == item.sizes[level + 1]
        )
        parts.append(_part(item, level, size, f"; not larger: {why}" if why else ""))
    first = item.sizes[1] if len(item.sizes) > 1 else 0
    unmapped = item.slot.size - item.mapped[0]
    level = -1 if unmapped else 0
    parts += [_part(item, level, lost.size, f": {lost.reason.text}") for lost in item.lost if lost.page_size == first]
    return [part for part in parts if part["share"] != "0"]


def _part(item: SlotCoverage, level: int, size: int, why: str) -> dict[str, str]:
    by = f"with {format_size(item.sizes[level])} pages" if level >= 0 else "not mapped"
    share = size / item.slot.size if item.slot.size else 0
    return {"kind": _kind(level), "share": f"{share:.6g}", "title": f"{size_text(size)} {by}{why}"}


def _rules(coverage: Coverage) -> dict[str, Any]:
    geometry = coverage.host.geometry
    verdicts = judge(coverage.layout, "one-file", geometry.page_sizes[-1], geometry)
    if not verdicts.layout.slots:
        return {"rules": []}
    best = ", ".join(
        f"{size_text(size)} with {format_size(page)} pages"
        for page, size in zip(geometry.page_sizes[1:], verdicts.best[1:], strict=True)
    )
    return {
        "rules": verdicts.rules,
        "rules_page": format_size(verdicts.page_size),
        "rules_best": best,
    }
