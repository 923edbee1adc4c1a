"""Rules of one's own: FILE.py:NAME wherever a rule is named, and one line where the file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Guestmem

import guestmem
from guestmem.errors import InputError, KvmError
from guestmem.geometry import X86_64
from guestmem.proofs.answers import Asked, ask_all
from guestmem.proofs.verdict import Holds, Refuted
from guestmem.rules import Binding, Congruent, Rule, rule_named
from guestmem.units import GIB, MIB

ROOT = Path(__file__).parent.parent
EXAMPLE = f"{ROOT}/examples/rules/page_order.py:PageOrder"
LAYOUT = ROOT / "examples/layouts/discussion.toml"

HEAD = "from guestmem.rules import Rule\n"


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return f"{path}:Mine"


def test_a_rule_in_a_file_needs_no_history() -> None:
    rule = rule_named(EXAMPLE)

    assert (rule.name, rule.author, rule.date, rule.message_id) == (EXAMPLE, "", "", "")
    assert rule.statement.startswith("The offset is a multiple of the page size")
    assert rule.refuses(Binding(0, GIB, 0x4000, GIB, GIB, X86_64)) is not None
    assert rule.refuses(Binding(0, MIB, 0x4000, GIB, GIB, X86_64)) is None


def test_the_model_takes_it_by_name_and_as_an_object() -> None:
    class Nothing(Rule):
        __slots__ = ()
        name = "nothing"

        def refuses(self, binding: Binding) -> str | None:
            return "no"

    for rule in (EXAMPLE, Nothing()):
        with guestmem.open("model", profile="next", rule=rule) as kvm:
            vm = kvm.create_vm(1)
            gmem = vm.create_guest_memfd(2 * GIB, page_size=GIB)
            with pytest.raises(KvmError, match="EINVAL"):
                vm.set_user_memory_region2(0, gpa=0, size=GIB, guest_memfd=gmem, guest_memfd_offset=0x4000)


def test_it_is_proved_by_name_in_other_processes_too_and_as_an_object() -> None:
    for rule, processes in ((EXAMPLE, 2), (rule_named(EXAMPLE), 1), (Congruent(), 1)):
        bounded, level = ask_all(Asked(X86_64, ("bounded-in-model", "congruent"), (rule,)), processes)
        assert isinstance(bounded.verdict, Holds)
        assert isinstance(level.verdict, Holds if isinstance(rule, Congruent) else Refuted)


@pytest.mark.parametrize(
    "arguments",
    [
        ("prove", "offset-0", "--rule", EXAMPLE),
        ("rules", "--rule", EXAMPLE, LAYOUT),
        ("plan", "--rule", EXAMPLE, LAYOUT),
        ("check", "--fail-on", "never", "--profile", "next", "--rule", EXAMPLE, LAYOUT),
    ],
)
def test_every_command_that_has_a_rule_takes_it(guestmem_command: Guestmem, arguments: tuple[object, ...]) -> None:
    ended = guestmem_command(*arguments)

    assert ended.code == 0, ended.err
    assert ended.out


def test_rules_puts_it_beside_the_catalogue_or_beside_those_that_are_named(guestmem_command: Guestmem) -> None:
    whole = guestmem_command("rules", "--rule", EXAMPLE, LAYOUT).out
    two = guestmem_command("rules", "--rule", EXAMPLE, "--rule", "congruent", LAYOUT).out

    assert all("PageOrder" in out and "congruent" in out for out in (whole, two))
    assert ("fits-size" in whole, "fits-size" in two) == (True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", ":1: "),
        ("raise SystemError('no')\n", "cannot be run: SystemError: no"),
        ("import nothing_like_that\n", "cannot be run: ModuleNotFoundError"),
        ("Mine = 3\n", "it has no class derived from guestmem.rules.Rule"),
        (f"{HEAD}class Other(Rule):\n    __slots__ = ()\n", "has no rule 'Mine': there are Other"),
        (f"{HEAD}class Mine(Rule):\n    def __init__(self):\n        1 / 0\n", "cannot be made: division by zero"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        rule_named(written(tmp_path, text))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"/nowhere\.py: there is no such file"):
        rule_named("/nowhere.py:Mine")


@pytest.mark.parametrize(
    "code",
    ["return binding.gpa % 0", "return binding.nothing", "return {}[binding]", "return undefined", "assert False"],
)
def test_a_mistake_in_the_rules_code_is_its_authors_and_no_bug_in_guestmem(
    tmp_path: Path, code: str, guestmem_command: Guestmem
) -> None:
    name = written(tmp_path, f"{HEAD}class Mine(Rule):\n    def refuses(self, binding):\n        {code}\n")

    ended = guestmem_command("check", "--profile", "next", "--rule", name, LAYOUT)

    assert ended.code == 2
    assert "mine.py:Mine: refuses failed: " in ended.err


def test_what_the_prover_cannot_follow_is_said(tmp_path: Path) -> None:
    code = "def refuses(self, binding):\n        return binding.offset % binding.size and 'x'"
    code = f"{HEAD}class Mine(Rule):\n    {code}\n"

    with pytest.raises(InputError, match="the prover follows"):
        ask_all(Asked(X86_64, ("bounded",), (written(tmp_path, code),)), 1)
