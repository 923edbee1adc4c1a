"""Remedies are applied as they are written, and the layout is checked again: what was promised comes true."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import LAYOUTS
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layouts import hosts, small_layouts

from guestmem.layout import Coverage, HostLimits, Layout, Reason, Slot, cover
from guestmem.layout.findings import Finding, find_findings
from guestmem.layout.recognise import load, read
from guestmem.layout.vmm import Words, words_of
from guestmem.units import GIB, KIB, MIB, parse_size

ENDINGS = (".txt", ".xml", ".json", ".toml")
MOVE = re.compile(r"move offset (0x[0-9a-f]+) to (0x[0-9a-f]+)(?: and make the file (0x[0-9a-f]+) bytes)?")
RESIZE = re.compile(r"make (?:zone )?(\S+) (\S+?)(?: or (\S+))? instead of (\S+)")


def findings_of(coverage: Coverage, *ids: str) -> list[Finding]:
    return [finding for finding in find_findings(coverage) if finding.id in ids]


@given(small_layouts(), hosts())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_offsets_that_remedies_name_can_all_be_taken_at_once_and_gain_what_they_say(
    layout: Layout, host: HostLimits
) -> None:
    before = cover(layout, host)
    slots, files = list(layout.slots), {file.name: file for file in layout.files}
    moved: dict[int, Finding] = {}
    for finding in findings_of(before, "rule-refuses", "offset-not-congruent"):
        if match := MOVE.match(finding.remedy):
            (index,) = finding.slots
            slot = slots[index]
            assert slot.offset == int(match[1], 16)
            slots[index] = replace(slot, offset=int(match[2], 16))
            moved[index] = finding
            if match[3] and slot.file:
                size = max(files[slot.file].size, int(match[3], 16))
                files[slot.file] = replace(files[slot.file], size=size)
    assume(moved)
    after = cover(replace(layout, slots=tuple(slots), files=tuple(files.values())), host)
    for index, finding in moved.items():
        lost = {one.reason for one in after.slots[index].lost if one.page_size == host.sizes[0]}
        assert not lost & {Reason.REFUSED, Reason.RULE}
        mapped = zip(host.sizes[1:], before.slots[index].mapped[1:], after.slots[index].mapped[1:], strict=True)
        assert finding.gain == tuple((size, new - old) for size, old, new in mapped if new > old)


def zones_of(*sizes_mib: int, **every: Any) -> dict[str, Any]:
    zones = [{"id": f"z{index}", "size": size * MIB, **every} for index, size in enumerate(sizes_mib)]
    return {"memory": {"size": 0, "zones": zones}}


def covered(document: object) -> Coverage:
    return cover(read("x", json.dumps(document).encode())[0])


zone_sizes = st.lists(st.sampled_from([1024, 1025, 2047, 2048, 3073, 4097, 5120]), min_size=1, max_size=3)


@given(zone_sizes, st.booleans())
@settings(max_examples=150, deadline=None)
def test_zone_sizes_that_remedies_name_lead_to_a_cloud_hypervisor_layout_without_the_findings(
    sizes: list[int], last_huge: bool
) -> None:
    document = zones_of(*sizes)
    zones = document["memory"]["zones"]
    if last_huge:
        zones[-1] |= {"hugepages": True, "size": zones[-1]["size"] // (2 * MIB) * 2 * MIB}
    for choice in (2, 3):
        followed = json.loads(json.dumps(document))
        while told := findings_of(covered(followed), "odd-start", "hva-not-congruent", "odd-end"):
            match = RESIZE.match(told[0].remedy)
            assert match is not None, told[0].remedy
            (zone,) = [zone for zone in followed["memory"]["zones"] if zone["id"] == match[1]]
            assert zone["size"] == parse_size(match[4]) != parse_size(match[choice])
            zone["size"] = parse_size(match[choice])
        assert Reason.HVA not in {lost.reason for lost in covered(followed).lost if lost.page_size == 2 * MIB}


@pytest.mark.parametrize("mib", [129, 1025, 4609])
def test_firecracker_takes_the_memory_size_that_the_remedy_names(mib: int) -> None:
    def config(size: int, **more: str) -> dict[str, Any]:
        return {"machine-config": {"mem_size_mib": size, **more}}

    before = covered(config(mib))
    (finding, *_) = findings_of(before, "hva-not-congruent")
    match = re.match(r"make mem_size_mib (\d+) or (\d+) instead of (\d+)", finding.remedy)
    assert match is not None
    assert int(match[3]) == mib
    for size in (int(match[1]), int(match[2])):
        assert findings_of(covered(config(size)), "hva-not-congruent") == []
        assert covered(config(size, huge_pages="2M")).mapped[1] == size * MIB


@pytest.mark.parametrize("vmm", ["cloud-hypervisor", "firecracker"])
def test_huge_pages_are_advised_together_with_the_size_that_they_need(vmm: str) -> None:
    odd: object = {"machine-config": {"mem_size_mib": 1025}}
    if vmm == "cloud-hypervisor":
        odd = zones_of(1025)
    (layout,) = read("x", json.dumps(odd).encode())
    (finding, *_) = findings_of(cover(layout, HostLimits(thp=False)), "backing-too-small")
    assert finding.gain[0][0] == 2 * MIB
    assert "a multiple of 2M" in finding.remedy


@pytest.mark.parametrize("past", [4 * KIB, 0x1FF000, 0x130000])
@pytest.mark.parametrize("gpa", [GIB, GIB + MIB])
def test_a_region_mapped_where_the_remedy_says_gains_what_it_says(past: int, gpa: int) -> None:
    def made(hva: int) -> Coverage:
        return covered({"slots": [{"gpa": gpa, "size": 3 * GIB, "hva": hva, "region": "ram"}]})

    base = 0x7F00_0000_0000
    before = made(base + gpa % (2 * MIB) + past)
    (finding,) = findings_of(before, "hva-not-congruent")
    match = re.match(r"map ram at (?:(0x[0-9a-f]+) past )?a multiple of 2M", finding.remedy)
    assert match is not None
    after = made(base + int(match[1] or "0", 16))
    assert finding.gain[0] == (2 * MIB, after.mapped[1] - before.mapped[1])


@given(st.lists(st.sampled_from([512, 1024, 1025, 2047, 2048, 3073]), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_node_sizes_that_remedies_name_lead_to_a_domain_whose_nodes_start_at_whole_frames(sizes: list[int]) -> None:
    def domain(sizes: list[int]) -> Coverage:
        cells = "".join(f"<cell id='{node}' memory='{size}' unit='MiB'/>" for node, size in enumerate(sizes))
        machine = "<os><type machine='q35'>hvm</type></os>"
        return cover(read("x", f"<domain>{machine}<cpu><numa>{cells}</numa></cpu></domain>".encode())[0])

    followed = list(sizes)
    while told := findings_of(domain(followed), "odd-start"):
        match = RESIZE.match(told[0].remedy)
        assert match is not None, told[0].remedy
        node = int(match[1].removeprefix("ram-node"))
        assert parse_size(match[4]) == followed[node] * MIB != parse_size(match[2])
        followed[node] = parse_size(match[2]) // MIB
    assert Reason.HVA not in {lost.reason for lost in domain(followed).lost if lost.page_size == 2 * MIB}


@pytest.mark.parametrize("vmm", ["qemu", "libvirt", "cloud-hypervisor", "firecracker", ""])
def test_each_vmm_that_a_reader_names_has_words_of_its_own(vmm: str) -> None:
    layouts = [one for path in sorted(LAYOUTS.iterdir()) if path.suffix in ENDINGS for one in read_file(path)]
    named = [one for one in layouts if one.vmm == vmm]
    assert named
    assert (type(words_of(named[0])) is Words) == (vmm == "")


def read_file(path: Path) -> list[Layout]:
    return read(path.name, load(str(path)))


@pytest.mark.parametrize(
    ("slot", "wanted"),
    [
        (Slot(0x1800, 0x2000), "align guest_phys_addr to 4K; until then nothing of the slot is mapped"),
        (Slot(0x1800, 0), "align guest_phys_addr, memory_size to 4K; until then nothing of the slot is mapped"),
        (Slot(0, 0x2000, 0x10), "align userspace_addr to 4K; until then nothing of the slot is mapped"),
    ],
)
def test_the_remedy_of_a_refused_slot_names_which_value_to_align(slot: Slot, wanted: str) -> None:
    (finding,) = findings_of(cover(Layout("t", "t", (slot,))), "refused")
    assert finding.remedy == wanted
