"""Inputs that fuzzing or a hostile hand found: each is a layout or one LayoutError, never another exception."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from guestmem.layout import LayoutError
from guestmem.layout.readers import fleet_jsonl, fleet_parquet, strace
from guestmem.layout.recognise import load, read, recognise

SET = (
    "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=%s, guest_phys_addr=0, memory_size=4096, "
    "userspace_addr=0x7f0000000000}) = 0\n"
)


def test_a_descriptor_of_strace_may_have_leading_zeros() -> None:
    text = "mmap(NULL, 4096, PROT_READ, MAP_SHARED, 05, 0) = 0x7f0000000000\n" + SET % 0
    (slot,) = strace.read("x", text.encode())[0].slots
    assert slot.region == "fd 5"


def test_strace_flags_shift_by_the_shifts_that_strace_prints_only() -> None:
    with pytest.raises(LayoutError, match="shift"):
        strace.read("x", (SET % "1<<MAP_HUGETLB").encode())


def parquet_of(**columns: list[object]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize("field", ["hva", "offset", "gpa", "size"])
def test_an_empty_number_in_a_fleet_is_refused_by_its_field(field: str) -> None:
    slot = {"gpa": 0, "size": 4096} | {field: ""}
    with pytest.raises(LayoutError, match=field):
        fleet_jsonl.read("x", json.dumps({"slots": [slot]}).encode())


def test_a_parquet_column_whose_name_is_no_utf8_is_refused() -> None:
    good = parquet_of(vm=["a"], gpa=[0], size=[4096], zzzzzz=[1])
    with pytest.raises(LayoutError, match="Parquet"):
        fleet_parquet.read("x", good.replace(b"zzzzzz", b"\x9czzzzz"))


def test_columns_of_a_fleet_that_mean_nothing_here_are_not_even_read() -> None:
    fleet = fleet_parquet.read("x", parquet_of(vm=["a"], gpa=[0], size=[4096], note=[{"deep": [1]}]))
    assert fleet.slots == 1


def test_a_table_of_more_rows_than_memory_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_parquet, "_MAX_ROWS", 2)
    with pytest.raises(LayoutError, match="at most 2"):
        fleet_parquet.read("x", parquet_of(vm=["a"] * 3, gpa=[0] * 3, size=[4096] * 3))


@pytest.mark.parametrize(
    "text", ["[[slots]]\ngpa = 0\nsize = '4K'\n", "\n [[slots]]\ngpa = 0\nsize = '4K'\n", "slots = []"]
)
def test_a_toml_layout_is_recognised_wherever_its_slots_begin(text: str) -> None:
    assert recognise("x", text.encode()) == "guestmem-toml"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "text",
    [b'{"slots": []}', b"[[slots]]\ngpa = 0\nsize = 4096\n", b"<domain><memory>1024</memory></domain>",
     b'{"slots": []}\n{"slots": []}\n'],
)  # fmt: skip
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, mark: bytes, text: bytes) -> None:
    (tmp_path / "file").write_bytes(mark + text)
    assert load(str(tmp_path / "file")) == text


LONG = 200_000  # characters: with work that grows as the square of the line, these would take minutes
MTREE = 'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
ROW = "  0000000000000000-0000000000000fff (prio 0, ram): "


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("strace", f"ioctl(4, KVM_SET_USER_MEMORY_REGION, {'/*' * LONG}) = 0\n"),
        ("strace", f"ioctl(4, KVM_SET_USER_MEMORY_REGION, {{{'a' * LONG}}}) = 0\n"),
        ("qemu-trace", f"kvm_set_user_memory Slot#0 {'a' * LONG}\n"),
        ("qemu-trace", f"{'1' * LONG} kvm_set_user_memory Slot#0\n"),
        ("qemu-mtree", f"{MTREE}{ROW}{' ' * LONG}x\n"),
        ("qemu-mtree", f"{MTREE}{ROW}{' owner:{' * LONG}\n"),
        ("qemu-mtree", f"{MTREE}{ROW}{' orphan' * LONG}x\n"),
        ("qemu-mtree", f"{MTREE}{ROW}{' KVM' * LONG}x\n"),
        (None, "\n" * LONG + "x"),
        (None, "ioctl(1" * LONG),
    ],
)
def test_a_long_line_takes_time_in_proportion(kind: str | None, text: str) -> None:
    problem = ""
    try:
        read("x", text.encode(), kind)
    except LayoutError as error:
        problem = str(error)
    assert problem.isprintable()


def test_a_view_of_many_rows_is_one_slot_a_row() -> None:
    rows = "".join(f"  {at << 13:016x}-{(at << 13) + 0xFFF:016x} (prio 0, ram): pc.ram\n" for at in range(10_000))
    (found,) = read("x", (MTREE + rows).encode(), "qemu-mtree")
    assert len(found.slots) == 10_000
