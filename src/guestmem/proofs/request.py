"""The model's own checks of a new slot, run on unknowns.

The request is the model's class; the VM and the file it refers to are substitutes with the few fields that the checks
read, so that no state is left out silently: a check that reads anything else fails with AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import z3

from guestmem.geometry import Geometry
from guestmem.model import binding, region
from guestmem.model.checks import Check
from guestmem.model.gmem import CREATE_CHECKS, GuestMemfd
from guestmem.model.profiles import NEXT, Profile
from guestmem.proofs.paths import Explorer, Sum
from guestmem.proofs.symbolic import Formula, OneOf, SymInt
from guestmem.rules import DEFAULT
from guestmem.uapi import KVM_MEM_GUEST_MEMFD
from guestmem.units import is_power_of_two

__all__ = ("CheckFormula", "formulas", "region_request", "walk")


@dataclass(frozen=True, slots=True)
class CheckFormula:
    """A check of the model and when it passes; sums are those, and the shifts, on the way."""

    name: str
    passes: Formula
    sums: tuple[Sum, ...]


class _NothingBound:
    """A file's bindings while there are none."""

    def overlaps(self, start: object, end: object) -> bool:
        """No range is bound."""
        return False


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
    found = [check.passes for check in walk(explorer, (*region.ARGUMENT_CHECKS, *region.CREATE_CHECKS), request)]
    found += [check.passes for check in walk(explorer, _range_checks(), request)]
    create: Any = SimpleNamespace(size=file_size, page_size=page, flags=0, vm=request.vm)
    wanted = [check for check in CREATE_CHECKS if check.name in ("size-positive", "size-aligned")]
    found += [check.passes for check in walk(explorer, wanted, create)]
    return [*found, size.term != 0]


def region_request(
    gpa: Any, size: Any, offset: Any, file_size: Any, geometry: Geometry, userspace_addr: Any = 0
) -> region.RegionRequest:
    """A request for a new slot bound to an unbound file of a VM that has none yet."""
    vm: Any = vm_of(geometry)
    request = region.RegionRequest(vm, 2, 0, KVM_MEM_GUEST_MEMFD, gpa, size, userspace_addr, 3, offset, lambda fd: None)
    gmem = GuestMemfd.__new__(GuestMemfd)
    gmem.size, gmem.vm = file_size, vm
    nothing: Any = _NothingBound()
    gmem.bindings = nothing
    request.file = gmem
    return request


def vm_of(geometry: Geometry, profile: Profile = NEXT) -> SimpleNamespace:
    """What the checks read of a VM: software-protected, no slots yet."""
    assert is_power_of_two(geometry.base_page_size)
    return SimpleNamespace(
        type=1,
        geometry=geometry,
        page_size=geometry.base_page_size,
        page_shift=geometry.base_page_size.bit_length() - 1,
        machine=profile.machine,
        profile=profile,
        has_private_mem=True,
        spaces=((),),
        slot_pages=0,
    )


def walk(explorer: Explorer, checks: Any, request: Any) -> Iterator[CheckFormula]:
    """Each check as a formula."""
    for check in checks:
        yield _formula(explorer, check, request)


def _range_checks(profile: Profile = NEXT) -> list[Check[region.RegionRequest]]:
    return [check for check in binding.checks(profile, DEFAULT) if check.name in ("binding-in-file", "binding-free")]


def _formula(explorer: Explorer, check: Check[Any], request: Any) -> CheckFormula:
    paths = list(explorer.paths(lambda: bool(check.passes(request))))
    passes = z3.Or([path.condition for path in paths if path.result])
    sums = {id(each): each for path in paths for each in path.sums}
    return CheckFormula(check.name, passes, tuple(sums.values()))
