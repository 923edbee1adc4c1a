"""Plans: fewer leaves, little space, and moves that lose nothing. What a plan promises is checked by applying it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from examples import DATA, layout
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import PAGE, SMALL

from guestmem.geometry import X86_64
from guestmem.layout import HostLimits, Layout, LayoutError, Slot
from guestmem.layout.binding import FileLimits
from guestmem.layout.budget import MAX_PLANNED
from guestmem.layout.planning import offsets
from guestmem.layout.planning.migration import migrate, start_of
from guestmem.layout.planning.moves import Move, in_order
from guestmem.layout.planning.offsets import best_offset, cost_at, laid_out
from guestmem.layout.planning.plan import bound_now, make_plan
from guestmem.layout.recognise import read
from guestmem.rules import RULES, Binding, Congruent, CreationFlags, FitsSize, Rule, SizeAndGpa, SlotMetadata
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, MIB

PAGE_SIZES = SMALL.page_sizes[1:]


def small_host(page_size: int, rule: Rule) -> HostLimits:
    return HostLimits(SMALL, files=FileLimits(page_size, rule))


def slot(gpa: int, pages: int) -> Slot:
    return Slot(gpa * PAGE, pages * PAGE, region=f"r{gpa}", flags=KVM_MEM_GUEST_MEMFD)


slots = st.builds(slot, st.integers(0, 70), st.integers(1, 40))
small_hosts = st.builds(small_host, st.sampled_from(PAGE_SIZES), st.sampled_from(RULES))


@given(slots, small_hosts, st.integers(0, 70), st.integers(0, 60))
@settings(max_examples=250, deadline=None)
def test_an_offset_is_free_and_costs_what_it_says_and_none_is_found_only_where_the_rule_refuses(
    one: Slot, host: HostLimits, start: int, mark: int
) -> None:
    low, high = mark * PAGE, (mark + 3) * PAGE
    found = best_offset(one, host, start * PAGE, [(low, high)])
    if found is None:
        assert host.files.rule.refuses(binding_at(one, high + start * PAGE + PAGE, host)) is not None
        return
    cost, at = found
    assert at >= start * PAGE
    assert at + one.size <= low or high <= at
    assert cost == cost_at(one, at, host)


def binding_at(one: Slot, offset: int, host: HostLimits) -> Binding:
    return Binding(one.gpa, one.size, offset, host.files.page_size, host.files.page_size, SMALL)


@given(st.lists(slots, min_size=1, max_size=5), small_hosts, st.lists(st.integers(0, 60), max_size=2))
@settings(max_examples=100, deadline=None)
def test_bindings_in_one_file_never_touch_each_other_or_what_is_taken(
    many: list[Slot], host: HostLimits, marks: list[int]
) -> None:
    taken = sorted((mark * PAGE, (mark + 3) * PAGE) for mark in marks)
    if len(taken) == 2 and taken[0][1] > taken[1][0]:
        taken.pop()
    able = [one for one in many if best_offset(one, host) is not None]
    offsets = laid_out(able, host, taken)
    placed = [(at, one) for at, one in zip(offsets, able, strict=True) if at is not None]
    used = sorted([*taken, *((at, at + one.size) for at, one in placed)])
    assert all(a[1] <= b[0] for a, b in pairwise(used))
    assert all(cost_at(one, at, host) is not None for at, one in placed)


def test_a_file_is_called_the_least_only_where_the_bound_bytes_fill_its_pages() -> None:
    host = small_host(PAGE_SIZES[1], Congruent())
    whole = make_plan(Layout("t", "t", tuple(Slot(16 * n * PAGE, 16 * PAGE) for n in range(17))), host, one_file=True)
    assert [(file.least, file.holes) for file in whole.files] == [(True, 0)]
    odd = make_plan(Layout("t", "t", (Slot(PAGE, 16 * PAGE), Slot(33 * PAGE, 16 * PAGE))), host, one_file=True)
    (file,) = odd.files
    assert (file.least, file.size, file.bound) == (False, 48 * PAGE, 32 * PAGE)


def test_a_plan_under_creation_flags_moves_the_slot_at_1m_and_says_what_it_costs() -> None:
    host = HostLimits(files=FileLimits(GIB, CreationFlags()))
    plan = make_plan(layout("qemu72-q35-4G.txt"), host, one_file=True)
    # GPA 1M cannot be congruent with a multiple of 1G: accepted, but only base pages.
    assert plan.planned.leaves == ((2047 * MIB + 640 * 1024) // 4096, 0, 2)
    assert plan.files[0].size == 5 * GIB


def test_a_plan_under_congruent_reaches_the_best_possible() -> None:
    host = HostLimits(files=FileLimits(GIB, Congruent()))
    plan = make_plan(layout("qemu72-q35-4G.txt"), host, one_file=True)
    assert plan.planned.mapped == plan.best == (4095 * MIB + 640 * 1024, 4094 * MIB, 3 * GIB)
    (file,) = plan.files
    assert (file.size, file.holes, file.least) == (4 * GIB, 384 * 1024, True)


def test_a_plan_for_one_file_packs_an_odd_layout_without_losing_a_frame() -> None:
    host = HostLimits(files=FileLimits(2 * MIB, SlotMetadata()))
    plan = make_plan(layout("qemu72-q35-numa-odd.txt"), host, one_file=True)
    assert plan.planned.mapped[1] == plan.best[1] == 6140 * MIB


def test_offsets_that_serve_as_well_as_any_stay() -> None:
    host = HostLimits(files=FileLimits(GIB, Congruent()))
    plan = make_plan(layout("qemu72-q35-4G.txt"), host, one_file=True)
    assert plan.slots_now == plan.slots_planned


def test_offsets_stay_where_others_would_only_shorten_the_last_page_of_the_file() -> None:
    host = HostLimits(files=FileLimits(2 * MIB, Congruent()))
    plan = make_plan(layout("qemu72-q35-numa-odd.txt"), host, one_file=True)
    assert plan.slots_now == plan.slots_planned
    assert [file.size for file in plan.files] == [6146 * MIB]


def test_regions_get_a_file_each_unless_one_is_asked_for() -> None:
    odd = layout("qemu72-q35-numa-odd.txt")
    host = HostLimits(files=FileLimits(2 * MIB, Congruent()))
    assert [file.name for file in make_plan(odd, host).files] == ["n0", "n1"]
    assert [file.name for file in make_plan(odd, host, one_file=True).files] == ["ram"]


def test_a_movable_slot_goes_up_to_the_next_gpa_where_it_holds_whole_pages() -> None:
    host = HostLimits(files=FileLimits(GIB, Congruent()))
    odd = layout("qemu72-q35-numa-odd.txt")
    plan = make_plan(odd, host, movable=("n1",))
    moved = [one for one in plan.planned.layout.slots if one.region == "n1"]
    assert [(one.gpa, one.size) for one in moved] == [(0x180000000, 3 * GIB)]
    # [1G, 2G), [4G, 5G) of n0 and now all of n1.
    assert plan.planned.mapped[2] == 5 * GIB


def test_a_move_goes_around_what_is_in_the_way() -> None:
    one = Slot(3 * MIB, 4 * MIB, region="dimm", offset=0)
    other = Slot(8 * MIB, 2 * MIB, region="ram", offset=0)
    host = HostLimits(files=FileLimits(2 * MIB, Congruent()))
    plan = make_plan(Layout("t", "t", (one, other)), host, movable=("dimm",))
    assert [(slot.region, slot.gpa) for slot in plan.planned.layout.slots] == [("dimm", 4 * MIB), ("ram", 8 * MIB)]
    crowded = Slot(6 * MIB, 2 * MIB, region="ram", offset=0)
    around = make_plan(
        Layout("t", "t", (Slot(MIB, 4 * MIB, region="dimm", offset=0), crowded)), host, movable=("dimm",)
    )
    assert {slot.region: slot.gpa for slot in around.planned.layout.slots} == {"dimm": 2 * MIB, "ram": 6 * MIB}


def test_slots_that_a_rule_accepts_nowhere_are_named() -> None:
    host = HostLimits(files=FileLimits(2 * MIB, next(rule for rule in RULES if rule.name == "both-multiples-of-2M")))
    plan = make_plan(layout("qemu72-q35-4G.txt"), host, one_file=True)
    assert [plan.planned.layout.slots[index].gpa for index in plan.refused] == [0, 0x100000]


def test_migration_keeps_what_stays_valid_and_moves_the_rest() -> None:
    bound = bound_now(layout("qemu72-q35-4G.txt"), one_file=True)
    to = HostLimits(X86_64, files=FileLimits(GIB, SizeAndGpa()))
    migration = migrate(bound, to)
    # Offset 0x80000000 of the slot at 4G is a multiple of 1G; 0x100000 of the slot at 1M is not.
    assert [why is None for why in migration.why] == [True, False, True]
    assert "refuses" in (migration.why[1] or "")
    (file,) = migration.files
    assert [(move.source, move.target) for move in file.moves] == [(0x100000, 4 * GIB)]
    assert file.order.scratch == 0
    assert migration.moved == 2047 * MIB


def test_nothing_moves_where_the_offsets_serve_as_they_are() -> None:
    bound = bound_now(layout("qemu72-q35-4G.txt"), one_file=True)
    migration = migrate(bound, HostLimits(files=FileLimits(GIB, Congruent())))
    assert (migration.moved, migration.files[0].order.steps) == (0, ())
    assert migration.before.mapped == migration.after.mapped


def test_an_exchange_needs_scratch_for_the_smaller_of_the_two() -> None:
    plan = in_order([Move(0, 0, 10, 6), Move(1, 10, 0, 4)])
    assert plan.scratch == 4
    assert [(step.kind, step.move.slot) for step in plan.steps] == [("save", 1), ("copy", 0), ("restore", 1)]


def test_a_chain_needs_none() -> None:
    plan = in_order([Move(0, 0, 10, 10), Move(1, 10, 20, 10), Move(2, 20, 30, 10)])
    assert (plan.scratch, [step.move.slot for step in plan.steps]) == (0, [2, 1, 0])


def test_a_move_onto_its_own_place_needs_nothing_and_one_that_overlaps_itself_is_a_copy() -> None:
    assert in_order([Move(0, 5, 5, 3)]).steps == ()
    assert [step.kind for step in in_order([Move(0, 0, 1, 5)]).steps] == ["copy"]


@st.composite
def move_lists(draw: st.DrawFn) -> list[Move]:
    """Disjoint sources and disjoint targets, in any order."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))

    def placed() -> dict[int, int]:
        at, where = 0, {}
        for index in draw(st.permutations(range(len(sizes)))):
            at += draw(st.integers(0, 2))
            where[index] = at
            at += sizes[index]
        return where

    sources, targets = placed(), placed()
    return [Move(index, sources[index], targets[index], size) for index, size in enumerate(sizes)]


