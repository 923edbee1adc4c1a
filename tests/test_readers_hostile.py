"""Inputs that fuzzing or a hostile hand found: each is a layout or one LayoutError, never another exception."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from examples import DATA, layout
from program import Guestmem
from pyarrow import parquet

from guestmem.geometry import geometry_named
from guestmem.layout import HostLimits, LayoutError
from guestmem.layout.binding import FileLimits
from guestmem.layout.bound import PACKINGS, Packing, as_bound, judge
from guestmem.layout.check import check
from guestmem.layout.fleet import check_fleet
from guestmem.layout.readers import fleet_jsonl, fleet_parquet, strace
from guestmem.layout.recognise import load, read, recognise
from guestmem.layout.text import number
from guestmem.layout.value import Slot
from guestmem.rules import rule_named

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


def parquet_of(**columns: object) -> bytes:
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
    monkeypatch.setattr(fleet_parquet, "MAX_ROWS", 2)
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


DOMAIN = "<domain type='kvm'><memory unit='GiB'>4</memory>%s<os><type machine='q35'>hvm</type></os></domain>"
PAGE = "<memoryBacking><hugepages><page size='%s'/></hugepages></memoryBacking>"
DIMM = "<devices><memory model='dimm'>%s<target><size unit='GiB'>1</size>%s</target></memory></devices>"


@pytest.mark.parametrize(
    "inside",
    [
        PAGE % 5,
        PAGE % 3072,
        PAGE % (1 << 40),
        DIMM % ("<source><pagesize>5</pagesize></source>", ""),
        DIMM % ("", "<block unit='KiB'>3000</block>"),
        DIMM % ("", f"<node>{'9' * 5000}</node>"),
        "<devices>" + "<memory model='dimm'><target><size>1</size></target></memory>" * 2000 + "</devices>",
    ],
)
def test_a_domain_that_libvirt_would_not_start_is_refused(inside: str) -> None:
    with pytest.raises(LayoutError):
        read("x", (DOMAIN % inside).encode())


@pytest.mark.parametrize("text", ["٤", "1_0", "+1", "0x10"])
def test_a_number_has_ascii_digits_only(text: str) -> None:
    with pytest.raises(LayoutError, match="number"):
        read("x", f"<domain><memory>{text}</memory></domain>".encode())
    with pytest.raises(LayoutError, match="number"):
        number("x", text, 10, line=1, field="f")


def test_cloud_hypervisor_zones_of_one_name_are_refused_as_it_refuses_them() -> None:
    zones = [{"id": "a", "size": 1 << 30}, {"id": "a", "size": 1 << 30}]
    with pytest.raises(LayoutError, match=r"zones 'a'"):
        read("x", json.dumps({"memory": {"size": 0, "zones": zones}}).encode())


@pytest.mark.parametrize("page", [3, -4096, 1 << 80, 1 << 31])
def test_a_page_size_that_no_host_has_is_refused_in_a_uffd_handshake(page: int) -> None:
    mapping = {"base_host_virt_addr": 0x7F0000000000, "size": 128 << 20, "offset": 0, "page_size": page}
    with pytest.raises(LayoutError, match="page_size"):
        read("x", json.dumps([mapping]).encode())


def test_an_hva_below_zero_wraps_as_an_address_does() -> None:
    text = f"{MTREE}  0000000000100000-00000000001fffff (prio 0, ram): pc.ram @0000000000100000\n"
    text += "Host virtual address for 0x1ff000 (pc.ram) is 0x1000\n"
    (found,) = read("x", text.encode())
    assert found.slots[0].hva == 0xFFFF_FFFF_FFF0_2000


def test_a_closed_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(LayoutError, match="closed"):
        load("-")


@pytest.mark.parametrize("line", ["%sb = 1", "[%sb]", "c = {%sb = 1}"])
def test_a_toml_key_of_many_parts_is_refused_before_it_is_read(line: str) -> None:
    with pytest.raises(LayoutError, match="dots"):
        read("x", f"[[slots]]\ngpa = 0\nsize = 4096\n{line % ('a.' * 50_000)}\n".encode())


HUGE = "0x" + "f" * 6000


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (r"slots\[0\]\.gpa 0xff", f"[[slots]]\ngpa = {HUGE}\nsize = 4096\n"),
        (r"slots\[0\]\.size 0xff", f"[[slots]]\ngpa = 0\nsize = {HUGE}\n"),
        (r"slots\[0\]\.slot", f"[[slots]]\ngpa = 0\nsize = 4096\nslot = {HUGE}\n"),
        (r"slots\[0\]\.flags", f"[[slots]]\ngpa = 0\nsize = 4096\nflags = {HUGE}\n"),
        (r"slots\[0\]\.address_space", f"[[slots]]\ngpa = 0\nsize = 4096\naddress_space = {HUGE}\n"),
        (r"slots\[0\]\.address_space", "[[slots]]\ngpa = 0\nsize = 4096\naddress_space = -1\n"),
        (r"files\[0\]\.size 0xff", f"slots = []\nfiles = [{{name = 'a', size = {HUGE}}}]\n"),
        (r"files\[0\]\.flags", f"slots = []\nfiles = [{{name = 'a', flags = {HUGE}}}]\n"),
        (r"private\[0\]\.gpa 0xff", f"slots = []\nprivate = [{{gpa = {HUGE}, size = 4096}}]\n"),
    ],
)
def test_a_number_wider_than_its_field_is_refused_by_name(field: str, text: str) -> None:
    with pytest.raises(LayoutError) as refused:
        read("x", text.encode())
    assert re.match(f"x: {field}", str(refused.value))


TWICE = {
    "guestmem-json": b'{"slots": [{"gpa": 0, "gpa": 4096, "size": 4096}]}',
    "guestmem-fleet": b'{"slots": [{"gpa": 0, "size": 4096, "gpa": 4096}]}\n{"slots": []}\n',
    "cloud-hypervisor": b'{"memory": {"size": 4096}, "gpa": 1, "x": {"gpa": 1, "gpa": 2}}',
    "firecracker": b'{"machine-config": {"mem_size_mib": 128, "gpa": 1, "gpa": 2}}',
    "firecracker-uffd": b'[{"base_host_virt_addr": 0, "size": 4096, "offset": 0, "gpa": 0, "gpa": 0}]',
    "recording": b'{"op": "begin", "seq": "a", "kind": "gpa", "kind": "gpa"}',
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_key_that_json_gives_twice_is_refused_by_name(kind: str) -> None:
    with pytest.raises(LayoutError, match=r"key '(gpa|kind)'"):
        read("x", TWICE[kind], kind)
    if kind == "guestmem-fleet":
        with pytest.raises(LayoutError, match=r"x:1: key 'gpa'"):
            fleet_jsonl.read("x", TWICE[kind])


def test_two_columns_of_one_name_are_refused_by_name() -> None:
    data = (DATA / "adversary" / "parquet-two-gpa-columns.parquet").read_bytes()
    with pytest.raises(LayoutError, match="column gpa: the table has it more than once"):
        fleet_parquet.read("x", data)


@pytest.mark.parametrize("page", [0, 3, 4097])
def test_a_page_size_of_a_parquet_row_is_a_power_of_two(page: int) -> None:
    with pytest.raises(LayoutError, match=f"column page_size {page}: needed a power of two"):
        fleet_parquet.read("x", parquet_of(vm=["a", "b"], gpa=[0, 0], size=[4096] * 2, page_size=[4096, page]))


@pytest.mark.parametrize(("column", "value"), [("address_space", 0x10000), ("address_space", -1), ("gpa", -1)])
def test_a_number_of_a_parquet_row_that_no_ioctl_holds_is_refused(column: str, value: int) -> None:
    columns: dict[str, list[object]] = {"vm": ["a"], "gpa": [0], "size": [4096]}
    with pytest.raises(LayoutError, match=f"column {column}: needed numbers from 0"):
        fleet_parquet.read("x", parquet_of(**{**columns, column: [value]}))


def test_an_address_space_that_no_vm_has_is_an_error_in_a_fleet() -> None:
    fleet = fleet_parquet.read("x", parquet_of(vm=["a"], gpa=[0], size=[4096], address_space=[7]))
    assert check_fleet(fleet, HostLimits()).severity == "error"


def test_names_of_a_parquet_table_are_one_vm_each_however_they_are_encoded() -> None:
    names = pyarrow.chunked_array([["b", "a"], [None, "b"]])
    fleet = fleet_parquet.read("x", parquet_of(vm=names, gpa=[0, 0, 0, 4096], size=[4096] * 4))
    assert fleet.names == ["", "a", "b"]
    assert fleet.columns.vm.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("geometry", ["arm64-16K", "arm64-64K"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_gpa_that_the_base_page_does_not_divide_is_refused_before_any_rule(geometry: str, packing: Packing) -> None:
    found = layout("qemu72-pc-2G-tcg-booted.txt")
    shape = geometry_named(geometry)
    verdicts = judge(found, packing, shape.page_sizes[-1], shape)
    base = shape.base_page_size
    for rule in verdicts.rules:
        for slot, why in zip(verdicts.layout.slots, rule.refusals, strict=True):
            if slot.size % base == 0 and slot.gpa % base:
                assert why is not None and "EINVAL [gpa-page-aligned]" in why
            elif slot.size % base:
                assert why is not None and "EINVAL [size-page-aligned]" in why
    odd = Slot(0x101000, 1 << 20, region="odd")
    for one in judge(replace(found, slots=(odd,)), packing, shape.page_sizes[-1], shape).rules:
        assert "[gpa-page-aligned]" in str(one.refusals[0])
    bound = as_bound(replace(found, slots=(replace(odd, size=0),)), packing)
    check(bound, HostLimits(shape, files=FileLimits(shape.page_sizes[-1], rule_named("gpa-page"))))


def test_a_file_name_writes_nothing_to_a_terminal(guestmem_command: Guestmem, tmp_path: Path) -> None:
    recording = tmp_path / "a\x1b[2J.jsonl"
    recording.write_text('{"op":"begin","seq":"a"}\n{"op":"close","seq":"a","i":0,"fd":77,"errno":null,"result":0}\n')
    capture = tmp_path / "b\x1b[2J.json"
    capture.write_text('{"slots": [{"gpa": 0, "size": 4096}]}')
    page = tmp_path / "c\x1b[2J.html"
    for arguments in (
        ("run", recording), ("explain", recording), ("explain", "--op", "9", recording), ("check", capture),
        ("check", "--html", page, capture), ("rules", capture), ("rules", "--markdown", capture), ("plan", capture),
        ("check", recording), ("run", capture), ("check", tmp_path / "\x1b[2J"), ("run", tmp_path / "\x1b[2J"),
    ):  # fmt: skip
        ended = guestmem_command(*arguments)
        assert "\x1b" not in ended.out + ended.err, arguments
        assert ended.code in (0, 1, 2)
    assert "\x1b" not in page.read_text()


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["check", "--json"], ["check", "--sarif"], ["check", "--html", "page.html"], ["rules"],
     ["rules", "--markdown"], ["rules", "--json"], ["plan"], ["plan", "--json"]],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("text", ['{"slots": [{"gpa": 0, "size": 4096}]}', "nothing"], ids=["layout", "no layout"])
def test_a_file_name_that_is_no_utf8_is_a_name(arguments: list[str], text: str, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\x1b[2J.json"
    Path(os.fsdecode(name)).write_text(text)
    command = [sys.executable, "-m", "guestmem", *arguments, os.fsdecode(name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == (2 if text == "nothing" else 0)
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr.count(b"\n") <= 1
