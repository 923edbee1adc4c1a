"""What a look at the host is said to have found: causes, changes and the closing lines, for text and HTML."""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.host.document import SIZES, HostReport, HostSlot, HostVm
from guestmem.host.leaves import FRAME
from guestmem.host.loss import Loss, losses_of, lost_bytes
from guestmem.host.verdict import LossCause
from guestmem.report.words import size_or_dash
from guestmem.text import counted, percent, safe
from guestmem.units import KIB, size_text

__all__ = ("by_loss", "cause_text", "change_text", "closing_lines", "flags_text", "huge_text", "loss_text")

_READERS = {
    "kcore": "/proc/kcore",
    "bpf": "the BPF reader",
    "debugfs": "KVM's counters in debugfs",
    "recorded": "recorded reads",
}
_SHOWN = 4  # regions named in one line


def by_loss(report: HostReport) -> list[HostVm]:
    """The VMs, those that lost most first."""
    return sorted(report.vms, key=lambda vm: (-lost_bytes(vm), vm.pid))


def cause_text(vm: HostVm) -> str:
    """The cause of most of what a VM lost, or what kept it from being read."""
    losses = losses_of(vm)
    if vm.note or not losses:
        return vm.note
    return loss_text(losses[0])


def loss_text(loss: Loss) -> str:
    """One cause, with the slots or regions it concerns."""
    match loss.cause:
        case LossCause.HVA:
            return "; ".join(dict.fromkeys(_off(slot) for slot in loss.slots[:_SHOWN]))
        case LossCause.DIRTY_LOG:
            return f"dirty logging on {_numbers(loss.slots)}"
        case LossCause.HEAD:
            return "head and tail of slots"
        case LossCause.BACKING:
            off = all(slot.backing is not None and slot.backing.thp is False for slot in loss.slots)
            return f"the host maps 4K here{' (no transparent huge pages for this memory)' if off else ''}"
        case _:
            return loss.cause.text


def change_text(now: HostVm, before: HostVm | None) -> str:
    """What is mapped more or less than at the look before."""
    if before is None:
        return "new"
    parts = []
    for size in reversed(SIZES):
        more = now.totals.mapped[size] - before.totals.mapped[size]
        if more:
            parts.append(f"{'+' if more > 0 else '-'}{size_text(abs(more))} with {size}")
    return ", ".join(parts)


def closing_lines(report: HostReport) -> Iterator[str]:
    """What all VMs together have, how it was read, and what could not be."""
    vms = report.vms
    mapped = {size: sum(vm.totals.mapped[size] for vm in vms) for size in SIZES}
    whole = sum(mapped.values())
    count = counted(len(vms), "VM")
    if not vms:
        yield f"no VM found, read through {_READERS.get(report.reader, report.reader)} in {report.seconds:.2f} s"
        return
    sizes = ", ".join(f"{size_text(mapped[size])} with {size} pages" for size in reversed(SIZES) if mapped[size])
    line = f"{count}, {size_text(whole)} mapped{': ' if sizes else ''}{sizes}"
    if report.reader != "debugfs":
        lost = sum(map(lost_bytes, vms))
        line += f"; {size_text(lost)} lost ({percent(lost, whole)})" if lost else "; nothing lost"
    yield line
    how = f"read through {_READERS.get(report.reader, report.reader)} in {report.seconds:.2f} s"
    yield f"{how}; {_agreement(report)}"
    for vm in vms:
        if vm.note:
            yield f"process {vm.pid}: {safe(vm.note)}"


def flags_text(slot: HostSlot) -> str:
    """Flags of a slot as check writes them, and how much of it is private, where that is known."""
    flags = " log" * bool(slot.flags & 1) + " ro" * bool(slot.flags & 2) + " gmem" * bool(slot.flags & 4)
    return flags if slot.private is None else f"{flags} ({size_text(slot.private)} private)"


def huge_text(slot: HostSlot) -> str:
    """How much of a slot's memory the host maps by 2M or larger; "?" where that was not read."""
    if slot.backing is None or slot.backing.huge is None:
        return "?"
    return size_or_dash(sum(int(end, 16) - int(start, 16) for start, end in slot.backing.huge))


def _agreement(report: HostReport) -> str:
    if report.reader == "debugfs":
        return "slots and reasons cannot be seen this way"
    if report.exact:
        return "the walk found as many leaves as KVM counts"
    off = []
    for vm in report.vms:
        parts = [
            f"{abs(more):,} {'leaf' if abs(more) == 1 else 'leaves'} of {size} {'more' if more > 0 else 'fewer'}"
            for size in SIZES
            if (more := vm.totals.leaves[size] - vm.totals.counted[size])
        ]
        if parts and vm.totals.size is not None:
            off.append(f"process {vm.pid}: {', '.join(parts)} than KVM counts")
    return f"the walk is not exact ({'; '.join(off) or 'not every VM could be read'})"


def _off(slot: HostSlot) -> str:
    """How far the HVA is from where it would have to be."""
    by = (int(slot.hva, 16) - int(slot.gpa, 16)) % FRAME
    name = safe(slot.region) or f"slot {slot.slot}"
    if by in (4 * KIB, FRAME - 4 * KIB):
        return f"HVA of {name} is one page off"
    return f"HVA of {name} is {size_text(min(by, FRAME - by))} off"


def _numbers(slots: tuple[HostSlot, ...]) -> str:
    """ "slots 0-3 and 5": runs of numbers."""
    numbers = sorted({slot.slot for slot in slots})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"slot{'' if len(numbers) == 1 else 's'} {joined}"
