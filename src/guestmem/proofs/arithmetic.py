"""Does 64-bit arithmetic say the same as the model's exact integers?

The model adds and shifts Python integers, which do not wrap; the kernel adds u64 and, in one released form, loff_t. For
each of the model's checks on a new slot, over all u64 values, aligned or not, that pass the checks before it: either no
sum or shift of the check exceeds 64 bits, or the check is itself the guard against that, and then it must agree with
the kernel's wrapping form, which is written here a second time as 64-bit terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import z3

from guestmem.model.create import GUEST_MEMFD_CHECKS
from guestmem.model.levels import LIMITS
from guestmem.model.profiles import NEXT, V6_18
from guestmem.model.region_checks import ARGUMENT_CHECKS, CREATE_CHECKS, MAP_CHECKS
from guestmem.proofs.claims import Statement
from guestmem.proofs.example import Example
from guestmem.proofs.limits import fault_on
from guestmem.proofs.paths import Explorer, Sum
from guestmem.proofs.request import RANGE_CHECKS, region_request, walk
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import Question
from guestmem.proofs.symbolic import WIDTH, Formula, SymInt, u64
from guestmem.rules import NoRule
from guestmem.units import S64_MAX, U64, format_size, to_s64

__all__ = ("CLAIMS", "GUARDS")


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a request, any u64."""

    gpa: SymInt
    size: SymInt
    offset: SymInt
    file_size: SymInt
    userspace_addr: SymInt

    @classmethod
    def any(cls) -> _Words:
        """Unknown ones."""
        return cls(*(u64(f"any_{name}") for name in ("gpa", "size", "offset", "file_size", "userspace_addr")))

    @property
    def variables(self) -> dict[str, Any]:
        """In the order of minimising."""
        names = ("size", "offset", "file_size", "gpa", "userspace_addr")
        return {name: getattr(self, name).term for name in names}


def _below(value: SymInt) -> Any:
    """The low 64 bits: what a register holds."""
    return z3.Extract(63, 0, value.term)


def _user_space(w: _Words, limit: int) -> Formula:
    # access_ok, x86-64: the sum neither wraps nor leaves user space; alignment was checked on its own.
    total = _below(w.userspace_addr) + _below(w.size)
    return z3.And(z3.ULE(total, limit), z3.UGE(total, _below(w.userspace_addr)))


GUARDS: dict[str, tuple[str, Callable[[_Words, int], Formula]]] = {
    "hva-in-user-space": ("access_ok", _user_space),
    "offset-page-aligned": (
        "offset + size < offset",
        lambda w, _: z3.UGE(_below(w.offset) + _below(w.size), _below(w.offset)),
    ),
    "gpa-no-wrap": ("gpa + size < gpa", lambda w, _: z3.UGE(_below(w.gpa) + _below(w.size), _below(w.gpa))),
}
"""Checks that guard against a wrap: how the kernel writes it, and when that lets the request pass."""


def _checks(s: Situation) -> Iterator[tuple[str, list[Formula], Formula, tuple[Sum, ...], _Words]]:
    """Every check on a new slot: its name, what has passed before it, when it passes, its sums."""
    w = _Words.any()
    request = region_request(w.gpa, w.size, w.offset, w.file_size, s.geometry, w.userspace_addr)
    in_file = [check for check in GUEST_MEMFD_CHECKS if check.name == "size-positive"]
    explorer = Explorer([])
    before = [check.passes for check in walk(explorer, in_file, _File(w.file_size))]
    for check in walk(explorer, (*ARGUMENT_CHECKS, *CREATE_CHECKS, *RANGE_CHECKS, *MAP_CHECKS), request):
        yield check.name, list(before), check.passes, check.sums, w
        before.append(check.passes)


@dataclass(frozen=True, slots=True)
class _File:
    """A request for a file, as far as its size is concerned."""

    size: Any


def _no_wrap(s: Situation) -> Question:
    """All checks in one question: the first sum that exceeds 64 bits without a guard."""
    wraps, reached = [], []
    checks = list(_checks(s))
    for name, before, _, sums, _ in checks:
        if name not in GUARDS:
            for each in sums:
                passed = z3.And(*before, each.condition)
                reached.append(passed)
                wraps.append(z3.And(passed, z3.Or(each.result >= U64, each.result < 0)))
    return Question([], z3.Or(reached), z3.Or(wraps), checks[-1][4].variables)


def _guard(name: str) -> Callable[[Situation], Question]:
    def ask(s: Situation) -> Question:
        for check, before, passes, _, w in _checks(s):
            if check == name:
                aligned = [
                    word.term & (s.geometry.base_page_size - 1) == 0 for word in (w.userspace_addr, w.offset, w.gpa)
                ]
                kernel = GUARDS[name][1](w, NEXT.machine.user_limit)
                return Question([*before, *aligned], passes, passes != kernel, w.variables)
        raise AssertionError(f"bug in guestmem: the model has no check {name}")

    return ask


