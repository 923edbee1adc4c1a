"""Which VMs lost their huge pages, how much, and to what: sums over a report, and how bad that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guestmem.host.document import HostReport, HostSlot, HostVm
from guestmem.host.leaves import FRAME
from guestmem.host.verdict import LossCause
from guestmem.units import MIB

__all__ = ("Loss", "losses_of", "lost_bytes", "severity_of")

Severity = Literal["note", "warning", "error"]
_SHAPE = frozenset((LossCause.HEAD, LossCause.TAIL))  # of guest-physical space: no VMM can have it otherwise
_UNCHANGEABLE = _SHAPE | {LossCause.ORDER_0, LossCause.UNKNOWN}
_SMALL_LOG = 64 * MIB  # dirty-logged device memory, a display's for example, is no loss worth a warning


@dataclass(frozen=True, slots=True)
class Loss:
    """Bytes of a VM that are mapped smaller than they could be, for one cause, and the slots that they lie in.

    Heads and tails of slots count as one cause, HEAD.
    """

    cause: LossCause
    size: int
    slots: tuple[HostSlot, ...]


def lost_bytes(vm: HostVm) -> int:
    """Bytes mapped with smaller pages than the slot's memory allows, each once."""
    return sum(_lost_of(slot) for slot in vm.slots if slot.address_space == 0)


def losses_of(vm: HostVm) -> list[Loss]:
    """What a VM lost, the largest loss first."""
    sums: dict[LossCause, list[tuple[int, HostSlot]]] = {}
    for slot in vm.slots:
        if slot.address_space:
            continue
        levels = {item.level for item in slot.lost}
        for item in slot.lost:
            if item.level == ("1G" if "1G" in levels else "2M"):  # what is lost at 1G holds what is lost at 2M
                cause = LossCause(item.reason)
                sums.setdefault(LossCause.HEAD if cause in _SHAPE else cause, []).append((item.bytes, slot))
    found = [Loss(cause, sum(size for size, _ in parts), _once(parts)) for cause, parts in sums.items()]
    return sorted(found, key=lambda loss: -loss.size)


def severity_of(report: HostReport) -> Severity | None:
    """The worst of all VMs: error, one could not be read; warning, a change brings pages back; note, other loss."""
    worst: Severity | None = None
    for vm in report.vms:
        if vm.note and vm.totals.size is None and report.reader != "debugfs":
            return "error"
        for loss in losses_of(vm):
            least = _SMALL_LOG if loss.cause is LossCause.DIRTY_LOG else FRAME
            if loss.cause not in _UNCHANGEABLE and loss.size >= least:
                worst = "warning"
            worst = worst or "note"
    return worst


def _lost_of(slot: HostSlot) -> int:
    """Bytes mapped by 4K are lost at 2M, and at 1G too where that is judged: the larger sum counts."""
    by_level: dict[str, int] = {}
    for item in slot.lost:
        by_level[item.level] = by_level.get(item.level, 0) + item.bytes
    return max(by_level.values(), default=0)


def _once(parts: list[tuple[int, HostSlot]]) -> tuple[HostSlot, ...]:
    """The slots of the parts, each once."""
    return tuple({slot.gpa: slot for _, slot in parts}.values())
