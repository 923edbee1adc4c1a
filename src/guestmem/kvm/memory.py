"""The address space of this process, as far as the backend made it: mmap and its kin, loads and stores.

What the caller mapped and did not unmap is remembered, so that the end of the backend unmaps exactly that and nothing
that Python or libc put there since.
"""

from __future__ import annotations

from guestmem.kvm import libc
from guestmem.kvm.hostaccess import HostAccess
from guestmem.runmap import RunMap
from guestmem.uapi import MAP_ANONYMOUS, MAP_PRIVATE
from guestmem.units import U64_MAX, align_up

__all__ = ("Memory",)

_PAGE = 4096
_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman.h: buffers are large and mostly never touched


class Memory:
    """Mappings made through it, and accesses to any address. Addresses and lengths in bytes."""

    def __init__(self) -> None:
        self._mapped: RunMap[bool] = RunMap()
        self._access = HostAccess()

    def anonymous(self, size: int, prot: int, align: int) -> int:
        """Private anonymous memory at a multiple of align (a power of two)."""
        reason = f"mmap(size={size:#x}, prot={prot:#x}, MAP_PRIVATE|MAP_ANONYMOUS)"
        flags = MAP_PRIVATE | MAP_ANONYMOUS | _MAP_NORESERVE
        if not size:
            return libc.call("mmap", reason, 0, size, prot, flags, -1, 0)
        length, spare = align_up(size, _PAGE), max(align, _PAGE) - _PAGE
        found = libc.call("mmap", reason, 0, length + spare, prot, flags, -1, 0)
        addr = align_up(found, max(align, _PAGE))
        for start, end in ((found, addr), (addr + length, found + length + spare)):
            if start < end:
                libc.call("munmap", reason, start, end - start)
        self._mapped.set(addr, addr + length, True)
        return addr

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap(2) with address 0."""
        reason = f"mmap({length=:#x}, {prot=:#x}, {flags=:#x}, {fd=}, {offset=:#x})"
        addr = libc.call("mmap", reason, 0, length, prot, flags, fd, offset)
        self._mapped.set(addr, align_up(addr + length, _PAGE), True)
        return addr

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        libc.call("munmap", f"munmap({addr=:#x}, {length=:#x})", addr, length)
        self._mapped.clear(addr, align_up(addr + length, _PAGE))

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
