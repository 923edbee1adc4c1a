"""What whoever runs a guest sets up around it, the same on every backend and in every recording.

The guest is one page of code with page tables of its own, in memory of a slot that no test uses; host buffers are of
one size; a load from nowhere is answered with one byte. Sizes and addresses are bytes. Recordings hold the effects
(docs/recordings.md), so a change here is a change of their format.
"""

from __future__ import annotations

from typing import Final

__all__ = ("BOOT_GPA", "BOOT_SIZE", "BOOT_SLOT", "BUFFER_ALIGN", "BUFFER_SIZE", "PAGE_SIZE", "mmio_answer")

PAGE_SIZE: Final = 4096  # base page of x86-64, the one architecture on which guests run
BOOT_SLOT: Final = 1000
BOOT_GPA: Final = 0xD0000000
BOOT_SIZE: Final = 64 * 1024
BUFFER_SIZE: Final = 64 << 20  # of each host buffer that a recording names
BUFFER_ALIGN: Final = 2 << 20
_MMIO_BYTE: Final = 0x5A


def mmio_answer(size: int) -> int:
    """What a load of size bytes from nowhere gives.

    >>> hex(mmio_answer(4))
    '0x5a5a5a5a'
    """
    return int.from_bytes(bytes([_MMIO_BYTE]) * size, "little")
