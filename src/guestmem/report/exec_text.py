"""What ``guestmem exec`` says on stderr: calls that are not served, refusals as they happen, totals at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from guestmem.geometry import X86_64
from guestmem.text import counted

if TYPE_CHECKING:
    from guestmem.exec import Totals, Unserved
    from guestmem.exec.refusals import Refusal

__all__ = ("recorded_line", "refusal_lines", "stats_lines", "summary_lines", "unserved_line")

# Calls that matter to memory and that a recording has no operation for: what guest code does, above all.
_NO_OPERATIONS = ("KVM_RUN", "KVM_GET_STATS_FD")


def unserved_line(unserved: Unserved) -> str:
    """The first call of an ioctl that is not served."""
    return f"guestmem: {unserved.name} ({unserved.request:#x}) on {unserved.kind} is not served"


def summary_lines(totals: Totals) -> Iterator[str]:
    """What was not served, with counts; nothing where all was."""
    for unserved, count in totals.unserved.most_common():
        times = "once" if count == 1 else f"{count} times"
        yield f"guestmem: not served: {unserved.name} on {unserved.kind}, {times}"


def refusal_lines(refusal: Refusal) -> Iterator[str]:
    """One refused call: the check, the values, and what other kernels answer."""
    from guestmem.report.values import words  # here: a run without --explain needs nothing of recordings

    yield (
        f"guestmem: process {refusal.process}, call {refusal.number}: {refusal.operation} {words(refusal.arguments)}: "
        f"{refusal.errno} [{refusal.check}]"
    )
    yield f"    {refusal.reason}"
    if refusal.elsewhere:
        answers = ", ".join(f"{name} {answer}" for name, answer in refusal.elsewhere.items())
        yield f"    elsewhere: {answers}"


def recorded_line(path: Path, processes: int, operations: int, totals: Totals) -> str:
    """What went into the recording, and what could not."""
    left_out = ", ".join(f"{name} {totals.calls[name]}" for name in _NO_OPERATIONS if totals.calls[name])
    of = "1 process" if processes == 1 else f"{processes} processes"
    what = counted(operations, "operation")
    without = f"; no operations, and left out: {left_out}" if left_out else ""
    return f"guestmem: {path}: {what} of {of}{without}"


def stats_lines(totals: Totals, seconds: float) -> Iterator[str]:
    """Calls with their mean time, and for each VM what its memory went through."""
    asked = totals.calls.total()
    yield f"guestmem: {asked} calls looked at in {seconds:.2f} s"
    for name, count in totals.calls.most_common(12):
        yield f"  {name:<28} {count:>8}  {totals.seconds[name] / count * 1e6:8.1f} us each"
    for number, (type, mappings, counts) in enumerate(totals.vms):
        if not mappings.maps and not counts.slices:
            continue
        yield f"  VM {number}, type {type}:"
        for what, by_order in (("mapped", mappings.maps), ("split", mappings.splits), ("unmapped", mappings.zaps)):
            sizes = ", ".join(
                f"{count} of {X86_64.name_of(order)}" for order, count in sorted(by_order.items()) if count
            )
            if sizes:
                yield f"    leaves {what}: {sizes}"
        exits = ", ".join(f"{name} {count}" for name, count in sorted(counts.exits.items()))
        yield (
            f"    guest code: {counts.slices} slices, {counts.fills} TLB fills, {counts.faults} faults, "
            f"{counts.flushes} flushes"
        )
        if exits:
            yield f"    exits: {exits}"
