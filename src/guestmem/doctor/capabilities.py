"""What this host's KVM answers about guest-private memory, by VM type."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from guestmem.doctor.host import Host
from guestmem.doctor.value import Finding, State, Values
from guestmem.errors import BackendUnavailable, KvmError
from guestmem.objects import Kvm, Vm
from guestmem.uapi import (
    KVM_CAP_GUEST_MEMFD,
    KVM_CAP_GUEST_MEMFD_FLAGS,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_VM_TYPES,
    KVM_X86_SW_PROTECTED_VM,
)

__all__ = ("examine_capabilities",)

# Bits of KVM_CAP_VM_TYPES (arch/x86/include/uapi/asm/kvm.h).
_TYPES = ("default", "sw-protected", "sev", "sev-es", "snp", "tdx")
_FLAGS = ("MMAP", "INIT_SHARED")


def examine_capabilities(host: Host, open_kvm: Callable[[], Kvm]) -> list[Finding]:
    """Subjects "vm-types", "private", "guest-memfd", "pre-fault"."""
    try:
        with open_kvm() as kvm:
            return list(_asked(host, kvm))
    except BackendUnavailable as reason:
        subjects = ("vm-types", "private", "guest-memfd", "pre-fault")
        return [Finding(subject, State.UNKNOWN, "not asked", str(reason)) for subject in subjects]


def _asked(host: Host, kvm: Kvm) -> Iterator[Finding]:
    bits = kvm.check_extension(KVM_CAP_VM_TYPES)
    types = [name for number, name in enumerate(_TYPES) if bits >> number & 1]
    values: Values = {"KVM_CAP_VM_TYPES": bits, "types": types}
    yield Finding("vm-types", State.OK, ", ".join(types) or "none named", values=values)
    yield _private(host, kvm, bool(bits >> KVM_X86_SW_PROTECTED_VM & 1))
    yield _guest_memfd(kvm, [number for number in (0, 1) if bits >> number & 1])
    prefault = kvm.check_extension(KVM_CAP_PRE_FAULT_MEMORY)
    if prefault:
        yield Finding("pre-fault", State.OK, "KVM_PRE_FAULT_MEMORY", values={"KVM_CAP_PRE_FAULT_MEMORY": prefault})
    else:
        cause = "KVM_CAP_PRE_FAULT_MEMORY is 0: a kernel before 6.11, or one without two-dimensional paging"
        yield Finding("pre-fault", State.LIMITED, "none", cause, "see paging", {"KVM_CAP_PRE_FAULT_MEMORY": 0})


def _private(host: Host, kvm: Kvm, protected: bool) -> Finding:
    attributes = kvm.check_extension(KVM_CAP_MEMORY_ATTRIBUTES)
    values: Values = {"KVM_CAP_MEMORY_ATTRIBUTES": attributes, "sw-protected": protected}
    if protected:
        return Finding("private", State.OK, "software-protected VMs have private memory", values=values)
    config = host.config("KVM_SW_PROTECTED_VM")
    values["CONFIG_KVM_SW_PROTECTED_VM"] = config or "unknown"
    cause = {
        None: "the kernel offers no software-protected VMs; its configuration cannot be read",
        "n": "the kernel was built without CONFIG_KVM_SW_PROTECTED_VM",
    }.get(config, "the kernel has CONFIG_KVM_SW_PROTECTED_VM, but does not offer them: no two-dimensional paging?")
    return Finding(
        "private", State.MISSING, "no software-protected VMs", cause, "the lab has them: guestmem.open('lab')", values
    )


def _guest_memfd(kvm: Kvm, types: list[int]) -> Finding:
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
        return Finding("guest-memfd", State.OK, found, values=values)
    cause = "KVM_CAP_GUEST_MEMFD is 0 for every VM type that can be created here"
    return Finding(
        "guest-memfd", State.MISSING, found, cause, "a kernel with CONFIG_KVM_GUEST_MEMFD, or the lab", values
    )


def _flags(vm: Vm) -> list[str]:
    bits = vm.check_extension(KVM_CAP_GUEST_MEMFD_FLAGS)
    return [name for number, name in enumerate(_FLAGS) if bits >> number & 1]
