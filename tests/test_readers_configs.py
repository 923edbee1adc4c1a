"""Readers of configurations: libvirt, Cloud Hypervisor, Firecracker. Addresses are worked out by hand."""

from __future__ import annotations

import json

import pytest
from examples import LAYOUTS, layout

from guestmem.layout import Backing, LayoutError, Reason, cover
from guestmem.layout.qemu_machine import Device as MemoryDevice
from guestmem.layout.qemu_machine import QemuMachine, Ram, machine_slots, parse_machine, place_devices
from guestmem.layout.readers import cloud_hypervisor, firecracker, libvirt
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import GIB, KIB, MIB

ANONYMOUS = Backing("anonymous")


def pieces(name: str, firecracker: tuple[int, int] | None = None) -> list[tuple[int, int, str]]:
    """(gpa, size, region) of every slot."""
    return [(slot.gpa, slot.size, slot.region) for slot in layout(name, firecracker).slots]


# Machine, boot memory in MiB, VGA, and the capture of a real QEMU that must have the same slots.
MACHINES = [
    ("pc-i440fx-7.2", [2048], True, "qemu72-pc-2G.txt"),
    ("pc-i440fx-7.2", [3583], True, "qemu72-pc-3583M.txt"),
    ("pc-i440fx-7.2", [3584], True, "qemu72-pc-3584M.txt"),
    ("pc-i440fx-1.7", [4096], True, "qemu72-pc17-4G.txt"),
    ("pc-i440fx-1.7", [8192], True, "qemu72-pc17-8G.txt"),
    ("pc-q35-7.2", [4096], True, "qemu72-q35-4G.txt"),
    ("pc-q35-7.2", [10240], True, "qemu72-q35-10G-memfd.txt"),
    ("pc-q35-10.0", [10240], False, "qemu100-q35-10G-memfd.txt"),
    ("pc-q35-7.2", [3073, 3072], True, "qemu72-q35-numa-odd.txt"),
    ("pc-q35-7.2", [1025, 3071], True, "qemu72-q35-numa-odd-low.txt"),
    ("microvm", [512], False, "qemu72-microvm-512M.txt"),
    ("microvm", [768], False, "qemu72-microvm-768M-stdio-raw.txt"),
]


@pytest.mark.parametrize(("machine", "sizes", "vga", "capture"), MACHINES)
def test_computed_slots_are_those_of_a_real_qemu(machine: str, sizes: list[int], vga: bool, capture: str) -> None:
    parsed = parse_machine(machine)
    assert parsed is not None
    nodes = [Ram(f"n{index}", size * MIB, ANONYMOUS) for index, size in enumerate(sizes)]
    computed = {(slot.gpa, slot.size, slot.offset, slot.flags) for slot in machine_slots(parsed, nodes, vga=vga)}
    assert computed == {(slot.gpa, slot.size, slot.offset, slot.flags) for slot in layout(capture).slots}


def test_device_memory_starts_at_the_next_gigabyte_as_in_the_capture_with_dimms() -> None:
    dimm0 = MemoryDevice(Ram("md0", GIB, Backing("shmem")), 4 * KIB)
    dimm1 = MemoryDevice(Ram("md1", 512 * MIB, ANONYMOUS), 2 * MIB)
    placed = {device.ram.name: gpa for device, gpa in place_devices(8 * GIB, [dimm0, dimm1])}
    assert placed == {"md0": 0x200000000, "md1": 0x240000000}


def test_a_device_goes_to_the_lowest_free_place_at_its_alignment() -> None:
    fixed = MemoryDevice(Ram("fixed", GIB, ANONYMOUS), 2 * MIB, 5 * GIB)
    odd = MemoryDevice(Ram("odd", MIB, ANONYMOUS), 4 * KIB)
    huge = MemoryDevice(Ram("huge", 2 * GIB, Backing("hugetlb", GIB)), GIB)
    placed = {device.ram.name: gpa for device, gpa in place_devices(2 * GIB, [odd, huge, fixed])}
    assert placed == {"fixed": 5 * GIB, "odd": 4 * GIB, "huge": 6 * GIB}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pc-q35-10.0", QemuMachine("q35", (10, 0))),
        ("pc-i440fx-1.7", QemuMachine("pc", (1, 7))),
        ("pc-1.0", QemuMachine("pc", (1, 0))),
        ("q35", QemuMachine("q35")),
        ("pc-i440fx-rhel7.6.0", QemuMachine("pc")),
        ("virt-10.0", None),
        ("s390-ccw-virtio", None),
    ],
)
def test_machine_names(name: str, wanted: QemuMachine | None) -> None:
    assert parse_machine(name) == wanted


