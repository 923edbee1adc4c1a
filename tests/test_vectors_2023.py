"""The predicates of January to April 2023 on thirteen requests, computed by hand from the mails' own words.

The seventh of them, ffs64(offset) <= ffs64(gpa), was only asked about (Xiaoyao Li,
6cf365a3-dddc-8b74-4d74-04666fbeb53d@intel.com) and is no rule of the catalogue: it is written out here.
"""

from __future__ import annotations

import pytest

import guestmem
from guestmem.geometry import X86_64
from guestmem.proofs.answers import Asked, ask_all
from guestmem.proofs.verdict import Refuted
from guestmem.rules import Binding, congruent, rule_named
from guestmem.units import GIB, KIB, MIB

K4, K16 = 4 * KIB, 16 * KIB
PREDICATES = {
    "january-as-written": "literal",
    "gpa-alignment": "ctz",
    "gpa-alignment-fls64": "fls",
    "gpa-page": "cap",
    "fits-size": "size",
    "creation-flags": "flag",
}
# offset, gpa, size | literal ctz fls ffs cap size flag (of a file with 2M pages), "." accepted, "E" EINVAL | congruent
# modulo 2M, 1G
VECTORS = [
    (0, 0, 2 * GIB, ".......", "yy"),
    (2 * GIB, 4 * GIB, 2 * GIB, ".EE....", "yy"),
    (K16, 4 * GIB, GIB, ".EE.EEE", "nn"),
    (MIB, 2 * MIB, 4 * MIB, ".EE.EEE", "nn"),
    (2 * MIB, MIB, 4 * MIB, "E..E...", "nn"),
    (0, MIB, 4 * MIB, "E......", "nn"),
    (2 * MIB, 0, 2 * MIB, ".EEEE..", "yn"),
    (K16, K16, GIB, ".....EE", "yy"),
    (3 * MIB, 2 * MIB, 4 * MIB, ".E..EEE", "nn"),
    (2 * MIB + K4, 4 * GIB + 2 * MIB + K4, 2 * MIB + K4, "..E..EE", "yy"),
    (5 * GIB // 2, 4 * GIB, 3 * GIB // 2, ".EE.EE.", "yn"),
    (7 * GIB // 2, 4 * GIB, 2 * GIB, ".EE.EE.", "yn"),
    (K4, 4 * GIB, K4, ".EE.E.E", "nn"),
]
COLUMNS = ("literal", "ctz", "fls", "ffs", "cap", "size", "flag")


def lowest_bit(value: int) -> int:
    """ffs64(): 0 for 0."""
    return (value & -value).bit_length()


@pytest.mark.parametrize(("offset", "gpa", "size", "answers", "agree"), VECTORS)
def test_each_predicate_answers_as_its_mail_has_it(offset: int, gpa: int, size: int, answers: str, agree: str) -> None:
    binding = Binding(gpa, size, offset, 2 * MIB, 2 * MIB, X86_64)
    found = {short: rule_named(name).refuses(binding) is not None for name, short in PREDICATES.items()}
    found["ffs"] = lowest_bit(offset) > lowest_bit(gpa)

    assert "".join("E" if found[column] else "." for column in COLUMNS) == answers
    assert "".join("y" if congruent(gpa, offset, page) else "n" for page in (2 * MIB, GIB)) == agree


@pytest.mark.parametrize("column", range(7))
def test_no_predicate_makes_gpa_and_offset_agree(column: int) -> None:
    assert any(answers[column] == "." and agree == "nn" for *_, answers, agree in VECTORS)


@pytest.mark.parametrize("column", range(1, 7))
def test_every_predicate_but_the_first_refuses_what_could_be_mapped_huge(column: int) -> None:
    assert any(answers[column] == "E" and agree[0] == "y" for *_, answers, agree in VECTORS)


def test_the_metadata_of_v10_let_19171_incongruent_pairs_pass() -> None:
    """hva | offset stands for both in v10 7/9, so with a congruent HVA every offset whose bits the GPA has passes."""
    pages = 512
    passing = sum(
        (gfn ^ (hva | offset)) % pages == 0
        for gfn in range(pages)
        for hva in [gfn]
        for offset in range(pages)
        if offset != gfn
    )

    assert (passing, pages * pages) == (19_171, 262_144)


@pytest.mark.parametrize("rule", ["none", "or-metadata", *PREDICATES])
def test_the_provers_counterexample_is_what_the_system_of_2023_does(rule: str) -> None:
    """A slot that the rule accepts, and a huge leaf that shows another page than the frame's own."""
    [answer] = ask_all(Asked(X86_64, ("congruent-in-slot",), (rule,), (), limit_s=120), 1)
    assert isinstance(answer.verdict, Refuted)
    found = answer.verdict.values
    with guestmem.open("model", profile="restrictedmem", rule=rule) as kvm:
        vm, file = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM), kvm.memfd_restricted(page_size=found["page"])
        gpa, size, offset = found["gpa"], found["size"], found["offset"]
        vm.set_user_memory_region2(
            0, gpa=gpa, size=size, userspace_addr=gpa, guest_memfd=file, guest_memfd_offset=offset
        )
        vm.set_memory_attributes(gpa, size, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)

        vm.create_vcpu().write(gpa + found["access"] - offset, 1)

        [(_, _, leaf)] = vm.model.stage2.leaves
    assert leaf.order == 9
    assert leaf.delta * K4 != gpa - offset
