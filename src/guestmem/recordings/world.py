"""The kernel and machine that a recording's ``begin`` line asks for, as a modelled process."""

from __future__ import annotations

from dataclasses import replace

from guestmem.errors import InputError
from guestmem.geometry import geometry_named
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES, Machine, Profile, profile_named
from guestmem.recordings.vocabulary import Begin
from guestmem.rules import DEFAULT, rule_named
from guestmem.units import parse_size

__all__ = ("process_for", "profile_for")


def profile_for(begin: Begin, override: str | None = None) -> Profile:
    """The profile named by the user, else by the recording ("612", "618" or a profile's name); ValueError."""
    if override is not None:
        return profile_named(override)
    if not begin.profile:
        raise InputError(f"sequence {begin.seq!r} names no profile; pass --profile with one of {', '.join(PROFILES)}")
    recorded = {name.removeprefix("v").replace(".", ""): name for name in PROFILES}
    return profile_named(recorded.get(begin.profile, begin.profile))


def process_for(begin: Begin, profile: Profile, machine: Machine | None = None) -> Process:
    """A fresh process on the machine the recording describes, or on the one given, or the profile's own; ValueError."""
    described = _machine(begin, machine or profile.machine)
    return Process(profile, described, rule_named(begin.rule) if begin.rule else DEFAULT)


def _machine(begin: Begin, machine: Machine) -> Machine:
    if begin.geometry:
        machine = replace(machine, geometry=geometry_named(begin.geometry))
    if begin.vm_types:
        machine = replace(machine, vm_types=tuple(begin.vm_types))
    if begin.gpa_bits:
        machine = replace(machine, gpa_bits=begin.gpa_bits)
    if begin.smm is not None:
        machine = replace(machine, smm=begin.smm)
    if begin.two_dimensional_paging is not None:
        machine = replace(machine, two_dimensional_paging=begin.two_dimensional_paging)
    pools = ((machine.geometry.order_of(parse_size(size)), count) for size, count in begin.pools.items())
    return replace(machine, pools=tuple(sorted(pools)))