def _signed(s: Situation) -> tuple[_Words, list[Formula], Formula, Formula]:
    """The words, the argument checks, and the check of 6.18 and of later kernels."""
    w = _Words.any()
    request = region_request(w.gpa, w.size, w.offset, w.file_size, s.geometry, w.userspace_addr)
    explorer = Explorer([])
    argument = [check.passes for check in walk(explorer, ARGUMENT_CHECKS, request)]
    in_file = [check for check in GUEST_MEMFD_CHECKS if check.name == "size-positive"]
    argument += [check.passes for check in walk(explorer, in_file, _File(w.file_size))]
    argument += [w.size.term != 0, w.file_size.term & (s.geometry.base_page_size - 1) == 0]
    forms = []
    for profile in (V6_18, NEXT):
        request = region_request(w.gpa, w.size, w.offset, w.file_size, s.geometry, profile=profile)
        bound = [check for check in RANGE_CHECKS if check.name == "binding-in-file"]
        forms += [each.passes for each in walk(explorer, bound, request)]
    return w, argument, forms[0], forms[1]


def _signed_in_file(s: Situation) -> Question:
    w, argument, signed, exact = _signed(s)
    return Question(argument, signed, z3.And(signed, z3.Not(exact)), w.variables)


def _explain_signed(example: Example) -> str:
    offset, size, file_size = example.offset, example.size, example.file_size
    total = to_s64(offset + size)
    assert to_s64(offset) >= 0
    assert total <= file_size < offset + size
    return (
        f"offset {offset:#x} + size {size:#x} is {total:#x} as loff_t (-2^63 + {total + 2**63:#x}), which is not above "
        f"the file's {format_size(file_size)}: the slot is accepted though it starts {offset - file_size:#x} bytes "
        f"past the end"
    )


def _signed_agrees(s: Situation) -> Question:
    w, argument, signed, exact = _signed(s)
    small = (w.offset + w.size).term <= S64_MAX
    return Question([*argument, small], exact, signed != exact, w.variables)


def _levels(s: Situation) -> Question:
    """The sums of the model's limits, on a slot that was accepted."""
    fault = fault_on(s, NoRule())
    wraps, reached = [], []
    for limit in LIMITS:
        for order in s.huge:
            for path in s.explorer.paths(_ask(limit.allows, fault, order)):
                for each in path.sums:
                    reached.append(each.condition)
                    wraps.append(z3.And(each.condition, z3.Or(each.result >= U64, each.result < 0)))
    return Question([*s.slot_is_valid, *s.page_is_touched], z3.Or(reached), z3.Or(wraps), s.variables)


def _ask(allows: Callable[[Any, int], bool], fault: Any, order: int) -> Callable[[], bool]:
    return lambda: bool(allows(fault, order))


def _explain_wrap(example: Example) -> str:
    return f"a sum exceeds 64 bits for {', '.join(f'{name}={value:#x}' for name, value in example.values.items())}"


assert WIDTH > 64 + 2
_ALL = "any 64-bit values; each check is reached only if those before it passed"

CLAIMS: tuple[Statement, ...] = (
    Statement(
        "checks-no-wrap",
        "no sum or shift in the model's checks of a new slot exceeds 64 bits, but for the checks that guard against it",
        (_ALL,),
        _no_wrap,
        _explain_wrap,
    ),
    *(
        Statement(
            f"guard-{name}",
            f"the check {name}, which the model makes with exact integers, agrees with the kernel's u64 form ({form})",
            (_ALL, "addresses and offset are page aligned"),
            _guard(name),
            _explain_wrap,
        )
        for name, (form, _) in GUARDS.items()
    ),
    Statement(
        "limits-no-wrap",
        "no sum or shift in the model's limits of a mapping exceeds 64 bits",
        ("the slot passes the model's own checks and lies in the file", "a page of the slot is touched"),
        _levels,
        _explain_wrap,
    ),
    Statement(
        "signed-in-file",
        "kvm_gmem_bind as in 6.18, with offset and size as loff_t, accepts only ranges that lie in the file",
        ("any 64-bit values that pass the checks before it",),
        _signed_in_file,
        _explain_signed,
    ),
    Statement(
        "signed-agrees-below",
        "the signed form and the unsigned one agree as long as offset + size stays below 2^63",
        ("any 64-bit values that pass the checks before it", "offset + size < 2^63"),
        _signed_agrees,
        _explain_wrap,
    ),
)
