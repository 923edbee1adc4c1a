"""Bytes, frames and 64-bit arithmetic: the units every other module speaks in.

Addresses (gpa, hva) and guest_memfd offsets are bytes; gfn, pfn and pgoff count base pages. Ranges are half-open
unless a name says ``last_``. Python integers do not wrap, so every place where the kernel's u64 or s64 arithmetic
matters says so by calling one of the helpers here.
"""

from __future__ import annotations

import re

from guestmem.errors import InputError

__all__ = (
    "GIB",
    "KIB",
    "MIB",
    "S64_MAX",
    "TIB",
    "U32_MAX",
    "U64",
    "U64_MAX",
    "align_down",
    "align_up",
    "format_size",
    "is_power_of_two",
    "parse_size",
    "size_text",
    "to_s64",
)

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
U64 = 1 << 64  # one past the largest u64: sums that reach it wrap
U64_MAX = U64 - 1
U32_MAX = (1 << 32) - 1
S64_MAX = (1 << 63) - 1

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1 << 50, "E": 1 << 60}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})([KMGTPE]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def align_down(value: int, size: int) -> int:
    """Round value down to a multiple of size (a power of two), as the kernel's round_down.

    >>> hex(align_down(0x8000, 1 << 30))
    '0x0'
    """
    return value & -size


def align_up(value: int, size: int) -> int:
    """Round value up to a multiple of size (a power of two); does not wrap at 2**64."""
    return (value + size - 1) & -size


def is_power_of_two(value: int) -> bool:
    """Whether value is 1, 2, 4, 8, ..."""
    return value > 0 and value & (value - 1) == 0


def to_s64(value: int) -> int:
    """Reinterpret an unsigned 64-bit value as the kernel's loff_t.

    >>> to_s64(2**64 - 1)
    -1
    """
    value &= U64_MAX
    return value - U64 if value > S64_MAX else value


def parse_size(text: str) -> int:
    """Parse a size in bytes: ``4096``, ``0x1000``, ``4K``, ``2M``, ``1GiB``; ValueError says what was wrong.

    >>> parse_size("2M"), parse_size("0x1000")
    (2097152, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"not a size: '{text[:40]}'; write bytes or use K, M, G, T, P, E, as in 4K or 0x200000")
    value = int(match[1], 0 if match[1][:2] in ("0x", "0X") else 10) * _SUFFIXES[match[2].upper()]
    if value > U64_MAX:
        raise InputError(f"size '{text[:40]}' does not fit in 64 bits")
    return value


def format_size(size_bytes: int) -> str:
    """Write a size with the largest unit that divides it.

    >>> format_size(1 << 30), format_size(0x201000), format_size(0)
    ('1G', '2052K', '0')
    """
    for suffix in ("E", "P", "T", "G", "M", "K"):
        unit = _SUFFIXES[suffix]
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{suffix}"
    return str(size_bytes)


def size_text(size: int) -> str:
    """A size with at most four digits: exact where that is possible, else with two decimals.

    >>> size_text(0), size_text(2047 << 20), size_text(10_486_016 << 10)
    ('0', '2047M', '10.00G')
    """
    exact = format_size(size)
    if len(exact) <= 5:
        return exact
    suffix, unit = next((name, unit) for name, unit in reversed(_SUFFIXES.items()) if size >= unit)
    return f"{size / unit:.2f}{suffix}"
