"""The alignment rules: the numbers of the mails they come from, and each against its statement by brute force."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestmem.geometry import X86_64, X86_64_512G, Geometry
from guestmem.rules import DEFAULT, RULES, Binding, Rule, congruent, rule_named
from guestmem.units import GIB, KIB, MIB, TIB

P, M2, G1 = 4 * KIB, 2 * MIB, GIB
TINY = Geometry("tiny", 4096, (0, 2, 4))
NAMES = [rule.name for rule in RULES]
ALIGNED = ("fits-size", "size-and-gpa", "largest-backing-or-size", "current-backing", "creation-flags")
BY_SIZE = ("fits-size", "size-and-gpa", "largest-backing-or-size")
GPA_RULES = ("gpa-alignment", "gpa-page", "gpa-alignment-fls64")
AT_FAULT = ("or-metadata", "slot-metadata", "whole-binding", "contained", "contained-as-posted", "upstream")


def binding(
    gpa: int,
    size: int,
    offset: int,
    *,
    page_size: int = G1,
    backing: int | None = None,
    geometry: Geometry = X86_64,
) -> Binding:
    """A binding of a file with 1G pages, unless said otherwise."""
    return Binding(gpa, size, offset, page_size, page_size if backing is None else backing, geometry)


def accepts(name: str, requested: Binding) -> bool:
    return rule_named(name).refuses(requested) is None


def frames(first: int, last: int) -> Binding:
    """A binding of frames first to last, inclusive, of a file with 2M pages; GPA and offset agree."""
    return binding(first * P, (last + 1 - first) * P, first * P, page_size=M2)


# -- the examples of the mails -----------------------------------------------------------------------------------------

QEMU_HIGH = binding(4 * G1, 6 * G1, 2 * G1)  # the memory above 4G of a QEMU guest whose low slot has 2G
EXAMPLE = binding(0, G1, 0x4000)  # slot of 1G at offset 0x4000 of a file with 1G pages
PC_RAM_HIGH = binding(4 * G1, 3 * G1 // 2, 5 * G1 // 2)  # the same with 2.5G below, Yan Zhao's of April 2025
VGA = binding(MIB, 2 * G1 - MIB, MIB)  # QEMU's slot above the VGA hole


@pytest.mark.parametrize(
    ("requested", "refusing"),
    [
        (QEMU_HIGH, {"gpa-alignment", "gpa-alignment-fls64"}),
        (EXAMPLE, {"gpa-alignment", "gpa-page", "gpa-alignment-fls64", *ALIGNED, "both-multiples-of-2M", "congruent"}),
        (VGA, {*ALIGNED, "both-multiples-of-2M"}),
        (replace(VGA, page_size=M2, backing_page_size=M2), {*ALIGNED, "both-multiples-of-2M"}),
        (replace(VGA, page_size=P, backing_page_size=P), {*BY_SIZE}),
        (binding(0, 2 * G1, 0), set()),
        (binding(0, 2 * G1, G1), {"gpa-alignment", "gpa-page", "gpa-alignment-fls64"}),
        (binding(G1, G1, 2 * G1), {"january-as-written"}),
        (binding(P, M2 - P, P), {"creation-flags", "both-multiples-of-2M"}),
        (binding(0, M2, M2), {"gpa-alignment", "gpa-page", "gpa-alignment-fls64", "creation-flags", "congruent"}),
        (PC_RAM_HIGH, {*GPA_RULES, *ALIGNED, "congruent"}),
        (replace(PC_RAM_HIGH, page_size=M2, backing_page_size=M2), {*GPA_RULES, *BY_SIZE}),
    ],
    ids=[
        *("qemu-high", "example", "vga", "vga-2M", "vga-4K", "whole", "gpa-0", "january", "small", "2M-slot"),
        *("pc-ram-high", "pc-ram-high-2M"),
    ],
)
def test_the_rules_that_refuse_an_example_are_these_and_no_others(requested: Binding, refusing: set[str]) -> None:
    assert {name for name in NAMES if not accepts(name, requested)} == refusing


def test_the_first_wording_was_inverted_it_refuses_the_good_and_takes_the_bad_direction() -> None:
    less_aligned_gpa, less_aligned_offset = binding(M2, M2, G1), binding(G1, M2, M2)

    assert accepts("gpa-alignment", less_aligned_gpa)
    assert not accepts("january-as-written", less_aligned_gpa)
    assert not accepts("gpa-alignment", less_aligned_offset)
    assert accepts("january-as-written", less_aligned_offset)


def test_fls64_compares_magnitudes_so_it_takes_an_offset_that_is_less_aligned() -> None:
    requested = binding(M2, M2, G1 + P)

    assert not accepts("gpa-alignment", requested)
    assert accepts("gpa-alignment-fls64", requested)


@pytest.mark.parametrize(
    ("gpa", "offset", "accepted"),
    [
        (4 * G1, 2 * G1, True),  # the example of the patch
        (4 * G1, G1, True),
        (4 * G1, G1 + M2, False),
        (M2, M2, True),
        (M2, MIB, False),  # the example of the answer to it
        (P, P, True),
        (G1 + P, 3 * P, True),
        (0, G1, False),
        (0, 0, True),
        (G1, 0, True),
    ],
)
def test_the_relaxed_check_asks_for_no_more_than_the_page_the_gpa_can_have(
    gpa: int, offset: int, accepted: bool
) -> None:
    assert accepts("gpa-page", binding(gpa, G1, offset)) is accepted


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_the_relaxed_check_accepts_whatever_the_check_it_relaxes_accepts(gpa: int, offset: int) -> None:
    requested = binding(gpa * P, M2, offset * P)

    if ACCEPTS["gpa-alignment"](requested):
        assert accepts("gpa-page", requested)


@pytest.mark.parametrize(
    ("size", "offset", "accepted"),
    [
        (G1, G1, True),
        (G1, G1 - M2, False),
        (G1 - P, G1 - M2, True),
        (M2, M2, True),
        (M2, M2 - P, False),
        (M2 - P, M2 - P, True),
        (P, P, True),
    ],
)
def test_the_rule_by_size_asks_for_1g_from_1g_on_2m_from_2m_on_else_4k(size: int, offset: int, accepted: bool) -> None:
    assert accepts("fits-size", binding(0, size, offset)) is accepted


def test_512g_pages_would_make_the_rule_by_size_stricter_and_leave_the_one_by_creation_flags_alone() -> None:
    requested = binding(0, TIB, 4 * G1)
    speculative = replace(requested, geometry=X86_64_512G)

    assert accepts("fits-size", requested)
    assert not accepts("fits-size", speculative)
    assert accepts("creation-flags", requested)
    assert accepts("creation-flags", speculative)


@pytest.mark.parametrize(("gpa", "accepted"), [(0, False), (G1, False), (G1 + P, True), (P, True)])
def test_the_gpa_loosens_the_rule_by_size_where_the_slot_holds_no_aligned_gigabyte(gpa: int, accepted: bool) -> None:
    assert accepts("size-and-gpa", binding(gpa, G1, M2)) is accepted
    assert not accepts("fits-size", binding(gpa, G1, M2))


def test_the_backing_of_the_moment_accepts_what_the_largest_backing_would_refuse() -> None:
    small_now = binding(0, G1, 0x4000, backing=P)

    assert accepts("current-backing", small_now)
    assert not accepts("largest-backing-or-size", small_now)
    assert not accepts("current-backing", replace(small_now, backing_page_size=M2))


def test_min_of_largest_backing_and_size_reduces_to_the_rule_by_size() -> None:
    for size in (P, M2 - P, M2, G1 - P, G1, 4 * G1):
        for offset in (0, P, M2, G1 - M2, G1, 3 * G1):
            requested = binding(0, size, offset)
            assert accepts("largest-backing-or-size", requested) == accepts("fits-size", requested)


@pytest.mark.parametrize(
    ("bound", "index", "meant", "posted"),
    [
        (frames(0, 1023), 700, 9, 0),  # a later page of a contained folio at the end
        (frames(0, 1023), 512, 9, 9),  # its first page
        (frames(0, 1023), 100, 9, 9),  # rounds up to the second folio, which is inside as well
        (frames(256, 1279), 300, 0, 9),  # a folio that sticks out at the head
        (frames(256, 1279), 600, 9, 0),
        (frames(256, 1279), 1100, 0, 0),  # sticks out at the tail
        (frames(0, 510), 0, 0, 0),
    ],
)
def test_the_posted_form_of_containment_errs_at_both_ends(bound: Binding, index: int, meant: int, posted: int) -> None:
    assert rule_named("contained").fault_order(bound, index * P, 9) == meant
    assert rule_named("contained-as-posted").fault_order(bound, index * P, 9) == posted


@pytest.mark.parametrize(
    ("bound", "order"),
    [
        (binding(0, 2 * G1, G1), 18),
        (binding(0, 2 * G1, M2), 0),
        (binding(0, 2 * G1 + M2, G1), 0),
        (binding(P, 2 * G1, G1), 18),  # the GPA is not looked at
    ],
)
def test_the_whole_binding_counts_or_nothing(bound: Binding, order: int) -> None:
    assert rule_named("whole-binding").fault_order(bound, bound.offset + G1, 18) == order


@pytest.mark.parametrize(("gpa", "order"), [(0, 18), (G1, 18), (M2, 9), (P, 0), (G1 + P, 0)])
def test_the_slot_metadata_forbid_the_levels_at_which_gpa_and_offset_differ(gpa: int, order: int) -> None:
    assert rule_named("slot-metadata").fault_order(binding(gpa, 4 * G1, 0), 2 * G1, 18) == order


def test_upstream_takes_every_offset_and_maps_base_pages() -> None:
    assert accepts("upstream", EXAMPLE)
    assert rule_named("upstream").fault_order(EXAMPLE, 0x8000, 18) == 0


def test_rules_that_speak_when_the_slot_is_set_leave_the_fault_alone() -> None:
    for name in set(NAMES) - set(AT_FAULT):
        assert rule_named(name).fault_order(EXAMPLE, 0x8000, 18) == 18


# -- each rule against its statement, by brute force -------------------------------------------------------------------


def divides(page: int, value: int) -> bool:
    return value // page * page == value


def powers_dividing(value: int) -> int:
    """How many powers of two divide value, by trying; 0 counts as divided by all that a u64 has."""
    return sum(divides(1 << order, value) for order in range(64))


def highest_bit(value: int) -> int:
    return max((bit + 1 for bit in range(64) if value >> bit & 1), default=0)


def fitting(b: Binding) -> int:
    return max([page for page in b.geometry.page_sizes if page <= b.size], default=P)


def dividing_pages(b: Binding) -> list[int]:
    return [page for page in b.geometry.page_sizes if divides(page, b.gpa)]


def holding(b: Binding) -> int:
    """The largest page of which the slot holds an aligned one, by trying every page of the slot."""
    whole = [
        page
        for page in b.geometry.page_sizes
        for start in range(b.gpa, b.gpa + b.size, P)
        if divides(page, start) and start + page <= b.gpa + b.size
    ]
    return max(whole, default=P)


ACCEPTS: dict[str, Callable[[Binding], bool]] = {
    "or-metadata": lambda b: True,
    "january-as-written": lambda b: powers_dividing(b.gpa) >= powers_dividing(b.offset),
    "gpa-alignment": lambda b: (
        True if b.offset == 0 else False if b.gpa == 0 else powers_dividing(b.offset) >= powers_dividing(b.gpa)
    ),
    "gpa-alignment-fls64": lambda b: (
        True if b.offset == 0 else False if b.gpa == 0 else highest_bit(b.offset) >= highest_bit(b.gpa)
    ),
    "gpa-page": lambda b: True if b.offset == 0 else False if b.gpa == 0 else divides(max(dividing_pages(b)), b.offset),
    "slot-metadata": lambda b: True,
    "fits-size": lambda b: divides(fitting(b), b.offset),
    "size-and-gpa": lambda b: divides(holding(b), b.offset),
    "largest-backing-or-size": lambda b: divides(min(max(b.geometry.page_sizes), fitting(b)), b.offset),
    "current-backing": lambda b: divides(min(b.backing_page_size, fitting(b)), b.offset),
    "creation-flags": lambda b: divides(b.page_size, b.offset),
    "both-multiples-of-2M": lambda b: (
        b.page_size == P or (divides(b.geometry.page_sizes[1], b.offset) and divides(b.geometry.page_sizes[1], b.size))
    ),
    "whole-binding": lambda b: True,
    "contained": lambda b: True,
    "contained-as-posted": lambda b: True,
    "upstream": lambda b: True,
    "congruent": lambda b: b.gpa % b.page_size == b.offset % b.page_size,
}


def metadata_order(b: Binding, offset: int, order: int) -> int:
    return [o for o in b.geometry.orders if o <= order and b.gpa % (P << o) == b.offset % (P << o)][-1]


def or_order(b: Binding, offset: int, order: int) -> int:
    """In v10's words: the low bits of the frame and those of hva | offset, page by page."""
    hva = b.gpa if b.userspace_addr is None else b.userspace_addr
    both = [hva >> bit & 1 or b.offset >> bit & 1 for bit in range(64)]
    same = [b.gpa >> bit & 1 == both[bit] for bit in range(64)]
    return [o for o in b.geometry.orders if o <= order and all(same[bit] for bit in range(12, 12 + o))][-1]


