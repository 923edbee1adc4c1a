"""QEMU's command line: the same layout as the domain XML that libvirt made it of, and one line for what is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from examples import LAYOUTS
from hypothesis import given
from hypothesis import strategies as st

from guestmem.layout.error import LayoutError
from guestmem.layout.recognise import read, recognise
from guestmem.layout.value import Layout, Slot
from guestmem.units import GIB, KIB, MIB

DATA = Path(__file__).parent / "data"
ARGV = sorted((DATA / "argv").glob("*.argv"))  # domxml-to-native of libvirt 11, with the XML in examples/layouts
QEMU = "qemu-system-x86_64 -machine q35"


def layout(text: str) -> Layout:
    [found] = read("x", text.encode())
    assert found.format == "qemu-argv"
    return found


def ram(text: str) -> dict[str, int]:
    """Bytes of each region that is no ROM, the holes of the first megabyte included."""
    sizes: dict[str, int] = {}
    for slot in layout(text).slots:
        if slot.region not in ("pc.rom", "pc.bios"):
            sizes[slot.region] = max(sizes.get(slot.region, 0), (slot.offset or 0) + slot.size)
    return sizes


def plain(slot: Slot) -> tuple[object, ...]:
    return slot.gpa, slot.size, slot.region, slot.offset, slot.flags, slot.backing, slot.assumed_hva


@pytest.mark.parametrize("path", ARGV, ids=lambda path: path.stem)
def test_libvirts_command_line_is_laid_out_as_its_xml(path: Path) -> None:
    [domain] = read("x", (LAYOUTS / f"{path.stem}.xml").read_bytes())

    assert list(map(plain, layout(path.read_text()).slots)) == list(map(plain, domain.slots))


@pytest.mark.parametrize("path", ARGV, ids=lambda path: path.stem)
def test_json_whose_quotes_a_shell_ate_is_read_the_same(path: Path) -> None:
    eaten = " ".join(shlex.split(path.read_text()))

    assert layout(eaten).slots == layout(path.read_text()).slots


def test_the_layout_of_a_public_report_starts_its_second_node_at_an_odd_place() -> None:
    found = layout((DATA / "reports" / "qemu-argv.txt").read_text())

    assert 4 * GIB + 2098160 * KIB in {slot.gpa for slot in found.slots if slot.region == "ram-node1"}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ("", {"pc.ram": 128 * MIB}),
        ("-m 2048", {"pc.ram": 2 * GIB}),
        ("-m 4G", {"pc.ram": 4 * GIB}),
        ("-m size=4194304k,slots=2,maxmem=8G", {"pc.ram": 4 * GIB}),
        ("--m 1G", {"pc.ram": GIB}),
        ("-m 2G -numa node,mem=512 -numa node,mem=1536M", {"pc.ram": 2 * GIB}),
        ("-m 1G -object memory-backend-ram,id=a,size=1G -numa node,memdev=a", {"a": GIB}),
        ("-m 1G -object memory-backend-memfd,id=b,size=1G -machine memory-backend=b", {"b": GIB}),
        ("-m 1G -object memory-backend-ram,id=d,size=512M -device pc-dimm,memdev=d", {"pc.ram": GIB, "d": 512 * MIB}),
        (
            "-m 1G -object memory-backend-file,id=n,size=512M,mem-path=/a,,b -device nvdimm,memdev=n,label-size=128K",
            {"pc.ram": GIB, "n": 512 * MIB - 128 * KIB},
        ),
    ],
)
def test_memory_is_what_the_options_say(options: str, sizes: dict[str, int]) -> None:
    assert ram(f"{QEMU} {options}") == sizes


@pytest.mark.parametrize(
    ("backend", "kind", "page"),
    [
        ("memory-backend-ram", "anonymous", 4 * KIB),
        ("memory-backend-ram,share=on", "shmem", 4 * KIB),
        ("memory-backend-memfd", "shmem", 4 * KIB),
        ("memory-backend-memfd,hugetlb=on,hugetlbsize=1G", "hugetlb", GIB),
        ("memory-backend-memfd,hugetlb=on", "hugetlb", 2 * MIB),
        ("memory-backend-file,mem-path=/dev/shm/x", "file", 4 * KIB),
        ("memory-backend-file,mem-path=/dev/hugepages/x", "hugetlb", 2 * MIB),
        ("memory-backend-file,mem-path=/dev/hugepages1G/x", "hugetlb", GIB),
        ("memory-backend-file,mem-path=/run/hugepages-1048576kB/x", "hugetlb", GIB),
    ],
)
def test_the_backend_says_what_pages_there_are(backend: str, kind: str, page: int) -> None:
    found = layout(f"{QEMU} -m 1G -object {backend},id=m,size=1G -machine memory-backend=m")

    assert {(slot.backing.kind, slot.backing.page_size) for slot in found.slots if slot.region == "m"} == {(kind, page)}


@pytest.mark.parametrize(
    ("options", "hole"),
    [("", True), ("-nodefaults", False), ("-vga none", False), ("-nodefaults -device VGA", True), ("-vga std", True)],
)
def test_a_vga_has_a_hole_in_the_first_megabyte(options: str, hole: bool) -> None:
    first = min(layout(f"{QEMU} -m 1G {options}").slots, key=lambda slot: slot.gpa)

    assert first.size == (0xA0000 if hole else 0xC0000)


def test_max_ram_below_4g_moves_the_split() -> None:
    found = layout(f"{QEMU},max-ram-below-4g=1G -m 4G")

    assert (4 * GIB, 3 * GIB) in {(slot.gpa, slot.size) for slot in found.slots}


@pytest.mark.parametrize(("guest", "rom"), [("sev-snp-guest", True), ("tdx-guest", False)])
def test_a_confidential_guest_has_private_ram_and_no_read_only_slot(guest: str, rom: bool) -> None:
    found = layout(f"{QEMU},confidential-guest-support=c -m 2G -object {guest},id=c")

    assert all(slot.guest_memfd and not slot.readonly for slot in found.slots)
    assert ("pc.rom" in {slot.region for slot in found.slots}) == rom


@pytest.mark.parametrize("accel", ["-accel tcg", "-machine accel=tcg", "-accel tcg,thread=multi"])
def test_an_emulated_vm_is_said_to_be_one(accel: str) -> None:
    assert any("without KVM" in note.text for note in layout(f"{QEMU} -m 1G {accel}").assumptions)


@pytest.mark.parametrize(
    "text",
    [
        "root 4711 1.0 2.0 123 456 ? Sl 10:00 0:01 /usr/bin/qemu-system-x86_64 -machine pc -m 1G",
        "qemu-kvm -machine pc -m 1G",
        "LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=a \\\n-machine pc \\\n-m 1G",
        "/usr/bin/qemu-kvm -id 100 -name it's -machine type=pc+pve0 -m 1024 -cpu qemu64",
    ],
)
def test_it_is_recognised_as_ps_libvirts_log_and_scripts_have_it(text: str) -> None:
    assert recognise("x", text.encode()) == "qemu-argv"
    assert ram(text) == {"pc.ram": GIB}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-machine virt", "-machine 'virt'"),
        ("-m much", "-m 'much'"),
        ("-m 99999999999999999999G", "below 2**64"),
        ("-numa node,memdev=x", "memdev 'x'"),
        ("-object memory-backend-ram,id=x -numa node,memdev=x", "x size"),
        ("-object memory-backend-ram,id=x,size=1G -device pc-dimm,memdev=x,addr=zz", "addr"),
        ("-object memory-backend-memfd,id=x,size=1G,hugetlb=on,hugetlbsize=3M -numa node,memdev=x", "hugetlbsize"),
        ("-object memory-backend-ram,id=x,size=1G -device virtio-mem-pci,memdev=x,block-size=3M", "block-size"),
        (" ".join(f"-numa node,mem={n}" for n in range(1, 2000)), "at most 1024"),
    ],
)
def test_what_is_wrong_is_one_line(options: str, words: str) -> None:
    with pytest.raises(LayoutError) as refused:
        read("x", f"{QEMU} {options}".encode(), "qemu-argv")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@given(
    st.lists(st.sampled_from(["-m", "-object", "-numa", "-device", "{", '{"a":', "node,mem=1", "id=,size=", "'", "-"]))
)
def test_whatever_the_words_are_the_answer_is_a_layout_or_one_line(words: list[str]) -> None:
    said = ""
    try:
        read("x", f"{QEMU} {' '.join(words)}".encode(), "qemu-argv")
    except LayoutError as refused:
        said = str(refused)
    assert "\n" not in said


def test_json_and_names_are_the_same_object() -> None:
    as_json = json.dumps({"qom-type": "memory-backend-memfd", "id": "m", "size": GIB, "share": True})
    named = "memory-backend-memfd,id=m,size=1G,share=on"

    assert (
        layout(f"{QEMU} -object '{as_json}' -numa node,memdev=m").slots
        == layout(f"{QEMU} -object {named} -numa node,memdev=m").slots
    )