@given(move_lists())
@settings(max_examples=300, deadline=None)
def test_every_byte_arrives_whatever_the_moves_and_scratch_is_what_they_use(moves: list[Move]) -> None:
    plan = in_order(moves)
    file, scratch = {}, {}
    for move in moves:
        file.update({move.source + at: (move.slot, at) for at in range(move.size)})
    held = most = 0
    for step in plan.steps:
        move = step.move
        data = [file.get(move.source + at) for at in range(move.size)]
        if step.kind == "save":
            scratch[move.slot] = data
            held += move.size
            most = max(most, held)
        if step.kind == "restore":
            data = scratch.pop(move.slot)
            held -= move.size
        if step.kind != "save":
            file.update({move.target + at: value for at, value in enumerate(data) if value is not None})
    for move in moves:
        assert [file[move.target + at] for at in range(move.size)] == [(move.slot, at) for at in range(move.size)]
    assert (plan.scratch, scratch) == (most, {})


def test_a_long_circle_is_moved_with_scratch_for_one() -> None:
    circle = [Move(n, n * 4, (n + 1) % 12 * 4, 4) for n in range(12)]
    plan = in_order(circle)
    assert plan.scratch == 4
    assert len(plan.steps) == 13


@pytest.mark.parametrize("rule", [FitsSize(), CreationFlags()])
def test_planning_hundreds_of_equal_devices_is_quick_because_they_share_their_answer(rule: Rule) -> None:
    devices = tuple(Slot((8 + n) * GIB, GIB, region=f"d{n}", offset=0) for n in range(300))
    plan = make_plan(Layout("t", "t", devices), HostLimits(files=FileLimits(GIB, rule)), one_file=True)
    assert plan.planned.leaves == (0, 0, 300)
    assert plan.files[0].holes == 0
    assert plan.files[0].least


