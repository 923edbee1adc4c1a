"""/dev/kvm: is it there, may we use it, and if not, why."""

from __future__ import annotations

from guestmem.doctor.host import Host
from guestmem.doctor.value import Finding, State

__all__ = ("examine_device",)

DEVICE = "/dev/kvm"


def examine_device(host: Host) -> Finding:
    """Subject "device"."""
    if not host.exists(DEVICE):
        return _absent(host)
    refused = host.open_errno(DEVICE)
    if refused is None:
        return Finding("device", State.OK, f"{DEVICE} can be opened", values={"errno": ""})
    remedy = {
        "EACCES": "join the group that owns it: usermod -aG kvm USER, and log in again",
        "EPERM": "let the container have the device: --device /dev/kvm, or a device rule of its cgroup",
        "ENODEV": "load the module of the processor: modprobe kvm_intel or kvm_amd",
    }.get(refused, "see the kernel's log")
    return Finding(
        "device", State.MISSING, f"{DEVICE} is there", f"opening it is {refused}", remedy, {"errno": refused}
    )


def _absent(host: Host) -> Finding:
    found = f"there is no {DEVICE}"
    cpuinfo = host.read("/proc/cpuinfo")
    flags = set((cpuinfo or "").split())
    modules = {name for name in ("kvm_intel", "kvm_amd") if host.exists(f"/sys/module/{name}")}
    if modules:
        cause = f"{' and '.join(sorted(modules))} is loaded, but its device is not visible here"
        return Finding("device", State.MISSING, found, cause, "let the container have the device: --device /dev/kvm")
    if cpuinfo is None:
        return Finding("device", State.MISSING, found, "unknown: /proc/cpuinfo cannot be read", "modprobe kvm")
    module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else ""
    if module:
        return Finding("device", State.MISSING, found, f"the module {module} is not loaded", f"modprobe {module}")
    cause = "the processor shows neither vmx nor svm"
    remedy = "enable virtualisation in the firmware, or nested where this machine is a guest; the lab needs neither"
    return Finding("device", State.MISSING, found, cause, remedy)
