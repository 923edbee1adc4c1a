"""The first line: what KVM refuses, or how much of the memory has large pages, and how sure that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from layouts import hosts, small_layouts

from guestmem.layout.certainty import certainty_of
from guestmem.layout.check import check
from guestmem.layout.coverage import HostLimits, cover
from guestmem.layout.recognise import read
from guestmem.layout.value import Backing, Layout, Slot
from guestmem.layout.verdict import closing_line, verdict
from guestmem.units import GIB, KIB, MIB

DATA = Path(__file__).parent / "data" / "reports"
HUGETLB = Backing("hugetlb", 2 * MIB)
ANONYMOUS = Backing("anonymous")
HVA = 0x7F00_0000_0000


def said(*slots: Slot, host: HostLimits | None = None) -> str:
    return verdict(check(Layout("t", "t", slots), host or HostLimits()))


@pytest.mark.parametrize(
    ("slot", "line"),
    [
        (Slot(0, GIB, HVA, backing=HUGETLB), "1G of 1G, all that the layout allows, can be mapped with 2M pages"),
        (Slot(0, GIB, backing=HUGETLB), "1G of 1G, all that the layout allows, can be mapped with 2M pages"),
        (
            Slot(0, GIB, HVA, backing=ANONYMOUS),
            "1G of 1G, all that the layout allows, may be mapped with 2M pages, if the host grants transparent huge "
            "pages",
        ),
        (
            Slot(0, GIB, backing=ANONYMOUS, assumed_hva=HVA),
            "1G of 1G, all that the layout allows, may be mapped with 2M pages, if the host grants transparent huge "
            "pages and its addresses fit",
        ),
        (Slot(0, GIB, HVA + 4 * KIB, backing=HUGETLB), "none of 1G can be mapped with 2M pages"),
        (Slot(0, GIB, HVA, backing=Backing("file")), "none of 1G can be mapped with 2M pages"),
    ],
)
def test_the_verdict_says_how_much_and_on_what_it_hangs(slot: Slot, line: str) -> None:
    assert said(slot) == line


def test_what_is_certain_and_what_is_not_are_told_apart() -> None:
    line = said(Slot(0, GIB, HVA, backing=HUGETLB), Slot(4 * GIB, GIB, HVA + 4 * GIB, backing=ANONYMOUS))

    assert line.startswith("2G of 2G, all that the layout allows, may be mapped")
    assert line.endswith("; 1G for certain")


def test_refused_slots_come_first() -> None:
    assert said(Slot(1, GIB, HVA, backing=HUGETLB)) == "KVM refuses 1 slot"
    [layout] = read("t", (DATA / "strace-refused-size.txt").read_bytes())
    assert verdict(check(layout, HostLimits())) == "KVM refuses 1 slot"


@pytest.mark.parametrize("thp", [True, False])
def test_where_the_host_was_looked_at_nothing_is_unknown(thp: bool) -> None:
    slot = Slot(0, GIB, HVA, backing=replace(ANONYMOUS, thp=thp))

    assert not [one for one in check(Layout("t", "t", (slot,)), HostLimits()).findings if one.id == "unknown"]


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (Slot(0, GIB, HVA, backing=ANONYMOUS), ["transparent huge pages"]),
        (Slot(0, GIB, backing=ANONYMOUS, assumed_hva=HVA), ["transparent huge pages", "address space"]),
    ],
)
def test_an_unknown_is_a_warning_of_its_own_with_what_would_tell_and_no_fault(slot: Slot, words: list[str]) -> None:
    one = check(Layout("t", "t", (slot,)), HostLimits())
    [unknown] = [finding for finding in one.findings if finding.id == "unknown"]

    assert unknown.severity == "warning"
    assert all(word in unknown.message for word in words)
    assert "pid:PID" in unknown.remedy
    assert one.severity in (None, "note")


def test_an_unknown_tenth_is_not_worth_a_warning() -> None:
    known = Slot(0, 9 * GIB, HVA, backing=HUGETLB)

    def warned(size: int) -> bool:
        slots = (known, Slot(16 * GIB, size, HVA, backing=ANONYMOUS))
        return any(finding.id == "unknown" for finding in check(Layout("t", "t", slots), HostLimits()).findings)

    assert (warned(GIB), warned(2 * GIB)) == (False, True)


@given(small_layouts(), hosts())
@settings(max_examples=200, deadline=None)
def test_what_is_certain_is_never_more_than_what_is_possible(layout: Layout, host: HostLimits) -> None:
    coverage = cover(layout, host)
    certain = certainty_of(coverage).mapped

    assert all(sure <= may for sure, may in zip(certain, coverage.mapped, strict=True))


@given(small_layouts(), hosts())
@settings(max_examples=200, deadline=None)
def test_certain_is_the_coverage_of_the_layout_in_its_worst_case(layout: Layout, host: HostLimits) -> None:
    coverage = cover(layout, host)
    worst = [
        slot
        if slot.hva is not None or slot.backing.kind == "hugetlb"
        else replace(slot, assumed_hva=slot.gpa + 4 * KIB)
        for slot in layout.slots
    ]

    expected = cover(replace(layout, slots=tuple(worst)), replace(host, thp=False)).mapped

    assert certainty_of(coverage).mapped == expected


@given(small_layouts(), hosts())
@settings(max_examples=100, deadline=None)
def test_certain_means_whatever_the_unknown_addresses_are_and_without_transparent_pages(
    layout: Layout, host: HostLimits
) -> None:
    certain = certainty_of(cover(layout, host)).mapped
    for shift in (0, 4 * KIB, MIB, 2 * MIB + 4 * KIB):
        moved = [
            slot
            if slot.hva is not None or slot.backing.kind == "hugetlb"
            else replace(slot, assumed_hva=slot.gpa + shift)
            for slot in layout.slots
        ]
        mapped = cover(replace(layout, slots=tuple(moved)), replace(host, thp=False)).mapped
        assert all(sure <= other for sure, other in zip(certain, mapped, strict=True))


def test_many_vms_are_one_line() -> None:
    good = check(Layout("good", "t", (Slot(0, GIB, HVA, backing=HUGETLB),)), HostLimits())
    bad = check(Layout("bad", "t", (Slot(0, GIB, HVA + 4 * KIB, backing=HUGETLB),)), HostLimits())

    assert closing_line([good, bad]) == "2 VMs: 0 errors, 1 warning; 50 % of 2G with 2M pages; worst: bad"
