"""``guestmem trace report --json``."""

from __future__ import annotations

from typing import Any

from guestmem.report.json_text import json_text
from guestmem.trace.summary import LEVEL_SIZES, TracedVm, TraceSlot, TraceSummary

__all__ = ("FORMAT", "trace_json")

FORMAT = "guestmem-trace/1"


def trace_json(name: str, found: TraceSummary) -> str:
    """One object: times in nanoseconds since boot, sizes and addresses in bytes, leaves by page size in bytes."""
    counted = found.tables.exact
    return json_text(
        {
            "format": FORMAT,
            "file": name,
            "first_ns": found.first,
            "last_ns": found.last,
            "events": dict(sorted(found.events.items())),
            "lost": {"events": found.lost, "after_ns": found.lost_at},
            "exact": found.exact,
            "leaves_before_the_trace": found.tables.unknown,
            "most": _leaves(found.most) if counted else None,
            "at_the_end": _leaves(found.tables.count()) if counted else None,
            "over_time": [{"time_ns": time, "leaves": _leaves(counts)} for time, counts in found.spans if counted],
            "splits": _leaves(dict(found.tables.splits)),
            "set_by_faults": _leaves(dict(found.levels)),
            "host_ranges_gone": dict(found.zappers.most_common()),
            "hottest": [{"gpa": first, "faults": count} for first, count in found.hottest()],
            "vms": [_vm(vm) for vm in found.vms.values()],
        }
    )


def _leaves(counts: dict[int, int]) -> dict[str, int]:
    return {str(LEVEL_SIZES[level]): count for level, count in sorted(counts.items()) if level in LEVEL_SIZES}


def _vm(vm: TracedVm) -> dict[str, Any]:
    return {
        "kvm": vm.kvm,
        "destroyed": vm.destroyed,
        "faults_without_mapping": vm.failed,
        "slots": [_slot(slot) for slot in vm.slots.values()],
    }


def _slot(slot: TraceSlot) -> dict[str, Any]:
    return {
        "slot": slot.id,
        "gpa": slot.gpa,
        "size": slot.size,
        "hva": slot.hva,
        "flags": slot.flags,
        "deleted": slot.deleted,
        "faults": _leaves(dict(slot.faults)),
        "causes": {cause.value: count for cause, count in slot.causes.items()},
        "zapped": slot.zapped,
        "dirty_logging_switched_on": slot.logs,
    }
