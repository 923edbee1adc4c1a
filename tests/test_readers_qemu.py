"""Readers of QEMU's text: rows and addresses are those of the captures, written down by hand."""

from __future__ import annotations

import pytest
from examples import LAYOUTS, layout, rows

from guestmem.layout import Backing, LayoutError, Reason, cover
from guestmem.layout.readers import qemu_mtree, qemu_trace
from guestmem.layout.recognise import read, recognise
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, KIB, MIB

PC_ROMS = [("0xc0000", "0x20000", "pc.rom", "0x0"), ("0xe0000", "0x20000", "pc.bios", "0x20000")]
PC_BIOS = ("0xfffc0000", "0x40000", "pc.bios", "0x0")

SLOTS = {
    "qemu72-pc-2G.txt": [
        ("0x0", "0xa0000", "pc.ram", "0x0"),
        *PC_ROMS,
        ("0x100000", "0x7ff00000", "pc.ram", "0x100000"),
        PC_BIOS,
    ],
    "qemu72-pc-3584M.txt": [
        ("0x0", "0xa0000", "pc.ram", "0x0"),
        *PC_ROMS,
        ("0x100000", "0xbff00000", "pc.ram", "0x100000"),
        PC_BIOS,
        ("0x100000000", "0x20000000", "pc.ram", "0xc0000000"),
    ],
    "qemu72-pc17-4G.txt": [
        ("0x0", "0xa0000", "pc.ram", "0x0"),
        ("0xc0000", "0x20000", "pc.rom", "0x0"),
        ("0xe0000", "0x20000", "pc.bios", "0x0"),
        ("0x100000", "0xdff00000", "pc.ram", "0x100000"),
        ("0xfffe0000", "0x20000", "pc.bios", "0x0"),
        ("0x100000000", "0x20000000", "pc.ram", "0xe0000000"),
    ],
    "qemu72-q35-4G-pflash.txt": [
        ("0x0", "0xc0000", "pc.ram", "0x0"),
        ("0xc0000", "0x20000", "pc.rom", "0x0"),
        ("0xe0000", "0x20000", "isa-bios", "0x0"),
        ("0x100000", "0x7ff00000", "pc.ram", "0x100000"),
        ("0xffc00000", "0x84000", "system.flash1", "0x0"),
        ("0xffc84000", "0x37c000", "system.flash0", "0x0"),
        ("0x100000000", "0x80000000", "pc.ram", "0x80000000"),
    ],
    "qemu72-pc-8G-booted.txt": [
        ("0x0", "0xa0000", "pc.ram", "0x0"),
        ("0xc0000", "0xb000", "pc.ram", "0xc0000"),
        ("0xcb000", "0x3000", "pc.ram", "0xcb000"),
        ("0xce000", "0x1a000", "pc.ram", "0xce000"),
        ("0xe8000", "0x8000", "pc.ram", "0xe8000"),
        ("0xf0000", "0x10000", "pc.ram", "0xf0000"),
        ("0x100000", "0xbff00000", "pc.ram", "0x100000"),
        ("0xfd000000", "0x1000000", "vga.vram", "0x0"),
        PC_BIOS,
        ("0x100000000", "0x140000000", "pc.ram", "0xc0000000"),
    ],
    "qemu72-microvm-768M-stdio-raw.txt": [
        ("0x0", "0xf0000", "microvm.ram", "0x0"),
        ("0xf0000", "0x10000", "pc.bios", "0x0"),
        ("0x100000", "0x2ff00000", "microvm.ram", "0x100000"),
        ("0xffff0000", "0x10000", "pc.bios", "0x0"),
    ],
    "qemu72-q35-numa2-dimm.txt": [
        ("0x0", "0xa0000", "n0", "0x0"),
        *PC_ROMS,
        ("0x100000", "0x7ff00000", "n0", "0x100000"),
        PC_BIOS,
        ("0x100000000", "0x80000000", "n0", "0x80000000"),
        ("0x180000000", "0x80000000", "n1", "0x0"),
        ("0x200000000", "0x40000000", "md0", "0x0"),
        ("0x240000000", "0x20000000", "md1", "0x0"),
    ],
    "qemu72-pc-2G-tcg-booted.txt": [
        ("0x0", "0xa0000", "pc.ram", "0x0"),
        ("0xc0000", "0xb000", "pc.ram", "0xc0000"),
        ("0xcb000", "0x3000", "pc.ram", "0xcb000"),
        ("0xce000", "0x1a000", "pc.ram", "0xce000"),
        ("0xe8000", "0x8000", "pc.ram", "0xe8000"),
        ("0xf0000", "0x10000", "pc.ram", "0xf0000"),
        ("0x100000", "0x7ff00000", "pc.ram", "0x100000"),
        ("0xfd000000", "0x1000000", "vga.vram", "0x0"),
        PC_BIOS,
    ],
}


