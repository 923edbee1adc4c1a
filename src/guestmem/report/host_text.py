"""The text form of ``guestmem host``: a table of all VMs, or one process's VMs slot by slot with a strip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from guestmem.host.document import HostReport, HostSlot, HostVm
from guestmem.host.loss import losses_of, lost_bytes
from guestmem.layout.findings import Finding
from guestmem.report.console import columns, print_stripped
from guestmem.report.host_words import by_loss, cause_text, change_text, closing_lines, flags_text, huge_text, loss_text
from guestmem.report.words import gain_text, size_or_dash
from guestmem.text import counted, safe
from guestmem.units import format_size, size_text

__all__ = ("print_changes", "print_host", "print_slots", "strip_rows")

_SIZES = ("1G", "2M", "4K")
_STYLES = {"1": "bright_green", "2": "green", "4": "red"}
_ROWS = ("possible", "host", "mapped")


def print_host(out: Console, report: HostReport) -> None:
    """All VMs, those that lost most first, and the closing lines."""
    _print_table(out, report, {})


def print_changes(out: Console, report: HostReport, before: HostReport) -> None:
    """The same with what changed since the look before."""
    keyed = dict(_keyed(before.vms))
    _print_table(out, report, {id(vm): change_text(vm, keyed.get(key)) for key, vm in _keyed(report.vms)})


def print_slots(out: Console, report: HostReport, findings: Mapping[int, Iterable[Finding]]) -> None:
    """Each VM slot by slot; ``findings`` by the VM's place in the report say what to change."""
    for index, vm in enumerate(report.vms):
        kind = f", type {vm.type}" if vm.type else ""
        slots = f"{counted(len(vm.slots), 'slot')}, {size_text(vm.totals.size or 0)}"
        head = f"{safe(vm.name)}, process {vm.pid}{kind}, {slots}"
        print_stripped(out, Text(head, style="bold"))
        if vm.slots:
            print_stripped(out, Padding(_slots(vm), (1, 0, 1, 2)))
        for line in _strip_lines(vm, max(20, min(100, out.width - 16))):
            print_stripped(out, Padding(line, (0, 0, 0, 2)))
        for loss in losses_of(vm):
            print_stripped(out, Padding(Text(f"lost {size_text(loss.size)}: {loss_text(loss)}"), (0, 0, 0, 2)))
        for finding in findings.get(index, ()):
            print_stripped(out, Padding(_finding(finding), (0, 0, 0, 2)))
        out.print()
    _print_closing(out, report)


def strip_rows(vm: HostVm, width: int) -> tuple[str, str, str] | None:
    """Guest-physical space from 0 to the last slot's end in ``width`` cells: possible, host, mapped; " " is no slot."""
    slots = [slot for slot in vm.slots if slot.address_space == 0 and slot.strip is not None]
    top = max((int(slot.gpa, 16) + slot.size for slot in slots), default=0)
    if not top:
        return None
    rows = [[" "] * width for _ in _ROWS]
    weight = [0] * width
    for slot in slots:
        start, end = int(slot.gpa, 16), int(slot.gpa, 16) + slot.size
        for cell in range(start * width // top, (end - 1) * width // top + 1):
            low, high = max(start, cell * top // width), min(end, (cell + 1) * top // width)
            if high - low > weight[cell]:
                weight[cell] = high - low
                _fill(rows, cell, slot, ((low + high) // 2 - start) / slot.size)
    return "".join(rows[0]), "".join(rows[1]), "".join(rows[2])


def _fill(rows: list[list[str]], cell: int, slot: HostSlot, share: float) -> None:
    """Show the place of a slot that lies at ``share`` of it."""
    if slot.strip is not None:
        for row, name in zip(rows, _ROWS, strict=True):
            letters: str = getattr(slot.strip, name)
            row[cell] = letters[min(len(letters) - 1, int(share * len(letters)))]


def _print_table(out: Console, report: HostReport, changes: Mapping[int, str]) -> None:
    if report.vms:
        print_stripped(out, _table(report, changes))
        out.print()
    _print_closing(out, report)


def _print_closing(out: Console, report: HostReport) -> None:
    for line in closing_lines(report):
        print_stripped(out, Text(line))


def _table(report: HostReport, changes: Mapping[int, str]) -> Table:
    numbers = ("memory", "mapped", *_SIZES, "lost")
    words = ("change", "mostly because") if changes else ("mostly because",)
    table = columns("PID", "name", *numbers, *words, right=("PID", *numbers), wide=words)
    for vm in by_loss(report):
        mapped, lost = vm.totals.mapped, lost_bytes(vm)
        cells = [
            str(vm.pid),
            safe(vm.name),
            "?" if vm.totals.size is None else size_text(vm.totals.size),
            size_or_dash(sum(mapped.values())),
            *(size_or_dash(mapped[size]) for size in _SIZES),
            size_or_dash(lost),
            *([changes[id(vm)]] if changes else []),
            safe(cause_text(vm)),
        ]
        table.add_row(*map(Text, cells))
    return table


def _keyed(vms: Iterable[HostVm]) -> Iterator[tuple[tuple[int, int], HostVm]]:
    """VMs by process and place among those of the process."""
    seen: dict[int, int] = {}
    for vm in vms:
        place = seen.get(vm.pid, 0)
        seen[vm.pid] = place + 1
        yield (vm.pid, place), vm


def _slots(vm: HostVm) -> Table:
    sizes = ("possible 2M", "1G", "host huge", "mapped 1G", "2M", "4K")
    why = "why not larger"
    table = columns("GPA", "size", "region", "HVA", *sizes, why, right=("GPA", "size", *sizes), wide=(why,))
    for slot in vm.slots:
        space = f" (address space {slot.address_space})" if slot.address_space else ""
        cells = [
            slot.gpa,
            format_size(slot.size),
            safe(slot.region.partition("@")[0]) + flags_text(slot) + space,
            slot.hva,
            size_or_dash(slot.possible["2M"]),
            size_or_dash(slot.possible["1G"]),
            huge_text(slot),
            *(size_or_dash(slot.mapped[size]) for size in _SIZES),
            _why(slot),
        ]
        table.add_row(*map(Text, cells))
    return table


def _why(slot: HostSlot) -> str:
    at_1g = " at 1G"
    return ", ".join(
        f"{item.reason.replace('_', ' ')}{at_1g * (item.level == '1G')} {size_text(item.bytes)}" for item in slot.lost
    )


def _strip_lines(vm: HostVm, width: int) -> Iterator[Text]:
    rows = strip_rows(vm, width)
    if rows is None:
        return
    for name, row in zip(_ROWS, rows, strict=True):
        text = Text(f"{name:<9}")
        for letter in row:
            text.append(letter, _STYLES.get(letter, ""))
        yield text
    yield Text("guest-physical space to scale: 1 = 1G pages, 2 = 2M, 4 = 4K, . = nothing, blank = no slot", style="dim")
    yield Text("")


def _finding(finding: Finding) -> Text:
    text = Text(f"{finding.severity} {finding.id}: {safe(finding.message)}; change: {safe(finding.remedy)}")
    return text.append(f" (gains {gain_text(finding.gain)})") if finding.gain else text
