"""Leaves rebuilt from the changes of tables: KVM's own counts, the model's, and a naive count of frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guestmem
from guestmem.model.profiles import NEXT, Machine
from guestmem.trace.event import TraceEvent
from guestmem.trace.source import read_trace
from guestmem.trace.summary import summarise
from guestmem.trace.tables import Tables, is_leaf
from guestmem.units import KIB, MIB

LOAD = Path(__file__).parent.parent / "examples/traces/kvm72-load.trace.dat.gz"
NONE, TABLE, LEAF, LARGE = 0x8000000000000000, 0x113D827, 0x1000E67, 0x1000EE7
P = 4 * KIB


def changed(level: int, gfn: int, old: int, new: int) -> TraceEvent:
    fields = {"level": level, "gfn": gfn, "old_spte": old, "new_spte": new}
    return TraceEvent(0, 0, "t", 1, "kvm_tdp_mmu_spte_changed", fields)


def split(level: int, gfn: int, errno: int = 0) -> TraceEvent:
    fields = {"level": level, "gfn": gfn, "spte": LARGE, "errno": errno}
    return TraceEvent(0, 0, "t", 1, "kvm_mmu_split_huge_page", fields)


def seen(*events: TraceEvent) -> Tables:
    tables = Tables()
    for event in events:
        tables.see(event)
    return tables


def test_the_counts_of_a_real_run_are_those_of_kvms_own_counters() -> None:
    """kvmload as stage A of kvmstory: pages_4k 16, pages_2m 13, pages_1g 1, by KVM_GET_STATS_FD on the same kernel."""
    found = summarise(read_trace(LOAD))

    assert found.exact
    assert found.most == {1: 16, 2: 13, 3: 1}
    assert found.tables.count() == {}, "the VM's end takes all"
    assert found.spans[-1][1] == {}


@pytest.mark.parametrize(
    ("spte", "level", "leaf"),
    [
        (NONE, 1, False),
        (0, 1, False),
        (LEAF, 1, True),
        (LARGE, 2, True),
        (TABLE, 2, False),
        (LARGE, 3, True),
        (LEAF, 2, False),
    ],
)
def test_an_entry_is_a_leaf_by_its_present_bit_and_above_4k_by_its_size_bit(spte: int, level: int, leaf: bool) -> None:
    assert is_leaf(spte, level) is leaf


def test_a_split_tells_its_children_and_the_table_tells_its_parent() -> None:
    tables = seen(changed(2, 512, NONE, LARGE), changed(2, 512, LARGE, TABLE), split(2, 512))

    assert tables.count() == {1: 512}
    assert tables.splits == {2: 1}


def test_a_split_of_1g_gives_leaves_of_2m_and_one_that_failed_gives_none() -> None:
    assert seen(changed(3, 0, NONE, LARGE), changed(3, 0, LARGE, TABLE), split(3, 0)).count() == {2: 512}
    assert seen(changed(2, 0, NONE, LARGE), split(2, 0, errno=-12)).count() == {2: 1}


def test_two_roots_may_map_one_frame_and_permissions_are_no_leaf() -> None:
    twice = [changed(1, 7, NONE, LEAF)] * 2

    assert seen(*twice, changed(1, 7, LEAF, NONE)).count() == {1: 1}
    assert seen(*twice[:1], changed(1, 7, LEAF, LEAF | 2)).count() == {1: 1}


def test_what_goes_without_having_come_makes_the_count_inexact() -> None:
    tables = seen(changed(1, 7, LEAF, NONE))

    assert (tables.count(), tables.unknown) == ({}, 1)


class Watched:
    """A VM of the model whose every change of the tables becomes an event, found by comparing before and after."""

    def __init__(self) -> None:
        machine = Machine(gpa_bits=40, gmem_2m=True)
        self.kvm = guestmem.open("model", profile="next", machine=machine)
        self.vm = self.kvm.create_vm(1)
        self.gmem = self.vm.create_guest_memfd(8 * MIB)
        self.vm.set_user_memory_region2(0, gpa=0, size=8 * MIB, guest_memfd=self.gmem)
        self.vm.set_memory_attributes(0, 8 * MIB, 8)
        self.vcpu = self.vm.create_vcpu()
        self.tables = Tables()
        self.there: set[tuple[int, int]] = set()

    def look(self) -> None:
        leaves = {
            (leaf.order // 9 + 1, frame)
            for start, end, leaf in self.vm.model.stage2.leaves
            for frame in range(start, end, 1 << leaf.order)
        }
        for level, gfn in self.there - leaves:
            self.tables.see(changed(level, gfn, LEAF if level == 1 else LARGE, NONE))
        for level, gfn in leaves - self.there:
            self.tables.see(changed(level, gfn, NONE, LEAF if level == 1 else LARGE))
        self.there = leaves


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["touch", "touch", "shared", "private", "punch"]), st.integers(0, 2047), st.integers(1, 600)
        ),
        max_size=20,
    )
)
def test_the_replay_counts_what_the_model_counts(steps: list[tuple[str, int, int]]) -> None:
    assert NEXT.huge
    watched = Watched()
    for step, page, pages in steps:
        size = min(pages, 2048 - page) * P
        if step == "touch":
            watched.vcpu.touch(guestmem.backend.Touch(page * P, "r", 8))
        elif step == "punch":
            watched.gmem.punch_hole(page * P, size)
        else:
            watched.vm.set_memory_attributes(page * P, size, 8 if step == "private" else 0)
        watched.look()

    model = watched.vm.model.stage2.count()
    assert watched.tables.count() == {order // 9 + 1: count for order, count in model.items()}
    assert watched.tables.unknown == 0
