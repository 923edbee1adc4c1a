"""Write docs/proofs.md and docs/lattice.svg, the whole table of `guestmem prove`: `make docs` writes them.

With --check nothing is written: the table is asked again and compared with the page, which is what CI does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from guestmem.geometry import X86_64
from guestmem.outfile import write_text
from guestmem.proofs.answers import Answer, Asked, ask_all, claim_named, lattice_from, whole_table
from guestmem.proofs.solver import version
from guestmem.proofs.verdict import Holds, NotAsked, Unknown
from guestmem.report.lattice_svg import svg
from guestmem.report.proofs_text import mark, values_text

HERE = Path(__file__).parent
LIMIT_S = 120.0
TITLE = "Which alignment rule implies which"
_VERDICTS = {"yes": "holds", "-": "holds vacuously", "no": "refuted", "?": "unknown", "n/a": "not asked"}

HEAD = """# What is proved about the alignment rules

Made by `make docs` with {version}; do not edit. `guestmem prove` prints the same, and `make prove` asks it all again
and compares.

Every question is about *all* values at once: any GPA, size, offset and file size of 64 bits, any page size of the
architecture (here {geometry}: 4K, 2M, 1G) asked for at creation and held by the backing, and any page of the slot. The
formulas are not written down a second time: the rules' own code and the model's own checks run on unknowns. Tests
compare them with the same code on numbers, more than two million slots in all. A refutation is played back on plain
Python before it is shown, and is the smallest there is. *Unknown* is an answer of its own; there are {unknown}.

yes: holds for all values. no: refuted. -: holds vacuously, no slot satisfies the premise (a rule that maps nothing
huge maps nothing wrongly). `none` means: there is no rule.
"""

TAIL = """## What is not proved

- Anything about the kernel's own code. What is proved is about this model's checks, written from the kernel's; that
  they agree is tested, by recordings and by comparing (differential.md).
- Geometries other than {geometry}: `guestmem prove --geometry arm64-16K` asks them, this page does not.
- More than one slot at a time. That slots do not overlap in the file is checked by the model and tested.
- The order of events: `guestmem prove races` explores that, for small states and without a solver (races.md).
- That the solver is right. Its refutations are played back; what it says holds is taken on its word.
"""


def page(asked: Asked, answers: list[Answer]) -> str:
    """The page."""
    unknown = sum(isinstance(answer.verdict, Unknown | NotAsked) for answer in answers)
    geometry = asked.geometry.name
    return "\n".join(
        [
            HEAD.format(version=version(), geometry=geometry, unknown=unknown or "none"),
            *_table(asked, answers),
            *_properties(asked, answers),
            *_statements(asked, answers),
            *_lattice(answers),
            TAIL.format(geometry=geometry),
        ]
    )


def _table(asked: Asked, answers: list[Answer]) -> Iterator[str]:
    cells = {(answer.rule, answer.subject): mark(answer.verdict) for answer in answers if answer.kind == "property"}
    yield f"| rule | {' | '.join(asked.properties)} |"
    yield f"| --- |{' :-: |' * len(asked.properties)}"
    for rule in asked.rules:
        yield f"| {rule} | {' | '.join(cells[rule, name] for name in asked.properties)} |"
    yield ""


def _properties(asked: Asked, answers: list[Answer]) -> Iterator[str]:
    yield "## The properties"
    for name in asked.properties:
        yield from _heading(name, name)
        own = [answer for answer in answers if answer.kind == "property" and answer.subject == name]
        witness = next((answer for answer in own if isinstance(answer.verdict, Holds) and answer.verdict.witness), None)
        if witness is not None and isinstance(witness.verdict, Holds):
            values = values_text(witness.verdict.witness)
            yield f"- witness that the assumptions can be met ({witness.rule}): `{values}`"
        yield ""
        refuted: dict[str, list[str]] = {}
        for answer in own:
            if answer.explanation:
                refuted.setdefault(answer.explanation, []).append(answer.rule)
        if refuted:
            yield "| refuted for | smallest counterexample |"
            yield "| --- | --- |"
            yield from (f"| {', '.join(rules)} | {explanation} |" for explanation, rules in refuted.items())
            yield ""


def _statements(asked: Asked, answers: list[Answer]) -> Iterator[str]:
    yield "## What the mails, and the code, say"
    verdicts = {answer.subject: answer for answer in answers if answer.kind == "statement"}
    for name in asked.statements:
        answer = verdicts[name]
        yield from _heading(f"{name}: {_VERDICTS[mark(answer.verdict)]}", name)
        if answer.explanation:
            yield f"- counterexample: {answer.explanation}"
        elif isinstance(answer.verdict, Holds):
            yield f"- witness that the assumptions can be met: `{values_text(answer.verdict.witness)}`"
        yield ""


def _heading(title: str, name: str) -> Iterator[str]:
    claim = claim_named(name)
    yield from ("", f"### {title}", "", f"{claim.statement[0].upper()}{claim.statement[1:]}.", "")
    yield from (f"- assumed: {assumption}" for assumption in claim.assumes)


def _lattice(answers: list[Answer]) -> Iterator[str]:
    lattice = lattice_from(answers)
    yield "## Which rule implies which"
    yield ""
    yield "An arrow from one rule to another: every slot that the first accepts, the second accepts. Rules in one box"
    yield "accept the same slots; they differ in the levels that they allow later."
    yield ""
    yield f"![{TITLE}](lattice.svg)"
    yield ""
    yield from (f"- {' = '.join(node)}" for node in lattice.nodes if len(node) > 1)
    yield from (f"- {lattice.nodes[low][0]} implies {lattice.nodes[high][0]}" for low, high in lattice.edges)
    yield ""


def main() -> int:
    """Write, or check: 1 if the page is not what is proved today."""
    asked = whole_table(X86_64, LIMIT_S)
    answers = ask_all(asked, 2)
    made = {HERE / "proofs.md": page(asked, answers), HERE / "lattice.svg": svg(lattice_from(answers), TITLE)}
    if "--check" not in sys.argv:
        for path, text in made.items():
            write_text(path, text)
        return 0
    stale = [path.name for path, text in made.items() if _without_version(path.read_text()) != _without_version(text)]
    print(f"{len(answers)} questions asked; " + (f"not as published: {', '.join(stale)}" if stale else "as published"))
    return 1 if stale else 0


def _without_version(text: str) -> str:
    """Another solver must come to the same answers."""
    return re.sub(r"z3 [\d.]+", "z3", text)


if __name__ == "__main__":
    sys.exit(main())
