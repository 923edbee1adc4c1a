"""The host's shmem under every restrictedmem file: which page it takes, and bytes that nobody zeroed.

``/sys/kernel/mm/transparent_hugepage/shmem_enabled`` is one switch for all files, and may be written at any time. It is
asked at each allocation (shmem_is_huge): pages that are there stay as they are. A huge page is one PMD page, 2M on x86;
other sizes are ours, for the mail of 18 April 2023 that thinks of 1G pages. Ours is also what a page size asked for at
creation means: the file has it until the setting is written, which then counts for all files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from guestmem.backend import ShmemPolicy
from guestmem.geometry import Geometry
from guestmem.model.contents import Contents
from guestmem.model.pools import HostPools
from guestmem.runmap import RunMap
from guestmem.units import align_up

if TYPE_CHECKING:
    from guestmem.model.restrictedmem.file import RestrictedMem

__all__ = ("STALE_BYTE", "Shmem", "Unzeroed")

STALE_BYTE: Final = 0xAA
"""What a page holds that was not zeroed: PAGE_POISON, as with the kernel's parameter page_poison=1."""


class Shmem:
    """The setting, and the files that live under it. order: that of a huge page."""

    def __init__(self, geometry: Geometry, pools: HostPools) -> None:
        self.geometry = geometry
        self.pools = pools
        self.policy: ShmemPolicy = "never"
        self.order = geometry.orders[1]
        self.written = False  # the setting is no longer the one that the host booted with
        self.files: list[RestrictedMem] = []

    def set(self, policy: ShmemPolicy, page_size: int) -> None:
        """Write the setting; page_size (bytes) is that of a huge page."""
        self.policy, self.order, self.written = policy, self.geometry.order_of(page_size), True

    def order_for(self, index: int, size: int, asked: int) -> int:
        """The order to try for a page of a file: size in bytes, asked is the order it was created with (0: none)."""
        if asked and not self.written:
            return asked
        if self.policy in ("always", "force"):
            return self.order
        end = align_up(index + 1, 1 << self.order) * self.geometry.base_page_size
        return self.order if self.policy == "within_size" and end <= size else 0

    def huge_until(self, size: int) -> int | None:
        """The index from which on pages get another order than those before; None if all get the same."""
        if self.policy != "within_size":
            return None
        return (size // self.geometry.base_page_size >> self.order) << self.order


class Unzeroed(Contents):
    """Bytes of pages that the host hands out as they are: until zeroed or written, each is ``STALE_BYTE``."""

    __slots__ = ("_zeroed",)

    def __init__(self) -> None:
        super().__init__()
        self._zeroed: RunMap[bool] = RunMap()

    def zero(self, start: int, end: int) -> None:
        """The pages of [start, end) go: whoever gets pages there later finds what they held last."""
        super().zero(start, end)
        self._zeroed.clear(start, end)

    def clear(self, start: int, end: int) -> None:
        """Zero [start, end) in place."""
        super().zero(start, end)
        self._zeroed.set(start, end, True)

    def _absent(self, offset: int, size: int) -> int:
        return 0 if self._zeroed.get(offset) else int.from_bytes(bytes([STALE_BYTE]) * size, "little")

    def _fresh(self, offset: int, size: int) -> bytearray:
        return bytearray(self._absent(offset, size).to_bytes(size, "little"))
