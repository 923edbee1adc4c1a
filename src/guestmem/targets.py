"""What ``--on`` names: the model as a kernel and machine, this machine's KVM, the lab. One fresh process per sequence.

A target opens a backend and decides nothing; none is ever used in place of another. Sequences on "kvm" run in child
processes, because this machine's kernel does what it is asked to; the lab is a machine of its own.

A model that is compared with a real kernel is run as the machine behind it, which is asked through the same calls as
everything else. What the answers do not settle is not guessed: the kernel's version has to match a profile, or be named
by the user.
"""

from __future__ import annotations

import errno
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from guestmem.backend import Backend
from guestmem.errors import InputError, KvmError
from guestmem.geometry import geometry_named
from guestmem.harness import PAGE_SIZE
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES, Machine, Profile, profile_named
from guestmem.recordings import remote
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Outcome
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin
from guestmem.rules import rule_named
from guestmem.text import no_such
from guestmem.uapi import (
    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
    KVM_CAP_MAX_VCPU_ID,
    KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_VM_TYPES,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)
from guestmem.units import parse_size

__all__ = (
    "TARGETS",
    "machine_behind",
    "pair_named",
    "process_for",
    "profile_for",
    "profile_of_release",
    "target_named",
)

TARGETS: Final = ("model", "kvm", "lab")
_LIMIT_4_LEVELS, _LIMIT_5_LEVELS = (1 << 47) - PAGE_SIZE, (1 << 56) - PAGE_SIZE


def target_named(name: str, profile: str | None = None, machine: Machine | None = None) -> Target:
    """The target of a name, ready to run: BackendUnavailable if this machine has none, InputError for an unknown name.

    "model:v6.12" is the model of that kernel, "lab:7.3" the lab with another kernel than its own: a version, a source
    tree that was built, a vmlinux or bzImage. profile and machine are the model's: which kernel it is, where neither
    its name nor the recording says.
    """
    kind, _, wanted = name.partition(":")
    if kind == "model":
        return _model(name, profile_named(wanted).name if wanted else profile, machine)
    if name == "kvm":
        return _kvm()
    if kind == "lab":
        return _lab(name, wanted)
    raise InputError(no_such("backend", name, TARGETS, "model:PROFILE and lab:KERNEL"))


def pair_named(names: Sequence[str], profile: str | None = None) -> tuple[Target, Target]:
    """Two targets to compare; a model and a real kernel: that kernel's model, on the machine that it is found to be.

    InputError if there are not two, or if nothing says which kernel the model is; BackendUnavailable.
    """
    if len(names) != 2:
        raise InputError(f"two backends are compared, not {len(names)}: --on model --on kvm")
    real = {name: target_named(name) for name in names if not name.startswith("model")}
    for target in real.values():
        profile = profile or target.profile(Begin(seq="")) or None
        if profile is None:
            title = target.title(Begin(seq=""))
            raise InputError(f"no profile is of {title}; name the nearest: --profile {nearest_profile(title)}")
        machine = _machine_of(target, profile)
        return _first_of(real, names[0], profile, machine), _first_of(real, names[1], profile, machine)
    return target_named(names[0], profile), target_named(names[1], profile)


def _first_of(real: Mapping[str, Target], name: str, profile: str, machine: Machine) -> Target:
    return real[name] if name in real else target_named(name, profile, machine)


def _machine_of(target: Target, profile: str) -> Machine:
    backend = target.open(Begin(seq=""))
    try:
        return machine_behind(backend, profile_named(profile))
    finally:
        backend.shutdown()


def _model(name: str, profile: str | None, machine: Machine | None) -> Target:
    def named(begin: Begin) -> str:
        return profile_for(begin, profile).name

    return Target(name, lambda begin: process_for(begin, profile_for(begin, profile), machine), named, named)


def _kvm() -> Target:
    from guestmem.kvm import KvmBackend
    from guestmem.objects import Kvm

    def fresh(begin: Begin) -> Backend:
        return KvmBackend()

    with Kvm(KvmBackend()):  # here and now, so that what is missing is said once and not by every child
        pass
    release = platform.release()
    profile = profile_of_release(release)
    return Target(
        "kvm",
        fresh,
        lambda begin: f"Linux {release}",
        lambda begin: profile.name if profile else begin.profile,
        real=True,
        isolate=True,
    )


