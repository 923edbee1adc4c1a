"""The formulas that are proved are the rules that run: both agree on random and boundary values, a million of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

import pytest

pytest.importorskip("z3", reason="guestmem prove is not installed: pip install 'guestmem[proofs]'")

from formulas import compiled

from guestmem.geometry import ARM64_16K, X86_64, Geometry
from guestmem.proofs.situation import Situation
from guestmem.rules import RULES, Binding, Rule

VALUES = 65_000  # for each of sixteen rules: more than a million
NAMES = ("gpa", "size", "offset", "into", "page", "backing", "folio")


@cache
def situation(geometry: Geometry) -> Situation:
    return Situation(geometry)


def near_a_boundary(random: Random, top: int) -> int:
    """A number of pages below top: small, near a power of two, or any."""
    kind = random.random()
    if kind < 0.2:
        return random.randrange(min(top, 8))
    if kind < 0.8:
        return max(0, min(top - 1, (1 << random.randrange(top.bit_length())) + random.randint(-2, 2)))
    return random.randrange(1 << random.randrange(1, top.bit_length()))


def slots(geometry: Geometry, count: int, seed: int) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """Valid slots and a page of each: gpa, size, offset, into in base pages; page, backing and folio sizes in bytes."""
    random = Random(seed)
    base = geometry.base_page_size
    top = (1 << 52) // base
    for _ in range(count):
        size = max(1, near_a_boundary(random, min(top, 1 << 31)))
        gpa = near_a_boundary(random, top - size + 1)
        offset = near_a_boundary(random, (1 << 63) // base - size)
        if random.random() < 0.3:
            offset = gpa
        into = random.choice((0, size - 1, random.randrange(size)))
        sizes = geometry.page_sizes
        yield gpa, size, offset, into, random.choice(sizes), random.choice(sizes), random.choice(sizes)


def binding_of(slot: tuple[int, ...], geometry: Geometry) -> Binding:
    base = geometry.base_page_size
    gpa, size, offset, _, page, backing, _ = slot
    return Binding(gpa * base, size * base, offset * base, page, backing, geometry)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_whether_a_rule_accepts_a_slot_is_the_same_as_a_formula_and_as_code(rule: Rule) -> None:
    accepts = compiled([situation(X86_64).accepts(rule)], NAMES)
    seen = set()

    for slot in slots(X86_64, VALUES, seed=1):
        expected = rule.refuses(binding_of(slot, X86_64)) is None
        assert accepts(*slot) == (expected,), slot
        seen.add(expected)

    assert seen == ({True, False} if can_refuse(rule) else {True}), "the values must reach both answers"


def can_refuse(rule: Rule) -> bool:
    """Not of those that look at faults only."""
    return rule.name not in (
        "or-metadata",
        "slot-metadata",
        "whole-binding",
        "contained",
        "contained-as-posted",
        "upstream",
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_level_that_a_rule_allows_is_the_same_as_a_formula_and_as_code(rule: Rule) -> None:
    maps = situation(X86_64).maps(rule)
    evaluate = compiled(maps.values(), NAMES)
    base = X86_64.base_page_size

    for slot in slots(X86_64, VALUES, seed=2):
        _, _, offset, into, _, _, folio = slot
        order = rule.fault_order(binding_of(slot, X86_64), (offset + into) * base, X86_64.order_of(folio))
        assert evaluate(*slot) == tuple(order == each for each in maps), slot


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_so_it_is_on_an_architecture_with_other_pages(rule: Rule) -> None:
    accepts = compiled([situation(ARM64_16K).accepts(rule)], NAMES)

    for slot in slots(ARM64_16K, VALUES // 20, seed=3):
        assert accepts(*slot) == (rule.refuses(binding_of(slot, ARM64_16K)) is None,), slot
