"""The faults of a trace as guest-physical address and page size: what the kernel gave each frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guestmem.errors import InputError
from guestmem.harness import PAGE_SIZE
from guestmem.trace.event import TraceEvent
from guestmem.trace.summary import FIXED, LEVEL_SIZES

__all__ = ("faults_of",)


def faults_of(where: str, events: Iterable[TraceEvent | int]) -> Iterator[tuple[int, int]]:
    """GPA and size in bytes of each fault; InputError where the trace is of several VMs, as far as it tells.

    The probe mapped is taken where it is; else kvm_mmu_set_spte, which tells no VM.
    """
    vms: set[int] = set()
    probed = False
    kept: list[tuple[int, int]] = []
    for event in events:
        if isinstance(event, int):
            continue
        if "kvm" in event.fields:
            vms.add(event.fields["kvm"])
        if len(vms) > 1:
            raise InputError(f"{where}: it has {' and '.join(f'{kvm:#x}' for kvm in sorted(vms))}: record one VM")
        if event.kind == "mapped" and event.fields["ret"] == FIXED:
            if not probed:
                probed, kept = True, []
            kept.append((event.fields["gfn"] * PAGE_SIZE, LEVEL_SIZES[event.fields["goal"]]))
        elif event.kind == "kvm_mmu_set_spte" and not probed and event.fields["level"] in LEVEL_SIZES:
            kept.append((event.fields["gfn"] * PAGE_SIZE, LEVEL_SIZES[event.fields["level"]]))
    yield from kept
