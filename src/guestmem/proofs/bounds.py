"""Questions about one access: does its mapping stay inside, is it made at all, do GPA and offset agree?"""

from __future__ import annotations

from collections.abc import Mapping

import z3

from guestmem.proofs.example import Example
from guestmem.proofs.limits import KVM_LIMITS, allowed, limits_named
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import Question
from guestmem.proofs.symbolic import Formula
from guestmem.rules import Rule
from guestmem.rules import congruent as agree
from guestmem.units import align_down, format_size

__all__ = (
    "begins_inside",
    "bounded",
    "bounded_in_model",
    "bounded_in_slot",
    "complete",
    "congruent",
    "congruent_in_slot",
    "lossless",
    "explain_begins_inside",
    "explain_bounded",
    "explain_bounded_in_model",
    "explain_bounded_in_slot",
    "explain_complete",
    "explain_congruent",
    "explain_congruent_in_slot",
)


def bounded(s: Situation, rule: Rule) -> Question:
    """The rule alone decides the level."""
    return _about_mappings(s, rule, s.maps(rule), s.leaves())


def explain_bounded(example: Example, rule: Rule) -> str:
    """The page that leaves the range."""
    return _leaving(example, rule, example.mapped_order(rule))


def begins_inside(s: Situation, rule: Rule) -> Question:
    """What the discussion was about: rounding down."""
    return _about_mappings(s, rule, s.maps(rule), s.begins_before(), s.folio.term <= s.size.term)


def explain_begins_inside(example: Example, rule: Rule) -> str:
    """The page that begins too early."""
    order = example.mapped_order(rule)
    assert example.folio_size <= example.size
    assert align_down(example.access, example.geometry.page_size(order)) < example.offset
    return _leaving(example, rule, order)


def bounded_in_slot(s: Situation, rule: Rule) -> Question:
    """The rule and what KVM has always checked."""
    return _about_mappings(s, rule, allowed(s, rule, limits_named(KVM_LIMITS)), s.leaves())


def explain_bounded_in_slot(example: Example, rule: Rule) -> str:
    """The page that leaves the range although its frames are in the slot."""
    for order in example.geometry.orders[1:]:
        if example.leaves(order) and not example.forbidding(rule, order, limits_named(KVM_LIMITS)):
            return f"{_leaving(example, rule, order)}, though its frames lie in the slot at gpa {example.gpa:#x}"
    raise AssertionError(f"bug in guestmem: {example} does not play back")


def bounded_in_model(s: Situation, rule: Rule) -> Question:
    """Everything the model checks."""
    return _about_mappings(s, rule, allowed(s, rule), s.leaves())


def explain_bounded_in_model(example: Example, rule: Rule) -> str:
    """A bug of the model."""
    for order in example.geometry.orders[1:]:
        if example.leaves(order) and not example.forbidding(rule, order):
            return f"{_leaving(example, rule, order)}: the model lets it happen"
    raise AssertionError(f"bug in guestmem: {example} does not play back")


def complete(s: Situation, rule: Rule) -> Question:
    """Every frame of the slot that could be huge is."""
    return _complete(s, rule)


def lossless(s: Situation, rule: Rule) -> Question:
    """Every frame that could be huge at this offset is."""
    return _complete(s, rule, *(z3.Implies(s.level.term == size, s.congruent(size)) for size in map(s.size_of, s.huge)))


def explain_complete(example: Example, rule: Rule) -> str:
    """The frame that is mapped by smaller pages, and what forbids the level."""
    size = example.values["level"]
    level = example.geometry.order_of(size)
    frame = align_down(example.access - example.offset + example.gpa, size)
    assert example.accepted(rule)
    assert example.gpa <= frame
    assert frame + size <= example.gpa + example.size
    forbids = [example.forbidding(rule, order) for order in example.geometry.orders if order >= level]
    assert all(forbids), f"bug in guestmem: {example} does not play back"
    first = forbids[0]
    assert first is not None
    return (
        f"a slot of {format_size(example.size)} at gpa {example.gpa:#x} is accepted at offset {example.offset:#x} of a "
        f"file of {format_size(example.page)} pages, but its {format_size(size)} frame at gpa {frame:#x} is mapped by "
        f"smaller pages ({first.name}: {first.rule})"
    )


