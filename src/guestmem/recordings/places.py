"""Where sequences are run, by name: "model", "kvm", "lab". One kernel each, one fresh process for every sequence.

A place opens backends through their public names and decides nothing; no place ever stands in for another. Sequences on
"kvm" run in child processes, because this machine's kernel does as it is told; the lab is a machine of its own.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from guestmem.backend import Backend
from guestmem.errors import InputError
from guestmem.model.profiles import profile_named
from guestmem.recordings import vocabulary as v
from guestmem.recordings.play import Place
from guestmem.recordings.probe import machine_behind, profile_of_release
from guestmem.recordings.world import process_for, profile_for

if TYPE_CHECKING:
    from guestmem.model.profiles import Machine

__all__ = ("PLACES", "pair_named", "place_named")

PLACES: Final = ("model", "kvm", "lab")


def place_named(name: str, profile: str | None = None, machine: Machine | None = None) -> Place:
    """The place of a name, ready to run: BackendUnavailable if this machine has none, ValueError for an unknown name.

    "model:v6.12" is the model of that kernel. profile and machine are the model's: which kernel it is, where neither
    its name nor the recording says.
    """
    kind, _, wanted = name.partition(":")
    if kind == "model":
        return _model(name, profile_named(wanted).name if wanted else profile, machine)
    if name == "kvm":
        return _kvm()
    if name == "lab":
        return _lab()
    raise InputError(f"no backend {name!r}; there are {', '.join(PLACES)}, and model:PROFILE")


def pair_named(names: Sequence[str], profile: str | None = None) -> tuple[Place, Place]:
    """Two places to compare; a model beside a real kernel is that kernel's, on the machine that it is found to be.

    ValueError if there are not two, or if nothing says which kernel the model is; BackendUnavailable.
    """
    if len(names) != 2:
        raise InputError(f"two backends are compared, not {len(names)}: --on model --on kvm")
    real = {name: place_named(name) for name in names if not name.startswith("model")}
    for place in real.values():
        profile = profile or place.profile(v.Begin(seq="")) or None
        if profile is None:
            raise InputError(f"no profile is of {place.title(v.Begin(seq=''))}; name the nearest with --profile")
        machine = _machine_of(place, profile)
        return _first_of(real, names[0], profile, machine), _first_of(real, names[1], profile, machine)
    return place_named(names[0], profile), place_named(names[1], profile)


def _first_of(real: Mapping[str, Place], name: str, profile: str, machine: Machine) -> Place:
    return real[name] if name in real else place_named(name, profile, machine)


def _machine_of(place: Place, profile: str) -> Machine:
    backend = place.open(v.Begin(seq=""))
    try:
        return machine_behind(backend, profile_named(profile))
    finally:
        backend.shutdown()


def _model(name: str, profile: str | None, machine: Machine | None) -> Place:
    def named(begin: v.Begin) -> str:
        return profile_for(begin, profile).name

    return Place(name, lambda begin: process_for(begin, profile_for(begin, profile), machine), named, named)


def _kvm() -> Place:
    import guestmem

    def fresh(begin: v.Begin) -> Backend:
        from guestmem.kvm import KvmBackend

        return KvmBackend()

    with guestmem.open("kvm"):  # here and now, so that what is missing is said once and not by every child
        pass
    release = platform.release()
    profile = profile_of_release(release)
    return Place(
        "kvm",
        fresh,
        lambda begin: f"Linux {release}",
        lambda begin: profile.name if profile else begin.profile,
        real=True,
        isolate=True,
    )


def _lab() -> Place:
    from guestmem.lab import LabBackend, SessionFailed, boot

    machine = boot()
    profile = profile_of_release(machine.release)
    return Place(
        "lab",
        lambda begin: LabBackend(machine),
        lambda begin: f"Linux {machine.release}",
        lambda begin: profile.name if profile else begin.profile,
        real=True,
        close=machine.close,
        ends=(SessionFailed,),
    )
