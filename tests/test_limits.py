"""What a real kernel is not asked: memory without bound, and what its host would not get over."""

from __future__ import annotations

import pytest

from guestmem.recordings.calls import Fallocate, Madvise, Mmap
from guestmem.recordings.ioctls import PreFault, SetMemoryAttributes, SetUserMemoryRegion
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import HostAddress, Operation
from guestmem.units import GIB, MIB


def slot(size: int) -> SetUserMemoryRegion:
    return SetUserMemoryRegion(
        seq="s", i=0, vm="vm0", slot=0, flags=0, gpa=0, size=size, userspace_addr=HostAddress(abs=0)
    )


def attributes(address: int, size: int, flags: int = 0) -> SetMemoryAttributes:
    return SetMemoryAttributes(seq="s", i=0, vm="vm0", address=address, size=size, attributes=8, flags=flags)


def allocate(size: int, mode: int = 1) -> Fallocate:
    return Fallocate(seq="s", i=0, fd="gm0", mode=mode, offset=0, len=size)


def mmap(length: int, flags: int) -> Mmap:
    return Mmap(seq="s", i=0, fd="gm0", length=length, prot=3, flags=flags, offset=0, out="map0")


def advise(advice: int, length: int | None) -> Madvise:
    return Madvise(seq="s", i=0, map="map0", advice=advice, length=length)


@pytest.mark.parametrize(
    ("operation", "issued"),
    [
        (slot(64 * GIB), True),
        (slot(64 * GIB + 4096), False),
        (slot(1 << 43), True),  # more pages than a slot may have: EINVAL, and costs nothing
        (attributes(0, 4 * GIB), True),
        (attributes(0, 4 * GIB + 4096), False),
        (attributes(4096, (1 << 64) - 4096), True),  # wraps: EINVAL
        (attributes(0, 1 << 50, flags=1), True),  # EINVAL
        (allocate(256 * MIB), True),
        (allocate(256 * MIB + 1), False),
        (allocate(1 << 50, mode=3), True),  # a hole frees
        (allocate(-1), True),  # EINVAL
        (PreFault(seq="s", i=0, vcpu="vcpu0", gpa=0, size=1 * GIB, flags=0), False),
        (PreFault(seq="s", i=0, vcpu="vcpu0", gpa=1, size=1 * GIB, flags=0), True),  # EINVAL
        (mmap(1 * GIB, 1), True),
        (mmap(1 * GIB, 0x8001), False),  # MAP_POPULATE
        (advise(22, 1 * GIB), False),  # MADV_POPULATE_READ
        (advise(4, 1 * GIB), True),
        (advise(100, 4096), False),  # MADV_HWPOISON
        (advise(101, None), False),  # MADV_SOFT_OFFLINE
    ],
)
def test_an_operation_is_issued_unless_it_would_cost_the_host(operation: Operation, issued: bool) -> None:
    assert (operation.limit(Limits()) is None) is issued


def test_what_many_operations_take_together_is_bounded_too() -> None:
    limits = Limits()

    assert [slot(64 * GIB).limit(limits) is None for _ in range(5)] == [True] * 4 + [False]
    assert [allocate(256 * MIB).limit(limits) is None for _ in range(5)] == [True] * 4 + [False]
