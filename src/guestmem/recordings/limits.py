"""What a sequence may not ask of a real kernel: memory without bound, and what harms the host for good.

A recording is a file from anywhere, and a kernel does what it is asked. With shadow paging a memslot costs 8 bytes of
kernel memory for each of its pages (measured on 6.18: 64 GiB take 130 MiB and 0.2 s, 1 TiB takes 2 GiB and 5 s);
setting attributes stores one entry per page; allocating is what it says. Operations above a limit are skipped and say
so. What a kernel refuses by its arguments alone stays cheap, and most of it is held to the same limits.
"""

from __future__ import annotations

from typing import Final

from guestmem.harness import PAGE_SIZE
from guestmem.units import GIB, MIB, U64, format_size

__all__ = ("ONLY_A_MODEL", "Limits", "wraps")

ONLY_A_MODEL: Final = "only a model lets a test do this to its host"
_SLOT: Final = 64 * GIB  # bytes of one memslot, and
_SLOTS: Final = 256 * GIB  # of all that a sequence sets
_ATTRIBUTES: Final = 4 * GIB  # bytes of one range of attributes: a million entries
_MEMORY: Final = 256 * MIB  # bytes that one operation may allocate, and
_MEMORY_ALL: Final = 1024 * MIB  # that a sequence may
_PAGES_PER_SLOT: Final = (1 << 31) - 1  # above, KVM refuses (KVM_MEM_MAX_NR_PAGES)


class Limits:
    """The account of one sequence. Each question puts what may be on the account, or says why it may not."""

    def __init__(self) -> None:
        self._slots = 0
        self._memory = 0

    def slot(self, size: int) -> str | None:
        """A memslot of size bytes."""
        if size > _PAGES_PER_SLOT * PAGE_SIZE:
            return None  # EINVAL before anything is allocated
        if size > _SLOT:
            return f"a memslot of {format_size(size)} costs too much kernel memory; the limit is {format_size(_SLOT)}"
        if self._slots + size > _SLOTS:
            return f"the memslots of the sequence reach {format_size(_SLOTS)}"
        self._slots += size
        return None

    def allocates(self, size: int) -> str | None:
        """Up to size bytes of memory."""
        if size > _MEMORY:
            return f"may allocate {format_size(size)}; the limit is {format_size(_MEMORY)}"
        if self._memory + size > _MEMORY_ALL:
            return f"the allocations of the sequence reach {format_size(_MEMORY_ALL)}"
        self._memory += size
        return None

    def attributes(self, address: int, size: int) -> str | None:
        """The attributes of size bytes from address on."""
        if wraps(address, size) or size <= _ATTRIBUTES:
            return None
        return f"attributes of {format_size(size)} are kept page by page; the limit is {format_size(_ATTRIBUTES)}"


def wraps(start: int, size: int) -> bool:
    """Whether the kernel refuses the range (bytes) by itself: empty, past the end, or not of whole pages."""
    return size == 0 or start + size >= U64 or bool((start | size) % PAGE_SIZE)
