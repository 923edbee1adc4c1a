"""What to change in a layout: findings with concrete remedies and their computed gain."""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.layout.coverage import Coverage
from guestmem.layout.findings.addresses import find_address_findings
from guestmem.layout.findings.files import find_file_findings
from guestmem.layout.findings.memory import find_memory_findings
from guestmem.layout.findings.shape import find_shape_findings
from guestmem.layout.findings.value import IDS, SEVERITIES, Finding
from guestmem.layout.refusal import is_by_rule
from guestmem.layout.regions import Regions
from guestmem.layout.value import Slot
from guestmem.units import format_size

__all__ = ("IDS", "SEVERITIES", "Finding", "find_findings")


def find_findings(coverage: Coverage) -> tuple[Finding, ...]:
    """Every finding of a layout, the most severe first, then by bytes lost."""
    regions = Regions(coverage.layout)
    addresses = list(find_address_findings(coverage, regions))
    odd = {index for finding in addresses if finding.id == "odd-start" for index in finding.slots}
    shape = find_shape_findings(coverage, regions)
    found = [
        *_refused(coverage),
        *find_file_findings(coverage),
        *addresses,
        *find_memory_findings(coverage, regions),
        # A frame that is shared because a region starts inside of it is in that finding.
        *(finding for finding in shape if finding.id != "frame-shared" or not odd.intersection(finding.slots)),
        *(Finding(note.id, note.severity, note.message, note.remedy) for note in coverage.layout.remarks),
    ]
    found.sort(key=lambda finding: (-SEVERITIES.index(finding.severity), -max((n for _, n in finding.lost), default=0)))
    return tuple(found)


def _refused(coverage: Coverage) -> Iterator[Finding]:
    for index, why in coverage.refused.items():
        if is_by_rule(why):
            continue
        slot, page_size = coverage.layout.slots[index], coverage.host.sizes[0]
        where = f"{slot.region} at GPA {slot.gpa:#x}" if slot.region else slot.name
        message = f"{where}: KVM refuses the slot with {why.name} [{why.check}]: {why.reason}"
        remedy = f"{_mended(slot, page_size)}; until then nothing of the slot is mapped"
        lost = tuple((size, slot.size) for size in coverage.host.sizes)
        yield Finding("refused", "error", message, remedy, (index,), lost)


def _mended(slot: Slot, page_size: int) -> str:
    """What to set so that KVM takes the slot: the values that must be aligned, else what it said."""
    values = {
        "guest_phys_addr": slot.gpa,
        "memory_size": slot.size or 1,
        "userspace_addr": slot.hva or 0,
        "guest_memfd_offset": (slot.offset or 0) if slot.guest_memfd else 0,
    }
    odd = [name for name, value in values.items() if value % page_size]
    return f"align {', '.join(odd)} to {format_size(page_size)}" if odd else "change the value that KVM refuses"
