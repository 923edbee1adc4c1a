"""What ``guestmem check`` finds out about a layout: its coverage, and what to change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guestmem.layout.certainty import Certainty, certainty_of
from guestmem.layout.coverage import Coverage, HostLimits, cover
from guestmem.layout.findings import SEVERITIES, Finding, find_findings, severest_first
from guestmem.layout.findings.unknown import find_unknown
from guestmem.layout.value import Layout, Severity

__all__ = ("Checked", "check", "most_severe")


@dataclass(frozen=True, slots=True)
class Checked:
    """A layout with its coverage and findings."""

    coverage: Coverage
    certainty: Certainty
    findings: tuple[Finding, ...]

    @property
    def layout(self) -> Layout:
        """The layout that was judged."""
        return self.coverage.layout

    @property
    def severity(self) -> Severity | None:
        """The most severe of the findings, or None; that something is not known is no fault of the layout."""
        return most_severe(finding.severity for finding in self.findings if finding.id != "unknown")


def check(layout: Layout, host: HostLimits) -> Checked:
    """Judge a layout."""
    coverage = cover(layout, host)
    certainty = certainty_of(coverage)
    found = [*find_findings(coverage), *find_unknown(coverage, certainty)]
    return Checked(coverage, certainty, tuple(sorted(found, key=severest_first)))


def most_severe(severities: Iterable[Severity | None]) -> Severity | None:
    """The most severe of all that are not None."""
    return max((one for one in severities if one is not None), key=SEVERITIES.index, default=None)
