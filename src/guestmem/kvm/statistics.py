"""KVM's counters of one VM, read from its binary statistics file (KVM_GET_STATS_FD).

The file describes itself: a header, one descriptor with a name for each counter, then the values. It is opened, read
whole and closed again, so nothing of it outlives a call and no count is older than the call.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from guestmem.errors import KvmError, NotVisible
from guestmem.kvm.structs import STATS_HEADER
from guestmem.kvm.vcpu import ioctl
from guestmem.uapi import KVM_CAP_PRE_FAULT_MEMORY
from guestmem.units import GIB, KIB, MIB

__all__ = ("counters", "mapped_pages")

_LONGEST = 1 << 18
_PAGES: Final = {"pages_4k": 4 * KIB, "pages_2m": 2 * MIB, "pages_1g": GIB}


def mapped_pages(fd: int) -> dict[int, int]:
    """Leaves of the VM of descriptor fd by page size in bytes; see ``backend.Statistics``."""
    found = dict(counters(_read(fd)))
    if not _PAGES.keys() <= found.keys():
        raise KvmError(errno.EINVAL, f"{fd=} has statistics, but not those of a VM")
    if not ioctl(fd, "KVM_CHECK_EXTENSION", KVM_CAP_PRE_FAULT_MEMORY):  # only offered with two-dimensional paging
        raise NotVisible("this KVM maps guests by shadow paging, or is too old to say: its leaves are not the VM's")
    return {size: found[name] for name, size in _PAGES.items() if found[name]}


def counters(statistics: bytes) -> Iterator[tuple[str, int]]:
    """The single-valued statistics in the bytes of such a file: name and value; histograms are left out."""
    fields = ("name_size", "num_desc", "desc_offset", "data_offset")
    name_size, count, first, data = (STATS_HEADER.get(statistics, field) for field in fields)
    descriptor = struct.Struct(f"<IhHII{name_size}s")  # struct kvm_stats_desc and the name
    descriptors = memoryview(statistics)[first : first + descriptor.size * count]
    for _, _, size, offset, _, name in descriptor.iter_unpack(descriptors):
        if size == 1:
            at = data + offset
            yield name.partition(b"\0")[0].decode(), int.from_bytes(statistics[at : at + 8], "little")


def _read(fd: int) -> bytes:
    file = ioctl(fd, "KVM_GET_STATS_FD", 0, f"{fd=}")
    try:
        return os.pread(file, _LONGEST, 0)
    finally:
        os.close(file)
