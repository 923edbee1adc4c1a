"""Readers of strace logs, debugger dumps and recordings: the program gm.py, seen in every spelling."""

from __future__ import annotations

import pytest
from examples import LAYOUTS, layout

from guestmem.layout import Backing, LayoutError, Range, Reason, cover
from guestmem.layout.readers import gdb_dump, recording, strace
from guestmem.layout.replay import MappingTable, ProcessMapping
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import MIB

GM_LOGS = [
    "strace61-gm.txt",
    "strace61-gm-Xraw-y-ttt.txt",
    "strace613-gm.txt",
    "strace613-gm-Xverbose-y.txt",
    "strace72-gm-N-y.txt",
]


@pytest.mark.parametrize("name", GM_LOGS)
def test_every_spelling_of_strace_gives_the_slots_gm_py_left(name: str) -> None:
    found = layout(name)
    assert [(slot.number, slot.gpa, slot.size, slot.flags) for slot in found.slots] == [
        (3, 0x9000000, 16 * MIB, 0),  # moved; slot 0 deleted, slot 4 refused
        (2, 0xFFFC0000, 256 << 10, KVM_MEM_READONLY),
        (1, 1 << 32, 32 * MIB, KVM_MEM_LOG_DIRTY_PAGES),
    ]
    assert [slot.backing.kind for slot in found.slots] == ["anonymous", "anonymous", "shmem"]
    assert found.slots[2].region == "memfd guest-ram (fd 5)"
    assert found.slots[2].offset == 32 * MIB


@pytest.mark.parametrize("name", [*GM_LOGS, "strace61-gm-rawioctl.txt"])
def test_what_strace_cannot_show_is_said_with_what_to_use_instead(name: str) -> None:
    (remark,) = layout(name).remarks
    assert remark.id == "slots-missing"
    assert "3 KVM_SET_USER_MEMORY_REGION2" in remark.message
    assert "guest_memfd fd 9 is at least 8M long" in remark.message
    assert "kvm_set_user_memory" in remark.remedy
    assert "gdb-dump" in remark.remedy


def test_a_log_of_raw_arguments_has_no_slot_and_says_so() -> None:
    found = layout("strace61-gm-rawioctl.txt")
    assert found.slots == ()
    assert "7 KVM_SET_USER_MEMORY_REGION (line 12)" in found.remarks[0].message


def test_qemu_under_strace_has_its_final_slots_and_the_memfd_behind_them() -> None:
    found = layout("strace61-qemu72-q35-10G-memfd.txt")
    assert [(slot.number, slot.gpa, slot.size) for slot in found.slots] == [
        (0, 0, 0xA0000),
        (3, 0xC0000, 0x20000),
        (4, 0xE0000, 0x20000),
        (5, 0x100000, 0x7FF00000),
        (2, 0xFFFC0000, 0x40000),
        (1, 1 << 32, 8 << 30),
    ]
    ram = [slot for slot in found.slots if slot.size > MIB]
    assert {slot.region for slot in ram} == {"memfd memory-backend-memfd (fd 9)"}
    assert [slot.offset for slot in ram] == [0x100000, 0x80000000]
    assert cover(found).mapped[1] == 0
    assert found.remarks == ()


def test_a_call_split_over_two_lines_is_put_together() -> None:
    text = b"""7 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=65537, flags=0, guest_phys_addr=0, memory_size=4096, \
userspace_addr=0x7f0000000000} <unfinished ...>
8 ioctl(5, KVM_RUN, 0) = 0
7 <... ioctl resumed>) = 0
"""
    (found,) = strace.read("x", text)
    (slot,) = found.slots
    assert (slot.number, slot.address_space, slot.size) == (1, 1, 4096)


def test_hugetlb_mappings_have_the_page_size_of_their_flags() -> None:
    text = b"""1 memfd_create("a", MFD_CLOEXEC|MFD_HUGETLB|30<<MFD_HUGE_SHIFT) = 5
1 mmap(NULL, 1073741824, PROT_READ|PROT_WRITE, MAP_SHARED, 5, 0) = 0x7f0000000000
1 mmap(NULL, 4194304, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = 0x7e0000000000
1 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=1073741824, \
userspace_addr=0x7f0000000000}) = 0
1 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0x40000000, memory_size=4194304, \
userspace_addr=0x7e0000000000}) = 0
"""
    assert cover(strace.read("x", text)[0]).leaves == (0, 2, 1)


def test_a_mapping_over_another_replaces_its_part() -> None:
    table = MappingTable()
    backing = Backing("anonymous")
    table.map(ProcessMapping(0, 100, "a", 0, backing))
    table.map(ProcessMapping(40, 60, "b", 7, backing))
    table.unmap(90, 95)
    found = {at: table.find(at) for at in (0, 39, 40, 59, 60, 89, 90, 94, 95, 99, 100)}
    names = {at: None if mapping is None else (mapping.name, mapping.offset) for at, mapping in found.items()}
    assert names == {
        0: ("a", 0), 39: ("a", 0), 40: ("b", 7), 59: ("b", 7), 60: ("a", 60), 89: ("a", 60),
        90: None, 94: None, 95: ("a", 95), 99: ("a", 95), 100: None,
    }  # fmt: skip


