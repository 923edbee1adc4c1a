"""Plans: least leaves, least space, and moves that lose nothing; what is called optimal beside exhaustive search."""

from __future__ import annotations

from itertools import permutations

import pytest
from examples import layout
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import PAGE, SMALL

from guestmem.geometry import X86_64
from guestmem.layout import HostLimits, Layout, Slot
from guestmem.layout.binding import FileLimits
from guestmem.layout.planning.migration import migrate
from guestmem.layout.planning.moves import Move, schedule
from guestmem.layout.planning.offsets import best_choice, cost_at, is_modular
from guestmem.layout.planning.packing import EXACT_LIMIT, pack
from guestmem.layout.planning.plan import bound_now, make_plan
from guestmem.rules import RULES, Congruent, CreationFlags, FitsSize, Rule, SizeAndGpa, SlotMetadata
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, MIB

MODULAR = [rule for rule in RULES if is_modular(rule)]
PAGE_SIZES = SMALL.page_sizes[1:]


def small_host(page_size: int, rule: Rule) -> HostLimits:
    return HostLimits(SMALL, files=FileLimits(page_size, rule))


def slot(gpa: int, pages: int) -> Slot:
    return Slot(gpa * PAGE, pages * PAGE, region=f"r{gpa}", flags=KVM_MEM_GUEST_MEMFD)


slots = st.builds(slot, st.integers(0, 70), st.integers(1, 40))
small_hosts = st.builds(small_host, st.sampled_from(PAGE_SIZES), st.sampled_from(MODULAR))


@given(slots, small_hosts)
@settings(max_examples=250, deadline=None)
def test_the_best_offsets_are_those_found_by_trying_every_offset(one: Slot, host: HostLimits) -> None:
    costs = {offset: cost_at(one, offset, host) for offset in range(0, 2 * SMALL.page_sizes[-1], PAGE)}
    accepted = [cost for cost in costs.values() if cost is not None]
    choice = best_choice(one, host)
    if choice is None:
        assert not accepted
        return
    assert choice.cost == min(accepted)
    wanted = [offset for offset, cost in costs.items() if cost == choice.cost]
    assert [offset for offset in costs if choice.serves(offset)] == wanted
    for start in range(0, SMALL.page_sizes[-1], PAGE):
        assert choice.next_offset(start) == min(offset for offset in wanted if offset >= start)


@given(st.lists(slots, min_size=1, max_size=3), small_hosts, st.lists(st.integers(0, 60), max_size=2))
@settings(max_examples=80, deadline=None)
def test_packing_that_is_called_optimal_ends_where_the_best_of_all_orders_ends(
    many: list[Slot], host: HostLimits, marks: list[int]
) -> None:
    taken = sorted((mark * PAGE, (mark + 3) * PAGE) for mark in marks)
    if len(taken) == 2 and taken[0][1] > taken[1][0]:
        taken.pop()
    choices = [choice for one in many if (choice := best_choice(one, host)) is not None]
    packed = pack(choices, taken)
    used = [*taken, *((at, at + choice.slot.size) for at, choice in zip(packed.offsets, choices, strict=True))]
    assert all(a[1] <= b[0] for a, b in zip(sorted(used), sorted(used)[1:], strict=False))
    assert all(choice.serves(at) for at, choice in zip(packed.offsets, choices, strict=True))
    assert packed.optimal
    naive = [end_of(order, host, taken) for order in permutations(choice.slot for choice in choices)]
    assert packed.end == max(min(naive), max((end for _, end in taken), default=0))


def end_of(order: tuple[Slot, ...], host: HostLimits, taken: list[tuple[int, int]]) -> int:
    """Where the bindings end when each is put at the first page that is free, accepted and cheapest."""
    end = 0
    for one in order:
        best = min(cost for at in range(0, SMALL.page_sizes[-1], PAGE) if (cost := cost_at(one, at, host)) is not None)
        at = end
        while cost_at(one, at, host) != best or any(low < at + one.size and at < high for low, high in taken):
            at += PAGE
        end = at + one.size
    return end


def test_many_bindings_are_packed_by_good_orders_and_not_called_optimal_without_proof() -> None:
    host = small_host(PAGE_SIZES[1], Congruent())
    many = [slot(7 * index, 5) for index in range(EXACT_LIMIT + 6)]
    packed = pack([choice for one in many if (choice := best_choice(one, host)) is not None])
    assert len(set(packed.offsets)) == len(many)
    whole = [slot(16 * index, 16) for index in range(EXACT_LIMIT + 6)]
    tight = pack([choice for one in whole if (choice := best_choice(one, host)) is not None])
    assert (tight.optimal, tight.end) == (True, len(whole) * 16 * PAGE)


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
    assert (file.size, file.holes, file.optimal) == (4 * GIB, 384 * 1024, True)


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
    assert file.schedule.scratch == 0
    assert migration.moved == 2047 * MIB


