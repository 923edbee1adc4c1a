"""The address space of this process, as far as the backend made it: mmap and its kin, loads and stores.

What the caller mapped and did not unmap is remembered, so that the end of the backend unmaps exactly that and nothing
that Python or libc put there since.

Each mapping is asked for at an address of its own, far from everything else and never used twice. It is only a hint,
which the kernel follows where nothing is mapped. So a hole that the caller makes in a mapping stays a hole: a store
there is a SIGSEGV, and does not hit what Python's allocator or the next mmap would have put there.
"""

from __future__ import annotations

from guestmem.harness import PAGE_SIZE
from guestmem.kvm import libc
from guestmem.kvm.hostaccess import HostAccess
from guestmem.runmap import RunMap
from guestmem.uapi import MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE
from guestmem.units import GIB, TIB, U64_MAX, align_up

__all__ = ("Memory",)

_HINTS_FROM, _HINTS_TO = 0x610000000000, 0x7D0000000000  # above the program, below libc and the stack


class _Hints:
    """Addresses for new mappings: GiB-aligned, a free GiB or more between them; 0 when there are none left."""

    def __init__(self) -> None:
        self._next = _HINTS_FROM

    def take(self, length: int) -> int:
        """An address for this many bytes."""
        end = align_up(self._next + length, GIB) + GIB
        if length > TIB or end > _HINTS_TO:
            return 0
        addr, self._next = self._next, end
        return addr


_HINTS = _Hints()  # one address space, whatever the number of backends in it


class Memory:
    """Mappings made through it, and accesses to any address. Addresses and lengths in bytes."""

    def __init__(self) -> None:
        self._mapped: RunMap[bool] = RunMap()
        self._access = HostAccess()

    def anonymous(self, size: int, prot: int, align: int) -> int:
        """Private anonymous memory at a multiple of align (a power of two)."""
        reason = f"mmap(size={size:#x}, prot={prot:#x}, MAP_PRIVATE|MAP_ANONYMOUS)"
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE  # buffers are large and mostly never touched
        if not size:
            return libc.call("mmap", reason, 0, size, prot, flags, -1, 0)
        length, spare = align_up(size, PAGE_SIZE), max(align, PAGE_SIZE) - PAGE_SIZE
        found = libc.call("mmap", reason, _HINTS.take(length + spare), length + spare, prot, flags, -1, 0)
        addr = align_up(found, max(align, PAGE_SIZE))
        for start, end in ((found, addr), (addr + length, found + length + spare)):
            if start < end:
                libc.call("munmap", reason, start, end - start)
        self._mapped.set(addr, addr + length, True)
        return addr

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap(2); with MAP_FIXED the address is 0."""
        reason = f"mmap({length=:#x}, {prot=:#x}, {flags=:#x}, {fd=}, {offset=:#x})"
        hint = 0 if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) else _HINTS.take(length)
        addr = libc.call("mmap", reason, hint, length, prot, flags, fd, offset)
        self._mapped.set(addr, align_up(addr + length, PAGE_SIZE), True)
        return addr

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        libc.call("munmap", f"munmap({addr=:#x}, {length=:#x})", addr, length)
        self._mapped.clear(addr, align_up(addr + length, PAGE_SIZE))

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""
        libc.call("mprotect", f"mprotect({addr=:#x}, {length=:#x}, {prot=:#x})", addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """madvise(2)."""
        libc.call("madvise", f"madvise({addr=:#x}, {length=:#x}, {advice=})", addr, length, advice)

    def load(self, addr: int, size: int) -> int:
        """The size (1, 2, 4 or 8) bytes at addr; HostSignal."""
        return self._access.load(addr, size)

    def store(self, addr: int, size: int, value: int) -> None:
        """Store the low size (1, 2, 4 or 8) bytes of value at addr; HostSignal."""
        self._access.store(addr, size, value & U64_MAX)

    def copy_in(self, addr: int, data: bytes) -> None:
        """Copy data to addr; HostSignal."""
        self._access.copy_in(addr, data)

    def unmap_all(self) -> None:
        """Unmap whatever is still mapped; the object is of no use afterwards."""
        for start, end, _ in list(self._mapped):
            self.munmap(start, end - start)
        self._access.close()
