"""Findings: what the shipped captures must be told, in numbers worked out by hand, and each kind on a small layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
from examples import LAYOUTS, layout
from hypothesis import given, settings
from layouts import hosts, small_layouts

from guestmem.layout import Backing, File, HostLimits, Layout, Range, Slot, cover
from guestmem.layout.binding import FileLimits
from guestmem.layout.findings import IDS, SEVERITIES, Finding, find_findings
from guestmem.layout.recognise import load, read
from guestmem.rules import CreationFlags, FitsSize, SlotMetadata, WholeBinding
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import GIB, MIB

BASE = 0x7F00_0000_0000
HUGE = Backing("hugetlb", 2 * MIB)


def found(name: str, host: HostLimits | None = None) -> dict[str, Finding]:
    """The findings of a shipped capture, by id (the first of each)."""
    findings = find_findings(cover(layout(name), host))
    return {finding.id: finding for finding in reversed(findings)}


def of(
    *slots: Slot, host: HostLimits | None = None, private: tuple[Range, ...] = (), size: int = 0
) -> dict[str, Finding]:
    """The findings of a layout made here."""
    files = tuple(File(name, size) for name in {slot.file for slot in slots if slot.file})
    findings = find_findings(cover(Layout("t", "t", slots, files=files, private=private), host))
    return {finding.id: finding for finding in reversed(findings)}


@pytest.mark.parametrize("name", ["qemu72-q35-10G-memfd", "qemu100-q35-10G-memfd", "qemu111-q35-10G-memfd"])
def test_file_backed_qemu_memory_one_page_below_a_2m_boundary_is_4k_only(name: str) -> None:
    finding = found(f"{name}.txt")["hva-not-congruent"]
    assert finding.severity == "warning"
    assert "fff000" in finding.message
    assert "one page below" in finding.message
    assert "align=2M" in finding.remedy
    assert "hugetlb=on" in finding.remedy
    # 2046M from 2M to 2G, and 8G above 4G.
    assert finding.gain == ((2 * MIB, 2046 * MIB + 8 * GIB),)


def test_an_odd_numa_node_is_named_as_the_culprit_with_the_size_to_give_it() -> None:
    finding = found("qemu72-q35-numa-odd.txt")["odd-start"]
    assert "n1 starts at GPA 0x140100000" in finding.message
    assert finding.remedy == "make n0 3074M or 3G instead of 3073M"
    # 3G at an odd MiB: 3070M are whole 2M frames.
    assert finding.gain == ((2 * MIB, 3070 * MIB),)


def test_an_odd_node_below_the_split_ruins_both_halves_of_the_next() -> None:
    findings = found("qemu72-q35-numa-odd-low.txt")
    assert findings["odd-start"].gain == ((2 * MIB, 1022 * MIB + 2 * GIB),)
    assert findings["odd-start"].remedy == "make n0 1026M or 1G instead of 1025M"
    assert "split" not in findings  # the cut itself is at 2G
    assert "frame-shared" not in findings


@pytest.mark.parametrize(
    ("name", "cut", "better", "gain"),
    [
        # 3.5G + 0.5G: 3G + 1G would have one more whole gigabyte.
        ("qemu72-pc17-4G.txt", "0xe0000000", "3G", GIB),
        # 2G below 3G fit the HVA, the 4.5G above do not; cut at 3G it would be 2G and 5G.
        ("qemu72-pc17-8G.txt", "0xe0000000", "3G", 5 * GIB),
        # 1G below fits, 5.5G above do not; cut at 2G it would be 1G and 6G.
        ("qemu72-pc-2560M-8G.txt", "0xa0000000", "2G", 6 * GIB),
    ],
)
def test_a_cut_that_costs_1g_pages_is_found(name: str, cut: str, better: str, gain: int) -> None:
    finding = found(name)["split"]
    assert finding.severity == "note"  # nothing is lost as long as the memory has no 1G pages
    assert cut in finding.message
    assert f"max-ram-below-4g={better} " in finding.remedy
    assert finding.gain == ((GIB, gain),)


@pytest.mark.parametrize("name", ["qemu72-pc-3584M.txt", "qemu72-q35-4G.txt", "qemu72-pc-8G-booted.txt"])
def test_cuts_at_whole_gigabytes_are_no_finding(name: str) -> None:
    assert "split" not in found(name)


def test_a_cut_is_a_warning_once_the_memory_has_1g_pages() -> None:
    huge = Backing("hugetlb", GIB)
    low = Slot(0, 0xE0000000, BASE, region="ram", offset=0, backing=huge)
    high = Slot(4 * GIB, 4 * GIB, BASE + 0xE0000000, region="ram", offset=0xE0000000, backing=huge)
    finding = of(low, high)["split"]
    assert finding.severity == "warning"
    # Now: 3G below; moved to 3G: 3G below, 4.5G above of which 4 are whole.
    assert finding.gain == ((GIB, 4 * GIB),)
    assert "hva-not-congruent" not in of(low, high)


def test_vga_and_pam_pieces_are_told_apart() -> None:
    booted = found("qemu72-pc-8G-booted.txt")["low-memory"]
    assert booted.severity == "note"
    assert "6 slots start in the first megabyte" in booted.message
    assert "a hole for VGA at 0xa0000-0xbffff" in booted.message
    assert "5 pieces of RAM from 0xc0000 on, as PAM shadowing makes them" in booted.message
    # All RAM of the first 2M: 640K below the hole, 256K above 0xc0000, and the head of the big slot.
    assert booted.lost == ((2 * MIB, 2 * MIB - 0x20000), (GIB, GIB - 0x20000))
    without = found("qemu100-q35-10G-memfd.txt")["low-memory"]
    assert "VGA" not in without.message
    assert "2 ROM pieces" in without.message


@pytest.mark.parametrize("name", ["qemu72-pc-8G-booted.txt", "qemu100-q35-4G-booted.txt"])
def test_dirty_logged_video_memory_is_a_note(name: str) -> None:
    finding = found(name)["dirty-logging"]
    assert finding.severity == "note"
    assert "vga.vram" in finding.message
    assert finding.gain == ((2 * MIB, 16 * MIB),)


def test_an_odd_zone_is_named_as_what_ruins_the_hugetlb_zone_after_it() -> None:
    findings = found("ch-zones-odd-virtio-mem.json")
    assert findings["odd-start"].remedy == "make zone mem0 1026M or 1G instead of 1025M"
    assert findings["odd-start"].gain == ((2 * MIB, 2044 * MIB),)
    assert "1M below 0xc0000000 stays unused" in findings["unused-gap"].message


def test_an_odd_memory_size_costs_its_last_frame() -> None:
    finding = found("qemu72-pc-3583M.txt")["odd-end"]
    assert finding.remedy == "make pc.ram 3584M or 3582M instead of 3583M"
    assert finding.lost == ((2 * MIB, MIB),)
    assert "odd-end" not in found("qemu72-pc-3584M.txt")


def test_firecracker_dirty_tracking_is_a_warning() -> None:
    finding = found("fc-1025M-hotplug.json")["dirty-logging"]
    assert (finding.severity, finding.remedy) == ("warning", 'set "track_dirty_pages": false')


def test_confidential_guests_hear_that_the_kernel_hands_out_single_pages() -> None:
    finding = found("libvirt-snp.xml")["order-0"]
    assert finding.severity == "note"
    assert dict(finding.lost)[2 * MIB] == 4098 * MIB


def test_larger_pages_are_offered_with_what_they_would_bring() -> None:
    finding = found("ch-simple-8G-hugepages.json")["backing-too-small"]
    assert (finding.severity, finding.gain) == ("note", ((GIB, 8 * GIB),))
    small = found("qemu72-pc-2G.txt", HostLimits(thp=False))["backing-too-small"]
    assert (small.severity, small.gain) == ("warning", ((2 * MIB, 2046 * MIB),))


def test_what_strace_cannot_show_is_a_warning() -> None:
    assert found("strace61-gm-rawioctl.txt")["slots-missing"].severity == "warning"


def test_the_discussion_example_is_told_to_move_its_offset() -> None:
    refused = found("discussion.toml", HostLimits(files=FileLimits(GIB, CreationFlags())))["rule-refuses"]
    assert refused.severity == "error"
    assert refused.remedy.startswith("move offset 0x4000 to 0x40000000")
    assert refused.gain == ((2 * MIB, GIB), (GIB, GIB))
    loose = found("discussion.toml", HostLimits(files=FileLimits(GIB, SlotMetadata())))["offset-not-congruent"]
    assert loose.severity == "warning"
    assert loose.remedy.startswith("move offset 0x4000 to 0x40000000")


def test_an_offset_is_moved_past_the_bindings_that_are_in_the_way() -> None:
    crooked = Slot(0, 512 * MIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=0x4000)
    in_the_way = Slot(GIB, GIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=GIB)
    host = HostLimits(files=FileLimits(GIB, CreationFlags()))
    assert of(crooked, in_the_way, host=host)["rule-refuses"].remedy.startswith("move offset 0x4000 to 0x80000000")


def test_a_rule_that_lowers_the_level_is_named() -> None:
    slot = Slot(0, GIB - 2 * MIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=0)
    host = HostLimits(files=FileLimits(2 * MIB, WholeBinding()))
    assert "rule-lowers-level" not in of(slot, host=host, private=(Range(0, GIB),))
    odd = Slot(0, GIB - 4096, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=0)
    finding = of(odd, host=host, private=(Range(0, GIB),))["rule-lowers-level"]
    assert "whole-binding" in finding.message


def test_a_rule_that_no_offset_satisfies_usefully_says_so() -> None:
    # fits-size wants 1G alignment, the GPA starts at 1M: no accepted offset is congruent even for 2M.
    slot = Slot(MIB, 2 * GIB, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=0)
    host = HostLimits(files=FileLimits(GIB, FitsSize()))
    finding = of(slot, host=host, private=(Range(0, 4 * GIB),))["offset-not-congruent"]
    assert finding.severity == "note"
    assert "no offset gains under the rule fits-size" in finding.remedy


def test_what_kvm_refuses_is_an_error_with_the_errno() -> None:
    low, over, odd = Slot(0, 4 * MIB), Slot(2 * MIB, 4 * MIB), Slot(1, 4096)
    every = find_findings(cover(Layout("t", "t", (low, over, odd))))
    findings = [finding for finding in every if finding.id == "refused"]
    assert [finding.severity for finding in findings] == ["error", "error"]
    assert any("EEXIST [gpa-free]" in finding.message for finding in findings)
    assert any("EINVAL [gpa-page-aligned]" in finding.message for finding in findings)
    assert any("guest_phys_addr=0x1 " in finding.message for finding in findings)


def test_private_memory_without_a_file_is_an_error() -> None:
    assert of(Slot(0, 2 * MIB, backing=HUGE), private=(Range(0, 4096),))["no-guest-memfd"].severity == "error"


def test_mixed_frames_are_counted_and_the_conversion_to_make_is_named() -> None:
    slot = Slot(0, 8 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="f", offset=0, backing=HUGE)
    finding = of(slot, private=(Range(MIB, 3 * MIB),))["mixed-attributes"]
    assert finding.message.startswith("2 frames of 2M")
    assert "0x100000-0x300000 to 0x0-0x400000" in finding.remedy


def test_a_file_that_is_mapped_at_an_address_unlike_its_gpa_loses_the_level_though_offset_and_gpa_agree() -> None:
    host = HostLimits(files=FileLimits(2 * MIB, SlotMetadata()))
    slot = Slot(4 * GIB, 8 * MIB, BASE + 4096, KVM_MEM_GUEST_MEMFD, file="f", offset=0)
    everything = (Range(4 * GIB, 4 * GIB + 8 * MIB),)

    finding = of(slot, host=host, private=everything)["hva-not-congruent"]

    assert finding.lost == ((2 * MIB, 8 * MIB),)
    assert finding.gain == ((2 * MIB, 8 * MIB),)
    assert "also where its pages are those of its guest_memfd" in finding.message
    assert of(replace(slot, hva=BASE), host=host, private=everything) == {}


def test_two_slots_of_one_allocation_that_meet_in_a_frame_should_be_one() -> None:
    low = Slot(4 * MIB, 5 * MIB, BASE, region="ram", offset=0, backing=HUGE)
    high = Slot(9 * MIB, 7 * MIB, BASE + 5 * MIB, region="ram", offset=5 * MIB, backing=HUGE)
    finding = of(low, high)["frame-shared"]
    assert finding.remedy.startswith("make one slot of the two")
    assert finding.gain == ((2 * MIB, 2 * MIB),)


def test_dirty_logging_of_ram_is_a_warning() -> None:
    slot = Slot(0, GIB, BASE, KVM_MEM_LOG_DIRTY_PAGES, region="ram", backing=HUGE)
    finding = of(slot)["dirty-logging"]
    assert (finding.severity, finding.gain) == ("warning", ((2 * MIB, GIB),))


def test_a_perfect_layout_has_no_finding() -> None:
    assert of(Slot(0, 4 * GIB, BASE, backing=Backing("hugetlb", GIB))) == {}


@given(small_layouts(), hosts())
@settings(max_examples=150, deadline=None)
def test_findings_are_well_formed_sorted_and_their_gain_is_never_more_than_is_lost(
    layout: Layout, host: HostLimits
) -> None:
    coverage = cover(layout, host)
    findings = find_findings(coverage)
    ranks = [SEVERITIES.index(finding.severity) for finding in findings]
    assert ranks == sorted(ranks, reverse=True)
    for finding in findings:
        assert finding.id in IDS
        assert finding.message.isprintable()
        assert finding.remedy
        assert all(0 <= index < len(layout.slots) for index in finding.slots)
        for size, more in finding.gain:
            level = host.sizes.index(size)
            assert 0 < more <= coverage.size - coverage.mapped[level]


def test_every_shipped_layout_can_be_judged() -> None:
    for path in LAYOUTS.iterdir():
        if path.suffix not in (".md", ".py", ".gdb"):
            for one in read(path.name, load(str(path))):
                assert all(finding.remedy for finding in find_findings(cover(one)))


def test_a_refused_slot_without_a_region_is_named_by_its_gpa_once() -> None:
    named, unnamed = Slot(0x1800, 0x1000, region="ram"), Slot(0x2800, 0x1000)

    messages = [each.message for each in find_findings(cover(Layout("t", "t", (named, unnamed)), HostLimits()))]

    begins = [message.partition(": ")[0] for message in messages if "KVM refuses" in message]
    assert begins == ["ram at GPA 0x1800", "the slot at GPA 0x2800"]
