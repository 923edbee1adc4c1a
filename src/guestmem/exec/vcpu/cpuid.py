"""KVM_GET_SUPPORTED_CPUID: the processor that guests see, a plain 64-bit one. Facts from the vendors' manuals."""

from __future__ import annotations

from functools import cache
from typing import Final

from guestmem.exec.vcpu.state import CPUID_ENTRY, SIGNIFICANT_INDEX

__all__ = ("supported",)

_VENDOR: Final = b"AuthenticAMD"
_SIGNATURE: Final = 0x00830F10
_LEAF1_ECX: Final = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 31  # SSE to SSE4.2, a hypervisor
_LEAF1_EDX: Final = 0x078BFBFF  # FPU, PAE, MSR, APIC, SSE2 and what goes with them
_EXTENDED_EDX: Final = (
    _LEAF1_EDX & 0x0183F3FF | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
)  # NX, 1G pages, long mode
_LEAVES: Final = (*range(0x11), *range(0x80000000, 0x80000022), 0x40000000, 0x40000001)
_SUBLEAVES: Final = frozenset((4, 7, 0xD))


@cache
def supported(gpa_bits: int) -> bytes:
    """The entries (struct kvm_cpuid_entry2) for a machine whose guest-physical addresses have so many bits."""
    ebx, edx, ecx = (int.from_bytes(_VENDOR[at : at + 4], "little") for at in (0, 4, 8))
    leaves = dict.fromkeys(_LEAVES, (0, 0, 0, 0))
    leaves[0] = 0x10, ebx, ecx, edx
    leaves[1] = _SIGNATURE, 0, _LEAF1_ECX, _LEAF1_EDX
    leaves[0x80000000] = 0x80000021, ebx, ecx, edx
    leaves[0x80000001] = _SIGNATURE, 0, 1, _EXTENDED_EDX
    leaves[0x80000008] = gpa_bits | 48 << 8, 0, 0, 0
    leaves[0x40000000] = 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D  # KVMKVMKVM
    return b"".join(
        CPUID_ENTRY.pack(number, 0, SIGNIFICANT_INDEX if number in _SUBLEAVES else 0, *registers)
        for number, registers in leaves.items()
    )