@pytest.mark.parametrize("name", SLOTS)
def test_the_slots_are_the_rows_of_the_memory_view(name: str) -> None:
    assert rows(name) == SLOTS[name]


@pytest.mark.parametrize(
    ("name", "mapped_2m", "reason"),
    [
        ("qemu72-pc-2G.txt", 2046 * MIB, None),
        ("qemu72-pc-3583M.txt", 3580 * MIB, Reason.TAIL),
        ("qemu72-pc-3584M.txt", 3582 * MIB, None),
        ("qemu72-pc17-4G.txt", 4094 * MIB, None),
        ("qemu72-q35-10G-memfd.txt", 0, Reason.HVA),
        ("qemu100-q35-10G-memfd.txt", 0, Reason.HVA),
        ("qemu111-q35-10G-memfd.txt", 0, Reason.HVA),
        ("qemu100-q35-4G-booted.txt", 4094 * MIB, Reason.DIRTY_LOG),
        ("qemu72-q35-numa-odd.txt", 3070 * MIB, Reason.HVA),
        ("qemu72-q35-numa-odd-low.txt", 1022 * MIB, Reason.HVA),
    ],
)
def test_bytes_mappable_with_2m_pages_are_those_worked_out_by_hand(
    name: str, mapped_2m: int, reason: Reason | None
) -> None:
    coverage = cover(layout(name))
    assert coverage.mapped[1] == mapped_2m
    lost = {item.reason for item in coverage.lost if item.page_size == 2 * MIB}
    assert reason is None or reason in lost


def test_the_rows_of_a_capture_and_the_ioctls_traced_in_the_same_run_give_the_same_slots() -> None:
    for name in ("qemu72-pc17-8G", "qemu72-pc-2560M-8G", "qemu72-q35-numa-odd", "qemu72-q35-numa-odd-low"):
        seen = {(slot.gpa, slot.size, slot.flags) for slot in layout(f"{name}.txt").slots}
        traced = layout(f"{name}.kvm_set_user_memory.txt").slots
        assert seen == {(slot.gpa, slot.size, slot.flags) for slot in traced}
        known = {slot.gpa: slot.hva for slot in layout(f"{name}.txt").slots if slot.hva is not None}
        assert known == {slot.gpa: slot.hva for slot in traced if slot.gpa in known}


def test_hvas_come_from_info_ramblock_where_it_shows_them() -> None:
    by_gpa = {slot.gpa: slot.hva for slot in layout("qemu100-q35-4G-booted.txt").slots}
    assert by_gpa[0x100000] == 0x7FC103F00000
    assert by_gpa[0x100000000] == 0x7FC183E00000
    assert by_gpa[0xFD000000] == 0x7FC211400000  # 0000:00:01.0/vga.vram


