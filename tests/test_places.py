"""Backends by name: what there is, which kernel a model beside a real one is, and that none stands in for another."""

from __future__ import annotations

import pytest

from guestmem.errors import BackendUnavailable
from guestmem.recordings import vocabulary as v
from guestmem.recordings.places import pair_named, place_named
from guestmem.recordings.probe import profile_of_release


@pytest.mark.parametrize("name", ["qemu", "", "Model", "kvm:v6.12"])
def test_an_unknown_name_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="there are model, kvm, lab"):
        place_named(name)


def test_a_model_of_an_unknown_kernel_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"v6\.12"):
        place_named("model:v5.4")


@pytest.mark.parametrize("names", [[], ["model"], ["model", "model", "model"]])
def test_it_takes_two(names: list[str]) -> None:
    with pytest.raises(ValueError, match="two backends"):
        pair_named(names)


def test_two_models_are_each_the_kernel_they_are_named_after() -> None:
    a, b = pair_named(["model:v6.12", "model:v7.2"])

    assert (a.title(v.Begin(seq="s")), b.title(v.Begin(seq="s"))) == ("v6.12", "v7.2")
    assert not a.real
    assert not a.isolate


def test_without_the_device_kvm_is_refused_and_nothing_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise BackendUnavailable("no /dev/kvm")

    monkeypatch.setattr("guestmem.open", missing)

    with pytest.raises(BackendUnavailable, match="no /dev/kvm"):
        place_named("kvm")


@pytest.mark.parametrize(
    ("release", "profile"),
    [
        ("6.12.117", "v6.12"),
        ("6.12.0-rc3", "v6.12"),
        ("6.12.117-guestmem", "v6.12"),
        ("6.18.44-fc-v657", "v6.18"),
        ("7.2.13", "v7.2"),
        ("6.1.0-49-amd64", None),
        ("6.120.1", None),
        ("", None),
    ],
)
def test_a_release_is_modelled_only_by_a_profile_of_its_own_version(release: str, profile: str | None) -> None:
    found = profile_of_release(release)

    assert (None if found is None else found.name) == profile
