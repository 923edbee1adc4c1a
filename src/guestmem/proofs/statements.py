"""What the mails, and the code, say without naming one rule: each statement as a question, with its assumptions."""

from __future__ import annotations

from collections.abc import Callable

import z3

from guestmem.proofs import arithmetic
from guestmem.proofs.claims import TOUCHED, VALID, Statement
from guestmem.proofs.example import Example
from guestmem.proofs.limits import allowed, limits_named
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import Question
from guestmem.rules import CurrentBacking, FitsSize, LargestBackingOrSize, NoRule, Rule
from guestmem.units import format_size

__all__ = ("STATEMENTS",)


def _min_is_fits(s: Situation) -> Question:
    general, reduced = s.accepts(LargestBackingOrSize()), s.accepts(FitsSize())
    return Question(s.slot_is_valid, general, general != reduced, s.slot_variables)


def _fits_only_tighter(s: Situation) -> Question:
    general, reduced = s.accepts(CurrentBacking()), s.accepts(FitsSize())
    return Question(s.slot_is_valid, reduced, z3.And(reduced, z3.Not(general)), s.slot_variables)


def _fits_not_tighter(s: Situation) -> Question:
    general, reduced = s.accepts(CurrentBacking()), s.accepts(FitsSize())
    return Question(s.slot_is_valid, general, z3.And(general, z3.Not(reduced)), s.slot_variables)


def _explain_general(example: Example) -> str:
    page = format_size(example.backing)
    verdicts = [
        f"{'accepted' if example.accepted(rule) else 'refused'} by {rule.name}"
        for rule in (CurrentBacking(), FitsSize())
    ]
    assert example.accepted(CurrentBacking()) != example.accepted(FitsSize())
    return (
        f"where no backing has pages above {page}, a slot of {format_size(example.size)} at offset {example.offset:#x} "
        f"is {verdicts[0]} and {verdicts[1]}"
    )


def _small_slot(s: Situation) -> Question:
    maps = allowed(s, NoRule(), limits_named(("slot-head", "slot-tail")))
    small = {order: s.size.term < s.size_of(order) for order in s.huge}
    return Question(
        [*s.slot_is_valid, *s.page_is_touched],
        z3.Or(list(small.values())),
        z3.Or([z3.And(small[order], maps[order]) for order in s.huge]),
        s.variables,
    )


def _congruence_contains(s: Situation) -> Question:
    maps = allowed(s, NoRule(), limits_named(("slot-head", "slot-tail", "offset-congruent")))
    outside = s.leaves()
    return Question(
        [*s.slot_is_valid, *s.page_is_touched],
        z3.Or(list(maps.values())),
        z3.Or([z3.And(maps[order], outside[order]) for order in s.huge]),
        s.variables,
    )


def _containment_congruent(s: Situation) -> Question:
    maps = allowed(s, NoRule(), limits_named(("slot-head", "slot-tail", "contained")))
    wrong = [z3.And(maps[order], z3.Not(s.congruent(s.size_of(order)))) for order in s.huge]
    return Question([*s.slot_is_valid, *s.page_is_touched], z3.Or(list(maps.values())), z3.Or(wrong), s.variables)


def _explain_incongruent(example: Example) -> str:
    for order in example.geometry.orders[1:]:
        limits = limits_named(("slot-head", "slot-tail", "contained"))
        size = example.geometry.page_size(order)
        if example.forbidding(NoRule(), order, limits) is None and (example.gpa - example.offset) % size:
            return (
                f"{example.taken(order)}, inside the bound range, and its frames lie in the slot at gpa "
                f"{example.gpa:#x}, but the frame's block would start at another page than the folio does"
            )
    raise AssertionError(f"bug in guestmem: {example} does not play back")


def _aligned_is_complete(rule: Rule) -> Callable[[Situation], Question]:
    def ask(s: Situation) -> Question:
        aligned = [
            z3.Implies(s.size.term >= s.size_of(order), (s.gpa % s.size_of(order)).term == 0) for order in s.huge
        ]
        accepted = s.accepts(rule)
        wrong = z3.Or([z3.And(s.size.term >= size, z3.Not(s.congruent(size))) for size in map(s.size_of, s.huge)])
        return Question([*s.slot_is_valid, *aligned], accepted, z3.And(accepted, wrong), s.slot_variables)

    return ask


def _explain_never(example: Example) -> str:
    return f"bug in guestmem or in the claim: {dict(example.values)}"


STATEMENTS: tuple[Statement, ...] = (
    Statement(
        "min-is-fits",
        "with the architecture's largest page as that of all backings, 'rounding down to min(largest page of all "
        "backings, largest page that fits the size) keeps the offset' and 'aligned to the largest page that fits the "
        "size' are the same",
        (VALID,),
        _min_is_fits,
        _explain_never,
    ),
    Statement(
        "fits-only-tighter",
        "for every largest page of the backings: what is aligned to the largest page that fits the size is also "
        "aligned to min(largest page of the backings, largest page that fits)",
        (VALID, "backing: the largest page that any backing of this host has, any leaf size"),
        _fits_only_tighter,
        _explain_general,
    ),
    Statement(
        "fits-no-tighter",
        "and the converse: the reduced form refuses nothing that the general one accepts",
        (VALID, "backing: the largest page that any backing of this host has, any leaf size"),
        _fits_not_tighter,
        _explain_general,
    ),
    Statement(
        "small-slot",
        "no frame of a slot smaller than a page is mapped by that page: the slot's ends, which KVM checks in "
        "guest-physical space, see to it, so such a slot needs no rule",
        (VALID, TOUCHED),
        _small_slot,
        _explain_never,
    ),
    Statement(
        "aligned-pair",
        "if the GPA is aligned to the largest page that fits the size, fits-size makes GPA and offset agree at every "
        "level the slot can hold",
        (VALID, "the GPA is a multiple of every page that fits the size"),
        _aligned_is_complete(FitsSize()),
        _explain_never,
    ),
    Statement(
        "congruence-contains",
        "slot-head, slot-tail and offset-congruent together keep the folio's block in the bound range: whoever checks "
        "that GPA and offset agree needs no containment check",
        (VALID, TOUCHED),
        _congruence_contains,
        _explain_never,
    ),
    Statement(
        "containment-agrees",
        "and the converse: a block contained in slot and binding has GPA and offset that agree",
        (VALID, TOUCHED),
        _containment_congruent,
        _explain_incongruent,
    ),
    *arithmetic.CLAIMS,
)
