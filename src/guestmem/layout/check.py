"""What ``guestmem check`` finds out about a layout: its coverage, and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guestmem.layout.coverage import Coverage, HostLimits, cover
from guestmem.layout.findings import SEVERITIES, Finding, find_findings
from guestmem.layout.value import Layout, Severity

__all__ = ("Checked", "check", "most_severe")


@dataclass(frozen=True, slots=True)
class Checked:
    """A layout with its coverage and findings."""

    coverage: Coverage
    findings: tuple[Finding, ...]

    @property
    def layout(self) -> Layout:
        """The layout that was judged."""
        return self.coverage.layout

    @property
    def severity(self) -> Severity | None:
        """The most severe of the findings, or None."""
        return most_severe(finding.severity for finding in self.findings)


def check(layout: Layout, host: HostLimits) -> Checked:
    """Judge a layout."""
    coverage = cover(layout, host)
    return Checked(coverage, find_findings(coverage))


def most_severe(severities: Iterable[Severity | None]) -> Severity | None:
    """The most severe of all that are not None."""
    return max((one for one in severities if one is not None), key=SEVERITIES.index, default=None)
