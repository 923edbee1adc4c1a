"""What ``guestmem host`` needs to read VMs out of the kernel: types, symbols, rights, and a reader of memory."""

from __future__ import annotations

import re
from collections.abc import Callable

from guestmem.doctor.value import Condition, Diagnosis, HostFiles
from guestmem.errors import errno_name

__all__ = ("examine_btf", "examine_looking", "examine_readers", "examine_rights", "examine_symbols")

# By number, what each is needed for (include/uapi/linux/capability.h).
_RIGHTS = {
    2: ("CAP_DAC_READ_SEARCH", "the descriptors of other users' processes"),
    17: ("CAP_SYS_RAWIO", "/proc/kcore"),
    19: ("CAP_SYS_PTRACE", "the descriptors and mappings of other processes"),
    34: ("CAP_SYSLOG", "the addresses in /proc/kallsyms"),
    38: ("CAP_PERFMON", "reading kernel memory by BPF"),
    39: ("CAP_BPF", "loading the reader program"),
}
_BTF = "/sys/kernel/btf"
Attempt = Callable[[], str | None]  # the errno's name with which opening fails, None if it succeeds


def try_kcore() -> str | None:
    """Open /proc/kcore and close it."""
    from guestmem.host.kcore import KcoreMemory

    return _attempt(lambda: KcoreMemory().close())


def try_bpf() -> str | None:
    """Load the reader program and unload it."""
    from guestmem.host.bpf import BpfMemory

    return _attempt(lambda: BpfMemory().close())


def examine_looking(host: HostFiles, kcore: Attempt = try_kcore, bpf: Attempt = try_bpf) -> list[Diagnosis]:
    """Subjects "btf", "symbols", "rights", "kcore", "bpf"."""
    return [examine_btf(host), examine_symbols(host), examine_rights(host), *examine_readers(host, kcore(), bpf())]


def examine_btf(host: HostFiles) -> Diagnosis:
    """Subject "btf": the kernel's own description of its types."""
    if not host.exists(f"{_BTF}/vmlinux"):
        cause = f"there is no {_BTF}/vmlinux"
        if not host.exists("/sys/kernel"):
            return Diagnosis("btf", Condition.UNKNOWN, "unknown", "/sys cannot be read")
        remedy = "a kernel with CONFIG_DEBUG_INFO_BTF (those of distributions have it)"
        return Diagnosis("btf", Condition.LIMITED, "guestmem host cannot work", cause, remedy)
    if host.exists("/sys/module/kvm/initstate") and not host.exists(f"{_BTF}/kvm"):
        cause = f"kvm is a module, and there is no {_BTF}/kvm"
        remedy = "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES"
        return Diagnosis("btf", Condition.LIMITED, "guestmem host cannot work", cause, remedy)
    return Diagnosis("btf", Condition.OK, "the kernel describes its types")


def examine_symbols(host: HostFiles) -> Diagnosis:
    """Subject "symbols": whether kallsyms tells where variables are (CONFIG_KALLSYMS_ALL), vm_list among them."""
    text = host.read("/proc/kallsyms")
    if not text:
        return Diagnosis("symbols", Condition.UNKNOWN, "unknown", "/proc/kallsyms cannot be read")
    found = re.search(r"^([0-9a-f]+) [bBdD] vm_list\b", text, re.MULTILINE)
    if found is None:
        cause = "no variable vm_list: a kernel without CONFIG_KALLSYMS_ALL, or kvm is not loaded"
        remedy = "none is needed where BPF works: VMs are found by their descriptors"
        return Diagnosis("symbols", Condition.LIMITED, "no list of VMs", cause, remedy)
    if not int(found[1], 16):
        cause = "addresses are shown as zeros: kernel.kptr_restrict"
        return Diagnosis("symbols", Condition.LIMITED, "no list of VMs", cause, "run as root, or with CAP_SYSLOG")
    return Diagnosis("symbols", Condition.OK, "the list of VMs can be found")


def examine_rights(host: HostFiles) -> Diagnosis:
    """Subject "rights": the capabilities of this process."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", host.read("/proc/self/status") or "", re.MULTILINE)
    if found is None:
        return Diagnosis("rights", Condition.UNKNOWN, "unknown", "/proc/self/status cannot be read")
    held = int(found[1], 16)
    lacking = [f"{name} ({purpose})" for bit, (name, purpose) in _RIGHTS.items() if not held >> bit & 1]
    if not lacking:
        return Diagnosis("rights", Condition.OK, "every capability that guestmem host can use")
    names = ",".join(name.lower() for bit, (name, _) in _RIGHTS.items() if not held >> bit & 1)
    return Diagnosis(
        "rights",
        Condition.LIMITED,
        f"{len(_RIGHTS) - len(lacking)} of {len(_RIGHTS)} capabilities",
        f"missing: {', '.join(lacking)}",
        f"run guestmem host as root, or give these: {names}",
    )


def examine_readers(host: HostFiles, kcore: str | None, bpf: str | None) -> list[Diagnosis]:
    """Subjects "kcore" and "bpf", by the errno with which each failed; one of them is enough."""
    lock = host.read("/sys/kernel/security/lockdown") or ""
    level = lock.partition("[")[2].partition("]")[0]
    return [
        _reader("kcore", "/proc/kcore", kcore, bpf is None, level, "CONFIG_PROC_KCORE"),
        _reader("bpf", "the BPF reader program", bpf, kcore is None, level, "CONFIG_BPF_SYSCALL, Linux 5.14 or newer"),
    ]


def _reader(subject: str, what: str, failed: str | None, other: bool, level: str, needs: str) -> Diagnosis:
    if failed is None:
        return Diagnosis(subject, Condition.OK, f"{what} reads kernel memory")
    cause = f"it answers {failed}"
    remedy = {"ENOENT": f"a kernel with {needs}", "ENOSYS": f"a kernel with {needs}"}.get(failed, "run as root")
    if level == "confidentiality":
        cause += ", as lockdown=confidentiality makes it"
        remedy = "boot with lockdown=integrity; otherwise guestmem host shows KVM's counters only"
    if other:
        remedy = "none is needed: the other reader works"
    return Diagnosis(subject, Condition.LIMITED, f"{what} does not work", cause, remedy)


def _attempt(action: Callable[[], None]) -> str | None:
    try:
        action()
    except OSError as error:
        return errno_name(error.errno or 0)
    return None