def test_nothing_moves_where_the_offsets_serve_as_they_are() -> None:
    bound = bound_now(layout("qemu72-q35-4G.txt"), one_file=True)
    migration = migrate(bound, HostLimits(files=FileLimits(GIB, Congruent())))
    assert (migration.moved, migration.files[0].schedule.steps) == (0, ())
    assert migration.before.mapped == migration.after.mapped


def test_an_exchange_needs_scratch_for_the_smaller_of_the_two() -> None:
    plan = schedule([Move(0, 0, 10, 6), Move(1, 10, 0, 4)])
    assert plan.scratch == 4
    assert [(step.kind, step.move.slot) for step in plan.steps] == [("save", 1), ("copy", 0), ("restore", 1)]


def test_a_chain_needs_none() -> None:
    plan = schedule([Move(0, 0, 10, 10), Move(1, 10, 20, 10), Move(2, 20, 30, 10)])
    assert (plan.scratch, [step.move.slot for step in plan.steps]) == (0, [2, 1, 0])


def test_a_move_onto_its_own_place_needs_nothing_and_one_that_overlaps_itself_is_a_copy() -> None:
    assert schedule([Move(0, 5, 5, 3)]).steps == ()
    assert [step.kind for step in schedule([Move(0, 0, 1, 5)]).steps] == ["copy"]


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
def test_every_byte_arrives_whatever_the_moves_and_scratch_is_the_least_of_all_orders(moves: list[Move]) -> None:
    plan = schedule(moves)
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
    assert (plan.scratch, plan.least, scratch) == (most, True, {})
    assert plan.scratch == least_scratch([move for move in moves if move.source != move.target])


def least_scratch(moves: list[Move]) -> int:
    """The smallest budget with which everything can be moved, trying every next step from every situation."""
    sums = {sum(move.size for move in moves if bits >> move.slot & 1) for bits in range(1 << 6)}
    return next(budget for budget in sorted(sums) if movable_within(moves, budget))


def movable_within(moves: list[Move], budget: int) -> bool:
    seen = set()
    stack = [(frozenset(moves), frozenset[Move]())]
    while stack:
        state = stack.pop()
        waiting, saved = state
        if not waiting and not saved:
            return True
        if state in seen or sum(move.size for move in saved) > budget:
            continue
        seen.add(state)
        for move in waiting:
            others = {at for other in waiting - {move} for at in range(other.source, other.source + other.size)}
            if others.isdisjoint(range(move.target, move.target + move.size)):
                stack.append((waiting - {move}, saved))
            stack.append((waiting - {move}, saved | {move}))
        sources = {at for other in waiting for at in range(other.source, other.source + other.size)}
        free = (move for move in saved if sources.isdisjoint(range(move.target, move.target + move.size)))
        stack.extend((waiting, saved - {move}) for move in free)
    return False


def test_a_long_circle_is_still_moved_but_not_called_least() -> None:
    circle = [Move(n, n * 4, (n + 1) % 12 * 4, 4) for n in range(12)]
    plan = schedule(circle)
    assert (plan.scratch, plan.least) == (4, False)
    assert len(plan.steps) == 13


@pytest.mark.parametrize("rule", [FitsSize(), CreationFlags()])
def test_planning_hundreds_of_equal_devices_is_quick_because_they_share_their_answer(rule: Rule) -> None:
    devices = tuple(Slot((8 + n) * GIB, GIB, region=f"d{n}", offset=0) for n in range(300))
    plan = make_plan(Layout("t", "t", devices), HostLimits(files=FileLimits(GIB, rule)), one_file=True)
    assert plan.planned.leaves == (0, 0, 300)
    assert plan.files[0].holes == 0
    assert plan.files[0].optimal


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
def test_a_plan_maps_every_slot_as_its_own_best_offset_would(
    many: list[Slot], host: HostLimits, starts: list[int]
) -> None:
    placed, at = [], 0
    for one, gap in zip(many, starts, strict=False):
        at += gap * PAGE
        placed.append(Slot(at, one.size, region=f"r{at}", offset=0))
        at += one.size
    plan = make_plan(Layout("t", "t", tuple(placed)), host, one_file=True)
    for index, item in enumerate(plan.planned.slots):
        choice = best_choice(item.slot, host)
        assert (choice is None) == (index in plan.refused)
        if choice is not None:
            assert (item.mapped[0], sum(item.leaves)) == (item.slot.size, choice.cost)
