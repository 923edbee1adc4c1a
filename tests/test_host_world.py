"""Looking at a kernel that is made up: slots that change, page tables of every depth, reverse maps, every cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kernel_world import DIRECT_MAP, GIB, HUGE, MIB, PRESENT, SHAPES, P, Slot, World, WorldProcesses

from guestmem.host.document import HostReport, HostSlot
from guestmem.host.kernel import KernelView
from guestmem.host.mappings import HostMapping
from guestmem.host.memory import RecordedMemory, Unreadable
from guestmem.host.slots import SlotsChanging, read_slots
from guestmem.host.survey import survey

HVA = 0x7F00_0000_0000
SMALL = PRESENT | 0x77
BIG = PRESENT | HUGE | 0x77
MIXED = 1 << 31
ANONYMOUS = HostMapping(HVA, HVA + 8 * GIB, "anonymous", thp=True)


def looked(world: World, *, huge: bool = True, mapping: HostMapping = ANONYMOUS) -> HostReport:
    return survey(world.kernel(), WorldProcesses(mapping, huge))


def only_slot(report: HostReport) -> HostSlot:
    (vm,) = report.vms
    (slot,) = vm.slots
    return slot


def lost(slot: HostSlot) -> dict[tuple[str, str], int]:
    return {(item.level, item.reason): item.bytes for item in slot.lost}


def tree(world: World, small: dict[int, int] | None = None, frames: dict[int, int] | None = None) -> int:
    """A root over the first GiB: ``frames`` are entries for 2M frames, ``small`` those of a 4K table at frame 0."""
    entries = dict(frames or {})
    if small is not None:
        entries[0] = world.link(world.table(small))
    middle = world.table(entries)
    return world.table({0: world.link(world.table({0: world.link(middle)}))})


# -- slots -------------------------------------------------------------------------------------------------------------


def test_slots_of_all_buckets_and_address_spaces_are_found_in_order() -> None:
    world = World()
    slots = [Slot(GIB * (9 - number), 2 * MIB, HVA + GIB * number, number=number) for number in range(9)]
    vm = world.add_vm([*slots, Slot(0, 2 * MIB, HVA, number=3, space=1)])

    found = read_slots(world.kernel(), vm)

    assert [(slot.address_space, slot.gpa) for slot in found] == [(0, GIB * n) for n in range(1, 10)] + [(1, 0)]


def test_flags_of_kvms_own_are_not_shown() -> None:
    world = World()
    vm = world.add_vm([Slot(0, 2 * MIB, HVA, flags=0x20001)])

    assert read_slots(world.kernel(), vm)[0].flags == 1


@pytest.mark.parametrize("name", ["overlap", "pages", "updating", "freed"])
def test_slots_that_contradict_themselves_are_given_up(name: str) -> None:
    world = World()
    second = MIB if name == "overlap" else 4 * MIB
    vm = world.add_vm([Slot(0, 2 * MIB, HVA, number=1), Slot(second, 2 * MIB, HVA, number=2)])
    active = int.from_bytes(world.ranges[vm + SHAPES.offset("kvm.memslots")][:8], "little")
    if name == "pages":
        world.ranges[vm + SHAPES.offset("kvm.nr_memslot_pages")] = (3).to_bytes(8, "little")
    if name == "updating":
        data = bytearray(world.ranges[active])
        data[15] |= 0x80  # the highest bit of the generation
        world.ranges[active] = bytes(data)
    if name == "freed":
        del world.ranges[active]

    with pytest.raises(SlotsChanging, match="3 looks"):
        read_slots(world.kernel(), vm, tries=3)


def test_a_vm_whose_slots_change_is_reported_with_that_and_nothing_else() -> None:
    world = World()
    vm = world.add_vm([Slot(0, 2 * MIB, HVA)])
    world.ranges[vm + SHAPES.offset("kvm.nr_memslot_pages")] = (3).to_bytes(8, "little")

    report = looked(world)

    assert "slots are changing" in report.vms[0].note
    assert report.vms[0].slots == []
    assert not report.exact


class Changing(RecordedMemory):
    """Memory in which a slot is swapped for another after some reads of the VM's set of slots."""

    def __init__(self, world: World, pointer: int, other: int, after: int) -> None:
        super().__init__(world.ranges)
        self._pointer, self._other, self._left = pointer, other, after

    def read(self, address: int, length: int) -> bytes:
        if address == self._pointer:
            self._left -= 1
            if self._left < 0:
                return self._other.to_bytes(8, "little")
        return super().read(address, length)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_change_during_the_look_is_looked_at_again(after: int) -> None:
    world = World()
    vm = world.add_vm([Slot(0, 2 * MIB, HVA, number=1)])
    moved = world.add_vm([Slot(GIB, 2 * MIB, HVA, number=1)])
    pointer = vm + SHAPES.offset("kvm.memslots")
    other = int.from_bytes(world.ranges[moved + SHAPES.offset("kvm.memslots")][:8], "little")
    world.heads.remove(moved)
    kernel = replace(world.kernel(), memory=Changing(world, pointer, other, after))

    report = survey(kernel, WorldProcesses(ANONYMOUS, huge=True))

    assert report.vms[0].note == ""
    assert report.vms[0].slots[0].gpa == f"{GIB:#x}"


