"""References that the process holds to its pages, as a device does that reads or writes them (get_user_pages).

A pin is a pipe that vmsplice(2) has filled: a descriptor, and closing it drops the references.
"""

from __future__ import annotations

import errno

from guestmem.errors import HostSignal
from guestmem.model.checks import Check, require
from guestmem.model.files import PIPE, OpenFile
from guestmem.model.hostmem import AddressSpace
from guestmem.model.vm import GuestMemfd
from guestmem.runmap import RunMap
from guestmem.units import align_down, align_up

__all__ = ("PinnedPages", "pin")


class PinnedPages(OpenFile):
    """Pages of guest_memfds that are held: what was punched since is held no longer by the file, only by the pin."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__(PIPE)
        self._held: list[tuple[GuestMemfd, RunMap[bool]]] = []

    def hold(self, gmem: GuestMemfd, start: int, end: int) -> None:
        """Hold the pages at indexes [start, end), which are there."""
        pages: RunMap[bool] = RunMap()
        pages.set(start, end, True)
        gmem.cache.pins.append(pages)
        self._held.append((gmem, pages))

    def release(self) -> None:
        """Drop the references."""
        for gmem, pages in self._held:
            gmem.cache.pins = [each for each in gmem.cache.pins if each is not pages]


PAGES_CAN_BE_READ: Check[tuple[int, int, str]] = Check(
    "pages-can-be-read",
    errno.EFAULT,
    "the process must be able to read each page of the range",
    "get_user_pages_fast",
    lambda asked: not asked[2],
    lambda asked: f"addr={asked[0]:#x} length={asked[1]:#x}{asked[2] and f': {asked[2]}'}",
)


def pin(host: AddressSpace, addr: int, length: int) -> PinnedPages:
    """Read and hold every page of [addr, addr + length); EFAULT."""
    start = align_down(addr, host.page_size)
    end = align_up(addr + length, host.page_size) if length else start
    parts, why = [], ""
    try:
        parts = host.get_pages(start, end)
    except HostSignal as signal:
        why = str(signal)
    require((PAGES_CAN_BE_READ,), (addr, length, why))
    held = PinnedPages()
    for source, first, last in parts:
        if isinstance(source, GuestMemfd):
            held.hold(source, first // host.page_size, last // host.page_size)
    return held
