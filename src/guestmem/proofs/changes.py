"""Questions about what an accepted slot is worth when something else changes, and about a rule's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import z3

from guestmem.geometry import Geometry
from guestmem.proofs.example import Example
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import Question
from guestmem.proofs.symbolic import Formula
from guestmem.rules import Rule
from guestmem.units import U64, align_down, format_size

__all__ = (
    "monotone",
    "monotone_levels",
    "no_wrap",
    "offset_0",
    "one_more_level",
    "stable",
    "stable_in_file",
    "explain_monotone",
    "explain_monotone_levels",
    "explain_no_wrap",
    "explain_offset_0",
    "explain_stable",
)


def one_more_level(geometry: Geometry) -> Geometry:
    """The geometry whose tables have a leaf one level above the largest: a table page holds 8-byte entries.

    >>> from guestmem.geometry import X86_64
    >>> one_more_level(X86_64).name_of(27)
    '512G'
    """
    bits = geometry.base_page_size.bit_length() - 1 - 3
    above = geometry.largest_order + bits
    return Geometry(
        f"{geometry.name}+1", geometry.base_page_size, (*geometry.orders, above), (*geometry.speculative, above)
    )


def monotone(s: Situation, rule: Rule) -> Question:
    """The same slot of the same file, made of larger pages."""
    larger = s.leaf("larger")
    before, after = (s.accepts(rule, s.binding_with(page, page)) for page in (s.page, larger))
    multiple = (s.file_size.term & (larger.term - 1)) == 0
    return Question(
        [*s.slot_is_valid, larger.domain, larger.term > s.page.term, s.backing.term == s.page.term, multiple],
        before,
        z3.And(before, z3.Not(after)),
        {"page": s.page.term, "larger": larger.term, **s.terms("size", "offset", "gpa", "file_size")},
    )


def explain_monotone(example: Example, rule: Rule) -> str:
    """The slot that the larger pages lose."""
    larger = example.values["larger"]
    assert larger > example.page
    assert example.accepted(rule)
    assert not example.accepted(rule, page_size=larger, backing_page_size=larger)
    return (
        f"{_a_slot(example)} is accepted if the file is made of {format_size(example.page)} pages and refused if it is "
        f"made of {format_size(larger)} pages"
    )


def monotone_levels(s: Situation, rule: Rule) -> Question:
    """The same slot on an architecture with one more level."""
    taller = Situation(one_more_level(s.geometry))
    before = s.accepts(rule)
    after = s.accepts(rule, taller.binding_with(s.page, s.backing))
    return Question(
        s.slot_is_valid,
        before,
        z3.And(before, z3.Not(after)),
        s.slot_variables,
    )


def explain_monotone_levels(example: Example, rule: Rule) -> str:
    """The slot that the new level loses."""
    taller = one_more_level(example.geometry)
    assert example.accepted(rule)
    assert not example.accepted(rule, geometry=taller)
    new = taller.name_of(taller.largest_order)
    return f"{_a_slot(example)} is accepted until the architecture maps {new} pages, then refused"


def stable(s: Situation, rule: Rule) -> Question:
    """The backing may do anything later."""
    return _stable(s, rule)


def stable_in_file(s: Situation, rule: Rule) -> Question:
    """The backing keeps to the size asked for."""
    return _stable(s, rule, s.folio.term <= s.page.term)


def explain_stable(example: Example, rule: Rule) -> str:
    """The page that the changed backing takes."""
    order = example.mapped_order(rule)
    later = example.folio_size
    assert example.accepted(rule)
    assert later <= example.size
    assert align_down(example.access, example.geometry.page_size(order)) < example.offset
    return (
        f"set while the backing takes {format_size(example.backing)} pages and touched when it takes "
        f"{format_size(later)} ones, {example.taken(order)}, which {example.leaves(order)}"
    )


def offset_0(s: Situation, rule: Rule) -> Question:
    """Offset 0 is as aligned as can be."""
    accepted = s.accepts(rule)
    at_0 = s.offset.term == 0
    return Question(
        s.slot_is_valid,
        at_0,
        z3.And(at_0, z3.Not(accepted)),
        s.slot_variables,
    )


def explain_offset_0(example: Example, rule: Rule) -> str:
    """Why it is refused all the same."""
    why = rule.refuses(example.binding)
    assert why is not None
    assert example.offset == 0
    return f"{_a_slot(example)} is refused: {why}"


def no_wrap(s: Situation, rule: Rule) -> Question:
    """Every sum and shift of the rule's code, under the branches that lead to it."""
    sums = list(_sums(s, rule))
    wraps = [z3.And(condition, value >= U64) for condition, value in sums]
    return Question(
        [*s.slot_is_valid, *s.page_is_touched],
        z3.Or([condition for condition, _ in sums]),
        z3.Or(wraps),
        s.variables,
    )


def explain_no_wrap(example: Example, rule: Rule) -> str:
    """The slot for which C and Python would differ."""
    end = example.gpa + example.size
    verdict = "refuses" if rule.refuses(example.binding) else "accepts"
    return (
        f"for a slot at gpa [{example.gpa:#x}, {end:#x}), a sum of the rule reaches 2^64; the rule as stated {verdict} "
        f"it at offset {example.offset:#x}, a kernel's u64 could say otherwise"
    )


def _sums(s: Situation, rule: Rule) -> Iterator[tuple[Formula, Any]]:
    binding = s.binding
    unknown: tuple[Any, Any] = (s.access, s.folio)
    for code in (lambda: rule.refuses(binding), lambda: rule.fault_order(binding, *unknown)):
        for path in s.explorer.paths(code):
            for each in path.sums:
                yield each.condition, each.result


def _stable(s: Situation, rule: Rule, *more: Formula) -> Question:
    accepted = s.accepts(rule)
    maps = s.maps(rule)
    before = s.begins_before()
    return Question(
        [*s.slot_is_valid, *s.page_is_touched, s.folio.term <= s.size.term, *more],
        z3.And(accepted, z3.Or(list(maps.values()))),
        z3.And(accepted, z3.Or([z3.And(maps[order], before[order]) for order in s.huge])),
        s.variables,
    )


def _a_slot(example: Example) -> str:
    return f"a slot of {format_size(example.size)} at gpa {example.gpa:#x} and offset {example.offset:#x}"