# -- page tables -------------------------------------------------------------------------------------------------------


def test_leaves_of_every_level_are_counted_in_their_slot() -> None:
    world = World()
    middle = world.table({0: world.link(world.table({1: SMALL, 2: SMALL})), 1: BIG})
    root = world.table({0: world.link(world.table({0: world.link(middle), 1: BIG}))})
    world.add_vm([Slot(0, 2 * GIB, HVA)], root, counted=(2, 1, 1))

    report = looked(world)

    assert only_slot(report).mapped == {"4K": 2 * P, "2M": 2 * MIB, "1G": GIB}
    assert report.exact


def test_a_count_that_differs_makes_the_report_inexact() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA)], tree(world, {0: SMALL}), counted=(2, 0, 0))

    assert not looked(world).exact


def test_entries_that_the_hardware_sees_but_kvm_does_not_are_no_leaves() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA)], tree(world, {0: 0x77, 1: 1 << 63, 2: SMALL}), counted=(1, 0, 0))

    assert looked(world).exact


def test_pages_of_one_frame_count_for_the_slot_that_they_lie_in() -> None:
    world = World()
    pages = {0: SMALL, 159: SMALL, 160: SMALL, 256: SMALL, 257: SMALL, 258: SMALL}
    slots = [Slot(0, 160 * P, HVA, number=1), Slot(MIB, MIB, HVA + MIB, number=2)]
    world.add_vm(slots, tree(world, pages), counted=(6, 0, 0))

    first, second = looked(world).vms[0].slots

    assert (first.mapped["4K"], second.mapped["4K"]) == (2 * P, 3 * P)


def test_a_table_that_cannot_be_read_is_said() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA)], tree(world, None, {0: world.link(DIRECT_MAP + 77 * GIB)}))

    report = looked(world)

    assert report.vms[0].note == "1 page tables could not be read"
    assert not report.exact


def test_bits_of_memory_encryption_belong_to_no_address() -> None:
    world = World()
    table = world.table({3: SMALL})
    encrypted = world.link(table) | 1 << 51
    world.add_vm([Slot(0, GIB, HVA)], tree(world, None, {0: encrypted}), counted=(1, 0, 0))
    kernel = replace(world.kernel(), encryption=1 << 51)

    assert survey(kernel, WorldProcesses(ANONYMOUS, huge=True)).exact


def test_a_vm_without_roots_has_nothing_mapped() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA)])

    assert only_slot(looked(world)).mapped == {"4K": 0, "2M": 0, "1G": 0}


