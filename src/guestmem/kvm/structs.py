"""Layouts of the KVM structures and the ioctl numbers that concern guest memory (x86-64).

A structure is a table of fields: name, offset and size in bytes, all little-endian, no hidden padding. A field longer
than eight bytes is an array of u64 words. Integers are packed modulo their width, as C converts them, so that any
number can be handed to the kernel. Source: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from guestmem.uapi import KVMIO

__all__ = (
    "CPUID2",
    "CPUID_ENTRY2",
    "CREATE_GUEST_MEMFD",
    "ENABLE_CAP",
    "IOCTLS",
    "KVM_RUN",
    "MEMORY_ATTRIBUTES",
    "MEMORY_ATTRIBUTES2",
    "PRE_FAULT_MEMORY",
    "REGION",
    "REGION2",
    "REGS",
    "SEGMENT",
    "SREGS",
    "STATS_DESC",
    "STATS_HEADER",
    "STRUCTS",
    "StructField",
    "Ioctl",
    "Struct",
)

_WORD = 8
_NONE, _WRITE, _READ = 0, 1, 2


@dataclass(frozen=True, slots=True)
class StructField:
    """One field: offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Struct:
    """One structure: its C name, size in bytes, and the fields guestmem uses."""

    name: str
    size: int
    fields: Mapping[str, StructField]

    def field(self, name: str) -> StructField:
        """The field of that name; KeyError."""
        field = self.fields.get(name)
        if field is None:
            raise KeyError(f"struct {self.name} has no field {name}")
        return field

    def pack(self, **values: int | Sequence[int]) -> bytearray:
        """The bytes of the structure; what is not given is zero."""
        block = bytearray(self.size)
        for name, value in values.items():
            self.set(block, name, value)
        return block

    def set(self, block: bytearray | memoryview, name: str, value: int | Sequence[int]) -> None:
        """Store a field, modulo its width; a sequence fills an array's words from the first."""
        field = self.field(name)
        words = (value,) if isinstance(value, int) else value
        width = _WORD if field.size > _WORD else field.size
        if len(words) * width > field.size:
            raise ValueError(f"struct {self.name}: {name} holds {field.size // width} words, not {len(words)}")
        for index, word in enumerate(words):
            start = field.offset + index * width
            block[start : start + width] = (word % (1 << 8 * width)).to_bytes(width, "little")

    def get(self, block: bytes | bytearray | memoryview, name: str) -> int:
        """Load a field, unsigned."""
        field = self.field(name)
        return int.from_bytes(block[field.offset : field.offset + field.size], "little")


@dataclass(frozen=True, slots=True)
class Ioctl:
    """One ioctl: minor number, direction (1 the kernel reads, 2 it writes, 3 both) and argument size in bytes."""

    name: str
    minor: int
    direction: int = _NONE
    size: int = 0

    @property
    def number(self) -> int:
        """The encoded request, _IOC(direction, KVMIO, minor, size)."""
        return self.direction << 30 | self.size << 16 | KVMIO << 8 | self.minor


def _struct(name: str, size: int, *fields: tuple[str, int, int]) -> Struct:
    return Struct(name, size, MappingProxyType({field[0]: StructField(*field) for field in fields}))


