"""The model's own limits of a mapping (``model.levels.LIMITS``), run on unknowns: which levels does a fault get?

The fault, the slot and the limits are the model's classes and functions. The VM around them is a substitute: attributes
are uniform, no page is poisoned, the slot logs no dirty pages, nothing is fetched, GPA and userspace_addr agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import z3

from guestmem.model.levels import LIMITS, Limit
from guestmem.model.page_fault import Fault
from guestmem.model.vm import BindableFile, Memslot, VmSlots
from guestmem.proofs import request
from guestmem.proofs.symbolic import Formula
from guestmem.rules import Rule
from guestmem.uapi import KVM_MEM_GUEST_MEMFD

if TYPE_CHECKING:
    from guestmem.proofs.example import Example
    from guestmem.proofs.situation import Situation

__all__ = ("KVM_LIMITS", "allowed", "fault_on", "limits_named")

KVM_LIMITS = ("folio-order", "rule", "slot-head", "slot-tail")
"""What KVM checks of a file's page without new code: the rule, and the ends of the slot in guest-physical space."""


def _uniform(start: object, end: object) -> bool:
    """Every frame is private."""
    return True


class _NoPoison:
    """No page of the file is poisoned."""

    def overlaps(self, start: object, end: object) -> bool:
        """No page is."""
        return False


class _File(BindableFile):
    """A file whose backing takes pages of the place's size at the moment."""

    def __init__(self, vm: VmSlots, place: Situation | Example) -> None:
        unknown: Any = place  # the model's classes want integers
        super().__init__(vm, 0, unknown.page)
        self._place = unknown
        self.cache = SimpleNamespace(poisoned=_NoPoison())

    @property
    def backing_page_size(self) -> int:
        """A number on each path."""
        return int(self._place.backing)


def limits_named(names: Sequence[str]) -> tuple[Limit, ...]:
    """Some of the model's limits."""
    found = tuple(limit for limit in LIMITS if limit.name in names)
    assert len(found) == len(names), f"bug in guestmem: of {names} the model has {[limit.name for limit in found]}"
    return found


def fault_on(place: Situation | Example, rule: Rule) -> Fault:
    """A private fault on the page touched, after the backing took its folio; of unknowns or of an example's numbers."""
    vm: Any = request.vm_of(place.geometry)
    vm.rule, vm.is_uniform = rule, _uniform
    shift = vm.page_shift
    known: Any = place  # the model's classes want integers
    gmem: Any = _File(vm, place)
    slot = Memslot(0, 0, known.gpa >> shift, known.size >> shift, KVM_MEM_GUEST_MEMFD, known.gpa, gmem)
    slot.pgoff = known.offset >> shift
    fault = Fault(vm, (known.gpa + known.into) >> shift)
    fault.slot, fault.gmem, fault.private = slot, gmem, True
    fault.index, fault.folio_order = known.access >> shift, known.folio
    return fault


def allowed(situation: Situation, rule: Rule, limits: Sequence[Limit] = LIMITS) -> dict[int, Formula]:
    """By huge order: none of the limits forbids the leaf. The model maps the largest such order."""
    fault = fault_on(situation, rule)

    def formula(limit: Limit, order: int) -> Formula:
        key = (limit, order, rule if limit.name == "rule" else None)
        return situation.once(key, lambda: situation.holds(lambda: limit.allows(fault, order)))

    return {order: z3.And([formula(limit, order) for limit in limits]) for order in situation.huge}