def test_hvas_come_from_gpa2hva_where_info_ramblock_does_not_show_them() -> None:
    found = layout("qemu72-q35-numa2-dimm.txt")
    by_gpa = {slot.gpa: slot for slot in found.slots}
    assert by_gpa[0x100000000].hva == 0x7FE70FE00000
    assert by_gpa[0x240000000].hva == 0x7FE5AF800000
    assert by_gpa[0x180000000].hva is None
    about = [note.text for note in found.assumptions if note.about == "hva"]
    assert any("n1" in text and "aligned to 2M" in text for text in about)
    assert any("md0" in text and "one page below" in text for text in about)


def test_read_only_is_what_the_region_is_not_what_the_row_says() -> None:
    flags = {slot.gpa: slot.flags for slot in layout("qemu72-pc-8G-booted.txt").slots}
    assert flags[0xC0000] == 0  # "rom" by PAM over plain RAM
    assert flags[0xFFFC0000] == KVM_MEM_READONLY
    assert flags[0xFD000000] == KVM_MEM_LOG_DIRTY_PAGES
    flash = {slot.gpa: slot.flags for slot in layout("qemu72-q35-4G-pflash.txt").slots}
    assert flash[0xFFC00000] == KVM_MEM_READONLY


def test_a_capture_without_kvm_says_that_its_slots_are_an_assumption() -> None:
    assert any(note.about == "slots" for note in layout("qemu72-pc-2G-tcg-booted.txt").assumptions)
    assert not any(note.about == "slots" for note in layout("qemu72-pc-2G.txt").assumptions)


def test_carriage_returns_and_qmp_answers_change_nothing() -> None:
    plain = (LAYOUTS / "qemu72-pc-2G.txt").read_bytes()
    wanted = layout("qemu72-pc-2G.txt").slots
    assert read("x", plain.replace(b"\n", b"\r\n"))[0].slots == wanted
    text = plain.decode().replace("\n", "\\r\\n").replace('"', '\\"')
    assert read("x", f'{{"return": {{}}}}\n{{"return": "{text}"}}\n'.encode())[0].slots == wanted


def test_only_the_view_of_the_memory_address_space_counts_wherever_it_stands() -> None:
    text = b"""FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000fff (prio 0, ram): port.ram KVM

FlatView #1
 AS "e1000", root: bus master container
 AS "memory", root: system
 Root memory region: system
  0000000000000800-0000000000002fff (prio 0, nv-ram): nv0 @0000000000000800 owner:{dev id=n} KVM KVM
  0000000000003000-0000000000003fff (prio -1, container): system
  Dispatch
  0000000000004000-0000000000004fff (prio 0, ram): not.a.row KVM

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-0000000000000fff (prio 0, ram): smm.ram KVM
"""
    (found,) = qemu_mtree.read("x", text)
    # The start is rounded up and the end down to host pages.
    assert [(slot.gpa, slot.size, slot.region, slot.offset) for slot in found.slots] == [
        (0x1000, 0x2000, "nv0", 0x1000)
    ]


def test_two_devices_with_one_region_name_share_no_hva() -> None:
    text = b"""FlatView #0
 AS "memory", root: system
  0000000000000000-0000000000000fff (prio 0, ram): vga.vram KVM
info ramblock
 0000:00:01.0/vga.vram    4 KiB  0x0 0x1000 0x1000 0x00007fc211400000  rw
 0000:00:02.0/vga.vram    4 KiB  0x0 0x1000 0x1000 0x00007fc311400000  rw
"""
    assert qemu_mtree.read("x", text)[0].slots[0].hva is None


def test_hugetlb_blocks_have_their_page_size() -> None:
    text = b"""FlatView #0
 AS "memory", root: system
  0000000000000000-000000003fffffff (prio 0, ram): a-backend-with-a-name-longer-than-the-column KVM
 a-backend-with-a-name-longer-than-the-column    1 GiB  0x0 0x40000000 0x40000000
"""
    (found,) = qemu_mtree.read("x", text)
    assert found.slots[0].backing == Backing("hugetlb", GIB)
    assert cover(found).leaves == (0, 0, 1)


