"""What ``guestmem check`` found out about one layout: the value that every writer writes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.coverage import HostLimits as HostLimits
from guestmem.layout.findings import SEVERITIES, Finding, find_findings
from guestmem.layout.value import Layout, Severity

__all__ = ("Checked", "check", "worst")


@dataclass(frozen=True, slots=True)
class Checked:
    """A layout with its coverage and findings."""

    coverage: Coverage
    findings: tuple[Finding, ...]

    @property
    def layout(self) -> Layout:
        """The layout that was judged."""
        return self.coverage.layout


def check(layout: Layout, host: HostLimits) -> Checked:
    """Judge a layout."""
    with _no_collections():
        coverage = cover(layout, host)
        return Checked(coverage, find_findings(coverage))


@contextmanager
def _no_collections() -> Iterator[None]:
    """The values of a large layout are many and none of them a cycle; looking for cycles took half the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def worst(checked: list[Checked]) -> Severity | None:
    """The most severe finding of all, or None."""
    severities = [finding.severity for one in checked for finding in one.findings]
    return max(severities, key=SEVERITIES.index, default=None)
