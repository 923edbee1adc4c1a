"""The answer in one line: what KVM refuses, or how much of the memory can have large pages, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.layout.check import Checked
from guestmem.layout.coverage import best_possible
from guestmem.layout.findings import IDS
from guestmem.text import counted, percent, safe
from guestmem.units import format_size, size_text

__all__ = ("closing_line", "lost_at_second", "verdict")


def verdict(one: Checked) -> str:
    """One sentence in plain words, without a full stop."""
    refused = [finding for finding in one.findings if finding.id == "refused"]
    if refused:
        return f"KVM refuses {counted(len(refused), 'slot')}"
    broken = [finding for finding in one.findings if finding.severity == "error"]
    if broken:
        return IDS[broken[0].id]
    coverage = one.coverage
    if len(coverage.host.sizes) < 2 or not coverage.size:
        return "there is no memory to map" if not coverage.size else "this geometry has one page size"
    page, size, mapped = format_size(coverage.host.sizes[1]), coverage.size, coverage.mapped[1]
    certain, best = one.certainty.mapped[1], best_possible(coverage)[1]
    if not mapped:
        return f"none of {size_text(size)} can be mapped with {page} pages"
    what = f"{size_text(mapped)} of {size_text(size)}"
    if mapped == best:
        what += ", all that the layout allows,"
    if certain == mapped:
        return f"{what} can be mapped with {page} pages"
    sure = f"; {size_text(certain)} for certain" if certain else ""
    return f"{what} may be mapped with {page} pages, if {_hangs_on(one)}{sure}"


def _hangs_on(one: Checked) -> str:
    unknown = one.certainty
    if unknown.on_thp and unknown.on_hva:
        return "the host grants transparent huge pages and its addresses fit"
    if unknown.on_hva:
        return "the host's addresses fit"
    return "the host grants transparent huge pages"


def lost_at_second(one: Checked) -> int:
    """Bytes that cannot be mapped with the second page size, though the guest-physical layout allows it."""
    return best_possible(one.coverage)[1] - one.coverage.mapped[1] if len(one.coverage.host.sizes) > 1 else 0


def closing_line(checked: Sequence[Checked]) -> str:
    """Many VMs in one line: findings, the share with large pages, and the VM that loses most."""
    errors, warnings = (
        sum(finding.severity == severity for one in checked for finding in one.findings)
        for severity in ("error", "warning")
    )
    page = format_size(checked[0].coverage.host.sizes[min(1, len(checked[0].coverage.host.sizes) - 1)])
    size = sum(one.coverage.size for one in checked)
    mapped = sum(one.coverage.mapped[min(1, len(one.coverage.mapped) - 1)] for one in checked)
    certain = sum(one.certainty.mapped[min(1, len(one.certainty.mapped) - 1)] for one in checked)
    share = f"{percent(mapped, size)} of {size_text(size)} with {page} pages"
    sure = "" if certain == mapped else f" at most, {percent(certain, size)} for certain"
    worst = max(checked, key=lost_at_second)
    named = f"; worst: {safe(worst.layout.source)}" if lost_at_second(worst) else ""
    return f"{len(checked)} VMs: {counted(errors, 'error')}, {counted(warnings, 'warning')}; {share}{sure}{named}"
