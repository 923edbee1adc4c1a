"""guestmem host in the lab's kernel: private memory and attributes that mix can be seen only there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from guestmem import lab
from guestmem.host.document import HostReport, HostSlot
from guestmem.units import MIB

pytestmark = pytest.mark.lab
PROGRAM = Path(__file__).parent / "data/lab_host.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[HostReport]:
    """What both readers saw of the program's VM."""
    answer = tmp_path_factory.mktemp("host") / "answer"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with answer.open("wb") as out:
        code = lab.exec_([sys.executable, str(PROGRAM)], environment=environment, stdout=out.fileno())
    assert code == 0
    return msgspec.json.decode(answer.read_bytes(), type=list[HostReport])


def slot_of(report: HostReport) -> HostSlot:
    """The slot of the program; the other one is the guest's own."""
    [slot] = [slot for slot in report.vms[0].slots if slot.size == 8 * MIB]
    return slot


def test_both_readers_find_as_many_leaves_as_kvm_counts(reports: list[HostReport]) -> None:
    assert [report.reader for report in reports] == ["kcore", "bpf"]
    assert all(report.exact for report in reports)
    assert slot_of(reports[0]) == slot_of(reports[1])


def test_a_frame_whose_attributes_mix_cannot_be_mapped_whole(reports: list[HostReport]) -> None:
    """Two pages were touched in it, one in the frame that is all private, one in each that is shared."""
    slot = slot_of(reports[0])

    assert slot.guest_memfd is not None
    assert {item.reason: (item.level, item.bytes) for item in slot.lost} == {
        "mixed": ("2M", 2 * 4096),
        "order_0": ("2M", 4096),
        "backing": ("2M", 2 * 4096),
    }


def test_private_pages_are_counted(reports: list[HostReport]) -> None:
    assert slot_of(reports[0]).private == 2 * MIB + 4096
