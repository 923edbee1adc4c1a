"""Looking at VMs on four recorded kernels: slots, leaves and reasons as KVM and /proc told them by other means."""

from __future__ import annotations

from typing import Any

import pytest
from live import KERNELS, STAGES, Look, look

from guestmem.host.document import HostReport, HostSlot
from guestmem.host.leaves import Leaves
from guestmem.host.slots import read_slots
from guestmem.host.stage2 import find_roots, walk_roots
from guestmem.host.survey import survey
from guestmem.host.vms import find_vms

MIB = 1 << 20
# The recorded prototype's words for reasons, and the ones of guestmem that may stand for each.
WORDS = {
    "4K: head or tail of the slot": {"head", "tail"},
    "4K: hva not congruent": {"hva"},
    "4K: dirty logging": {"dirty_log"},
    "4K: guest_memfd has 4K folios": {"order_0"},
    "4K: host maps 4K here": {"backing"},
    "4K: host unknown": {"backing", "unknown"},  # smaps tells for whole mappings where PAGEMAP_SCAN is missing
}


@pytest.fixture(params=[(kernel, stage) for kernel in KERNELS for stage in STAGES], ids="-".join)
def seen(request: pytest.FixtureRequest) -> Look:
    return look(*request.param)


def reported(seen: Look) -> HostReport:
    return survey(seen.kernel, seen.processes)


def pairs(seen: Look) -> list[tuple[HostSlot, dict[str, Any]]]:
    """Each slot as it is reported and as it was seen."""
    (vm,) = reported(seen).vms
    return list(zip(vm.slots, seen.vm["slots"], strict=True))


def test_the_vm_is_found_with_its_process(seen: Look) -> None:
    (vm,) = find_vms(seen.kernel, seen.processes)

    assert vm.pid == seen.vm["pid"]
    assert vm.type == seen.vm.get("vm_type")


def test_another_process_has_no_vm(seen: Look) -> None:
    assert list(find_vms(seen.kernel, seen.processes, seen.vm["pid"] + 1)) == []


def test_every_slot_is_found_as_it_was_set(seen: Look) -> None:
    for slot, was in pairs(seen):
        assert (slot.slot, slot.address_space, slot.size) == (was["id"], was["as"], was["size"])
        assert (slot.gpa, slot.hva) == (f"{was['gpa']:#x}", f"{was['hva']:#x}")
        assert slot.flags == was["flags"] & 0xFFFF


def test_a_guest_memfd_is_told_with_its_offset(seen: Look) -> None:
    for slot, was in pairs(seen):
        bound = was.get("gmem")
        if bound is None:
            assert slot.guest_memfd is None
        else:
            assert slot.guest_memfd is not None
            assert (slot.guest_memfd.offset, slot.guest_memfd.size) == (f"{bound['off']:#x}", bound["size"])


def test_the_walk_finds_as_many_leaves_as_kvm_counts(seen: Look) -> None:
    (vm,) = find_vms(seen.kernel, seen.processes)
    slots = read_slots(seen.kernel, vm.address)

    leaves: Leaves = walk_roots(seen.kernel, vm.address, find_roots(seen.kernel, vm.address), slots)

    stat = seen.vm["stat"]
    assert leaves.leaves == (stat["pages_4k"], stat["pages_2m"], stat["pages_1g"])
    assert leaves.tables == seen.vm["tables"]
    assert leaves.unreadable == 0


def test_what_is_mapped_of_each_slot_was_seen_so(seen: Look) -> None:
    for slot, was in pairs(seen):
        assert list(slot.mapped.values()) == list(was["mapped"].values())


def test_each_reason_and_its_bytes_were_seen_so(seen: Look) -> None:
    for slot, was in pairs(seen):
        wanted = {name: size for name, size in was["why"].items() if name in WORDS}
        lost = [item for item in slot.lost if item.level == "2M"]
        assert sum(item.bytes for item in lost) == sum(wanted.values())
        for name, size in wanted.items():
            assert sum(item.bytes for item in lost if item.reason in WORDS[name]) == size


def test_the_report_says_that_walk_and_count_agree(seen: Look) -> None:
    report = reported(seen)

    assert report.exact
    assert report.reader == "recorded"


def test_nothing_more_is_possible_than_kvm_allows(seen: Look) -> None:
    for slot, was in pairs(seen):
        assert slot.possible["4K"] == was["size"]
        assert slot.possible["2M"] <= was["can"]["2"]
        assert slot.possible["1G"] <= was["can"]["3"]


def test_no_kernel_address_is_in_a_report(seen: Look) -> None:
    import msgspec

    text = msgspec.json.encode(reported(seen)).decode()

    assert "0xff" not in text  # the kernel's half of the address space
    assert str(int(seen.vm["kvm"], 16)) not in text


def test_a_slot_off_by_a_page_cannot_be_mapped_larger() -> None:
    slot = next(slot for slot, _ in pairs(look("7.2", "A")) if slot.gpa == "0x10000000")

    assert slot.possible == {"4K": 16 * MIB - 4096, "2M": 0, "1G": 0}


def test_dirty_logging_takes_what_was_possible() -> None:
    before = next(slot for slot, _ in pairs(look("7.2", "A")) if slot.slot == 1)
    logged = next(slot for slot, _ in pairs(look("7.2", "B")) if slot.slot == 1)

    assert (before.possible["2M"], logged.possible["2M"]) == (62 * MIB, 0)


def test_memory_that_may_not_have_huge_pages_is_possible_once_it_has_them() -> None:
    before = next(slot for slot, _ in pairs(look("7.2", "A")) if slot.slot == 6)
    collapsed = next(slot for slot, _ in pairs(look("7.2", "E")) if slot.slot == 6)

    assert (before.possible["2M"], collapsed.possible["2M"]) == (0, 4 * MIB)


def test_only_hugetlb_memory_of_1g_counts_as_possible_by_1g() -> None:
    possible = {slot.slot: slot.possible["1G"] for slot, _ in pairs(look("7.2", "A"))}

    assert {number for number, size in possible.items() if size} == {4}
    assert possible[4] == 1 << 30
