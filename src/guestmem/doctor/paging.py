"""How KVM maps guests, and whether guests can have KVM: what its modules were told when they were loaded."""

from __future__ import annotations

from guestmem.doctor.host import Host
from guestmem.doctor.value import Finding, State, Values

__all__ = ("examine_nested", "examine_paging")

_TRUE = ("Y", "1")
_MODULES = (("kvm_intel", "ept"), ("kvm_amd", "npt"))


def examine_paging(host: Host) -> Finding:
    """Subject "paging": two-dimensional paging, which private memory and pre-fault need, and what limits page sizes."""
    for module, parameter in _MODULES:
        value = host.read(f"/sys/module/{module}/parameters/{parameter}")
        if value is None:
            continue
        values: Values = {parameter: value}
        for more in ("tdp_mmu", "nx_huge_pages"):
            values[more] = host.read(f"/sys/module/kvm/parameters/{more}") or "unknown"
        if value not in _TRUE:
            cause = f"{module} was loaded with {parameter}={value}: shadow paging"
            remedy = f"modprobe -r {module}; modprobe {module} {parameter}=1"
            return Finding("paging", State.MISSING, "no two-dimensional paging", cause, remedy, values)
        if values["nx_huge_pages"] in _TRUE:
            cause = "kvm.nx_huge_pages is on: a huge page that the guest executes from is split (iTLB multihit)"
            remedy = "kvm.nx_huge_pages=off, where the processor is not affected or the guests are trusted"
            return Finding("paging", State.LIMITED, f"{parameter} is on", cause, remedy, values)
        return Finding("paging", State.OK, f"{parameter} is on", values=values)
    cause = "neither kvm_intel nor kvm_amd is loaded as a module, so its parameters cannot be read"
    return Finding("paging", State.UNKNOWN, "not told", cause)


def examine_nested(host: Host) -> Finding:
    """Subject "nested": whether a guest of this host can run KVM itself."""
    for module, _ in _MODULES:
        value = host.read(f"/sys/module/{module}/parameters/nested")
        if value in _TRUE:
            return Finding("nested", State.OK, "guests of this host can have KVM", values={"nested": value or ""})
        if value is not None:
            remedy = f"modprobe -r {module}; modprobe {module} nested=1 (the lab needs none: it emulates)"
            return Finding(
                "nested", State.LIMITED, "guests have no KVM", f"{module}.nested={value}", remedy, {"nested": value}
            )
    return Finding("nested", State.UNKNOWN, "not told", "neither kvm_intel nor kvm_amd is loaded as a module")
