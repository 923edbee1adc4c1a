"""The commands check, rules and schema as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples import LAYOUTS, ROOT
from typer.testing import CliRunner, Result

from guestmem.cli import app, main
from guestmem.cli import layouts as layout_options
from guestmem.layout.formats import FORMATS
from guestmem.units import GIB, MIB

MEMFD = str(LAYOUTS / "qemu100-q35-10G-memfd.txt")
PLAIN = str(LAYOUTS / "libvirt-plain.xml")
DISCUSSION = str(LAYOUTS / "discussion.toml")


def run(*arguments: str) -> Result:
    """Run guestmem; what main turns into exit 2 raises here."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def answer(*arguments: str) -> dict[str, Any]:
    """The JSON of ``check --json``."""
    value: dict[str, Any] = json.loads(run("check", "--json", *arguments).stdout)
    return value


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line on stderr of a command that must end with 2."""
    monkeypatch.setattr("sys.argv", ["guestmem", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("guestmem: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("level", "source", "status"),
    [
        ("warning", MEMFD, 1),
        ("note", MEMFD, 1),
        ("error", MEMFD, 0),
        ("never", MEMFD, 0),
        ("warning", PLAIN, 0),
        ("note", PLAIN, 1),
    ],
)
def test_the_status_says_whether_findings_reach_fail_on(level: str, source: str, status: int) -> None:
    assert run("check", "--fail-on", level, source).exit_code == status


def test_check_takes_many_sources_of_different_formats() -> None:
    sources = answer(MEMFD, PLAIN, DISCUSSION, str(LAYOUTS / "strace61-gm.txt"))["sources"]
    assert [source["format"] for source in sources] == ["qemu-mtree", "libvirt", "guestmem", "strace"]


def test_check_reads_standard_input() -> None:
    result = CliRunner().invoke(app, ["check", "--json", "-"], input=Path(MEMFD).read_bytes())
    assert json.loads(result.stdout)["sources"][0]["source"] == "-"


def test_an_hva_from_the_user_is_used_and_named() -> None:
    (source,) = answer("--hva", "pc.ram=0x7f0000001000", PLAIN)["sources"]
    ram = [slot for slot in source["slots"] if slot["region"] == "pc.ram"]
    assert [slot["hva"] for slot in ram] == ["0x7f0000001000", "0x7f0000101000", "0x7f00c0001000"]
    assert all(slot["levels"]["2M"] == 0 for slot in ram)
    assert any("HVAs are as given: pc.ram at 0x7f0000001000" in note["text"] for note in source["assumptions"])


def test_unknown_hvas_can_be_taken_as_barely_aligned() -> None:
    (source,) = answer("--hva-align", "4K", PLAIN)["sources"]
    assert source["totals"]["levels"]["2M"] == 0
    (aligned,) = answer("--hva-align", "1G", "--backing", "hugetlb:1G", PLAIN)["sources"]
    # pc, 6145M: [1G, 3G) and [4G, 7G).
    assert aligned["totals"]["levels"]["1G"] == 5 * GIB


def test_backings_and_thp_can_be_set() -> None:
    (source,) = answer("--thp", "never", PLAIN)["sources"]
    assert source["totals"]["levels"]["2M"] == 0
    (huge,) = answer("--thp", "never", "--backing", "pc.ram=hugetlb:2M", PLAIN)["sources"]
    assert huge["totals"]["levels"]["2M"] == 6142 * MIB


def test_attributes_can_be_set() -> None:
    snp = str(LAYOUTS / "libvirt-snp.xml")
    (private,) = answer(snp)["sources"]
    (shared,) = answer("--attributes", "shared", "--hva-align", "2M", snp)["sources"]
    assert private["totals"]["levels"]["2M"] == 0
    assert shared["totals"]["levels"]["2M"] == 4098 * MIB


def test_profile_next_judges_hugepage_guest_memfd_under_a_rule() -> None:
    default = answer("--profile", "next", "--page-size", "1G", DISCUSSION)
    assert default["host"]["rule"] == "slot-metadata"
    assert default["sources"][0]["totals"]["levels"]["4K"] == GIB
    refused = answer("--profile", "next", "--rule", "creation-flags", DISCUSSION)
    assert refused["host"]["rule"] == "creation-flags"
    assert refused["sources"][0]["findings"][0]["remedy"].startswith("move offset 0x4000 to 0x40000000")
    loose = answer("--profile", "next", "--page-size", "2M", "--rule", "contained", DISCUSSION)
    assert loose["sources"][0]["totals"]["levels"]["4K"] == GIB


def test_firecracker_is_laid_out_as_its_version_does() -> None:
    (old,) = answer("--firecracker-version", "v1.12.1", str(LAYOUTS / "fc-4608M-2M.json"))["sources"]
    assert [slot["size"] for slot in old["slots"]] == [3328 * MIB, 1280 * MIB]


def test_html_and_sarif_are_written(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("check", "--html", str(page), "--sarif", MEMFD)
    assert json.loads(result.stdout)["version"] == "2.1.0"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_recordings_are_checked_sequence_by_sequence() -> None:
    (path, *_) = sorted((ROOT / "examples" / "recordings").glob("*.jsonl.gz"))
    assert len(answer(str(path))["sources"]) > 1


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["check", "/nonexistent"], "/nonexistent: cannot be read: No such file or directory"),
        (["check", str(LAYOUTS)], "cannot be read: Is a directory"),
        (["check", "--format", "vmware", MEMFD], "needed one of qemu-mtree"),
        (["check", "--format", "libvirt", MEMFD], "needed XML"),
        (["check", "--fail-on", "soon", MEMFD], "--fail-on soon"),
        (["check", "--json", "--sarif", MEMFD], "choose one"),
        (["check", "--hva", "nope=0x1000", MEMFD], "has no region 'nope'"),
        (["check", "--hva", "m0", MEMFD], "needed REGION=ADDRESS"),
        (["check", "--hva-align", "3K", MEMFD], "needed a power of two"),
        (["check", "--backing", "gold", MEMFD], "needed [REGION=]KIND[:SIZE]"),
        (["check", "--backing", "hugetlb", MEMFD], "needed a page size"),
        (["check", "--attributes", "mixed", MEMFD], "needed shared or private"),
        (["check", "--thp", "always", MEMFD], "needed possible or never"),
        (["check", "--profile", "v9", MEMFD], "no profile 'v9'"),
        (["check", "--rule", "congruent", MEMFD], "need profile next"),
        (["check", "--profile", "next", "--rule", "mine", MEMFD], "no rule 'mine'"),
        (["check", "--profile", "next", "--page-size", "3M", MEMFD], "no leaf size"),
        (["check", "--geometry", "vax", MEMFD], "no geometry 'vax'"),
        (["check", "--firecracker-version", "new", MEMFD], "needed X.Y"),
        (["rules", "--packing", "loose", MEMFD], "needed one of one-file, per-slot, both"),
        (["plan", "--movable", "n7", MEMFD], "--movable n7: the regions are m0, pc.bios, pc.rom"),
        (["plan", "--to", "3M", MEMFD], "no leaf size"),
        (["plan", "--rule", "mine", MEMFD], "no rule 'mine'"),
        (["schema", "world"], "there are layout, check, host and recording"),
    ],
)
def test_bad_usage_and_bad_input_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: str
) -> None:
    assert wanted in fails(capsys, monkeypatch, *arguments)


def test_rules_puts_every_rule_beside_the_best_possible() -> None:
    value = json.loads(run("rules", "--json", str(LAYOUTS / "qemu72-q35-4G.txt")).stdout)
    one_file, per_slot = value["sources"]
    assert (one_file["packing"], per_slot["packing"]) == ("one-file", "per-slot")
    assert one_file["best"] == {"4K": 4095 * MIB + 640 * 1024, "2M": 4094 * MIB, "1G": 3 * GIB}
    rules = {rule["rule"]: rule for rule in one_file["rules"]}
    # The slot at GPA 1M has offset 1M: aligned to what it can use, but not to what its size allows.
    assert rules["congruent"]["levels"] == one_file["best"]
    assert rules["fits-size"]["refused"] == 1
    assert "0x40000000" in rules["fits-size"]["slots"][1]["refused"]
    assert rules["gpa-alignment"]["slots"][2]["refused"] is not None
    assert rules["upstream"]["levels"]["2M"] == 0


def test_rules_says_in_text_which_slots_are_refused() -> None:
    text = run("rules", "--slots", "--packing", "one-file", str(LAYOUTS / "qemu72-q35-4G.txt")).stdout
    assert "fits-size refuses pc.ram at GPA 0x100000: offset 0x100000 is not a multiple of 0x40000000 (1G)" in text
    assert "best possible" in text


def test_schema_prints_both_schemas() -> None:
    assert "SlotSpec" in json.loads(run("schema").stdout)["$defs"]
    assert "SlotEntry" in json.loads(run("schema", "check").stdout)["$defs"]
    assert "CreateVm" in json.loads(run("schema", "recording").stdout)["$defs"]


def test_plan_says_where_each_slot_should_be_and_what_it_brings() -> None:
    odd = str(LAYOUTS / "qemu72-q35-numa-odd.txt")
    value = json.loads(run("plan", "--json", "--movable", "n1", odd).stdout)
    (entry,) = value["sources"]
    (n1,) = [slot for slot in entry["slots"] if slot["region"] == "n1"]
    assert (n1["gpa"], n1["new_gpa"], n1["hva_modulus"]) == ("0x140100000", "0x180000000", GIB)
    assert entry["levels"] == entry["best"]
    assert [file["name"] for file in entry["files"]] == ["n0", "n1"]


def test_plan_to_larger_pages_lists_the_moves_in_order() -> None:
    q35 = str(LAYOUTS / "qemu72-q35-4G.txt")
    value = json.loads(run("plan", "--json", "--page-size", "2M", "--to", "1G", "--rule", "fits-size", q35).stdout)
    migration = value["sources"][0]["migration"]
    assert migration["page_size"] == GIB
    assert migration["moved"] == sum(step["size"] for step in migration["steps"] if step["kind"] != "save")
    text = run("plan", "--page-size", "2M", "--to", "1G", "--rule", "congruent", "--one-file", q35).stdout
    assert "3 offsets can stay, 0 must move" in text
    assert "the moves copy" not in text


def test_plan_text_names_slots_that_no_offset_satisfies() -> None:
    text = run("plan", "--rule", "both-multiples-of-2M", "--one-file", str(LAYOUTS / "qemu72-q35-4G.txt")).stdout
    assert "the rule accepts no offset for pc.ram at 0x0, pc.ram at 0x100000" in text


def test_a_bound_layout_is_migrated_from_where_it_is() -> None:
    text = run("plan", "--page-size", "4K", "--to", "x86-64", "--rule", "creation-flags", DISCUSSION).stdout
    assert "creation-flags refuses its offset with the larger page" in text
    assert "copy 1G of ram at 0x0: 0x4000 to 0x0" in text


def test_the_help_of_format_names_every_format_of_the_table() -> None:
    """The command line imports no layout before a command runs, so it has the names a second time."""
    names = layout_options.FORMAT.help.partition(": ")[2].rstrip(".").split(", ")
    assert sorted(names) == sorted(FORMATS)
