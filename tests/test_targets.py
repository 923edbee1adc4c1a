"""Backends by name: what there is, which kernel a model beside a real one is, and that none stands in for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from guestmem import uapi
from guestmem.errors import BackendUnavailable
from guestmem.model.profiles import NEXT, PROFILES, V6_12, V6_18, V7_2, Machine
from guestmem.recordings.vocabulary import Begin
from guestmem.targets import pair_named, process_for, profile_for, profile_of_release, target_named


@pytest.mark.parametrize("name", ["qemu", "", "Model", "kvm:v6.12"])
def test_an_unknown_name_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="there are model, kvm, lab"):
        target_named(name)


def test_the_lab_is_booted_with_the_kernel_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    booted: list[str] = []

    def boot(kernel: str, *, modules: Sequence[str]) -> None:
        booted.append(kernel)
        raise BackendUnavailable("not built")

    monkeypatch.setattr("guestmem.lab.boot", boot, raising=False)

    for name in ("lab", "lab:7.3", "lab:/a/vmlinux"):
        with pytest.raises(BackendUnavailable, match="not built"):
            target_named(name)
    assert booted == ["6.12", "7.3", "/a/vmlinux"]


def test_a_model_of_an_unknown_kernel_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"v6\.12"):
        target_named("model:v5.4")


@pytest.mark.parametrize("names", [[], ["model"], ["model", "model", "model"]])
def test_it_takes_two(names: list[str]) -> None:
    with pytest.raises(ValueError, match="two backends"):
        pair_named(names)


def test_two_models_are_each_the_kernel_they_are_named_after() -> None:
    a, b = pair_named(["model:v6.12", "model:v7.2"])

    assert (a.title(Begin(seq="s")), b.title(Begin(seq="s"))) == ("v6.12", "v7.2")
    assert not a.real
    assert not a.isolate


def test_without_the_device_kvm_is_refused_and_nothing_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise BackendUnavailable("no /dev/kvm")

    monkeypatch.setattr("guestmem.kvm.KvmBackend.open_kvm", missing)

    with pytest.raises(BackendUnavailable, match="no /dev/kvm"):
        target_named("kvm")


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        ("6.12.117", "v6.12"),
        ("6.12.0-rc3", "v6.12"),
        ("6.12.117-guestmem", "v6.12"),
        ("6.18.44-fc-v657", "v6.18"),
        ("7.2.13", "v7.2"),
        ("7.3.4", "v7.3"),
        ("6.1.0-49-amd64", None),
        ("6.120.1", None),
        ("", None),
    ],
)
def test_a_release_is_modelled_only_by_a_profile_of_its_own_version(release: str, profile: str | None) -> None:
    found = profile_of_release(release)

    assert (None if found is None else found.name) == profile


# -- the machine that a recording's begin line asks for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "profile"),
    [("612", V6_12), ("618", V6_18), ("72", V7_2), ("next", NEXT), *((name, p) for name, p in PROFILES.items())],
)
def test_a_recording_names_its_kernel_as_recorders_or_as_people_do(written: str, profile: object) -> None:
    assert profile_for(Begin(seq="s", profile=written)) is profile


def test_the_users_word_counts_more_than_the_recordings() -> None:
    assert profile_for(Begin(seq="s", profile="612"), "v7.2") is V7_2
    assert profile_for(Begin(seq="s"), "next") is NEXT


@pytest.mark.parametrize(("written", "override"), [("", None), ("613", None), ("v6.13", None), ("612", "6.12")])
def test_an_unknown_kernel_is_a_value_error_that_lists_the_known_ones(written: str, override: str | None) -> None:
    with pytest.raises(ValueError, match=r"v6\.12, v6\.18, v7\.2, v7\.3, v7\.4, next"):
        profile_for(Begin(seq="s", profile=written), override)


def test_what_the_line_does_not_say_is_the_profiles_own_machine() -> None:
    assert process_for(Begin(seq="s"), V6_18).machine == V6_18.machine


def test_what_the_line_says_replaces_the_profiles() -> None:
    begin = Begin(
        seq="s",
        geometry="arm64-16K",
        rule="contained",
        vm_types=[1],
        gpa_bits=48,
        smm=False,
        two_dimensional_paging=False,
        pools={"32M": 3, "16K": 7},
    )
    process = process_for(begin, NEXT)
    machine = process.machine

    assert (process.rule.name, process.page_size) == ("contained", 16384)
    assert (machine.vm_types, machine.gpa_bits) == ((1,), 48)
    assert (machine.smm, machine.two_dimensional_paging) == (False, False)
    assert machine.pools == ((0, 7), (11, 3))
    assert process.check_extension(process.open_kvm(), uapi.KVM_CAP_VM_TYPES) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"geometry": "vax"},
        {"rule": "vax"},
        {"gpa_bits": -5},
        {"gpa_bits": 5},
        {"gpa_bits": 12},
        {"gpa_bits": 65},
        {"gpa_bits": 10**15},
        {"vm_types": [2]},  # SEV is not modelled
        {"vm_types": [-1]},
        {"vm_types": [10**9]},
        {"pools": {"2M": -1}},
        {"pools": {"3M": 1}},
        {"pools": {"much": 1}},
        {"pools": {"": 1}},
    ],
)
def test_a_machine_that_cannot_be_is_a_value_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        process_for(Begin(seq="s", **wrong), NEXT)


@pytest.mark.parametrize(
    "wrong",
    [{"gpa_bits": 12}, {"gpa_bits": 65}, {"vm_types": (5,)}, {"pools": ((9, -1),)}, {"pools": ((3, 1),)}],
)
def test_neither_can_it_be_made_by_hand(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gpa_bits|VM type|pool|leaf"):
        Machine(**wrong)