def test_the_plain_domain_rounds_its_memory_and_splits_at_3g() -> None:
    assert pieces("libvirt-plain.xml") == [
        (0x0, 0xC0000, "pc.ram"),
        (0xC0000, 0x20000, "pc.rom"),
        (0xE0000, 0x20000, "pc.bios"),
        (0x100000, 0xBFF00000, "pc.ram"),
        (0xFFFC0000, 0x40000, "pc.bios"),
        (0x100000000, 3073 * MIB, "pc.ram"),
    ]
    assert cover(layout("libvirt-plain.xml")).mapped[1] == 3070 * MIB + 3072 * MIB


def test_numa_cells_win_over_memory_and_each_has_its_own_huge_pages() -> None:
    by_region = {slot.region: slot for slot in layout("libvirt-numa-huge.xml").slots}
    assert by_region["ram-node0"].backing == Backing("hugetlb", GIB)
    assert by_region["ram-node1"].backing == Backing("hugetlb", 2 * MIB)
    assert (by_region["ram-node1"].gpa, by_region["ram-node1"].size) == (10 * GIB, 4 * GIB)
    assert (by_region["memdimm0"].gpa, by_region["memdimm0"].size) == (14 * GIB, 2 * GIB)
    # 8G of node 0: [1G, 2G) below the split and [4G, 10G) above it are whole gigabytes.
    assert cover(layout("libvirt-numa-huge.xml")).mapped[2] == 7 * GIB


def test_dynamic_memslots_hold_what_was_requested() -> None:
    found = layout("libvirt-vmem.xml")
    (device,) = [slot for slot in found.slots if slot.region == "memvirtiomem0"]
    assert (device.gpa, device.size) == (6 * GIB, GIB)
    assert {note.about for note in found.assumptions} >= {"gpa", "hva", "slots", "backing"}


def test_a_confidential_domain_binds_its_ram_to_guest_memfds_and_is_all_base_pages() -> None:
    found = layout("libvirt-snp.xml")
    ram = [slot for slot in found.slots if slot.region == "pc.ram"]
    assert all(slot.flags == KVM_MEM_GUEST_MEMFD and slot.file == "guest_memfd of pc.ram" for slot in ram)
    coverage = cover(found)
    assert coverage.mapped[1:] == (0, 0)
    lost = {item.reason: item.size for item in coverage.lost if item.page_size == 2 * MIB}
    assert lost[Reason.ORDER_0] == 4098 * MIB  # the firmware below 4G is private too


DOMAIN = "<domain><memory unit='{unit}'>{memory}</memory><os><type machine='{machine}'>hvm</type></os>{more}</domain>"


def domain(memory: str = "2", unit: str = "GiB", machine: str = "q35", more: str = "") -> bytes:
    return DOMAIN.format(memory=memory, unit=unit, machine=machine, more=more).encode()


@pytest.mark.parametrize(
    ("memory", "unit", "size"),
    [("1048576", "KiB", GIB), ("1024", "MiB", GIB), ("1", "GB", 954 * MIB), ("1000000000", "b", 954 * MIB)],
)
def test_units_are_those_of_libvirt_and_memory_is_rounded_up_to_mebibytes(memory: str, unit: str, size: int) -> None:
    (found,) = libvirt.read("x", domain(memory, unit))
    assert max(slot.end for slot in found.slots if slot.region == "pc.ram") == size


