"""The binary statistics file of KVM_GET_STATS_FD (Documentation/virt/kvm/api.rst): a header, names, values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

__all__ = ("SIZE", "encode")

SIZE: Final = 4096
_NAME: Final = 48
_HEADER: Final = struct.Struct("<6I")
_DESCRIPTOR: Final = struct.Struct(f"<IhHII{_NAME}s")
_INSTANT: Final = 1  # KVM_STATS_TYPE_INSTANT, no unit, base 10
_PAGES: Final = (("pages_4k", 1 << 12), ("pages_2m", 1 << 21), ("pages_1g", 1 << 30))


def encode(mapped: Mapping[int, int]) -> bytes:
    """The file for so many leaves by page size in bytes."""
    descriptors = b"".join(
        _DESCRIPTOR.pack(_INSTANT, 0, 1, 8 * index, 0, name.encode()) for index, (name, _) in enumerate(_PAGES)
    )
    identity = _HEADER.size
    described = identity + _NAME
    values = described + len(descriptors)
    header = _HEADER.pack(0, _NAME, len(_PAGES), identity, described, values)
    counts = struct.pack(f"<{len(_PAGES)}Q", *(mapped.get(size, 0) for _, size in _PAGES))
    return header + b"guestmem".ljust(_NAME, b"\0") + descriptors + counts
