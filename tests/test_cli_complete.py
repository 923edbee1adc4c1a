"""What a shell offers for the values of options is what the commands take, and a near miss is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from program import Guestmem

from guestmem.cli import complete
from guestmem.geometry import geometry_named
from guestmem.model.profiles import kernel_named, profile_named
from guestmem.rules import rule_named


@pytest.mark.parametrize(
    ("offered", "take"),
    [
        (complete.profiles, profile_named),
        (complete.kernels, kernel_named),
        (complete.rules, rule_named),
        (complete.geometries, geometry_named),
    ],
)
def test_every_name_that_is_offered_is_taken(
    offered: Callable[[str], list[str]], take: Callable[[str], object]
) -> None:
    names = offered("")

    assert names
    for name in names:
        take(name)


def test_only_what_begins_as_typed_is_offered() -> None:
    assert complete.rules("creation") == ["creation-flags"]
    assert complete.fail_on("n") == ["note", "never"]
    assert complete.backends("model:v7.") == ["model:v7.2", "model:v7.3", "model:v7.4"]
    assert complete.formats("qemu-m") == ["qemu-mtree"]
    assert complete.mutations("recheck") == ["recheck"]
    assert complete.profiles("nothing") == []


@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [
        ("guestmem check --rule crea", 3, ["creation-flags"]),
        ("guestmem prove congruent-", 2, ["congruent-in-slot"]),
        (
            "guestmem run --on model:restrictedmem-",
            3,
            [f"model:restrictedmem-{name}" for name in ("v10", "upm", "v11c")],
        ),
    ],
)
def test_a_shell_asks_for_them(words: str, at: int, offered: list[str]) -> None:
    environment = {"_GUESTMEM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at), "PATH": ""}
    code = "import sys; sys.argv[0] = 'guestmem'; from guestmem.cli import main; main()"

    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert ended.stdout.split() == offered


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "--profile", "v73", "x"), "no profile 'v73'; did you mean v7.3? there are v6.12, "),
        (("prove", "congruent", "--rule", "fit-size"), "no rule 'fit-size'; did you mean fits-size? there are "),
        (("prove", "congruence"), "no property 'congruence'; did you mean congruent"),
        (("diff", "x.jsonl", "--on", "modle", "--on", "kvm"), "no backend 'modle'; did you mean model? there are "),
        (("prove", "congruent", "--geometry", "x86_64"), "no geometry 'x86_64'; did you mean x86-64? there are "),
    ],
)
def test_a_near_miss_is_named_before_all_there_is(
    arguments: tuple[str, ...], said: str, guestmem_command: Guestmem
) -> None:
    ended = guestmem_command(*arguments)

    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
