"""Inputs like those of public reports, which once were answered wrongly: each stands for a kind.

What is right was run with QEMU or read in the source of the VMM or of KVM: ``tests/data/reports/README.md``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Guestmem

from guestmem.layout.assume import Overrides, apply
from guestmem.layout.check import Checked, check
from guestmem.layout.coverage import HostLimits
from guestmem.layout.error import LayoutError
from guestmem.layout.recognise import read
from guestmem.layout.value import Backing, Slot
from guestmem.units import GIB, KIB, MIB

REPORTS = Path(__file__).parent / "data" / "reports"
HUGE = Overrides(backing={"": Backing("hugetlb", 2 * MIB)})


def checked(name: str, overrides: Overrides | None = None) -> Checked:
    [layout] = read(name, (REPORTS / name).read_bytes())
    return check(apply(layout, overrides or Overrides()), HostLimits())


def by_2m(one: Checked) -> int:
    return one.coverage.mapped[1]


def slots(one: Checked) -> dict[tuple[int, int], Slot]:
    return {(slot.gpa, slot.size): slot for slot in one.layout.slots}


def test_shared_memory_of_cloud_hypervisor_is_possible_with_2m_pages_and_not_misplaced() -> None:
    one = checked("ch-shared.json")

    assert by_2m(one) == 4 * GIB
    assert not [finding for finding in one.findings if finding.id == "hva-not-congruent"]
    assert any("shmem_enabled" in note.text for note in one.layout.assumptions)


@pytest.mark.parametrize(("name", "mapped"), [("libvirt-memfd.xml", 4094 * MIB), ("ch-zone-hugetlbfs.json", 2 * GIB)])
def test_memory_given_as_hugetlb_is_not_misplaced(name: str, mapped: int) -> None:
    one = checked(name, HUGE)

    assert by_2m(one) == mapped
    assert not [finding for finding in one.findings if finding.severity != "note"]


def test_the_file_of_a_zone_may_be_on_hugetlbfs() -> None:
    assert any("hugetlbfs" in note.text and "--backing" in note.option for note in
               checked("ch-zone-hugetlbfs.json").layout.assumptions)  # fmt: skip


def test_a_vhost_user_drive_makes_firecrackers_memory_one_memfd() -> None:
    one = checked("fc-vhost-user-blk.json")

    assert {slot.backing.kind for slot in one.layout.slots} == {"shmem"}
    assert any("shmem_enabled" in note.text for note in one.layout.assumptions)


@pytest.mark.parametrize("kind", ["lxc", "bhyve", "vmware", "xen"])
def test_a_domain_without_kvm_is_refused_by_name(kind: str) -> None:
    data = (REPORTS / "libvirt-lxc.xml").read_bytes().replace(b"'lxc'", f"'{kind}'".encode())

    with pytest.raises(LayoutError, match=f"domain type '{kind}'"):
        read("x", data)


def test_an_emulated_domain_is_laid_out_with_a_note() -> None:
    data = (REPORTS / "libvirt-memfd.xml").read_bytes().replace(b"type='kvm'", b"type='qemu'")

    assert any("without KVM" in note.text for note in read("x", data)[0].assumptions)


def test_numa_cells_of_machines_before_5_1_are_one_block() -> None:
    one = checked("libvirt-numa-machine-5.0.xml")

    assert {(MIB, 3071 * MIB), (4 * GIB, 1026 * MIB)} <= slots(one).keys()
    assert {slot.region for slot in one.layout.slots} == {"pc.ram", "pc.rom", "pc.bios"}
    assert by_2m(one) == 4 * GIB
    assert one.severity == "note"


def test_an_snp_domain_has_no_read_only_slot_and_its_firmware_is_private() -> None:
    found = slots(checked("libvirt-snp-firmware.xml"))

    assert found.keys() == {
        (0, 0xC0000),
        (0xC0000, 128 * KIB),
        (0xE0000, 2 * GIB - 0xE0000),
        (4 * GIB - 4 * MIB, 4 * MIB),
        (4 * GIB, 2 * GIB),
    }
    assert all(slot.guest_memfd and not slot.readonly for slot in found.values())


def test_a_tdx_domain_has_no_option_rom() -> None:
    data = (REPORTS / "libvirt-snp-firmware.xml").read_bytes().replace(b"sev-snp", b"tdx")
    [layout] = read("x", data)

    assert "pc.rom" not in {slot.region for slot in layout.slots}
    assert (layout.slots[0].gpa, layout.slots[0].size) == (0, 2 * GIB)


def test_huge_pages_of_the_domain_are_no_remedy_for_the_file_of_an_nvdimm() -> None:
    [finding] = [one for one in checked("libvirt-nvdimm-hugepages.xml").findings if one.severity == "warning"]

    assert "<alignsize>" in finding.remedy
    assert "<hugepages>" not in finding.remedy


@pytest.mark.parametrize(
    ("source", "size"), [(b"", 524160 * KIB), (b"<alignsize unit='KiB'>2048</alignsize>", 510 * MIB)]
)
def test_the_label_of_an_nvdimm_is_cut_from_its_end(source: bytes, size: int) -> None:
    data = (REPORTS / "libvirt-nvdimm-label.xml").read_bytes().replace(b"</source>", source + b"</source>")
    [layout] = read("x", data)

    assert [slot.size for slot in layout.slots if slot.region == "memnvdimm0"] == [size]


@pytest.mark.parametrize("label", [b"0", b"524288", b"9999999"])
def test_a_label_that_leaves_nothing_is_refused(label: bytes) -> None:
    data = (REPORTS / "libvirt-nvdimm-label.xml").read_bytes().replace(b">128<", b">" + label + b"<")

    with pytest.raises(LayoutError, match="label"):
        read("x", data)


def test_max_ram_below_4g_on_the_command_line_of_a_domain_is_read_and_the_rest_is_named() -> None:
    data = (REPORTS / "libvirt-commandline.xml").read_bytes()
    more = b"<qemu:arg value='-device'/><qemu:arg value='ivshmem'/></qemu:commandline>"

    assert {(MIB, 1023 * MIB), (4 * GIB, 3 * GIB)} <= slots(checked("libvirt-commandline.xml")).keys()
    [layout] = read("x", data.replace(b"</qemu:commandline>", more))
    assert any("qemu:commandline is not read: -device" in note.text for note in layout.assumptions)


def test_a_dimm_below_the_range_for_memory_devices_is_refused_by_qemu() -> None:
    one = checked("libvirt-dimm-overlap.xml")
    [finding] = [each for each in one.findings if each.severity == "error"]

    assert "QEMU refuses the device" in finding.message
    assert "0x280000000" in finding.remedy
    assert "memdimm0" not in {slot.region for slot in one.layout.slots}


def test_one_bad_source_among_many_is_named_and_the_others_are_answered(guestmem_command: Guestmem) -> None:
    bad, good = REPORTS / "mixed-arm.xml", REPORTS / "mixed-x86.xml"

    ended = guestmem_command("check", bad, good, "/nonexistent")

    assert ended.code == 2
    assert str(good) in ended.out
    assert [line.split(":")[1].strip() for line in ended.err.splitlines()] == [str(bad), "/nonexistent"]
