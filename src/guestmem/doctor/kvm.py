"""KVM on this host: the kernel, the device, what it answers about guest-private memory, and how it maps guests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from guestmem.doctor.value import Condition, Diagnosis, HostFiles, Values
from guestmem.errors import BackendUnavailable, KvmError
from guestmem.objects import Kvm, Vm
from guestmem.targets import profile_of_release
from guestmem.uapi import (
    DEV_KVM,
    KVM_CAP_GUEST_MEMFD,
    KVM_CAP_GUEST_MEMFD_FLAGS,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_VM_TYPES,
    KVM_X86_SW_PROTECTED_VM,
)

__all__ = ("examine_capabilities", "examine_device", "examine_kernel", "examine_nested", "examine_paging")

_FIRST = (6, 8)  # guest_memfd and memory attributes were merged for 6.8
_TYPES = ("default", "sw-protected", "sev", "sev-es", "snp", "tdx")  # KVM_CAP_VM_TYPES, by bit
_FLAGS = ("MMAP", "INIT_SHARED")  # KVM_CAP_GUEST_MEMFD_FLAGS, by bit
_MODULES = (("kvm_intel", "ept"), ("kvm_amd", "npt"))
_ON = ("Y", "1")  # a module's parameter


def examine_kernel(host: HostFiles) -> Diagnosis:
    """Subject "kernel"."""
    release = host.read("/proc/sys/kernel/osrelease")
    version = re.match(r"(\d+)\.(\d+)", release or "")
    if release is None or version is None:
        return Diagnosis("kernel", Condition.UNKNOWN, "unknown", "/proc/sys/kernel/osrelease cannot be read")
    profile = profile_of_release(release)
    modelled = f"modelled by profile {profile.name}" if profile else "no profile of the model is of this version"
    found = f"Linux {release}; {modelled}"
    values = {"release": release, "profile": profile.name if profile else ""}
    if (int(version[1]), int(version[2])) < _FIRST:
        cause = "guest_memfd and memory attributes came with Linux 6.8"
        return Diagnosis("kernel", Condition.MISSING, found, cause, "use a newer kernel, or the lab", dict(values))
    return Diagnosis("kernel", Condition.OK, found, values=dict(values))


def examine_device(host: HostFiles) -> Diagnosis:
    """Subject "device"."""
    if not host.exists(DEV_KVM):
        return _absent(host)
    refused = host.open_errno(DEV_KVM)
    if refused is None:
        return Diagnosis("device", Condition.OK, f"{DEV_KVM} can be opened", values={"errno": ""})
    remedy = {
        "EACCES": "join the group that owns it: usermod -aG kvm USER, and log in again",
        "EPERM": "let the container have the device: --device /dev/kvm, or a device rule of its cgroup",
        "ENODEV": "load the module of the processor: modprobe kvm_intel or kvm_amd",
    }.get(refused, "see the kernel's log")
    return Diagnosis(
        "device", Condition.MISSING, f"{DEV_KVM} is there", f"opening it is {refused}", remedy, {"errno": refused}
    )


def _absent(host: HostFiles) -> Diagnosis:
    found = f"there is no {DEV_KVM}"
    cpuinfo = host.read("/proc/cpuinfo")
    flags = set((cpuinfo or "").split())
    modules = {name for name in ("kvm_intel", "kvm_amd") if host.exists(f"/sys/module/{name}")}
    if modules:
        cause = f"{' and '.join(sorted(modules))} is loaded, but its device is not visible here"
        remedy = "let the container have the device: --device /dev/kvm"
        return Diagnosis("device", Condition.MISSING, found, cause, remedy)
    if cpuinfo is None:
        return Diagnosis("device", Condition.MISSING, found, "unknown: /proc/cpuinfo cannot be read", "modprobe kvm")
    module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else ""
    if module:
        return Diagnosis("device", Condition.MISSING, found, f"the module {module} is not loaded", f"modprobe {module}")
    cause = "the processor shows neither vmx nor svm"
    remedy = "enable virtualisation in the firmware, or nested where this machine is a guest; the lab needs neither"
    return Diagnosis("device", Condition.MISSING, found, cause, remedy)


def examine_capabilities(host: HostFiles, open_kvm: Callable[[], Kvm]) -> list[Diagnosis]:
    """Subjects "vm-types", "private", "guest-memfd", "pre-fault"."""
    try:
        with open_kvm() as kvm:
            return list(_asked(host, kvm))
    except BackendUnavailable as reason:
        subjects = ("vm-types", "private", "guest-memfd", "pre-fault")
        return [Diagnosis(subject, Condition.UNKNOWN, "not asked", str(reason)) for subject in subjects]


def _asked(host: HostFiles, kvm: Kvm) -> Iterator[Diagnosis]:
    bits = kvm.check_extension(KVM_CAP_VM_TYPES)
    types = [name for number, name in enumerate(_TYPES) if bits >> number & 1]
    values: Values = {"KVM_CAP_VM_TYPES": bits, "types": types}
    yield Diagnosis("vm-types", Condition.OK, ", ".join(types) or "none named", values=values)
    yield _private(host, kvm, bool(bits >> KVM_X86_SW_PROTECTED_VM & 1))
    yield _guest_memfd(kvm, [number for number in (0, 1) if bits >> number & 1])
    prefault = kvm.check_extension(KVM_CAP_PRE_FAULT_MEMORY)
    values = {"KVM_CAP_PRE_FAULT_MEMORY": prefault}
    if prefault:
        yield Diagnosis("pre-fault", Condition.OK, "KVM_PRE_FAULT_MEMORY", values=values)
    else:
        cause = "KVM_CAP_PRE_FAULT_MEMORY is 0: a kernel before 6.11, or one without two-dimensional paging"
        yield Diagnosis("pre-fault", Condition.LIMITED, "none", cause, "see paging", values)


def _private(host: HostFiles, kvm: Kvm, protected: bool) -> Diagnosis:
    attributes = kvm.check_extension(KVM_CAP_MEMORY_ATTRIBUTES)
    values: Values = {"KVM_CAP_MEMORY_ATTRIBUTES": attributes, "sw-protected": protected}
    if protected:
        return Diagnosis("private", Condition.OK, "software-protected VMs have private memory", values=values)
    config = host.config("KVM_SW_PROTECTED_VM")
    values["CONFIG_KVM_SW_PROTECTED_VM"] = config or "unknown"
    cause = {
        None: "the kernel offers no software-protected VMs; its configuration cannot be read",
        "n": "the kernel was built without CONFIG_KVM_SW_PROTECTED_VM",
    }.get(config, "the kernel has CONFIG_KVM_SW_PROTECTED_VM, but does not offer them: no two-dimensional paging?")
    return Diagnosis(
        "private",
        Condition.MISSING,
        "no software-protected VMs",
        cause,
        "the lab has them: guestmem.open('lab')",
        values,
    )


def _guest_memfd(kvm: Kvm, types: list[int]) -> Diagnosis:
    values: Values = {}
    for number in types:
        try:
            vm = kvm.create_vm(number)
        except KvmError as refused:
            values[_TYPES[number]] = refused.name
            continue
        offered, flags = vm.check_extension(KVM_CAP_GUEST_MEMFD), _flags(vm)
        values[_TYPES[number]] = (", ".join(["yes", *flags])) if offered else "no"
    found = "; ".join(f"{name}: {value}" for name, value in values.items())
    if any(str(value).startswith("yes") for value in values.values()):
        return Diagnosis("guest-memfd", Condition.OK, found, values=values)
    cause = "KVM_CAP_GUEST_MEMFD is 0 for every VM type that can be created here"
    return Diagnosis(
        "guest-memfd", Condition.MISSING, found, cause, "a kernel with CONFIG_KVM_GUEST_MEMFD, or the lab", values
    )


def _flags(vm: Vm) -> list[str]:
    bits = vm.check_extension(KVM_CAP_GUEST_MEMFD_FLAGS)
    return [name for number, name in enumerate(_FLAGS) if bits >> number & 1]


def examine_paging(host: HostFiles) -> Diagnosis:
    """Subject "paging": two-dimensional paging, which private memory and pre-fault need, and what limits page sizes."""
    for module, parameter in _MODULES:
        value = host.read(f"/sys/module/{module}/parameters/{parameter}")
        if value is None:
            continue
        values: Values = {parameter: value}
        for more in ("tdp_mmu", "nx_huge_pages"):
            values[more] = host.read(f"/sys/module/kvm/parameters/{more}") or "unknown"
        if value not in _ON:
            cause = f"{module} was loaded with {parameter}={value}: shadow paging"
            remedy = f"modprobe -r {module}; modprobe {module} {parameter}=1"
            return Diagnosis("paging", Condition.MISSING, "no two-dimensional paging", cause, remedy, values)
        if values["nx_huge_pages"] in _ON:
            cause = "kvm.nx_huge_pages is on: a huge page that the guest executes from is split (iTLB multihit)"
            remedy = "kvm.nx_huge_pages=off, where the processor is not affected or the guests are trusted"
            return Diagnosis("paging", Condition.LIMITED, f"{parameter} is on", cause, remedy, values)
        return Diagnosis("paging", Condition.OK, f"{parameter} is on", values=values)
    cause = "neither kvm_intel nor kvm_amd is loaded as a module, so its parameters cannot be read"
    return Diagnosis("paging", Condition.UNKNOWN, "unknown", cause)


def examine_nested(host: HostFiles) -> Diagnosis:
    """Subject "nested": whether a guest of this host can run KVM itself."""
    for module, _ in _MODULES:
        value = host.read(f"/sys/module/{module}/parameters/nested")
        if value in _ON:
            return Diagnosis("nested", Condition.OK, "guests of this host can have KVM", values={"nested": value or ""})
        if value is not None:
            remedy = f"modprobe -r {module}; modprobe {module} nested=1 (the lab needs none: it emulates)"
            return Diagnosis(
                "nested", Condition.LIMITED, "guests have no KVM", f"{module}.nested={value}", remedy, {"nested": value}
            )
    return Diagnosis("nested", Condition.UNKNOWN, "unknown", "neither kvm_intel nor kvm_amd is loaded as a module")
