"""The kernel that is looked at: its memory, the shapes of its structures, and where its variables are."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from guestmem.errors import BackendUnavailable, errno_name
from guestmem.host.bpf import BpfMemory
from guestmem.host.kcore import KcoreMemory
from guestmem.host.memory import KernelMemory, u64
from guestmem.host.structs import KernelStructs, load_structs
from guestmem.host.symbols import read_symbols

__all__ = ("READERS", "KernelView", "lockdown", "open_kernel")

READERS = ("auto", "kcore", "bpf")
_LOCKDOWN = Path("/sys/kernel/security/lockdown")


@dataclass(frozen=True, slots=True)
class KernelView:
    """symbols: addresses of variables by name, as far as they can be had.

    direct_map: the virtual address of physical address 0, None where it is not known before a VM is looked at.
    encryption: the bits of a page-table entry that belong to no address (AMD's memory encryption on the host).
    current_task: the address of the calling thread's task_struct, where the reader can tell.
    """

    memory: KernelMemory
    structs: KernelStructs
    symbols: dict[str, int] = field(default_factory=dict)
    direct_map: int | None = None
    encryption: int = 0
    current_task: Callable[[], int] | None = None

    def pointer(self, address: int) -> int:
        """The pointer or 64-bit number stored at an address."""
        return u64(self.memory.read(address, 8))


def open_kernel(reader: str = "auto") -> KernelView:
    """The running kernel through ``reader``; BackendUnavailable says in one line why it cannot be read.

    "auto" takes /proc/kcore where the list of VMs can be found by its symbol, else the BPF program, which finds them by
    their descriptors.
    """
    if platform.machine() != "x86_64":
        raise BackendUnavailable(f"VMs are looked at on x86-64 only, this is {platform.machine()}")
    structs, symbols = load_structs(), read_symbols()
    refused = []
    if reader in ("auto", "kcore"):
        try:
            return _by_kcore(structs, symbols)
        except (OSError, BackendUnavailable) as error:
            refused.append(_why("/proc/kcore", error))
    if reader in ("auto", "bpf"):
        try:
            return _by_bpf(structs, symbols)
        except OSError as error:
            refused.append(_why("BPF", error))
    raise BackendUnavailable(f"kernel memory cannot be read: {'; '.join(refused)}; 'guestmem doctor' says what to do")


def lockdown(path: Path = _LOCKDOWN) -> str:
    """The kernel's lockdown level: "none", "integrity", "confidentiality"; "" where it does not say."""
    try:
        text = path.read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def _by_kcore(structs: KernelStructs, symbols: dict[str, int]) -> KernelView:
    if "vm_list" not in symbols:
        raise BackendUnavailable("does not tell where VMs are: no symbol vm_list (CONFIG_KALLSYMS_ALL)")
    memory = KcoreMemory()
    return _with_variables(KernelView(memory, structs, symbols, memory.direct_map))


def _by_bpf(structs: KernelStructs, symbols: dict[str, int]) -> KernelView:
    memory = BpfMemory()
    return _with_variables(KernelView(memory, structs, symbols, current_task=memory.current_task))


def _with_variables(kernel: KernelView) -> KernelView:
    """The same kernel with what its variables say."""
    base, mask = (kernel.symbols.get(name) for name in ("page_offset_base", "shadow_me_mask"))
    return KernelView(
        kernel.memory,
        kernel.structs,
        kernel.symbols,
        kernel.direct_map if base is None else kernel.pointer(base),
        0 if mask is None else kernel.pointer(mask),
        kernel.current_task,
    )


def _why(what: str, error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{what} {error}"
    level = lockdown()
    locked = f" under lockdown={level}" if level == "confidentiality" else ""
    missing = "" if os.geteuid() == 0 else " (not root)"
    return f"{what} answers {errno_name(error.errno or 0)}{locked}{missing}"