_REGION_FIELDS = (
    ("slot", 0, 4),
    ("flags", 4, 4),
    ("guest_phys_addr", 8, 8),
    ("memory_size", 16, 8),
    ("userspace_addr", 24, 8),
)
REGION: Final = _struct("kvm_userspace_memory_region", 32, *_REGION_FIELDS)
REGION2: Final = _struct(
    "kvm_userspace_memory_region2",
    160,
    *_REGION_FIELDS,
    ("guest_memfd_offset", 32, 8),
    ("guest_memfd", 40, 4),
    ("pad1", 44, 4),
    ("pad2", 48, 112),
)
ENABLE_CAP: Final = _struct("kvm_enable_cap", 104, ("cap", 0, 4), ("flags", 4, 4), ("args", 8, 32), ("pad", 40, 64))
CREATE_GUEST_MEMFD: Final = _struct("kvm_create_guest_memfd", 64, ("size", 0, 8), ("flags", 8, 8), ("reserved", 16, 48))
MEMORY_ATTRIBUTES: Final = _struct(
    "kvm_memory_attributes", 32, ("address", 0, 8), ("size", 8, 8), ("attributes", 16, 8), ("flags", 24, 8)
)
MEMORY_ATTRIBUTES2: Final = _struct(
    "kvm_memory_attributes2",
    128,
    ("offset", 0, 8),
    ("size", 8, 8),
    ("attributes", 16, 8),
    ("flags", 24, 8),
    ("error_offset", 32, 8),
    ("reserved", 40, 88),
)
PRE_FAULT_MEMORY: Final = _struct(
    "kvm_pre_fault_memory", 64, ("gpa", 0, 8), ("size", 8, 8), ("flags", 16, 8), ("padding", 24, 40)
)
# The union after the common head of struct kvm_run holds the data of the exit; each field is named with its member.
KVM_RUN: Final = _struct(
    "kvm_run",
    2352,
    ("immediate_exit", 1, 1),
    ("exit_reason", 8, 4),
    ("mmio.phys_addr", 32, 8),
    ("mmio.data", 40, 8),
    ("mmio.len", 48, 4),
    ("mmio.is_write", 52, 1),
    ("memory_fault.flags", 32, 8),
    ("memory_fault.gpa", 40, 8),
    ("memory_fault.size", 48, 8),
    ("internal.suberror", 32, 4),
)
REGS: Final = _struct(
    "kvm_regs",
    144,
    *((name, 8 * index, 8) for index, name in enumerate(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"))),
    ("rip", 128, 8),
    ("rflags", 136, 8),
)
SEGMENT: Final = _struct(
    "kvm_segment",
    24,
    ("base", 0, 8),
    ("limit", 8, 4),
    ("selector", 12, 2),
    ("type", 14, 1),
    ("present", 15, 1),
    ("dpl", 16, 1),
    ("db", 17, 1),
    ("s", 18, 1),
    ("l", 19, 1),
    ("g", 20, 1),
)
SREGS: Final = _struct(
    "kvm_sregs",
    312,
    *((name, 24 * index, 24) for index, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"))),
    ("cr0", 224, 8),
    ("cr3", 240, 8),
    ("cr4", 248, 8),
    ("efer", 264, 8),
)
CPUID2: Final = _struct("kvm_cpuid2", 8, ("nent", 0, 4))
CPUID_ENTRY2: Final = _struct("kvm_cpuid_entry2", 40, ("function", 0, 4), ("eax", 12, 4))
STATS_HEADER: Final = _struct(
    "kvm_stats_header",
    24,
    ("flags", 0, 4),
    ("name_size", 4, 4),
    ("num_desc", 8, 4),
    ("id_offset", 12, 4),
    ("desc_offset", 16, 4),
    ("data_offset", 20, 4),
)
# The name, header.name_size bytes with its zeros, follows; sizes are in u64 values, offset is from the data on.
STATS_DESC: Final = _struct(
    "kvm_stats_desc", 16, ("flags", 0, 4), ("exponent", 4, 2), ("size", 6, 2), ("offset", 8, 4), ("bucket_size", 12, 4)
)

STRUCTS: Final = (
    REGION,
    REGION2,
    ENABLE_CAP,
    CREATE_GUEST_MEMFD,
    MEMORY_ATTRIBUTES,
    MEMORY_ATTRIBUTES2,
    PRE_FAULT_MEMORY,
    KVM_RUN,
    REGS,
    SEGMENT,
    SREGS,
    CPUID2,
    CPUID_ENTRY2,
    STATS_HEADER,
    STATS_DESC,
)

IOCTLS: Final[Mapping[str, Ioctl]] = MappingProxyType(
    {
        ioctl.name: ioctl
        for ioctl in (
            Ioctl("KVM_CREATE_VM", 0x01),
            Ioctl("KVM_CHECK_EXTENSION", 0x03),
            Ioctl("KVM_GET_VCPU_MMAP_SIZE", 0x04),
            Ioctl("KVM_GET_SUPPORTED_CPUID", 0x05, _READ | _WRITE, 8),
            Ioctl("KVM_CREATE_VCPU", 0x41),
            Ioctl("KVM_SET_USER_MEMORY_REGION", 0x46, _WRITE, 32),
            Ioctl("KVM_SET_USER_MEMORY_REGION2", 0x49, _WRITE, 160),
            Ioctl("KVM_RUN", 0x80),
            Ioctl("KVM_SET_REGS", 0x82, _WRITE, 144),
            Ioctl("KVM_GET_SREGS", 0x83, _READ, 312),
            Ioctl("KVM_SET_SREGS", 0x84, _WRITE, 312),
            Ioctl("KVM_SET_SIGNAL_MASK", 0x8B, _WRITE, 4),
            Ioctl("KVM_SET_CPUID2", 0x90, _WRITE, 8),
            Ioctl("KVM_ENABLE_CAP", 0xA3, _WRITE, 104),
            Ioctl("KVM_GET_STATS_FD", 0xCE),
            Ioctl("KVM_SET_MEMORY_ATTRIBUTES", 0xD2, _WRITE, 32),
            Ioctl("KVM_SET_MEMORY_ATTRIBUTES2", 0xD2, _READ | _WRITE, 128),
            Ioctl("KVM_CREATE_GUEST_MEMFD", 0xD4, _READ | _WRITE, 64),
            Ioctl("KVM_PRE_FAULT_MEMORY", 0xD5, _READ | _WRITE, 64),
        )
    }
)