def congruent(s: Situation, rule: Rule) -> Question:
    """A huge leaf needs it."""
    return _about_mappings(s, rule, s.maps(rule), _differ(s))


def explain_congruent(example: Example, rule: Rule) -> str:
    """The mapping that no page table can express."""
    return _incongruent(example, rule, example.mapped_order(rule))


def congruent_in_slot(s: Situation, rule: Rule) -> Question:
    """The rule and what KVM has always checked."""
    return _about_mappings(s, rule, allowed(s, rule, limits_named(KVM_LIMITS)), _differ(s))


def explain_congruent_in_slot(example: Example, rule: Rule) -> str:
    """The frame that would show other pages of the file than its own."""
    for order in example.geometry.orders[1:]:
        agreeing = agree(example.gpa, example.offset, example.geometry.page_size(order))
        if not agreeing and not example.forbidding(rule, order, limits_named(KVM_LIMITS)):
            return f"{_incongruent(example, rule, order)}, in the slot of {format_size(example.size)}"
    raise AssertionError(f"bug in guestmem: {example} does not play back")


def _differ(s: Situation) -> dict[int, Formula]:
    return {order: z3.Not(s.congruent(s.size_of(order))) for order in s.huge}


def _incongruent(example: Example, rule: Rule, order: int) -> str:
    size = example.geometry.page_size(order)
    assert example.accepted(rule)
    assert not agree(example.gpa, example.offset, size)
    return (
        f"gpa {example.gpa:#x} and offset {example.offset:#x} differ modulo {format_size(size)}, yet the rule would "
        f"have the access at file offset {example.access:#x} mapped by a {format_size(size)} leaf"
    )


def _about_mappings(
    s: Situation, rule: Rule, maps: Mapping[int, Formula], wrong: Mapping[int, Formula], *more: Formula
) -> Question:
    """Whether an accepted slot gets a mapping that is wrong."""
    accepted = s.accepts(rule)
    return Question(
        [*s.slot_is_valid, *s.page_is_touched, *s.backing_is_fixed, *more],
        z3.And(accepted, z3.Or(list(maps.values()))),
        z3.And(accepted, z3.Or([z3.And(maps[order], wrong[order]) for order in maps])),
        s.variables,
    )


def _complete(s: Situation, rule: Rule, *more: Formula) -> Question:
    """Whether the level itself is allowed; ``explain_complete`` sees to it that no larger one is instead."""
    maps = allowed(s, rule)
    accepted = s.accepts(rule)
    lost = [z3.And(s.level.term == s.size_of(order), z3.Not(maps[order])) for order in s.huge]
    in_slot = [z3.Implies(s.level.term == size, _frame_in_slot(s, size)) for size in map(s.size_of, s.huge)]
    whole = [s.folio.term == s.page.term, s.level.term <= s.page.term]
    return Question(
        [*s.slot_is_valid, *s.page_is_touched, *s.backing_is_fixed, s.level.domain, *whole, *in_slot, *more],
        accepted,
        z3.And(accepted, z3.Or(lost)),
        s.terms("page", "level", "backing", "folio", "size", "offset", "gpa", "access", "file_size"),
    )


def _frame_in_slot(s: Situation, size: int) -> Formula:
    frame = (s.gpa + s.into).term & -size
    return z3.And(frame >= s.gpa.term, frame + size <= (s.gpa + s.size).term)


def _leaving(example: Example, rule: Rule, order: int) -> str:
    how = example.leaves(order)
    assert order, f"bug in guestmem: {example} maps nothing huge"
    assert how is not None, f"bug in guestmem: {example} does not play back"
    assert example.accepted(rule), f"bug in guestmem: {example} is refused"
    return f"{example.taken(order)}, which {how}"