def test_reverse_maps_tell_what_shadow_paging_maps() -> None:
    world = World()
    mapped = frozenset({(1, 0), (1, 255), (1, 256), (1, 300), (2, 3)})
    # 1M into the first frame: its first page is 4K frame 256 of guest-physical space.
    world.add_vm([Slot(MIB, 8 * MIB, HVA + MIB, rmaps=True, mapped=mapped)], counted=(4, 1, 0))

    report = looked(world)

    assert only_slot(report).mapped == {"4K": 4 * P, "2M": 2 * MIB, "1G": 0}
    assert lost(only_slot(report)) == {("2M", "head"): 2 * P, ("2M", "split"): 2 * P}
    assert report.exact


# -- causes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "slot", "huge", "mapping"),
    [
        ("mixed", Slot(0, GIB, HVA, disallowed={(2, 0): MIXED}), True, ANONYMOUS),
        ("tracked", Slot(0, GIB, HVA, disallowed={(2, 0): 1}), True, ANONYMOUS),
        ("hva", Slot(0, GIB, HVA + P, disallowed={(2, 0): 1}), True, ANONYMOUS),
        ("dirty_log", Slot(0, GIB, HVA, flags=1), True, ANONYMOUS),
        ("order_0", Slot(0, GIB, HVA, flags=4), True, ANONYMOUS),
        ("backing", Slot(0, GIB, HVA), False, ANONYMOUS),
        ("split", Slot(0, GIB, HVA), True, ANONYMOUS),
        ("tail", Slot(0, MIB, HVA, disallowed={(2, 0): 1}), True, ANONYMOUS),
        ("split", Slot(0, GIB, HVA), False, replace(ANONYMOUS, kind="hugetlb", page_size=2 * MIB, thp=False)),
    ],
)
def test_each_cause_of_small_pages_is_told(cause: str, slot: Slot, huge: bool, mapping: HostMapping) -> None:
    world = World()
    world.add_vm([slot], tree(world, {0: SMALL, 5: SMALL}), counted=(2, 0, 0))

    assert lost(only_slot(looked(world, huge=huge, mapping=mapping))) == {("2M", cause): 2 * P}


def test_memory_that_was_never_touched_is_not_lost() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA, flags=1)], tree(world, None, {}))

    assert only_slot(looked(world)).lost == []


def test_2m_pages_of_memory_with_1g_pages_are_lost_at_1g() -> None:
    world = World()
    world.add_vm([Slot(0, GIB, HVA)], tree(world, {7: SMALL}, {1: BIG, 2: BIG}), counted=(1, 2, 0))
    hugetlb = replace(ANONYMOUS, kind="hugetlb", page_size=GIB, thp=False)

    found = lost(only_slot(looked(world, mapping=hugetlb)))

    assert found == {("1G", "split"): 4 * MIB + P, ("2M", "split"): P}


def test_a_large_guest_is_counted_frame_by_frame() -> None:
    """4 GiB by 4K: 2,048 tables of which all are one page of memory here."""
    world = World()
    full = world.link(world.table(dict.fromkeys(range(512), SMALL)))
    gib = world.link(world.table(dict.fromkeys(range(512), full)))
    root = world.table({0: world.link(world.table(dict.fromkeys(range(4), gib)))})
    world.add_vm([Slot(0, 4 * GIB, HVA)], root, counted=(1 << 20, 0, 0))

    report = looked(world, huge=False)

    assert only_slot(report).mapped["4K"] == 4 * GIB
    assert report.exact


def test_memory_that_goes_away_does_not_end_the_look_at_the_other_vms() -> None:
    world = World()
    gone = world.add_vm([Slot(0, GIB, HVA)], pid=5)
    world.add_vm([Slot(0, GIB, HVA)], tree(world, {0: SMALL}), counted=(1, 0, 0), pid=6)
    del world.ranges[gone + SHAPES.offset("kvm.stat.pages_4k")]

    report = looked(world)

    notes = {vm.pid: vm.note for vm in report.vms}
    assert notes[6] == ""
    assert "changed while it was read" in notes[5]


def test_an_unreadable_list_of_vms_is_no_silent_end() -> None:
    kernel = KernelView(RecordedMemory({}), SHAPES, {"vm_list": 0x1000}, DIRECT_MAP)

    with pytest.raises(Unreadable):
        survey(kernel, WorldProcesses(ANONYMOUS, huge=True))
