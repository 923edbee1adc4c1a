"""guestmem's own layout format, and recognition of every format by content."""

from __future__ import annotations

import gzip
import json
import tomllib
from pathlib import Path

import pytest
from examples import LAYOUTS, ROOT, layout

from guestmem.layout import Backing, LayoutError, Range, cover
from guestmem.layout import recognise as recognising
from guestmem.layout.formats import FORMATS
from guestmem.layout.readers import own
from guestmem.layout.recognise import load, read, recognise
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, MIB

FULL = """
name = "vm"
[[files]]
name = "ram"
size = "4G"
page_size = "1G"
flags = ["mmap", "init_shared"]
[[slots]]
gpa = "0x0"
size = "2G"
hva = "0x7f0000000000"
flags = ["log_dirty_pages", "readonly"]
region = "pc.ram"
offset = 4096
backing = {kind = "hugetlb", page_size = "2M"}
slot = 3
[[slots]]
gpa = 4294967296
size = "2G"
file = "ram"
offset = "1G"
address_space = 1
[[private]]
gpa = "4G"
size = "2M"
"""


def test_toml_and_json_say_the_same() -> None:
    (from_toml,) = own.read_toml("x", FULL.encode())
    (from_json,) = own.read_json("x", json.dumps(tomllib.loads(FULL)).encode())
    assert from_toml == from_json
    low, high = from_toml.slots
    assert (low.gpa, low.size, low.hva, low.number) == (0, 2 * GIB, 0x7F0000000000, 3)
    assert low.flags == KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
    assert low.backing == Backing("hugetlb", 2 * MIB)
    assert (high.gpa, high.file, high.offset, high.flags) == (4 * GIB, "ram", GIB, KVM_MEM_GUEST_MEMFD)
    assert high.address_space == 1
    assert from_toml.private == (Range(4 * GIB, 4 * GIB + 2 * MIB),)
    assert from_toml.file_of(high) == from_toml.files[0]
    assert (from_toml.files[0].flags, from_toml.files[0].page_size) == (3, GIB)


def test_what_a_layout_does_not_say_is_an_assumption() -> None:
    (found,) = own.read_json("x", b'{"slots": [{"gpa": 0, "size": 4096}, {"gpa": 4096, "size": 4096, "file": "f"}]}')
    assert [note.about for note in found.assumptions] == ["attributes", "hva"]
    assert found.private == (Range(4096, 8192),)
    (told,) = own.read_json("x", b'{"slots": [{"gpa": 0, "size": 4096, "file": "f"}], "private": []}')
    assert told.assumptions == ()
    assert told.private == ()


def test_every_shipped_toml_layout_is_readable() -> None:
    for path in LAYOUTS.glob("*.toml"):
        assert layout(path.name).slots


def test_the_discussion_example_is_one_slot_of_1g_at_offset_0x4000() -> None:
    (slot,) = layout("discussion.toml").slots
    assert (slot.gpa, slot.size, slot.offset) == (0, GIB, 0x4000)


