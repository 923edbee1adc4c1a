"""Memory whose pages hang on what the source does not say, with the command that would tell."""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.layout.certainty import Certainty
from guestmem.layout.coverage import Coverage
from guestmem.layout.findings.value import Finding
from guestmem.layout.vmm import words_of
from guestmem.units import format_size, size_text

__all__ = ("find_unknown",)

_SHARE = 10  # more than a tenth of the memory is worth a warning


def find_unknown(coverage: Coverage, certainty: Certainty) -> Iterator[Finding]:
    """unknown, where more than a tenth of the memory hangs on transparent huge pages or on an unknown HVA."""
    if len(coverage.host.sizes) < 2:
        return
    page, unknown = coverage.host.sizes[1], coverage.mapped[1] - certainty.mapped[1]
    if unknown * _SHARE <= coverage.size or not (certainty.on_thp or certainty.on_hva):
        return
    what = []
    if certainty.on_thp:
        what.append("whether the host grants transparent huge pages")
    if certainty.on_hva:
        what.append("where the memory is in the host's address space")
    message = (
        f"for {size_text(unknown)} of {size_text(coverage.size)} the source does not say {' or '.join(what)}, "
        f"so {format_size(page)} pages are possible and not certain"
    )
    hva = bool(certainty.on_hva)
    gpa = max((item.slot for item in coverage.slots), key=lambda slot: slot.size).gpa
    yield Finding("unknown", "warning", message, words_of(coverage.layout).find_out(gpa, hva=hva))
