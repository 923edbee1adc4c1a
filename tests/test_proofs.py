"""What is proved about the rules: the answers that are known otherwise, and that a wrong rule is found out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("z3", reason="guestmem prove is not installed: pip install 'guestmem[proofs]'")

from program import Guestmem

from guestmem.geometry import ARM64_16K, ARM64_64K, X86_64, X86_64_512G, Geometry
from guestmem.proofs.answers import Asked, ask_all, whole_table
from guestmem.proofs.properties import PROPERTIES
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import answer
from guestmem.proofs.statements import STATEMENTS
from guestmem.proofs.verdict import Holds, Refuted, Unknown, Verdict
from guestmem.rules import RULES, Binding, FitsSize
from guestmem.units import GIB, MIB

HOLDS, REFUTED = Holds, Refuted
[BEGINS_INSIDE] = [each for each in PROPERTIES if each.name == "begins-inside"]


def verdict_of(name: str, rule: str, geometry: Geometry = X86_64, **given: int) -> Verdict:
    asked = Asked(geometry, (name,), (rule,), given=given, limit_s=120)
    [found] = ask_all(asked, 1)
    return found.verdict


# -- what was said in the discussion, and what the code shows without a solver -----------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("begins-inside", "none", REFUTED),  # the question of the discussion
        ("begins-inside", "fits-size", HOLDS),  # "rounding down" cannot leave the slot then
        ("begins-inside", "creation-flags", HOLDS),  # the conclusion
        ("begins-inside", "gpa-alignment", REFUTED),
        ("bounded-in-slot", "congruent", HOLDS),
        ("bounded-in-slot", "creation-flags", REFUTED),
        ("bounded-in-model", "none", HOLDS),  # no rule, however loose, makes the model map outside
        ("complete", "congruent", HOLDS),
        ("complete", "upstream", REFUTED),  # single pages
        ("stable", "current-backing", REFUTED),  # the backing may change after the slot was set
        ("stable-in-file", "creation-flags", HOLDS),
        ("monotone", "creation-flags", REFUTED),  # migration to a host with larger pages
        ("monotone-levels", "fits-size", REFUTED),  # 512G
        ("monotone-levels", "creation-flags", HOLDS),
        ("congruent-in-slot", "creation-flags", REFUTED),  # where the discussion ended
        ("congruent-in-slot", "or-metadata", REFUTED),  # where it began
        ("congruent-in-slot", "slot-metadata", HOLDS),
        ("offset-0", "congruent", REFUTED),  # offset 0 and gpa 4K differ
        ("offset-0", "fits-size", HOLDS),
    ],
)
def test_a_property_of_a_rule(name: str, rule: str, expected: type) -> None:
    assert isinstance(verdict_of(name, rule), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("min-is-fits", HOLDS),
        ("fits-only-tighter", HOLDS),
        ("fits-no-tighter", REFUTED),
        ("small-slot", HOLDS),
        ("checks-no-wrap", HOLDS),
        ("signed-in-file", REFUTED),
        ("signed-agrees-below", HOLDS),
    ],
)
def test_a_statement(name: str, expected: type) -> None:
    [found] = ask_all(Asked(X86_64, statements=(name,), limit_s=120), 1)

    assert isinstance(found.verdict, expected)


def test_the_signed_form_of_6_18_wraps_at_the_value_that_the_kernel_accepted() -> None:
    [found] = ask_all(Asked(X86_64, statements=("signed-in-file",), limit_s=120), 1)

    assert isinstance(found.verdict, Refuted)
    assert found.verdict.values["offset"] + found.verdict.values["size"] == 1 << 63


def test_with_1g_pages_the_access_at_0x8000_of_a_slot_at_0x4000_takes_the_page_at_0() -> None:
    asked = Asked(
        X86_64,
        ("begins-inside",),
        ("none",),
        given={"folio": GIB, "size": GIB, "offset": 0x4000, "access": 0x8000},
        limit_s=120,
    )

    [found] = ask_all(asked, 1)

    assert found.explanation == (
        "for 1G pages, a slot of 1G at offset 0x4000: the access at 0x8000 takes the page at file offset 0x0, which "
        "begins before the bound range"
    )


def test_the_smallest_counterexample_comes_first() -> None:
    found = verdict_of("begins-inside", "none")

    assert isinstance(found, Refuted)
    assert (found.values["folio"], found.values["size"], found.values["offset"]) == (2 * MIB, 2 * MIB, 0x1000)


def test_a_slot_of_512g_is_refused_once_the_architecture_has_pages_of_that_size() -> None:
    found = verdict_of("monotone-levels", "size-and-gpa")

    assert isinstance(found, Refuted)
    assert found.values["size"] == 512 * GIB


@pytest.mark.parametrize("geometry", [ARM64_16K, ARM64_64K, X86_64_512G], ids=lambda geometry: geometry.name)
def test_on_other_architectures_the_model_maps_nothing_outside_either(geometry: Geometry) -> None:
    assert isinstance(verdict_of("bounded-in-model", "none", geometry), Holds)


# -- the machinery -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _OffByOnePage(FitsSize):
    """A wrong rule: it takes an offset one page too far for a good one."""

    name: ClassVar[str] = "off-by-one-page"

    def refuses(self, binding: Binding) -> str | None:
        if binding.offset % (2 * MIB) == 0x1000:
            return None
        return super().refuses(binding)


def test_a_wrong_rule_is_found_out() -> None:
    situation = Situation(X86_64)
    wrong = _OffByOnePage()

    found = answer(BEGINS_INSIDE.ask(situation, wrong), 120)

    assert isinstance(found, Refuted)
    assert found.values["offset"] % (2 * MIB) == 0x1000


def test_assumptions_can_be_met_and_the_witness_meets_them() -> None:
    found = verdict_of("begins-inside", "fits-size")

    assert isinstance(found, Holds)
    assert not found.vacuous
    values = found.witness
    assert values["offset"] <= values["access"] < values["offset"] + values["size"]
    assert values["offset"] + values["size"] <= values["file_size"]


def test_a_question_without_time_is_unknown_and_unknown_is_no_success(guestmem_command: Guestmem) -> None:
    situation = Situation(X86_64)
    question = BEGINS_INSIDE.ask(situation, FitsSize())

    assert isinstance(answer(question, 1e-9), Unknown)
    ended = guestmem_command("prove", "begins-inside", "--rule", "fits-size", "--timeout", "0.001", "--jobs", 1)
    assert ended.code == 1
    assert "unknown" in ended.out


def test_every_rule_property_and_statement_is_asked_once_in_the_whole_table() -> None:
    table = whole_table(X86_64)

    assert table.rules == ("none", *(rule.name for rule in RULES))
    assert sorted(table.properties) == sorted({each.name for each in PROPERTIES})
    assert sorted(table.statements) == sorted({each.name for each in STATEMENTS})
    assert len(table.properties + table.statements) == len(PROPERTIES) + len(STATEMENTS)


# -- the command -------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_by_name_and_refuted_ends_with_1(guestmem_command: Guestmem) -> None:
    assert guestmem_command("prove", "begins-inside", "--rule", "fits-size", "--jobs", 1).code == 0
    assert guestmem_command("prove", "begins-inside", "--rule", "none", "--jobs", 1).code == 1


def test_a_counterexample_is_a_layout_to_check_and_a_recording_to_run(
    guestmem_command: Guestmem, tmp_path: Path
) -> None:
    guestmem_command("prove", "begins-inside", "bounded", "--rule", "none", "--jobs", 1, "--write", tmp_path)
    guestmem_command("prove", "signed-in-file", "--jobs", 1, "--write", tmp_path)

    written = sorted(path.name for path in tmp_path.iterdir())
    assert "begins-inside-none.toml" in written
    assert "signed-in-file.jsonl" in written
    for path in tmp_path.glob("*.toml"):
        ended = guestmem_command("check", "--profile", "next", "--json", path)
        assert ended.code in (0, 1), ended.err
        [source] = json.loads(ended.out)["sources"]
        assert len(source["slots"]) == 1
    for path in tmp_path.glob("*.jsonl"):
        ended = guestmem_command("run", path)
        assert ended.code == 0, ended.err
        assert "set_user_memory_region2       1  ok 1" in ended.out, "the slot is accepted: that is what is wrong"


def test_json_has_verdicts_values_and_explanations(guestmem_command: Guestmem) -> None:
    ended = guestmem_command("prove", "begins-inside", "--rule", "none", "--rule", "fits-size", "--jobs", 1, "--json")

    report: dict[str, Any] = json.loads(ended.out)
    assert report["geometry"] == "x86-64"
    refuted, holds = report["answers"]
    assert (refuted["rule"], refuted["verdict"], holds["rule"], holds["verdict"]) == (
        "none",
        "refuted",
        "fits-size",
        "holds",
    )
    assert refuted["values"]["offset"] == 0x1000
    assert refuted["story"]
    assert holds["assumes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no property 'nonsense'"),
        (["bounded", "--rule", "nonsense"], "nonsense"),
        (["bounded", "--rule", "none", "--given", "speed=1"], "no variable 'speed'"),
        (["bounded", "--geometry", "z80"], "no geometry 'z80'"),
    ],
)
def test_what_there_is_not_is_one_line(arguments: list[str], words: str, guestmem_command: Guestmem) -> None:
    ended = guestmem_command("prove", *arguments, "--jobs", 1)

    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert words in ended.err


def test_without_the_solver_it_says_what_to_install(
    guestmem_command: Guestmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "z3", None)

    ended = guestmem_command("prove")

    assert ended.code == 4
    assert "pip install 'guestmem[proofs]'" in ended.err
