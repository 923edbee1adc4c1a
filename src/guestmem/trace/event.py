"""One event of a trace: a tracepoint of KVM or a function probe with BTF arguments, with the fields that are used.

A probe is known by its own name, as trace-cmd prints it, with or without the group's name before it. Everything else is
passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from guestmem.errors import InputError

__all__ = ("FIELDS", "TraceError", "TraceEvent", "kind_of")


class TraceError(InputError):
    """A trace that cannot be read: where, what was found, what was needed."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """time is in nanoseconds since boot; pid is a thread's. fields are numbers by the names of ``FIELDS``."""

    time: int
    cpu: int
    task: str
    pid: int
    kind: str
    fields: Mapping[str, int]


# Tracepoints by the names in their format files; probes by the names that the probe's definition gives.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "kvm_page_fault": ("fault_address", "error_code"),
        "kvm_mmu_set_spte": ("gfn", "spte", "level"),
        "kvm_tdp_mmu_spte_changed": ("gfn", "level", "old_spte", "new_spte"),
        "kvm_mmu_split_huge_page": ("gfn", "spte", "level", "errno"),
        "kvm_unmap_hva_range": ("start", "end"),
        "slot": ("kvm", "slot", "flags", "gpa", "size", "hva"),
        "slotret": ("ret",),
        "mapped": ("kvm", "gfn", "slot", "max", "req", "goal", "nx", "priv", "ret"),
        "unmap": ("kvm", "slot", "start", "end"),
        "split": ("kvm", "slot"),
        "recover": ("kvm", "slot"),
        "zapslot": ("kvm", "slot"),
        "destroy": ("kvm",),
    }
)


def kind_of(name: str) -> str | None:
    """The kind of an event's name, with or without its system or group: "kvmmmu:kvm_mmu_set_spte"; None if not used."""
    own = name.rpartition(":")[2]
    return own if own in FIELDS else None
