"""Reports: the same answer as JSON, SARIF, text and HTML."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from examples import layout
from hypothesis import given, settings
from layouts import hosts, small_layouts
from rich.console import Console

from guestmem.layout import Assumption, Backing, HostLimits, Layout, Slot, cover
from guestmem.layout.check import Checked, check, most_severe
from guestmem.layout.findings import IDS
from guestmem.report.check_html import to_html
from guestmem.report.check_json import CheckReport, check_schema, to_json
from guestmem.report.check_sarif import sarif_of
from guestmem.report.check_text import print_checked
from guestmem.report.picture import best_runs, cells, windows
from guestmem.units import GIB, MIB

MEMFD = "qemu100-q35-10G-memfd.txt"


def checked(name: str = MEMFD) -> Checked:
    return check(layout(name), HostLimits())


def as_json(*many: Checked) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(to_json(list(many), HostLimits(), "v7.2"))
    return answer


def test_json_has_the_documented_shape() -> None:
    (source,) = as_json(checked())["sources"]
    assert source["source"].endswith(MEMFD)
    assert source["format"] == "qemu-mtree"
    ram = source["slots"][3]
    assert (ram["gpa"], ram["size"], ram["hva"], ram["offset"]) == (
        "0x100000",
        2047 * MIB,
        "0x7f61e40ff000",
        "0x100000",
    )
    assert (ram["region"], ram["flags"]) == ("m0", 0)
    assert ram["levels"] == {"4K": 2047 * MIB, "2M": 0, "1G": 0}
    assert {"level": "2M", "reason": "hva", "bytes": 2046 * MIB} in ram["lost"]
    assert {"hva-not-congruent", "low-memory"} <= {finding["id"] for finding in source["findings"]}
    assert source["totals"]["best"]["2M"] == 10238 * MIB


def test_json_names_the_host_it_judged_for() -> None:
    assert as_json(checked())["host"] == {
        "profile": "v7.2",
        "geometry": "x86-64",
        "thp": "possible",
        "guest_memfd_page_size": 4096,
        "rule": None,
    }


def test_an_unknown_hva_is_null_and_an_assumption_says_why() -> None:
    (source,) = as_json(checked("libvirt-plain.xml"))["sources"]
    assert all(slot["hva"] is None for slot in source["slots"])
    assert any(note["about"] == "hva" and "--hva" in note["option"] for note in source["assumptions"])


@given(small_layouts(), hosts())
@settings(max_examples=100, deadline=None)
def test_in_json_levels_and_lost_bytes_add_up_to_the_size_at_every_level(random: Layout, host: HostLimits) -> None:
    answer = json.loads(to_json([check(random, host)], host, "test"))
    for source in answer["sources"]:
        for entry in (*source["slots"], source["totals"]):
            for level, mapped in entry["levels"].items():
                lost = sum(lost["bytes"] for lost in entry["lost"] if lost["level"] == level)
                assert mapped + lost == entry["size"]


def test_json_fits_its_own_schema_types() -> None:
    text = to_json([checked(), checked("ch-zones-odd-virtio-mem.json")], HostLimits(), "v7.2")
    assert msgspec.json.decode(text, type=CheckReport).sources[1].vmm == "cloud-hypervisor"
    assert set(check_schema()["$defs"]["SlotEntry"]["required"]) >= {"gpa", "size", "levels", "lost"}


def test_sarif_has_one_result_per_finding_with_its_remedy() -> None:
    one = checked()
    log = sarif_of([one])
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert set(rules) == set(IDS)
    assert len(run["results"]) == len(one.findings)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("note", "warning", "error")
        assert "Remedy: " in result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].endswith(MEMFD)
    assert run["results"][0]["locations"][0]["logicalLocations"][0]["name"] == "m0"


def test_sarif_names_files_as_uris() -> None:
    one = check(Layout("a b/c#d.txt#seq/vm0", "t", (Slot(1, 4096),)), HostLimits())
    (run,) = sarif_of([one])["runs"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20b/c"


def text_of(one: Checked, *, encoding: str = "utf-8", rows: int = 40) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_checked(Console(file=file, width=120, highlight=False), [one], rows=rows, title="as test")
    file.seek(0)
    return file.read()


def test_text_has_the_table_the_picture_the_assumptions_and_the_findings() -> None:
    text = text_of(checked())
    assert "0x7f61e40ff000" in text
    assert "hva 2046M, shared frame 1M" in text
    assert "0x0 ░░░" in text
    assert text.splitlines()[0].endswith("none of 10.00G can be mapped with 2M pages")
    assert "why  m0: its HVA 0x7f61e3fff000" in text
    assert "fix  back m0 by hugetlb pages" in text
    assert "(gains 10238M with 2M pages)" in text
    assert "assumed, because the source does not say" in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_text_is_drawn_in_ascii_where_nothing_else_can_be_written() -> None:
    assert text_of(checked(), encoding="ascii").isascii()


def test_text_shows_the_first_slots_of_many_and_says_how_many_more() -> None:
    many = check(Layout("many", "t", tuple(Slot(n * MIB, MIB) for n in range(100))), HostLimits())
    assert "60 more" in text_of(many)
    assert "more" not in text_of(many, rows=0)


def test_of_many_findings_of_a_kind_the_first_is_told_and_the_others_are_named() -> None:
    slots = [Slot(at << 30, 1 << 25, hva=(at << 30) + 0x1000, region=f"r{at}") for at in range(50)]
    one = check(Layout("many", "t", tuple(slots)), HostLimits())
    assert sum(finding.id == "hva-not-congruent" for finding in one.findings) == 50

    text = text_of(one)
    assert "why  r0: its HVA 0x1000" in text
    assert text.count("hva-not-congruent: ") == 1
    assert "and 48 more like it: r2, r3, r4, r5, ..." in text
    assert text_of(one, rows=0).count("hva-not-congruent: ") == 49


def test_text_of_a_perfect_layout_says_so() -> None:
    perfect = check(Layout("t", "t", (Slot(0, GIB, backing=Backing("hugetlb", GIB)),)), HostLimits())

    text = text_of(perfect)
    assert text.startswith("t: 1G of 1G, all that the layout allows, can be mapped with 2M pages\n")
    assert not [line for line in text.splitlines() if line.lstrip().startswith(("why", "note", "warning"))]


def test_text_of_a_layout_without_slots_keeps_its_findings() -> None:
    assert "slots-missing" in text_of(checked("strace61-gm-rawioctl.txt"))


def test_text_shows_markup_of_strangers_as_it_is() -> None:
    evil = Slot(0, 2 * MIB, region="[bold]x[/]", backing=Backing("file"))
    assert "\x1b" not in text_of(check(Layout("\x1b[31m", "t", (replace(evil, region="\x1b]0;x\x07"),)), HostLimits()))
    assert "[bold]x[/]" in text_of(check(Layout("[red]n[/red]", "t", (evil,)), HostLimits()))


@given(small_layouts(), hosts())
@settings(max_examples=100, deadline=None)
def test_runs_of_the_map_cover_every_slot_once_with_its_best_level(random: Layout, host: HostLimits) -> None:
    coverage = cover(random, host)
    runs = list(best_runs(coverage))
    for index, item in enumerate(coverage.slots):
        mine = [run for run in runs if run.slot == index]
        assert sum(run.end - run.start for run in mine) == item.slot.size
        for level in range(len(host.sizes)):
            assert sum(run.end - run.start for run in mine if run.level >= level) == item.mapped[level]


def test_cells_show_what_most_of_their_bytes_are() -> None:
    low = Slot(0, 3 * MIB, backing=Backing("hugetlb", 2 * MIB))
    high = Slot(6 * MIB, 2 * MIB, backing=Backing("hugetlb", 2 * MIB))
    coverage = cover(Layout("t", "t", (low, high)))
    assert cells(coverage, 0, 8 * MIB, 8) == [1, 1, 0, None, None, None, 1, 1]
    assert cells(coverage, 0, 8 * MIB, 2) == [1, 1]
    assert windows(coverage) == [(0, 8 * MIB)]


class _Page(HTMLParser):
    """Every element that could make a request, and the depth at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.texts: list[str] = []
        self.rects = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rects += tag == "rect"
        self.requests += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page