def test_a_video_device_cuts_the_hole_for_vga() -> None:
    video = "<devices><video><model type='vga'/></video></devices>"
    (found,) = libvirt.read("x", domain(more=video))
    assert found.slots[0].size == 0xA0000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"<domain>", "x:1: needed XML"),
        (b"<?xml version='1.0'?><!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", "no DTD or entity"),
        (b"<network/>", "root element 'network': needed <domain>"),
        (b"<domain/>", "memory: needed <memory>"),
        (domain(unit="furlong"), "memory unit 'furlong'"),
        (domain(memory="-1"), "memory '-1'"),
        (domain(memory="9" * 25), "needed a number from 0"),
        (domain(memory="20000000", unit="TiB"), "below 2**64"),
        (domain(machine="virt-9.0"), "only x86 machines"),
        (domain(more="<cpu><numa><cell memory='0'/></numa></cpu>"), "needed memory above 0"),
        (domain(more="<devices><memory model='dimm'><target/></memory></devices>"), "missing"),
        (domain(more="<memoryBacking><hugepages><page size='2' nodeset='x'/></hugepages></memoryBacking>"), "nodeset"),
    ],
)
def test_a_domain_that_cannot_be_read_is_one_line(text: bytes, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        libvirt.read("x", text)
    assert wanted in str(refused.value)
    assert "\n" not in str(refused.value)


def test_cloud_hypervisor_splits_one_zone_at_3g() -> None:
    assert pieces("ch-simple-8G-hugepages.json") == [(0, 3 * GIB, "mem0/0"), (4 * GIB, 5 * GIB, "mem0/1")]
    assert cover(layout("ch-simple-8G-hugepages.json")).leaves == (0, 4096, 0)


def test_an_odd_zone_ruins_the_huge_pages_of_the_zone_after_it() -> None:
    assert pieces("ch-zones-odd-virtio-mem.json") == [
        (0, 1025 * MIB, "mem0"),
        (1025 * MIB, 2046 * MIB, "mem1/0"),
        (4 * GIB, 2050 * MIB, "mem1/1"),
        (0x188000000, 2 * GIB, "mem1 virtio-mem"),
    ]
    found = layout("ch-zones-odd-virtio-mem.json")
    by_region = {item.slot.region: item for item in cover(found).slots}
    assert by_region["mem1/0"].mapped[1] == 0
    assert by_region["mem1/1"].mapped[1] == 2050 * MIB
    assert [remark.id for remark in found.remarks] == ["unused-gap"]
    assert "1M below 0xc0000000" in found.remarks[0].message


def test_cloud_hypervisor_nulls_and_the_answer_of_vm_info_are_the_same_config() -> None:
    config = json.loads((LAYOUTS / "ch-simple-8G-hugepages.json").read_text())
    wrapped = json.dumps({"config": config, "state": "Running", "memory_actual_size": 8 << 30}).encode()
    assert cloud_hypervisor.read("x", wrapped)[0].slots == layout("ch-simple-8G-hugepages.json").slots


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        (
            {"size": 5, "zones": [{"id": "a", "size": 4096}]},
            "memory.size 5: needed 0, because the zones have sizes of their own",
        ),
        ({"size": 4097}, "memory.size '4097'"),
        ({"size": 2**64}, "memory.size"),
        ({"size": -4096}, "memory.size"),
        ({"size": 1 << 30, "hugepages": True, "hugepage_size": 3 << 20}, "hugepage_size"),
        ({"size": 1 << 30, "hotplug_size": 5}, "hotplug_size"),
        ({"size": "4G"}, "memory.size"),
    ],
)
def test_a_cloud_hypervisor_config_it_would_refuse_is_one_line(memory: dict[str, object], wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        cloud_hypervisor.read("x", json.dumps({"memory": memory}).encode())
    assert wanted.replace("'", "") in str(refused.value).replace("'", "")


def test_firecracker_cuts_at_3g_from_v1_13_on_and_at_3328m_before() -> None:
    assert pieces("fc-4608M-2M.json") == [(0, 3 * GIB, "range 0"), (4 * GIB, 1536 * MIB, "range 1")]
    old = (1, 12)
    assert pieces("fc-4608M-2M.json", old) == [(0, 3328 * MIB, "range 0"), (4 * GIB, 1280 * MIB, "range 1")]


def test_firecracker_leaves_a_gap_at_256g() -> None:
    found = firecracker.ranges(300 * GIB)
    assert found == [(0, 3 * GIB, 0), (4 * GIB, 252 * GIB, 3 * GIB), (512 * GIB, 45 * GIB, 255 * GIB)]
    assert firecracker.ranges(300 * GIB, (1, 12))[-1] == (4 * GIB, 300 * GIB - 3328 * MIB, 3328 * MIB)


def test_firecracker_dirty_tracking_keeps_everything_at_base_pages() -> None:
    found = layout("fc-1025M-hotplug.json")
    assert found.slots[0].flags == KVM_MEM_LOG_DIRTY_PAGES
    assert cover(found).leaves == (1025 * 256, 0, 0)
    assert any("hotpluggable" in note.text for note in found.assumptions)


def test_the_uffd_handshake_gives_hvas_as_facts() -> None:
    slots = layout("fc-uffd-handshake.json").slots
    assert [(slot.gpa, slot.hva) for slot in slots] == [(0, 0x7F2313C60000), (4 * GIB, 0x7F22B0C0A000)]
    with pytest.raises(LayoutError, match="--firecracker-version"):
        layout("fc-uffd-handshake.json", (1, 12))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b'{"machine-config": {"mem_size_mib": 0}}', "mem_size_mib"),
        (b'{"machine-config": {"mem_size_mib": 3, "huge_pages": "2M"}}', "even number"),
        (b'{"machine-config": {"mem_size_mib": 4, "huge_pages": "1G"}}', "huge_pages"),
        (b'{"machine-config": {"mem_size_mib": 99999999999999999999}}', "mem_size_mib"),
        (b'{"machine-config": {"mem_size_mib": "4"}}', "machine-config.mem_size_mib"),
    ],
)
def test_a_firecracker_config_it_would_refuse_is_one_line(text: bytes, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        firecracker.read("x", text)
    assert wanted in str(refused.value)
