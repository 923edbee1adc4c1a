"""The registers of a vCPU as KVM's structures hold them: kvm_regs, kvm_sregs, kvm_cpuid_entry2 (asm/kvm.h, x86).

Bytes in, bytes out; the engine loads from here and saves to here.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ("CPUID_ENTRY", "SREGS_SIZE", "CpuState", "Table")

GENERAL: Final = struct.Struct("<18Q")  # rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
RIP, RFLAGS, RSP = 16, 17, 6
SREGS_SIZE: Final = 312
_SEGMENT: Final = struct.Struct("<QIH10B")
_SEGMENT_SIZE, _TABLES, _CONTROL = 24, 192, 224
CS, FS, GS, SS, TR, LDT = 0, 3, 4, 5, 6, 7  # their place among the eight segments
_CR0, _CR3, _CR4, _EFER, _APIC_BASE = 224, 240, 248, 264, 272
CPUID_ENTRY: Final = struct.Struct("<7I12x")
SIGNIFICANT_INDEX: Final = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
_LONG_MODE_ACTIVE: Final = 1 << 10  # in EFER; set by paging with long mode enabled

Table = tuple[int, int]  # base, limit


class CpuState:
    """One vCPU's registers, as after a reset at first."""

    def __init__(self, id: int) -> None:
        self.general = [0] * 16 + [0xFFF0, 2]
        self.sregs = _reset_sregs(id)
        self.cpuid = b""
        self.cpuid_leaves: dict[tuple[int, int | None], tuple[int, int, int, int]] = {}
        self.msrs: dict[int, int] = {}
        self.mp_state = 0

    @property
    def is_long_mode(self) -> bool:
        """64-bit code with paging: all that is served."""
        return bool(self.efer & _LONG_MODE_ACTIVE)

    @property
    def cr0(self) -> int:
        """CR0."""
        return self._word(_CR0)

    @property
    def cr3(self) -> int:
        """CR3."""
        return self._word(_CR3)

    @cr3.setter
    def cr3(self, value: int) -> None:
        """Set it."""
        struct.pack_into("<Q", self.sregs, _CR3, value)

    @property
    def cr4(self) -> int:
        """CR4."""
        return self._word(_CR4)

    @property
    def efer(self) -> int:
        """EFER."""
        return self._word(_EFER)

    def base(self, segment: int) -> int:
        """A segment's base."""
        return self._word(_SEGMENT_SIZE * segment)

    def set_base(self, segment: int, base: int) -> None:
        """Set a segment's base."""
        struct.pack_into("<Q", self.sregs, _SEGMENT_SIZE * segment, base)

    def selector(self, segment: int) -> int:
        """A segment's selector."""
        selector: int = struct.unpack_from("<H", self.sregs, _SEGMENT_SIZE * segment + 12)[0]
        return selector

    @property
    def gdt(self) -> Table:
        """The global descriptor table."""
        return struct.unpack_from("<QH", self.sregs, _TABLES)

    @gdt.setter
    def gdt(self, table: Table) -> None:
        """Set it."""
        struct.pack_into("<QH", self.sregs, _TABLES, *table)

    @property
    def idt(self) -> Table:
        """The interrupt descriptor table."""
        return struct.unpack_from("<QH", self.sregs, _TABLES + 16)

    @idt.setter
    def idt(self, table: Table) -> None:
        """Set it."""
        struct.pack_into("<QH", self.sregs, _TABLES + 16, *table)

    def set_cpuid(self, entries: bytes) -> None:
        """KVM_SET_CPUID2: entries as struct kvm_cpuid_entry2."""
        self.cpuid = entries
        self.cpuid_leaves = {}
        for function, index, flags, *registers in CPUID_ENTRY.iter_unpack(entries):
            key = function, index if flags & SIGNIFICANT_INDEX else None
            eax, ebx, ecx, edx = registers
            self.cpuid_leaves[key] = eax, ebx, ecx, edx

    def cpuid_of(self, function: int, index: int) -> tuple[int, int, int, int]:
        """What CPUID answers; zeros for a leaf that was not set."""
        leaves = self.cpuid_leaves
        return leaves.get((function, None)) or leaves.get((function, index)) or (0, 0, 0, 0)

    def _word(self, offset: int) -> int:
        word: int = struct.unpack_from("<Q", self.sregs, offset)[0]
        return word


def _reset_sregs(id: int) -> bytearray:
    """Real mode at the reset vector; the first vCPU is the boot processor."""
    sregs = bytearray(SREGS_SIZE)
    for segment in range(8):
        base, selector, type, is_code_or_data = 0, 0, 3, 1
        if segment == CS:
            base, selector, type = 0xFFFF0000, 0xF000, 11
        elif segment in (TR, LDT):
            type, is_code_or_data = 11 if segment == TR else 2, 0
        fields = (base, 0xFFFF, selector, type, 1, 0, 0, is_code_or_data, 0, 0, 0, 0, 0)
        _SEGMENT.pack_into(sregs, _SEGMENT_SIZE * segment, *fields)
    struct.pack_into("<QH6xQH6x", sregs, _TABLES, 0, 0xFFFF, 0, 0xFFFF)
    struct.pack_into("<Q", sregs, _CR0, 0x60000010)
    struct.pack_into("<Q", sregs, _APIC_BASE, 0xFEE00000 | 0x800 | (0x100 if id == 0 else 0))
    return sregs