def test_html_is_one_file_without_a_request() -> None:
    page = parsed(to_html([checked(), checked("ch-zones-odd-virtio-mem.json")], "v7.2"))
    assert page.requests == []
    assert page.rects >= 10
    text = "".join(page.texts)
    assert "make zone mem0 1026M or 1G instead of 1025M" in text
    assert "Alignment rules side by side" in text
    assert "https://" not in text


def test_html_escapes_names_from_strangers() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    slot = Slot(0, 4 * MIB, region=evil, backing=Backing("file"))
    html = to_html(
        [check(Layout(evil, "t", (slot,), assumptions=(Assumption("x", evil),), machine=evil), HostLimits())], "v7.2"
    )
    assert "<img" not in html
    assert html.count("</script>") == 1


def test_html_of_nothing_is_a_page() -> None:
    assert "Which pages" in to_html([], "v7.2")
    assert "None." in to_html([check(Layout("empty", "t", ()), HostLimits())], "v7.2")


@pytest.mark.parametrize(("names", "severity"), [((), None), (("libvirt-plain.xml",), "note"), ((MEMFD,), "warning")])
def test_the_worst_finding_of_all_counts(names: tuple[str, ...], severity: str | None) -> None:
    assert most_severe(checked(name).severity for name in names) == severity