def test_the_trace_ends_with_the_slots_of_the_last_ioctls() -> None:
    slots = layout("qemu72-q35-4G.kvm_set_user_memory.txt").slots
    assert [(slot.number, slot.gpa, slot.size, slot.hva) for slot in slots] == [
        (0, 0x0, 0xA0000, 0x7F0577E00000),
        (3, 0xC0000, 0x20000, 0x7F067F400000),
        (4, 0xE0000, 0x20000, 0x7F067F620000),
        (5, 0x100000, 0x7FF00000, 0x7F0577F00000),
        (2, 0xFFFC0000, 0x40000, 0x7F067F600000),
        (1, 0x100000000, 0x80000000, 0x7F05F7E00000),
    ]
    ram = {slot.region for slot in slots if slot.gpa in (0, 0x100000, 0x100000000)}
    assert len(ram) == 1  # one RAMBlock, found by its addresses


def test_the_newer_trace_line_tells_dirty_logging_and_offsets() -> None:
    by_gpa = {slot.gpa: slot for slot in layout("qemu100-q35-10G-booted.kvm_set_user_memory.txt").slots}
    assert by_gpa[0xFD000000].flags == KVM_MEM_LOG_DIRTY_PAGES
    assert by_gpa[0x100000000].offset == 0x80000000
    assert by_gpa[0x100000000].region == by_gpa[0x100000].region
    assert len(by_gpa) == 10


def test_guest_memfd_slots_are_visible_in_the_trace() -> None:
    line = (
        b"kvm_set_user_memory AddrSpace#0 Slot#7 flags=0x4 gpa=0x100000000 size=0x80000000 ua=0x7fe28ffff000 "
        b"guest_memfd=12 guest_memfd_offset=0x80000000 ret=0\n"
    )
    failed = line.replace(b"Slot#7", b"Slot#8").replace(b"ret=0", b"ret=-22")
    (found,) = qemu_trace.read("x", line + failed)
    (slot,) = found.slots
    assert (slot.file, slot.offset, slot.flags) == ("fd 12", 0x80000000, KVM_MEM_GUEST_MEMFD)
    assert any(note.about == "attributes" for note in found.assumptions)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 ua=0x0 ret=0\n", "x:1: size"),
        (b"\nkvm_set_user_memory Slot#0 flags=0x0 gpa=0x1ffffffffffffffff size=0x1 ua=0x0 ret=0\n", "x:2: gpa"),
        (b"kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x0 ret=0\n", "x: no slot is left"),
    ],
)
def test_a_broken_trace_is_one_line_that_names_the_place(text: bytes, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        qemu_trace.read("x", text)
    assert str(refused.value).startswith(wanted)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"FlatView #0\n No rendered FlatView\n", "'info mtree -f'"),
        (b"address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n", "'info mtree -f'"),
        (b'FlatView #0\n AS "memory", root: system\n', "holds no RAM"),
        (
            b'FlatView #0\n AS "memory", root: x\n  0000000000001000-0000000000000fff (prio 0, ram): r KVM\n',
            "x:3: range",
        ),
    ],
)
def test_monitor_text_without_slots_says_what_to_capture(text: bytes, wanted: str) -> None:
    assert recognise("x", text) == "qemu-mtree"
    with pytest.raises(LayoutError) as refused:
        qemu_mtree.read("x", text)
    assert wanted in str(refused.value)


def test_sizes_of_the_units_in_info_ramblock() -> None:
    for unit, size in (("4 KiB", 4 * KIB), ("2 MiB", 2 * MIB), ("1 GiB", GIB)):
        row = f"  {0:016x}-{0xFFF:016x} (prio 0, ram): m0 KVM"
        text = f'FlatView #0\n AS "memory", root: system\n{row}\n m0 {unit} 0x0 0x1 0x1\n'
        assert qemu_mtree.read("x", text.encode())[0].slots[0].backing.page_size == size