def _lab(name: str, kernel: str) -> Target:
    from guestmem.lab import DEFAULT, LabBackend, SessionFailed, boot
    from guestmem.lab.channel import ProtocolError

    machine = boot(kernel or DEFAULT, modules=(remote.__name__,))
    profile = profile_of_release(machine.release)

    def far(operations: Sequence[Operation], limited: bool) -> Sequence[Outcome]:
        backend = LabBackend.on(machine, module=remote.__name__)
        try:
            answered = backend.work(remote.request(operations, limited=limited))
            try:
                return remote.answer(answered, operations)
            except ValueError as wrong:
                machine.distrust(ProtocolError(str(wrong)))
        finally:
            backend.shutdown()

    return Target(
        name,
        lambda begin: LabBackend.on(machine),
        lambda begin: f"Linux {machine.release}",
        lambda begin: profile.name if profile else begin.profile,
        real=True,
        close=machine.close,
        ends=(SessionFailed,),
        far=far,
    )


# -- the machine that a recording asks for -----------------------------------------------------------------------------


def profile_for(begin: Begin, override: str | None = None) -> Profile:
    """The profile named by the user, else by the recording ("612", "618" or a profile's name); InputError."""
    if override is not None:
        return profile_named(override)
    if not begin.profile:
        raise InputError(f"sequence {begin.seq!r} names no profile; pass --profile with one of {', '.join(PROFILES)}")
    recorded = {name.removeprefix("v").replace(".", ""): name for name in PROFILES}
    return profile_named(recorded.get(begin.profile, begin.profile))


def process_for(begin: Begin, profile: Profile, machine: Machine | None = None) -> Process:
    """A fresh process on the machine the recording describes, or on the one given, or the profile's own; InputError."""
    described = _machine(begin, machine or profile.machine)
    return Process(profile, described, rule_named(begin.rule) if begin.rule else None)


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
    if begin.in_place is not None:
        machine = machine.converting(in_place=begin.in_place)
    pools = ((machine.geometry.order_of(parse_size(size)), count) for size, count in begin.pools.items())
    return replace(machine, pools=tuple(sorted(pools)))


# -- the machine behind a backend --------------------------------------------------------------------------------------


def profile_of_release(release: str) -> Profile | None:
    """The profile of a kernel release ("6.12.117"): of the same version, else none."""
    version = ".".join(release.split("-")[0].split(".")[:2])
    return PROFILES.get(f"v{version}")


def nearest_profile(release: str) -> str:
    """The name of the profile that is of the nearest older release, else of the oldest.

    >>> nearest_profile("Linux 6.16.12+deb13-cloud-amd64"), nearest_profile("5.4.0")
    ('v6.12', 'v6.12')
    """
    version = _version(release)
    released = {_version(name): name for name, profile in PROFILES.items() if not profile.in_place}
    older = [known for known in released if known <= version]
    return released[max(older) if older else min(released)]


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", release)[:2])


def machine_behind(backend: Backend, profile: Profile) -> Machine:
    """VM types, address spaces, paging, attributes, vCPU ids, and the ends of both address spaces; KvmError.

    BackendUnavailable where there is no device.
    """
    kvm = backend.open_kvm()
    vm = backend.create_vm(kvm, KVM_X86_DEFAULT_VM)
    offered = backend.check_extension(kvm, KVM_CAP_VM_TYPES)
    vm_types = tuple(each for each in (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM) if offered >> each & 1)
    of_vms = _knows_attributes(backend, vm)
    in_place = backend.check_extension(kvm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) > 0
    return replace(
        profile.machine,
        vm_types=vm_types,
        smm=backend.check_extension(vm, KVM_CAP_MULTI_ADDRESS_SPACE) > 1,
        two_dimensional_paging=backend.check_extension(kvm, KVM_CAP_PRE_FAULT_MEMORY) > 0,
        private_mem=in_place or of_vms or KVM_X86_SW_PROTECTED_VM in vm_types,
        vm_attributes=of_vms,
        in_place=in_place,
        max_vcpu_ids=backend.check_extension(kvm, KVM_CAP_MAX_VCPU_ID),
        gpa_bits=next(bits for bits in range(52, 31, -1) if _accepts(backend, vm, gpa=(1 << bits) - PAGE_SIZE)),
        user_limit=_LIMIT_5_LEVELS if _accepts(backend, vm, userspace_addr=1 << 47) else _LIMIT_4_LEVELS,
    )


def _knows_attributes(backend: Backend, vm: int) -> bool:
    """Whether VMs have attributes; an empty range is refused where they do."""
    try:
        backend.set_memory_attributes(vm, 0, 0, 0, 0)
    except KvmError as refused:
        return refused.errno != errno.ENOTTY
    return True


def _accepts(backend: Backend, vm: int, gpa: int = 0, userspace_addr: int = 0) -> bool:
    """Whether a slot of one page can be set there."""
    try:
        backend.set_user_memory_region(vm, 0, 0, gpa, PAGE_SIZE, userspace_addr)
    except KvmError as refused:
        if refused.errno != errno.EINVAL:
            raise
        return False
    backend.set_user_memory_region(vm, 0, 0, 0, 0, 0)
    return True
