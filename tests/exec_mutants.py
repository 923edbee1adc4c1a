"""``guestmem exec`` over a model with one seeded bug: ``python exec_mutants.py NAME PROGRAM ARGS...``.

Each bug is one that a kernel could have. The programs of examples/ must notice every one of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from guestmem.exec import run
from guestmem.model import attributes, fault, page_fault, process, region, region_checks, vcpu
from guestmem.model.page_fault import Fault, FaultResult
from guestmem.model.vm import GuestMemfd, Memslot, Vm


def _replace(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def attributes_do_not_unmap() -> None:
    """Setting attributes leaves the mappings of the range."""

    class Deaf:
        def __init__(self, vm: Vm) -> None:
            self._vm = vm

        def __getattr__(self, name: str) -> object:
            return (lambda *range: None) if name.startswith("invalidate") else getattr(self._vm, name)

    original = attributes.set_attributes

    def mutant(request: attributes.AttributesRequest) -> None:
        deaf: Vm = Deaf(request.vm)  # type: ignore[assignment]
        original(attributes.AttributesRequest(deaf, request.start, request.size, request.attributes, request.flags))

    _replace(process, "set_attributes", mutant)


def deleted_slot_stays_mapped() -> None:
    """Deleting a slot leaves its mappings."""
    _replace(region, "_drop_mappings", lambda vm, slot: None)


def private_without_a_slot_is_mmio() -> None:
    """A private access without a slot counts as MMIO."""
    original = fault.get_page

    def mutant(access: Fault) -> FaultResult | None:
        return page_fault.MMIO if access.slot is None else original(access)

    _replace(vcpu, "STEPS", tuple(mutant if step is original else step for step in fault.STEPS))


def overlap_is_not_checked() -> None:
    """Two bindings may share a part of the file."""
    assert [check.name for check in region_checks.FREE_CHECKS] == ["binding-free"]
    _replace(region_checks, "FREE_CHECKS", ())


def index_is_shifted() -> None:
    """The second page of a binding shows the first page of the file's range."""
    original = GuestMemfd.bind

    def mutant(file: GuestMemfd, slot: Memslot, pgoff: int) -> None:
        original(file, slot, pgoff)
        slot.pgoff = max(0, pgoff - 1)

    _replace(GuestMemfd, "bind", mutant)


def hole_does_not_unmap() -> None:
    """Punching a hole leaves the guest's mappings of the range."""
    _replace(GuestMemfd, "invalidate", lambda file, start, end: None)


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        attributes_do_not_unmap,
        deleted_slot_stays_mapped,
        private_without_a_slot_is_mmio,
        overlap_is_not_checked,
        index_is_shifted,
        hole_does_not_unmap,
    )
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    report = run(sys.argv[2:])
    sys.stderr.flush()
    os._exit(report.exit_status)
