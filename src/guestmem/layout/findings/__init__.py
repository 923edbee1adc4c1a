"""What to change in a layout: findings with concrete remedies and their computed gain."""

from __future__ import annotations

from guestmem.layout.coverage import Coverage
from guestmem.layout.findings.addresses import find_address_findings
from guestmem.layout.findings.files import find_file_findings
from guestmem.layout.findings.memory import find_memory_findings
from guestmem.layout.findings.refused import find_refused
from guestmem.layout.findings.shape import find_shape_findings
from guestmem.layout.findings.value import IDS, SEVERITIES, Finding
from guestmem.layout.regions import Regions

__all__ = ("IDS", "SEVERITIES", "Finding", "find_findings", "severest_first")


def find_findings(coverage: Coverage) -> tuple[Finding, ...]:
    """Every finding of a layout, the most severe first, then by bytes lost."""
    regions = Regions(coverage.layout)
    addresses = list(find_address_findings(coverage, regions))
    odd = {index for finding in addresses if finding.id == "odd-start" for index in finding.slots}
    shape = find_shape_findings(coverage, regions)
    found = [
        *find_refused(coverage),
        *find_file_findings(coverage),
        *addresses,
        *find_memory_findings(coverage, regions),
        # A frame that is shared because a region starts inside of it is in that finding.
        *(finding for finding in shape if finding.id != "frame-shared" or not odd.intersection(finding.slots)),
        *(Finding(note.id, note.severity, note.message, note.remedy) for note in coverage.layout.remarks),
    ]
    return tuple(sorted(found, key=severest_first))


def severest_first(finding: Finding) -> tuple[int, int]:
    """The order of findings: by severity, then by bytes lost."""
    return -SEVERITIES.index(finding.severity), -max((size for _, size in finding.lost), default=0)
