"""``guestmem trace report``: the answer first, JSON, and one line for what is no trace."""

from __future__ import annotations

import json
from pathlib import Path

from program import Guestmem

ROOT = Path(__file__).parent.parent
LOAD = ROOT / "examples/traces/kvm72-load.trace.dat.gz"
STORY = ROOT / "examples/traces/kvm72-story-fprobe.txt"


def test_the_first_lines_are_the_answer(guestmem_command: Guestmem) -> None:
    ended = guestmem_command("trace", "report", LOAD)

    first, leaves, exact = ended.out.splitlines()[:3]
    assert ended.code == 0
    assert first.endswith("4,257 events in 2.283 s, 1 VM")
    assert leaves == "  leaves  at most 1 of 1G, 13 of 2M, 16 of 4K; at the end none"
    assert exact.strip() == "exact: every change of the tables is in the trace"


def test_json_has_bytes_and_nanoseconds_and_no_count_that_was_not_counted(guestmem_command: Guestmem) -> None:
    load = json.loads(guestmem_command("trace", "report", "--json", LOAD).out)
    story = json.loads(guestmem_command("trace", "report", "--json", STORY).out)

    assert (load["format"], load["exact"], load["most"]) == (
        "guestmem-trace/1",
        True,
        {"4096": 16, str(2 << 20): 13, str(1 << 30): 1},
    )
    assert load["over_time"][-1]["leaves"] == {}
    assert (story["exact"], story["most"], story["at_the_end"], story["over_time"]) == (False, None, None, [])
    assert story["vms"][0]["slots"][2]["causes"] == {"hva": 4}


def test_what_is_missing_in_a_trace_is_said_with_the_event_that_has_it(guestmem_command: Guestmem) -> None:
    story = guestmem_command("trace", "report", STORY).out
    load = guestmem_command("trace", "report", LOAD).out

    assert "leaves  not counted: record kvm_tdp_mmu_spte_changed and kvm_mmu_split_huge_page too" in story
    assert "faults are not told by slot: record the probe mapped too" in load


def test_bad_input_is_one_line(guestmem_command: Guestmem, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(LOAD.read_bytes()[:3000])

    for path, said in ((cut, "the gzip file is damaged"), (ROOT / "README.md", "no event of KVM's page tables")):
        ended = guestmem_command("trace", "report", path)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert ended.err.count("\n") == 1


def test_the_page_draws_each_level_and_marks_what_happened(guestmem_command: Guestmem, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"

    ended = guestmem_command("trace", "report", "--html", page, LOAD)

    html = page.read_text()
    assert ended.code == 0
    assert [f'class="{kind}" d="M0 60L' in html for kind in ("l2", "l1", "l0")] == [True] * 3
    assert "slot 6 deleted" in html
    assert html.count('class="mark"') == 3 * 9, "nine changes of slots, in each row"
    assert "http" not in html.replace("http-equiv", "")


def test_a_trace_that_is_not_counted_has_no_rows_but_its_causes(guestmem_command: Guestmem, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    guestmem_command("trace", "report", "--html", page, STORY)

    html = page.read_text()
    assert "<svg" not in html
    assert "GPA and HVA not congruent (4)" in html
    assert "dirty logging of slot 1 off" in html


def test_names_of_strangers_are_escaped(guestmem_command: Guestmem, tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)<.txt"
    evil.write_text(STORY.read_text())
    page = tmp_path / "trace.html"

    guestmem_command("trace", "report", "--html", page, evil)

    assert "<script" not in page.read_text()