def test_a_log_without_slots_says_how_to_make_one_with() -> None:
    with pytest.raises(LayoutError, match="strace -f -e trace="):
        strace.read("x", b"1 ioctl(3, TCGETS, 0x7f) = -1 ENOTTY (x)\n")


def test_the_debugger_dump_shows_the_guest_memfd_slots_of_gm_py() -> None:
    found = layout("gdb-ioctl-dump-gm.txt")
    assert [(slot.number, slot.gpa, slot.size, slot.file, slot.offset) for slot in found.slots] == [
        (3, 0x9000000, 16 * MIB, None, None),
        (5, 0x10000000, 32 * MIB, "fd 8", 0),
        (6, 0x20000000, 16 * MIB, "fd 8", 32 * MIB + 4096),
        (8, 0x40000000, 8 * MIB, "fd 9", 0),
        (2, 0xFFFC0000, 256 << 10, None, None),
        (1, 1 << 32, 32 * MIB, None, None),
    ]  # slot 4 collides, slot 7 is past the end of its file
    assert {(file.name, file.size, file.flags) for file in found.files} == {("fd 8", 64 * MIB, 0), ("fd 9", 8 * MIB, 3)}
    assert found.private == (Range(0x10000000, 0x10200000),)
    assert all(slot.flags == KVM_MEM_GUEST_MEMFD for slot in found.slots if slot.file)


def test_a_cut_debugger_dump_names_its_line() -> None:
    text = (LAYOUTS / "gdb-ioctl-dump-gm.txt").read_bytes()
    with pytest.raises(LayoutError, match="x:4: words"):
        gdb_dump.read("x", b"\n".join(text.split(b"\n")[:5]))


RECORDING = b"""{"op":"begin","seq":"a","i":-1,"kind":"t","profile":"612"}
{"seq":"a","i":0,"op":"create_vm","type":1,"out":"vm0","result":"vm0","errno":null}
{"seq":"a","i":1,"op":"create_guest_memfd","vm":"vm0","size":4194304,"flags":0,"out":"gm0","errno":null}
{"seq":"a","i":2,"op":"dup","fd":"gm0","out":"gm1","errno":null}
{"seq":"a","i":3,"op":"set_user_memory_region2","vm":"vm0","slot":0,"flags":4,"gpa":0,"size":4194304,\
"userspace_addr":{"buf":"A","off":0},"guest_memfd":"gm1","guest_memfd_offset":0,"errno":null}
{"seq":"a","i":4,"op":"set_user_memory_region2","vm":"vm0","slot":1,"flags":0,"gpa":4096,"size":4096,\
"userspace_addr":{"buf":"A","off":0},"guest_memfd":-1,"guest_memfd_offset":0,"errno":"EEXIST"}
{"seq":"a","i":5,"op":"set_user_memory_region","vm":"vm0","slot":2,"flags":0,"gpa":8388608,"size":2097152,\
"userspace_addr":{"buf":"B","off":4096},"errno":null}
{"seq":"a","i":6,"op":"set_memory_attributes","vm":"vm0","address":0,"size":2097152,"attributes":8,"flags":0,"errno":null}
{"seq":"a","i":7,"op":"set_memory_attributes","vm":"vm0","address":4096,"size":4096,"attributes":0,"flags":0}
{"seq":"a","i":8,"op":"close","fd":"gm0","errno":null}
"""


def test_a_recording_ends_with_the_slots_attributes_and_files_that_stand() -> None:
    (found,) = recording.read("r", RECORDING)
    assert found.source == "r#a/vm0"
    assert [(slot.number, slot.gpa, slot.size, slot.file) for slot in found.slots] == [
        (0, 0, 4 * MIB, "gm0"),
        (2, 8 * MIB, 2 * MIB, None),
    ]
    assert found.private == (Range(0, 4096), Range(8192, 2 * MIB))
    # 2M-aligned buffers: slot 0 is mixed in its first frame and huge in its second, slot 2 is 4K off.
    assert cover(found).leaves == (1024, 1, 0)


def test_a_closed_file_leaves_private_pages_nowhere_to_come_from() -> None:
    closed = RECORDING + b'{"seq":"a","i":9,"op":"close","fd":"gm1","errno":null}\n'
    (found,) = recording.read("r", closed)
    assert {item.reason for item in cover(found).lost if item.page_size == 4096} == {Reason.NO_FILE}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (RECORDING[:300], "r:4: Input data was truncated"),
        (b'{"op": 5}\n', "r:1: Expected `str`"),
        (RECORDING + b'{"seq":"a","i":9,"op":"fly"}\n', "r:11: Invalid value 'fly'"),
        (b'{"op":"begin","seq":"a"}\n', "no VM of this recording"),
    ],
)
def test_a_broken_recording_is_one_line_that_names_the_place(text: bytes, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        recording.read("r", text)
    assert wanted in str(refused.value)
