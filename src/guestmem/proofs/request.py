"""The model's own checks of a new slot, run on unknowns.

Request, VM and file are the model's classes: those parts of them that the checks look at (``VmSlots``,
``BindableFile``), of a VM that has no slots yet and a file that nothing is bound to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import z3

from guestmem.geometry import Geometry
from guestmem.model.checks import Check
from guestmem.model.create import GUEST_MEMFD_CHECKS
from guestmem.model.profiles import NEXT, Profile
from guestmem.model.region_checks import ARGUMENT_CHECKS, CREATE_CHECKS, FILE_CHECKS, FREE_CHECKS, Region, RegionRequest
from guestmem.model.vm import AddressSpaceSlots, BindableFile, VmSlots
from guestmem.proofs.paths import Explorer, Sum
from guestmem.proofs.symbolic import Formula, OneOf, SymInt
from guestmem.rules import DEFAULT
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_X86_SW_PROTECTED_VM
from guestmem.units import is_power_of_two

__all__ = ("RANGE_CHECKS", "CheckFormula", "formulas", "region_request", "vm_of", "walk")

RANGE_CHECKS = (*(check for check in FILE_CHECKS if check.name == "binding-in-file"), *FREE_CHECKS)
"""The checks of the file range; the binding's others are about the descriptor."""


@dataclass(frozen=True, slots=True)
class CheckFormula:
    """A check of the model and when it passes; sums are those, and the shifts, on the way."""

    name: str
    passes: Formula
    sums: tuple[Sum, ...]


def formulas(
    explorer: Explorer,
    gpa: SymInt,
    size: SymInt,
    offset: SymInt,
    file_size: SymInt,
    page: OneOf,
    geometry: Geometry,
) -> list[Formula]:
    """What must be true of a slot of guest_memfd before a rule is asked; size is not 0, which would delete."""
    request = region_request(gpa, size, offset, file_size, geometry)
    checks = (*ARGUMENT_CHECKS, *CREATE_CHECKS, *RANGE_CHECKS)
    found = [check.passes for check in walk(explorer, checks, request)]
    create: Any = SimpleNamespace(size=file_size, page_size=page)
    wanted = [check for check in GUEST_MEMFD_CHECKS if check.name in ("size-positive", "size-aligned")]
    found += [check.passes for check in walk(explorer, wanted, create)]
    return [*found, size.term != 0]


def region_request(
    gpa: Any,
    size: Any,
    offset: Any,
    file_size: Any,
    geometry: Geometry,
    userspace_addr: Any = 0,
    profile: Profile = NEXT,
) -> RegionRequest:
    """A request for a new slot bound to an unbound file of a VM that has none yet."""
    vm = vm_of(geometry, profile)
    region = Region(2, 0, KVM_MEM_GUEST_MEMFD, gpa, size, userspace_addr, 3, offset)
    return RegionRequest(vm, region, BindableFile(vm, file_size, vm.page_size))


def vm_of(geometry: Geometry, profile: Profile = NEXT) -> VmSlots:
    """A software-protected VM without slots."""
    assert is_power_of_two(geometry.base_page_size)
    machine = replace(profile.machine, geometry=geometry)
    return VmSlots(KVM_X86_SW_PROTECTED_VM, profile, machine, DEFAULT, [AddressSpaceSlots()])


def walk(explorer: Explorer, checks: Iterable[Check[Any]], request: Any) -> Iterator[CheckFormula]:
    """Each check as a formula."""
    for check in checks:
        yield _formula(explorer, check, request)


def _formula(explorer: Explorer, check: Check[Any], request: Any) -> CheckFormula:
    paths = list(explorer.paths(lambda: bool(check.passes(request))))
    passes = z3.Or([path.condition for path in paths if path.result])
    sums = {id(each): each for path in paths for each in path.sums}
    return CheckFormula(check.name, passes, tuple(sums.values()))
