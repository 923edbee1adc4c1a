"""The HTML form of ``guestmem host``: one file, no network, readable without scripts.

Names come from files and processes of strangers and are escaped by the template engine; a content policy forbids any
request. Each VM's guest-physical space is drawn to scale in three rows: possible, host, mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from guestmem.host.document import HostReport, HostSlot, HostVm
from guestmem.host.loss import losses_of, lost_bytes
from guestmem.layout.findings import Finding
from guestmem.report.check_html import WIDTH, page
from guestmem.report.host_words import by_loss, cause_text, closing_lines, flags_text, huge_text, loss_text
from guestmem.report.words import gain_text, size_or_dash
from guestmem.units import format_size, size_text

__all__ = ("to_html",)

_KINDS = {"1": "l2", "2": "l1", "4": "l0", ".": "ln"}
_NAMES = {"1": "1G", "2": "2M", "4": "4K", ".": "nothing"}
_SIZES = ("1G", "2M", "4K")


def to_html(report: HostReport, findings: Mapping[int, Iterable[Finding]]) -> str:
    """The page; ``findings`` by the VM's place in the report."""
    places = {id(vm): index for index, vm in enumerate(report.vms)}
    vms = by_loss(report)
    return page(
        "host.html.j2",
        closing=list(closing_lines(report)),
        vms=[_vm(vm, findings.get(places[id(vm)], ())) for vm in vms],
    )


def _vm(vm: HostVm, findings: Iterable[Finding]) -> dict[str, Any]:
    mapped = vm.totals.mapped
    top = max((int(slot.gpa, 16) + slot.size for slot in vm.slots if not slot.address_space), default=1)
    return {
        "pid": vm.pid,
        "name": vm.name,
        "size": "?" if vm.totals.size is None else size_text(vm.totals.size),
        "mapped": size_text(sum(mapped.values())),
        "sizes": [size_or_dash(mapped[size]) for size in _SIZES],
        "lost": size_text(lost_bytes(vm)),
        "cause": cause_text(vm),
        "losses": [f"{size_text(loss.size)}: {loss_text(loss)}" for loss in losses_of(vm)],
        "top": f"{top:#x}",
        "runs": [run for slot in vm.slots if not slot.address_space for run in _runs(slot, top)],
        "slots": [_slot(slot) for slot in vm.slots],
        "findings": [
            {
                "id": finding.id,
                "severity": finding.severity,
                "message": finding.message,
                "remedy": finding.remedy,
                "gain": gain_text(finding.gain),
            }
            for finding in findings
        ],
    }


def _runs(slot: HostSlot, top: int) -> list[dict[str, str]]:
    """The slot's strips as rectangles: cells of one kind together."""
    if slot.strip is None:
        return []
    start, found = int(slot.gpa, 16), []
    for row, name in enumerate(("possible", "host", "mapped")):
        letters: str = getattr(slot.strip, name)
        at = 0
        for letter, cells in groupby(letters):
            count = len(list(cells))
            low, high = (start + place * slot.size // len(letters) for place in (at, at + count))
            at += count
            found.append(
                {
                    "kind": _KINDS.get(letter, "ln"),
                    "x": f"{low * WIDTH / top:.6g}",
                    "y": str(row * 26),
                    "width": f"{(high - low) * WIDTH / top:.6g}",
                    "title": f"{slot.region} {low:#x}-{high:#x}: {name} {_NAMES.get(letter, '?')}",
                }
            )
    return found


def _slot(slot: HostSlot) -> dict[str, Any]:
    return {
        "gpa": slot.gpa,
        "size": format_size(slot.size),
        "region": (slot.region or "-") + flags_text(slot),
        "hva": slot.hva,
        "possible": [size_or_dash(slot.possible[size]) for size in ("2M", "1G")],
        "huge": huge_text(slot),
        "mapped": [size_or_dash(slot.mapped[size]) for size in _SIZES],
        "lost": ", ".join(f"{item.reason.replace('_', ' ')} {size_text(item.bytes)}" for item in slot.lost),
    }
