"""What ``import guestmem`` gives: the objects and numbers that a test needs, and no backend before one is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from examples import LAYOUTS

import guestmem
from guestmem import backend, errors, objects, uapi
from guestmem.units import GIB, KIB


def test_every_name_that_is_promised_exists() -> None:
    assert [name for name in guestmem.__all__ if not hasattr(guestmem, name)] == []
    assert len(set(guestmem.__all__)) == len(guestmem.__all__)


def test_the_objects_are_those_of_their_modules() -> None:
    assert (guestmem.Kvm, guestmem.Vm, guestmem.Vcpu, guestmem.GuestMemfd, guestmem.Exit, guestmem.KvmError) == (
        *(objects.Kvm, objects.Vm, objects.Vcpu, objects.GuestMemfd),
        *(backend.Exit, errors.KvmError),
    )


def test_every_number_of_kvm_is_a_name_of_the_package() -> None:
    numbers = {name: value for name, value in vars(uapi).items() if name.startswith(("KVM_", "GUEST_MEMFD_"))}

    assert len(numbers) > 30
    assert {name: vars(guestmem).get(name) for name in numbers} == numbers
    assert set(numbers) <= set(guestmem.__all__)


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Machine'"):
        _ = vars(guestmem)["__getattr__"]("Machine")


def test_importing_the_package_loads_no_object_and_no_backend() -> None:
    code = "import sys, guestmem; print(*sorted(name for name in sys.modules if name.startswith('guestmem')))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.split() == ["guestmem", "guestmem.errors", "guestmem.uapi", "guestmem.version"]


def test_check_is_the_answer_of_the_command_as_values() -> None:
    [one] = guestmem.check(LAYOUTS / "qemu100-q35-10G-memfd.txt")

    assert one.severity == "warning"
    assert [finding.id for finding in one.findings if finding.severity == "warning"] == ["hva-not-congruent"]
    assert one.coverage.size == 10 * GIB + 512 * KIB - 256 * KIB


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("/nowhere", {}, "cannot be read"),
        ("README.md", {"format": "nonsense"}, "format"),
        ("README.md", {"profile": "v5"}, "no profile 'v5'"),
        ("README.md", {"rule": "congruent"}, "need profile next"),
    ],
)
def test_check_says_what_is_wrong_as_a_value_error(source: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        guestmem.check(source, **options)


def test_check_takes_a_rule_for_profile_next() -> None:
    [refused] = guestmem.check(LAYOUTS / "discussion.toml", profile="next", page_size="1G", rule="creation-flags")
    [taken] = guestmem.check(LAYOUTS / "discussion.toml", profile="next", page_size="1G", rule="slot-metadata")

    assert (refused.severity, "rule-refuses" in {one.id for one in taken.findings}) == ("error", False)
