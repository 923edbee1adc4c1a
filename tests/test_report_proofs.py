"""What ``guestmem prove`` prints: every verdict as a sentence, the table, and the keys of the JSON."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("z3", reason="guestmem prove is not installed: pip install 'guestmem[proofs]'")

from guestmem.geometry import X86_64
from guestmem.proofs.answers import Answer, Asked
from guestmem.proofs.verdict import Holds, NotAsked, Refuted, Unknown, Verdict
from guestmem.report.proofs_files import layout
from guestmem.report.proofs_json import proofs_json
from guestmem.report.proofs_text import proofs_lines

VALUES = {"size": 0x200000, "offset": 0x1000, "file_size": 0x400000, "page": 0x200000, "gpa": 0}
REFUTED = Answer("property", "bounded", "none", Refuted(VALUES), "it leaves the range")
ONE = Asked(X86_64, ("bounded",), ("none",))


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (Holds({"size": 0x1000}), "bounded of none: holds for all values"),
        (Holds({}, vacuous=True), "bounded of none: holds vacuously: no slot satisfies the premise"),
        (Refuted(VALUES), "bounded of none: refuted"),
        (Unknown("timeout", 20.0), "bounded of none: unknown (timeout after 20 s)"),
        (NotAsked("nothing meets the assumptions"), "bounded of none: not asked: nothing meets the assumptions"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: Verdict, sentence: str) -> None:
    assert sentence in list(proofs_lines(ONE, [Answer("property", "bounded", "none", verdict)]))


def test_a_refutation_shows_its_explanation_its_values_and_a_layout_to_try() -> None:
    lines = list(proofs_lines(ONE, [REFUTED]))

    assert "  refuted    it leaves the range" in lines
    assert "  values     size=0x200000 offset=0x1000 file_size=0x400000 page=0x200000 gpa=0x0" in lines
    assert 'offset = "0x1000"' in lines
    assert lines[-1] == "1 question: 0 hold, 1 refuted, 0 unknown"


def test_several_rules_and_properties_are_a_table() -> None:
    asked = Asked(X86_64, ("bounded", "offset-0"), ("none", "fits-size"))
    verdicts: dict[tuple[str, str], Verdict] = {
        ("none", "bounded"): Refuted(VALUES),
        ("none", "offset-0"): Holds(),
        ("fits-size", "bounded"): Holds(vacuous=True),
        ("fits-size", "offset-0"): Unknown("timeout", 1.0),
    }
    answers = [Answer("property", name, rule, verdict) for (rule, name), verdict in verdicts.items()]

    lines = list(proofs_lines(asked, answers))

    assert "  none         no  yes" in lines
    assert "  fits-size     -    ?" in lines


def test_the_json_of_an_implication_speaks_of_rules_only() -> None:
    implied = Answer("implies", "congruent", "none", Refuted(VALUES), "none accepts it")

    [refuted, row] = json.loads(proofs_json(ONE, [REFUTED, implied]))["answers"]

    assert list(refuted) == [
        *("kind", "subject", "rule", "verdict", "values", "of_nothing"),
        *("statement", "assumes", "story", "layout", "recording"),
    ]
    assert "statement" not in row, "congruent is the rule here, not the property of that name"
    assert (row["layout"], layout(X86_64, implied)) == ("", "")
