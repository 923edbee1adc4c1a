"""Faults of a trace held against a layout: what a real kernel did is what check says, and what differs is marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from program import Guestmem

from guestmem.errors import InputError
from guestmem.layout import Backing, HostLimits, Layout, Slot, cover
from guestmem.layout.observed import compare_observed
from guestmem.trace.event import TraceEvent
from guestmem.trace.faults import faults_of
from guestmem.trace.source import read_trace
from guestmem.units import GIB, KIB, MIB

ROOT = Path(__file__).parent.parent
LOAD = ROOT / "examples/traces/kvm72-load.trace.dat.gz"
STORY = ROOT / "examples/traces/kvm72-story-fprobe.txt"
LAYOUT = ROOT / "examples/traces/kvmload.toml"
SIZES = (4 * KIB, 2 * MIB, GIB)


def one_slot(gpa: int, size: int, hva: int) -> Layout:
    return Layout("t", "t", (Slot(gpa, size, hva, backing=Backing("hugetlb", 2 * MIB)),))


def test_every_fault_of_a_real_kernel_got_what_check_says_of_its_layout(guestmem_command: Guestmem) -> None:
    ended = guestmem_command("check", "--fail-on", "never", "--observed", LOAD, LAYOUT)

    assert ended.code == 0
    assert "31 faults on its slots" in ended.out
    assert "every one got the page size that the layout allows" in ended.out


def test_what_got_less_or_more_is_named(guestmem_command: Guestmem) -> None:
    """The story gives half of 2M back, and has the host collapse what had no huge pages."""
    text = guestmem_command("check", "--fail-on", "never", "--observed", STORY, LAYOUT).out
    data = json.loads(guestmem_command("check", "--fail-on", "never", "--json", "--observed", STORY, LAYOUT).out)

    found = {entry["slot"]: (entry["smaller"], entry["larger"]) for entry in data["sources"][0]["observed"]}
    assert {slot: counts for slot, counts in found.items() if counts != (0, 0)} == {1: (16, 0), 5: (0, 1)}
    assert "0x800000 got 4K, allowed 2M" in text
    assert "1 fault got larger ones (!): this layout is not what ran" in text


def test_without_a_trace_nothing_is_observed(guestmem_command: Guestmem) -> None:
    data = json.loads(guestmem_command("check", "--fail-on", "never", "--json", LAYOUT).out)

    assert data["sources"][0]["observed"] is None


def test_a_trace_is_of_one_vm(guestmem_command: Guestmem) -> None:
    two = guestmem_command("check", "--observed", LOAD, LAYOUT, ROOT / "examples/layouts/discussion.toml")

    assert two.code == 2
    assert "a trace is of one VM, and the sources have 2" in two.err

    events = [TraceEvent(0, 0, "t", 1, "slot", {"kvm": kvm}) for kvm in (0x10, 0x20)]
    with pytest.raises(InputError, match="t: it has 0x10 and 0x20: record one VM"):
        list(faults_of("t", events))


def test_the_probe_is_taken_before_the_tracepoint_and_what_mapped_nothing_is_no_fault() -> None:
    def event(kind: str, **fields: int) -> TraceEvent:
        return TraceEvent(0, 0, "t", 1, kind, fields)

    events = [
        event("kvm_mmu_set_spte", gfn=1, spte=0, level=1),
        event("mapped", kvm=1, gfn=1, goal=1, ret=5),
        event("mapped", kvm=1, gfn=2, goal=2, ret=1),
    ]

    assert list(faults_of("t", events)) == [(4 * KIB, 4 * KIB)]
    assert list(faults_of("t", events[:1])) == [(4 * KIB, 4 * KIB)]
    assert sum(1 for _ in faults_of("load", read_trace(LOAD))) == 31


@given(
    st.integers(0, 4),
    st.integers(1, 12),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(SIZES))),
)
def test_each_fault_is_held_against_the_largest_page_allowed_there(
    first: int, pages: int, shift: int, faults: list[tuple[int, int]]
) -> None:
    gpa, size = first * MIB, pages * MIB
    layout = one_slot(gpa, size, 0x7F0000000000 + gpa + (shift == 3) * 4 * KIB)
    observed = compare_observed(cover(layout, HostLimits()), [(page * 4 * KIB, got) for page, got in faults])

    smaller = larger = elsewhere = 0
    for page, got in faults:
        at = page * 4 * KIB
        frame = at // (2 * MIB) * (2 * MIB)
        if not gpa <= at < gpa + size:
            elsewhere += 1
            continue
        allowed = 2 * MIB if shift != 3 and gpa <= frame and frame + 2 * MIB <= gpa + size else 4 * KIB
        smaller, larger = smaller + (got < allowed), larger + (got > allowed)
    assert (sum(slot.smaller for slot in observed.slots), observed.larger, observed.elsewhere) == (
        smaller,
        larger,
        elsewhere,
    )
