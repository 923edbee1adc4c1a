"""The guest that makes one access: ring-3 64-bit code and its page tables, in 64 KiB of the VM's memory.

Ring 3 matters: a KVM with shadow paging and no hardware help runs ring-0 code in its instruction emulator, whose
accesses go through userspace_addr and bypass the fault path.

The boot memory, page by page: the root of the page tables, the next level, directory and table of the low addresses,
the code, and eleven directories of windows. A window is 2 MiB of guest-virtual space over one 2 MiB frame of guest-
physical space, made at the first touch of the frame and never changed: shadow paging learns of a new entry by the
fault, but never of a change that the host makes. The doorbell is the guest-physical page after the boot memory, which
no slot may cover: a store there is the MMIO exit that ends a touch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from guestmem.backend import Boot, Touch
from guestmem.errors import InputError
from guestmem.harness import BOOT_SIZE, PAGE_SIZE
from guestmem.kvm.memory import Memory
from guestmem.kvm.structs import REGS, SEGMENT, SREGS
from guestmem.units import GIB, MIB, align_down

__all__ = ("BOOT_PAGES", "Guest")

_ROOT, _UPPER, _LOW_DIRECTORY, _LOW_TABLE, _CODE, _WINDOWS = range(6)  # page numbers in the boot memory
_ENTRIES = PAGE_SIZE // 8  # of a page table
# Base pages of the boot memory that every touch needs: four levels of tables, the code, the first directory of windows.
BOOT_PAGES: Final = _WINDOWS + 1
_MAX_WINDOWS = (BOOT_SIZE // PAGE_SIZE - _WINDOWS) * _ENTRIES

_WINDOW = 2 * MIB
_CODE_VA, _DOORBELL_VA, _WINDOWS_VA = 0x1000, 0x2000, GIB
_PTE = 0x67  # present, writable, user, accessed, dirty: the guest never has to set a bit itself
_PTE_LARGE = _PTE | 0x80

_ENTRY_SIZE = 16
_TAIL = bytes.fromhex("488906ebfe")  # mov [rsi], rax (the doorbell); jmp to itself, never reached
_ACCESSES: Final = {
    ("r", 1): bytes.fromhex("0fb607"),  # movzx eax, byte [rdi]
    ("r", 2): bytes.fromhex("0fb707"),  # movzx eax, word [rdi]
    ("r", 4): bytes.fromhex("8b07"),  # mov eax, [rdi]
    ("r", 8): bytes.fromhex("488b07"),  # mov rax, [rdi]
    ("w", 1): bytes.fromhex("8807"),  # mov [rdi], al
    ("w", 2): bytes.fromhex("668907"),  # mov [rdi], ax
    ("w", 4): bytes.fromhex("8907"),  # mov [rdi], eax
    ("w", 8): bytes.fromhex("488907"),  # mov [rdi], rax
}
_ENTRY = {access: _CODE_VA + index * _ENTRY_SIZE for index, access in enumerate(_ACCESSES)}

_CR0_PE, _CR0_PG, _CR0_ET, _CR0_NE = 1, 1 << 31, 1 << 4, 1 << 5
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED, _RFLAGS_TRAP = 1 << 1, 1 << 8


class Guest:
    """Code and page tables at one boot memory. Addresses: gpa as the VM sees it, hva as this process does."""

    def __init__(self, memory: Memory, boot: Boot) -> None:
        self._memory = memory
        self._boot = boot
        self._windows: dict[int, int] = {}  # 2 MiB frame of guest-physical space: its window's number
        memory.copy_in(boot.hva, b"".join(self._pages()))

    @property
    def doorbell(self) -> int:
        """The GPA whose MMIO exit ends a touch."""
        return self._boot.gpa + BOOT_SIZE

    def sregs(self, current: bytes | bytearray) -> bytearray:
        """struct kvm_sregs for ring 3 in 64-bit mode; what it does not concern is as in ``current``."""
        sregs = bytearray(current)
        code = SEGMENT.pack(limit=0xFFFFFFFF, selector=0x33, type=11, present=1, dpl=3, s=1, l=1, g=1)
        data = SEGMENT.pack(limit=0xFFFFFFFF, selector=0x2B, type=3, present=1, dpl=3, db=1, s=1, g=1)
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            SREGS.set(sregs, name, struct.unpack("<3Q", code if name == "cs" else data))
        SREGS.set(sregs, "cr0", _CR0_PE | _CR0_PG | _CR0_ET | _CR0_NE)
        SREGS.set(sregs, "cr3", self._gpa(_ROOT))
        SREGS.set(sregs, "cr4", _CR4_PAE)
        SREGS.set(sregs, "efer", _EFER_LME | _EFER_LMA)
        return sregs

    def regs(self, touch: Touch) -> bytearray:
        """struct kvm_regs that make the touch; its window is made if it is the first in its 2 MiB.

        A fetch is one instruction at the address with the trap flag: there is no interrupt table, so the trap after it
        shuts the vCPU down. Should it store through a register (a page of zeros is ``add [rax], al``), that is the
        doorbell.
        """
        va = self._window(touch.gpa)
        if touch.rw == "x":
            flags = _RFLAGS_FIXED | _RFLAGS_TRAP
            return REGS.pack(**dict.fromkeys(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"), _DOORBELL_VA),
                             rip=va, rflags=flags)  # fmt: skip
        rip = _ENTRY[touch.rw, touch.size]
        return REGS.pack(rax=touch.value, rdi=va, rsi=_DOORBELL_VA, rip=rip, rflags=_RFLAGS_FIXED)

    def _gpa(self, page: int) -> int:
        return self._boot.gpa + page * PAGE_SIZE

    def _pages(self) -> Iterator[bytes]:
        yield _table({0: self._gpa(_UPPER) | _PTE})
        uppers = {0: self._gpa(_LOW_DIRECTORY) | _PTE}
        directories = range(_WINDOWS, BOOT_SIZE // PAGE_SIZE)
        yield _table(uppers | {1 + i: self._gpa(page) | _PTE for i, page in enumerate(directories)})
        yield _table({0: self._gpa(_LOW_TABLE) | _PTE})
        yield _table({_CODE_VA // PAGE_SIZE: self._gpa(_CODE) | _PTE, _DOORBELL_VA // PAGE_SIZE: self.doorbell | _PTE})
        yield b"".join((code + _TAIL).ljust(_ENTRY_SIZE, b"\xcc") for code in _ACCESSES.values()).ljust(
            PAGE_SIZE, b"\xcc"
        )
        yield bytes(BOOT_SIZE - _WINDOWS * PAGE_SIZE)

    def _window(self, gpa: int) -> int:
        frame = align_down(gpa, _WINDOW)
        number = self._windows.get(frame)
        if number is None:
            number = len(self._windows)
            if number == _MAX_WINDOWS:
                raise InputError(
                    f"a guest can touch {_MAX_WINDOWS} different 2 MiB frames, not another one at {gpa:#x}"
                )
            entry = self._boot.hva + _WINDOWS * PAGE_SIZE + number * 8
            self._memory.copy_in(entry, struct.pack("<Q", frame | _PTE_LARGE))
            self._windows[frame] = number
        return _WINDOWS_VA + number * _WINDOW + gpa - frame


def _table(entries: dict[int, int]) -> bytes:
    table = bytearray(PAGE_SIZE)
    for index, entry in entries.items():
        struct.pack_into("<Q", table, index * 8, entry)
    return bytes(table)