def test_the_schema_names_every_key_and_refuses_others() -> None:
    schema = own.schema()
    assert schema["$schema"].endswith("2020-12/schema")
    definitions = schema["$defs"]
    assert set(definitions["SlotSpec"]["properties"]) == set(own.SlotSpec.__struct_fields__)
    assert set(definitions["LayoutSpec"]["required"]) == {"slots"}
    assert all(spec["additionalProperties"] is False for spec in definitions.values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"slots": [{"gpa": 0}]}', "slots[0]: Object missing required field `size`"),
        ('{"slots": [{"gpa": 0, "size": 4096, "hvaa": 1}]}', "hvaa"),
        ('{"slots": [{"gpa": -1, "size": 4096}]}', "slots[0].gpa"),
        ('{"slots": [{"gpa": 1.5, "size": 4096}]}', "slots[0].gpa"),
        ('{"slots": [{"gpa": 18446744073709551616, "size": 4096}]}', "slots[0].gpa"),
        ('{"slots": [{"gpa": "12Q", "size": 4096}]}', "slots[0].gpa: not a size"),
        ('{"slots": [{"gpa": 0, "size": 1, "flags": ["fast"]}]}', "slots[0].flags[0]"),
        ('{"slots": [{"gpa": 0, "size": 1, "backing": {"page_size": "3M"}}]}', "slots[0].backing.page_size '3M'"),
        ('{"slots": [], "private": [{"gpa": 1, "size": 4096}]}', "private[0]"),
        ('{"slots": [], "private": [{"gpa": 0, "size": "16E"}]}', "private[0].size"),
        ('{"slots": [], "files": [{"name": "f", "page_size": 5}]}', "files[0].page_size"),
        ('{"slots": [], "format": "guestmem-layout/2"}', "format"),
        ('{"slots": ' + "[" * 100_000, "x: "),
        ('{"slots": [{"gpa": 0, "size": 4096, "region": "' + "a" * 10 + "\\u0000\x1b" + '"}', "x: needed JSON"),
    ],
)
def test_a_broken_layout_is_one_line_that_names_the_field(text: str, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        own.read_json("x", text.encode())
    assert wanted in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_broken_toml_is_one_line() -> None:
    for text in (b"slots = [", b"\xff\xfe", b"slots = " + b"9" * 5000, b"a = " + b"[" * 100_000):
        with pytest.raises(LayoutError) as refused:
            own.read_toml("x", text)
        assert str(refused.value).isprintable()


KINDS = {
    "qemu72-q35-4G.txt": "qemu-mtree",
    "qemu72-microvm-768M-stdio-raw.txt": "qemu-mtree",
    "qemu72-q35-4G.kvm_set_user_memory.txt": "qemu-trace",
    "qemu100-q35-10G-booted.kvm_set_user_memory.txt": "qemu-trace",
    "libvirt-plain.xml": "libvirt",
    "ch-simple-8G-hugepages.json": "cloud-hypervisor",
    "fc-4608M-2M.json": "firecracker",
    "fc-uffd-handshake.json": "firecracker-uffd",
    "strace61-gm-rawioctl.txt": "strace",
    "strace72-gm-N-y.txt": "strace",
    "gdb-ioctl-dump-gm.txt": "gdb-dump",
    "discussion.toml": "guestmem-toml",
    "../host/kvmstory.json": "guestmem-host",
    "../../tests/data/argv/libvirt-plain.argv": "qemu-argv",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_format_is_recognised_by_content(name: str, kind: str) -> None:
    assert recognise(name, (LAYOUTS / name).read_bytes()) == kind


def test_every_format_is_recognised_somewhere_in_these_tests() -> None:
    assert set(FORMATS) - set(KINDS.values()) == {"guestmem-json", "guestmem-fleet", "guestmem-parquet", "recording"}


def test_shipped_recordings_are_recognised_and_read() -> None:
    for path in (ROOT / "examples" / "recordings").glob("*.jsonl.gz"):
        data = load(str(path))
        assert recognise(path.name, data) == "recording"
        assert read(path.name, data)


def test_a_fleet_is_one_layout_a_line() -> None:
    line = b'{"slots": [{"gpa": 0, "size": 4096}]}\n'
    assert recognise("f", line) == "guestmem-json"
    assert recognise("f", line * 2) == "guestmem-fleet"
    assert [found.source for found in read("f", line * 2)] == ["f:1", "f:2"]
    with pytest.raises(LayoutError, match="f:3"):
        read("f", line * 2 + b"{\n")


@pytest.mark.parametrize(
    "data",
    [b"", b" \n", b"hello", b"\x00" * 100, b"{}", b"[]", b"3", b"PK\x03\x04", b"ioctl(", b'{"a":', b"\xff\xfe<\x00"],
)
def test_an_unknown_file_is_one_line(data: bytes) -> None:
    with pytest.raises(LayoutError) as refused:
        read("x", data)
    assert str(refused.value).startswith("x: ")
    assert "\n" not in str(refused.value)


def test_a_named_format_wins_and_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(LayoutError, match="FlatView"):
        read("x", (LAYOUTS / "libvirt-plain.xml").read_bytes(), "qemu-mtree")
    with pytest.raises(LayoutError, match="qemu-mtree, qemu-trace"):
        read("x", b"", "vmware")


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognising, "MAX_BYTES", 1000)
    plain, packed, cut = tmp_path / "plain", tmp_path / "packed", tmp_path / "cut"
    plain.write_bytes(b"a" * 1001)
    packed.write_bytes(gzip.compress(b"\0" * 100_000))
    cut.write_bytes(gzip.compress(b"abc")[:-6])
    for path, wanted in ((plain, "at most"), (packed, "at most"), (cut, "gzip"), (tmp_path, "cannot be read")):
        with pytest.raises(LayoutError, match=wanted):
            load(str(path))


def test_a_gigabyte_without_a_line_end_is_refused_after_a_megabyte() -> None:
    data = b"kvm_set_user_memory Slot#0 " + b"a" * (3 << 20)
    with pytest.raises(LayoutError, match="no line is longer"):
        read("x", data)


def test_an_exabyte_vm_is_read_and_covered() -> None:
    text = b'{"slots": [{"gpa": 0, "size": "4T", "backing": {"kind": "hugetlb", "page_size": "1G"}}]}'
    assert cover(read("x", text)[0]).leaves == (0, 0, 4096)
