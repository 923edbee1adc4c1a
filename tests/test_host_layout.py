"""A VM that was looked at as a layout: what check says of it, and what the kernel said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from live import KERNELS, STAGES, Look, look

from guestmem.host.document import HostReport
from guestmem.host.survey import survey
from guestmem.layout.coverage import cover
from guestmem.layout.error import LayoutError
from guestmem.layout.readers.host import read, to_layouts
from guestmem.layout.reasons import Reason
from guestmem.layout.recognise import load, recognise
from guestmem.layout.recognise import read as read_any
from guestmem.layout.value import Layout, Slot

MIB = 1 << 20


@pytest.fixture(params=[(kernel, stage) for kernel in KERNELS for stage in STAGES], ids="-".join)
def seen(request: pytest.FixtureRequest) -> Look:
    return look(*request.param)


def layout_of(seen: Look) -> tuple[HostReport, Layout]:
    report = survey(seen.kernel, seen.processes)
    (layout,) = to_layouts("seen", report)
    return report, layout


def _with_huge(slot: Slot, pieces: tuple[tuple[int, int], ...]) -> Slot:
    return replace(slot, backing=replace(slot.backing, huge=pieces))


def test_check_says_of_every_slot_what_the_kernels_verdict_and_the_host_allow(seen: Look) -> None:
    report, layout = layout_of(seen)
    (vm,) = report.vms

    covered = cover(layout).slots

    assert len(covered) == len(vm.slots)
    for item, slot in zip(covered, vm.slots, strict=True):
        assert list(item.mapped) == list(slot.possible.values()), slot.gpa


def test_nothing_is_mapped_larger_than_check_predicts(seen: Look) -> None:
    report, layout = layout_of(seen)

    for item, slot in zip(cover(layout).slots, report.vms[0].slots, strict=True):
        assert slot.mapped["1G"] <= item.mapped[2]
        assert slot.mapped["1G"] + slot.mapped["2M"] <= item.mapped[1]


def test_a_look_leaves_nothing_to_assume(seen: Look) -> None:
    assert layout_of(seen)[1].assumptions == ()


def test_what_was_saved_is_read_back_as_the_same_layout(seen: Look, tmp_path: Path) -> None:
    report, layout = layout_of(seen)
    path = tmp_path / "saved.json"
    path.write_bytes(msgspec.json.encode(report))

    assert recognise(str(path), load(str(path))) == "guestmem-host"
    (again,) = read_any(str(path), load(str(path)))
    assert again.slots == layout.slots


def test_memory_without_huge_pages_is_lost_to_its_backing_except_where_they_are() -> None:
    _, layout = layout_of(look("7.2", "A"))
    slot = next(slot for slot in layout.slots if slot.number == 6)
    assert slot.hva is not None
    piece = (slot.hva + 2 * MIB, slot.hva + 4 * MIB)
    with_piece = layout.only([_with_huge(slot, (piece,))])

    (none,) = cover(layout.only([slot])).slots
    (one,) = cover(with_piece).slots

    assert none.mapped[1] == 0
    assert one.mapped[1] == 2 * MIB
    assert {(lost.reason, lost.size) for lost in one.lost if lost.page_size == 2 * MIB} == {(Reason.BACKING, 2 * MIB)}


def test_pieces_that_cross_frames_count_their_whole_frames_only() -> None:
    _, layout = layout_of(look("7.2", "A"))
    slot = next(slot for slot in layout.slots if slot.number == 6)
    assert slot.hva is not None
    crossing = _with_huge(slot, ((slot.hva + MIB, slot.hva + 3 * MIB),))

    (covered,) = cover(layout.only([crossing])).slots

    assert covered.mapped[1] == 0


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("gpa", "12", "gpa"),
        ("hva", "0xzz", "hva"),
        ("size", "big", "size"),
        ("size", -4096, "size"),
        ("size", 0, "size"),
        ("offset", "-0x1", "offset"),
    ],
)
def test_a_saved_file_that_was_changed_says_where(path: str, value: object, said: str) -> None:
    report, _ = layout_of(look("7.2", "A"))
    document = json.loads(msgspec.json.encode(report))
    document["vms"][0]["slots"][0][path] = value

    with pytest.raises(LayoutError, match=said):
        read("saved.json", json.dumps(document).encode())


def test_a_saved_file_of_counters_only_has_no_layout() -> None:
    report, _ = layout_of(look("7.2", "A"))
    document = json.loads(msgspec.json.encode(report))
    document["vms"][0]["totals"]["size"] = None
    document["vms"][0]["note"] = "counters only"

    with pytest.raises(LayoutError, match="counters only"):
        read("saved.json", json.dumps(document).encode())


@pytest.mark.parametrize("source", ["pid:", "pid:abc", "pid:-1", "pid:123456789012"])
def test_a_process_is_named_by_its_number(source: str) -> None:
    from guestmem.layout.live import read_live

    with pytest.raises(LayoutError, match="process number"):
        read_live(source)
