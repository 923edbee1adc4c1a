"""What a report says of a trace, against what the program of the trace did and KVM's own records of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.host.verdict import LossCause
from guestmem.trace.event import TraceEvent
from guestmem.trace.source import read_trace
from guestmem.trace.summary import TraceSummary, summarise
from guestmem.units import GIB, MIB

ROOT = Path(__file__).parent.parent
STORY = ROOT / "examples/traces/kvm72-story-fprobe.txt"
OLDER = Path(__file__).parent / "data/kvm/kvm612-story-fprobe.txt"
KVM = 0xFF43862942756000
P = 4096


@pytest.fixture(scope="module")
def story() -> TraceSummary:
    return summarise(read_trace(STORY))


# kvmstory.c: what backs each slot, and how many pages of it are touched; by hand.
EXPECTED = {
    0: ({1: 1}, {LossCause.TAIL: 1}),  # 640K
    1: ({1: 18, 2: 10}, {LossCause.HEAD: 2, LossCause.BACKING: 16}),  # from 1M on; 2M given back in part, then touched
    2: ({1: 4}, {LossCause.HVA: 4}),  # one page off
    3: ({2: 4}, {}),  # hugetlb 2M
    4: ({3: 1}, {}),  # hugetlb 1G
    5: ({1: 3}, {LossCause.DIRTY_LOG: 3}),
    6: ({1: 3, 2: 1}, {LossCause.BACKING: 3}),  # no huge pages at first, collapsed later
    7: ({1: 3}, {LossCause.ORDER_0: 3}),  # guest_memfd
}


@pytest.mark.parametrize("slot", EXPECTED)
def test_faults_are_told_by_slot_level_and_cause(story: TraceSummary, slot: int) -> None:
    found = story.vms[KVM].slots[slot]

    assert (dict(found.faults), dict(found.causes)) == EXPECTED[slot]


def test_slots_have_their_places_and_what_was_switched_and_zapped(story: TraceSummary) -> None:
    slots = story.vms[KVM].slots

    assert (slots[4].gpa, slots[4].size, slots[2].hva % (2 * MIB)) == (GIB, GIB, P)
    assert [slot.id for slot in slots.values() if slot.logs] == [1, 5]
    assert not slots[1].log_dirty, "off again"
    assert (slots[6].zapped, slots[1].zapped) == (4 * MIB, 5 * MIB)
    assert story.tables.splits == {2: 9}
    assert story.hottest()[0] == (8 * MIB, 17)


def test_without_the_slots_a_cause_is_unknown_and_not_guessed() -> None:
    """On 6.12 the probe of slot changes is on another function; the trace of it has none."""
    found = summarise(read_trace(OLDER))

    [vm] = found.vms.values()
    assert {cause for slot in vm.slots.values() for cause in slot.causes} <= {LossCause.UNKNOWN, LossCause.ORDER_0}
    assert not found.exact


def event(kind: str, time: int = 0, pid: int = 1, **fields: int) -> TraceEvent:
    return TraceEvent(time, 0, "t", pid, kind, {"kvm": 1, **fields})


def slot(number: int = 0, size: int = 4 * MIB, flags: int = 0, gpa: int = 0, pid: int = 1) -> TraceEvent:
    return event("slot", pid=pid, slot=number, flags=flags, gpa=gpa, size=size, hva=gpa)


def test_a_change_that_kvm_refused_is_none() -> None:
    found = summarise(
        [slot(), event("slotret", ret=0), slot(gpa=MIB), event("slotret", ret=-22), slot(1), event("slotret", ret=-17)]
    )

    assert [(each.id, each.gpa) for each in found.vms[1].slots.values()] == [(0, 0)]


def test_the_answer_is_taken_for_the_request_of_the_same_thread() -> None:
    found = summarise(
        [slot(0, pid=1), slot(1, pid=2), event("slotret", pid=1, ret=-17), event("slotret", pid=2, ret=0)]
    )

    assert list(found.vms[1].slots) == [1]


def test_a_slot_that_is_deleted_and_made_again_is_a_new_one() -> None:
    found = summarise([slot(flags=1), slot(size=0)])
    assert found.vms[1].slots[0].deleted

    found = summarise([slot(flags=1), slot(size=0), slot(gpa=MIB)])
    assert (found.vms[1].slots[0].deleted, found.vms[1].slots[0].gpa, found.vms[1].slots[0].logs) == (False, MIB, 0)


def test_a_fault_that_maps_nothing_is_counted_apart() -> None:
    levels = {"max": 3, "req": 2, "goal": 2, "nx": 0, "priv": 0}
    found = summarise(
        [slot(), event("mapped", gfn=0, slot=0, ret=1, **levels), event("mapped", gfn=0, slot=0, ret=5, **levels)]
    )

    assert (found.vms[1].failed, dict(found.vms[1].slots[0].faults)) == (1, {2: 1})


def test_a_trace_that_lost_events_says_how_many_and_where_and_is_not_exact() -> None:
    change = {"level": 1, "gfn": 0, "old_spte": 0, "new_spte": 0xE67}
    found = summarise([7, event("kvm_tdp_mmu_spte_changed", time=5, **change), 3])

    assert (found.lost, found.lost_at, found.exact) == (10, [None, 5], False)


def test_the_time_line_is_bounded_and_keeps_its_end() -> None:
    def changes() -> list[TraceEvent]:
        return [
            event("kvm_tdp_mmu_spte_changed", time=time, level=1, gfn=time, old_spte=0, new_spte=0xE67)
            for time in range(10_000)
        ]

    found = summarise(changes())

    assert len(found.spans) <= 2049
    assert found.spans[-1] == (9999, {1: 10_000})