def test_a_movable_slot_goes_around_what_is_not_planned_too() -> None:
    dimm = Slot(0xFF10_0000, 14 * MIB, region="dimm", offset=0)
    firmware = Slot(0xFFFC_0000, 256 << 10, region="bios", flags=KVM_MEM_READONLY)
    display = Slot(0x1_0000_0000, 16 * MIB, region="vga.vram", flags=KVM_MEM_LOG_DIRTY_PAGES)
    host = HostLimits(files=FileLimits(2 * MIB, Congruent()))
    plan = make_plan(Layout("t", "t", (dimm, firmware, display)), host, movable=("dimm",))
    assert [slot.gpa for slot in plan.planned.layout.slots] == [0x1_0100_0000]


def test_slots_of_one_region_that_move_stay_apart() -> None:
    pieces = [Slot((8 * at + 1) * MIB, 4 * MIB, region="dimm", offset=4 * at * MIB) for at in range(3)]
    host = HostLimits(files=FileLimits(2 * MIB, Congruent()))
    plan = make_plan(Layout("t", "t", tuple(pieces)), host, movable=("dimm",))
    assert [slot.gpa for slot in plan.slots_planned] == [2 * MIB, 10 * MIB, 18 * MIB]


@given(st.lists(slots, min_size=1, max_size=4), small_hosts, st.lists(st.integers(0, 80), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_plan_maps_every_slot_that_it_does_not_call_refused(
    many: list[Slot], host: HostLimits, starts: list[int]
) -> None:
    placed, at = [], 0
    for one, gap in zip(many, starts, strict=False):
        at += gap * PAGE
        placed.append(Slot(at, one.size, region=f"r{at}", offset=0))
        at += one.size
    plan = make_plan(Layout("t", "t", tuple(placed)), host, one_file=True)
    for index, item in enumerate(plan.planned.slots):
        assert (best_offset(item.slot, host) is None) == (index in plan.refused)
        assert (item.mapped[0] == item.slot.size) == (index not in plan.refused)
    assert sum(plan.planned.leaves) <= sum(plan.now.leaves) or plan.now.mapped[0] < plan.planned.mapped[0]


def test_a_plan_judges_few_offsets_a_slot_and_gives_each_move_once() -> None:
    source = DATA / "adversary" / "plan-to-800-slots.json"
    (whole,) = read(str(source), source.read_bytes())
    judged = {}
    for count in (200, 800):
        offsets._cost.cache_clear()
        some = replace(whole, slots=tuple(whole.slots[:count]))
        made = make_plan(some, HostLimits(X86_64, files=FileLimits(2 * MIB, Congruent())), one_file=True)
        moved = migrate(start_of(some, made), HostLimits(X86_64, files=FileLimits(GIB, Congruent())))
        judged[count] = offsets._cost.cache_info().misses / count
        for file in moved.files:
            done = [step.move.slot for step in file.order.steps if step.kind != "save"]
            assert len(done) == len(set(done)) == sum(move.source != move.target for move in file.moves)
    assert max(judged.values()) < 10  # 16 when every candidate was judged
    assert judged[800] < 1.2 * judged[200]


def test_a_layout_of_more_slots_than_offsets_are_looked_for_is_one_line() -> None:
    slots = [Slot(at << 13, 4096, region=f"r{at}") for at in range(MAX_PLANNED + 1)]
    with pytest.raises(LayoutError, match="slots to plan for"):
        make_plan(Layout("x", "guestmem", tuple(slots)), HostLimits(X86_64, files=FileLimits(2 * MIB, Congruent())))