def the_folios_own(b: Binding, offset: int, order: int) -> int:
    return order


def contained_order(b: Binding, offset: int, order: int) -> int:
    """Every page of the folio must be one of the binding's."""
    first = offset // (P << order) << order
    inside = range(b.offset // P, (b.offset + b.size) // P)
    return order if all(page in inside for page in range(first, first + (1 << order))) else 0


def posted_order(b: Binding, offset: int, order: int) -> int:
    """As posted, in frames: both rounded up, and no check that the page asked for is in the folio at all."""
    npages = 1 << order
    huge_index = -(-(offset // P) // npages) * npages
    start = -(-(b.offset // P) // npages) * npages
    return order if start <= huge_index and huge_index + npages <= (b.offset + b.size) // P else 0


FAULT_ORDER: dict[str, Callable[[Binding, int, int], int]] = {
    "or-metadata": or_order,
    "slot-metadata": metadata_order,
    "whole-binding": lambda b, offset, order: (
        order if divides(P << order, b.offset) and divides(P << order, b.size) else 0
    ),
    "contained": contained_order,
    "contained-as-posted": posted_order,
    "upstream": lambda b, offset, order: 0,
}

tiny_pages = st.sampled_from(TINY.page_sizes)
tiny_bindings = st.builds(
    Binding,
    gpa=st.integers(0, 64).map(lambda page: page * P),
    size=st.integers(1, 48).map(lambda pages: pages * P),
    offset=st.integers(0, 64).map(lambda page: page * P),
    page_size=tiny_pages,
    backing_page_size=tiny_pages,
    geometry=st.just(TINY),
    userspace_addr=st.none() | st.integers(0, 64).map(lambda page: page * P),
)
rules = st.sampled_from(RULES)


@given(rules, tiny_bindings)
def test_a_rule_refuses_exactly_what_its_statement_says(rule: Rule, requested: Binding) -> None:
    assert (rule.refuses(requested) is None) == ACCEPTS[rule.name](requested)


@given(rules, tiny_bindings, st.sampled_from(TINY.orders), st.data())
def test_a_rule_allows_at_a_fault_exactly_what_its_statement_says(
    rule: Rule, bound: Binding, order: int, data: st.DataObject
) -> None:
    page = data.draw(st.integers(bound.offset // P, (bound.offset + bound.size) // P - 1))
    stated = FAULT_ORDER.get(rule.name, the_folios_own)

    assert rule.fault_order(bound, page * P, order) == stated(bound, page * P, order)


@given(rules, tiny_bindings)
@example(rule_named("congruent"), Binding(P, P, 2 * P, 16 * P, P, TINY))  # its nearest is below
@example(rule_named("january-as-written"), Binding(P, P, 16 * P, P, P, TINY))  # one page off the alignment
@example(rule_named("gpa-alignment-fls64"), Binding(64 * P, P, 48 * P, P, P, TINY))  # up to the highest bit
@example(rule_named("both-multiples-of-2M"), Binding(0, P, P, 4 * P, P, TINY))  # the size is wrong: none will do
def test_the_offset_that_a_rule_recommends_is_the_nearest_it_accepts(rule: Rule, requested: Binding) -> None:
    accepted = [o for o in range(0, 192 * P, P) if ACCEPTS[rule.name](replace(requested, offset=o))]
    nearest = min(accepted, key=lambda o: abs(o - requested.offset), default=None)  # min keeps the first, the lower

    assert rule.nearest_offset(requested) == nearest


@given(rules, tiny_bindings)
def test_a_refusal_gives_the_values_it_looked_at(rule: Rule, requested: Binding) -> None:
    reason = rule.refuses(requested)

    if reason is not None:
        assert f"{requested.offset:#x}" in reason or f"{requested.size:#x}" in reason


@given(st.integers(0, 1 << 52), st.integers(0, 1 << 52), st.sampled_from(X86_64.page_sizes))
def test_congruence_is_agreement_of_remainders(gpa: int, offset: int, page: int) -> None:
    assert congruent(gpa, offset, page) == (gpa % page == offset % page)


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_every_proposal_of_the_discussion_is_in_the_catalogue_once() -> None:
    assert sorted(NAMES) == sorted(ACCEPTS)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_rule_says_who_proposed_it_when_and_what_became_of_it(rule: Rule) -> None:
    assert all((rule.author, rule.source, rule.statement, rule.verdict))
    assert date.fromisoformat(rule.date).year in (2022, 2023, 2025)
    assert re.fullmatch(r"[^\s<>@]+@[^\s<>@]+", rule.message_id)


def test_the_catalogue_is_in_the_order_of_the_proposals() -> None:
    dates = [rule.date for rule in RULES]

    assert dates == sorted(dates)


def test_the_default_is_what_was_posted_last_and_refuses_no_binding() -> None:
    assert DEFAULT.name == "slot-metadata"
    assert DEFAULT.refuses(binding(0, G1, 0x4000)) is None


def test_an_unknown_rule_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no rule 'whatever'; there are or-metadata, january-as-written, "):
        rule_named("whatever")
