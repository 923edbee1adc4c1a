"""The numbers that break things: limits of every argument, one page below and above them, sums that wrap.

Sizes, offsets and addresses are bytes. Ordinary values are small and few, so that slots, file ranges and attributes
meet each other; odd ones are one or two steps from where a check turns.
"""

from __future__ import annotations

from typing import Final

from guestmem.harness import PAGE_SIZE as PAGE
from guestmem.units import GIB, MIB, U64

__all__ = (
    "ABSOLUTE_HVAS",
    "ADVICE",
    "BASES",
    "CAPABILITIES",
    "FALLOCATE_MODES",
    "FILE_FLAGS",
    "FILE_SIZES",
    "GPA_STEPS",
    "HUGE_OFFSETS",
    "M2",
    "NOT_OPEN",
    "ODD_FILE_SIZES",
    "ODD_GPAS",
    "ODD_LENGTHS",
    "ODD_MODES",
    "ODD_PROTECTIONS",
    "ODD_SIZES",
    "ODD_SLOTS",
    "PROTECTIONS",
    "REGION_FLAGS",
    "S63",
    "SIZES",
)

M2: Final = 2 * MIB
S63: Final = 1 << 63

NOT_OPEN: Final = (-1, 9999, 12345)  # never open in a recorder's process

# Guest-physical addresses: a base, and steps from it close enough to overlap.
BASES: Final = (0, 4 * MIB, 256 * MIB, 4 * GIB, GIB - M2)
GPA_STEPS: Final = (
    *(0, 0, 0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 8 * PAGE, 16 * PAGE, M2 - 2 * PAGE, M2, M2 + PAGE, 2 * M2),
)
ODD_GPAS: Final = (
    *(1, PAGE - 1, PAGE + 1, 1 << 36, 1 << 39, (1 << 40) - PAGE, 1 << 40, (1 << 40) + PAGE, 1 << 46, 1 << 51),
    *((1 << 52) - 2 * PAGE, (1 << 52) - PAGE, (1 << 52) - M2, 1 << 52, (1 << 52) + PAGE, S63 - PAGE, S63, U64 - M2),
    *(U64 - 2 * PAGE, U64 - PAGE, U64 - 1),
)
SIZES: Final = (PAGE, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 8 * PAGE, 16 * PAGE, M2 - PAGE, M2, M2 + PAGE, 2 * M2)
ODD_SIZES: Final = (
    *(0, 1, PAGE - 1, PAGE + 1, M2 + 1, GIB, 1 << 35, 1 << 43, (1 << 43) + PAGE, 1 << 44, 1 << 52),
    *(S63 - PAGE, S63, U64 - PAGE, U64 - 1),
)
ODD_SLOTS: Final = (
    *(32763, 32764, 32765, 32766, 32767, 32768, 65535, 0x10000, 0x10001, 0x10000 | 32764, 0x20000, 1 << 31),
)
REGION_FLAGS: Final = (
    *(0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7, 8, 1 << 15, 1 << 16, 1 << 17, 1 << 31, (1 << 32) - 1),
)
ABSOLUTE_HVAS: Final = (
    *(0, 0, PAGE, 1, M2, 1 << 45, 1 << 46, (1 << 47) - M2, (1 << 47) - 3 * PAGE, (1 << 47) - 2 * PAGE),
    *((1 << 47) - PAGE, 1 << 47, (1 << 47) + PAGE, 1 << 57 | PAGE, 1 << 62, S63, 0xFFFF800000000000, U64 - M2),
    *(U64 - PAGE, U64 - 1),
)

FILE_SIZES: Final = (PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE, 16 * PAGE, 16 * PAGE, M2, M2 + PAGE, M2 + 8 * PAGE, 4 * M2)
ODD_FILE_SIZES: Final = (
    *(0, 1, PAGE - 1, PAGE + 1, M2 - PAGE, M2 + 1, GIB, 1 << 40, S63 - PAGE, S63 - 1, S63, U64 - PAGE, U64 - 1),
)
FILE_FLAGS: Final = (0, 0, 1, 1, 3, 3, 3, 2, 4, 5, 7, 8, 1 << 31, 1 << 32, S63 | 1, U64 - 1)
HUGE_OFFSETS: Final = (
    *(1, PAGE - 1, 1 << 62, S63 - 4 * PAGE, S63 - M2, S63 - PAGE, S63, U64 - M2, U64 - PAGE, U64 - 1),
)

FALLOCATE_MODES: Final = (1, 1, 1, 3, 3, 3, 3)
ODD_MODES: Final = (
    *(0, 2, 4, 5, 7, 8, 9, 0x10, 0x11, 0x13, 0x20, 0x21, 0x40, 0x41, 0x43, 0x80, 0x81, 0x83),
    *(0x100, 0x101, 0x103, 1 << 30, -1, -(1 << 31)),
)
ODD_LENGTHS: Final = (0, 1, PAGE - 1, PAGE + 1, -1, -PAGE, S63 - 1, S63 - PAGE, 1 - S63)

PROTECTIONS: Final = (3, 3, 3, 3, 1, 1, 0, 2, 4, 5, 6, 7)
ODD_PROTECTIONS: Final = (8, 0xB, 0x10, 1 << 30, -1, 1 << 24, 1 << 24 | 3, 1 << 25 | 3, 3 << 24)
# MADV_*: none that poisons (100, 101), installs guards (102, 103: a known divergence) or inherits (10, 11, 18, 19).
ADVICE: Final = (
    *(0, 1, 2, 3, 4, 4, 8, 9, 9, 9, 9, 12, 13, 14, 14, 15, 16, 17, 20, 21, 22, 22, 23, 23, 24, 25, 26, 99, -1, 1000),
)
# Those that concern guest memory, and numbers that no kernel knows.
CAPABILITIES: Final = (3, 10, 16, 21, 30, 81, 118, 231, 232, 233, 234, 235, 236, 244)
