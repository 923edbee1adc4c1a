"""guestmem host inside of real kernels: packages booted under emulation, and the story program looked at in them.

Runs with --host-kernels DIR: a directory with one directory for each kernel, which holds its Debian packages
(make test-host). The program's stages are those of tests/data/live/README.md.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from emulated_host import StageLook, missing_tools, run_story

from guestmem.host.document import HostSlot

pytestmark = pytest.mark.host
P, MIB, GIB = 4096, 1 << 20, 1 << 30
STAGES = "ABCDEFGHI"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    directory = metafunc.config.getoption("--host-kernels")
    kernels = sorted(path for path in Path(directory).iterdir() if path.is_dir()) if directory else []
    metafunc.parametrize("kernel", kernels, ids=lambda path: path.name, scope="module")


@pytest.fixture(scope="module")
def looks(kernel: Path) -> list[StageLook]:
    """What both readers saw at each stage in this kernel."""
    assert missing_tools() == []
    return _looks(kernel)


@cache
def _looks(kernel: Path) -> list[StageLook]:
    return run_story(kernel)


def slot_of(looks: list[StageLook], stage: str, number: int) -> HostSlot:
    """A slot as the first reader saw it."""
    report = next(look.report for look in looks if look.stage == stage)
    return next(slot for slot in report.vms[0].slots if slot.slot == number)


def test_both_readers_look_at_every_stage(looks: list[StageLook]) -> None:
    assert [(look.stage, look.report.reader) for look in looks] == [
        (stage, reader) for stage in STAGES for reader in ("kcore", "bpf")
    ]


def test_the_walk_finds_as_many_leaves_as_kvm_counts(looks: list[StageLook]) -> None:
    for look in looks:
        assert len(look.report.vms) == 1
        assert look.report.exact, (look.stage, look.report.vms[0].totals)


def test_both_readers_see_the_same_slots(looks: list[StageLook]) -> None:
    for by_kcore, by_bpf in zip(looks[::2], looks[1::2], strict=True):
        if by_kcore.stage != "H":  # khugepaged may work on slot 1 between the two
            assert by_kcore.report.vms[0].slots == by_bpf.report.vms[0].slots, by_kcore.stage


def test_each_slot_loses_its_pages_for_its_own_reason(looks: list[StageLook]) -> None:
    reasons = {number: [item.reason for item in slot_of(looks, "A", number).lost] for number in range(7)}

    assert reasons == {0: ["tail"], 1: ["head"], 2: ["hva"], 3: [], 4: [], 5: ["dirty_log"], 6: ["backing"]}


def test_hugetlb_memory_is_mapped_with_its_pages(looks: list[StageLook]) -> None:
    assert slot_of(looks, "A", 3).mapped == {"4K": 0, "2M": 8 * MIB, "1G": 0}
    assert slot_of(looks, "A", 4).mapped == {"4K": 0, "2M": 0, "1G": GIB}


def test_dirty_logging_splits_every_large_page_at_once(looks: list[StageLook]) -> None:
    before, logged = slot_of(looks, "A", 1), slot_of(looks, "B", 1)

    assert logged.mapped == {"4K": before.mapped["4K"] + before.mapped["2M"], "2M": 0, "1G": 0}
    assert {item.reason: item.bytes for item in logged.lost} == {
        "head": before.mapped["4K"],
        "dirty_log": before.mapped["2M"],
    }


def test_memory_that_was_collapsed_is_possible_and_mapped_once_it_is_touched(looks: list[StageLook]) -> None:
    collapsed, touched = slot_of(looks, "E", 6), slot_of(looks, "F", 6)

    assert collapsed.possible["2M"] == 4 * MIB
    assert sum(collapsed.mapped.values()) == 0
    assert touched.mapped == {"4K": 0, "2M": 2 * MIB, "1G": 0}


def test_deleted_slots_are_gone_and_so_is_every_leaf(looks: list[StageLook]) -> None:
    report = looks[-1].report

    assert {slot.slot for slot in report.vms[0].slots}.isdisjoint({2, 6})
    assert sum(report.vms[0].totals.mapped.values()) == 0
