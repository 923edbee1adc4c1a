"""References to pages of the process, held by a pipe that vmsplice(2) has filled."""

from __future__ import annotations

import pytest
from helpers import RW, P, errno_of

from guestmem.backend import Backend
from guestmem.errors import KvmError
from guestmem.objects import Kvm
from guestmem.uapi import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP

M1 = 1 << 20


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, 1), (0, P), (1, P), (1, 0), (P - 1, 2), (0, 16 * P), (15 * P, P)]
)
def test_pages_that_can_be_read_are_held_until_the_descriptor_is_closed(
    kvm: Kvm, profile: str, offset: int, length: int
) -> None:
    backend = kvm.backend
    addr = backend.anonymous(16 * P, RW, P)

    fd = backend.pin(addr + offset, length)
    backend.close(fd)

    with pytest.raises(KvmError, match="EBADF"):
        backend.close(fd)


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize(("offset", "length"), [(0, 2 * P), (P, 1), (P - 1, 2), (-1, 1)])
def test_a_range_with_a_page_that_is_not_there_is_efault(kvm: Kvm, profile: str, offset: int, length: int) -> None:
    backend = kvm.backend
    addr = backend.anonymous(P, RW, M1)

    with pytest.raises(KvmError, match="EFAULT"):
        backend.pin(addr + offset, length)


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize(
    ("prot", "there", "missing"), [(0, False, False), (1, True, True), (2, True, False), (4, True, False)]
)
def test_without_the_right_to_read_only_pages_that_are_there_can_be_held(
    kvm: Kvm, profile: str, prot: int, there: bool, missing: bool
) -> None:
    backend = kvm.backend
    addr = backend.anonymous(2 * P, RW, P)
    backend.host_write(addr, 8, 1)
    backend.mprotect(addr, 2 * P, prot)

    assert (_can_pin(backend, addr), _can_pin(backend, addr + P)) == (there, missing)


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize(
    ("flags", "held"), [(GUEST_MEMFD_FLAG_MMAP, False), (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED, True)]
)
def test_private_pages_cannot_be_held(kvm: Kvm, profile: str, flags: int, held: bool) -> None:
    backend = kvm.backend
    file = backend.create_guest_memfd(backend.create_vm(kvm.fd, 0), 4 * P, flags)
    addr = backend.mmap(file, 4 * P, RW, 1, 0)

    assert _can_pin(backend, addr) == held


def _can_pin(backend: Backend, addr: int) -> bool:
    ended = errno_of(lambda: backend.close(backend.pin(addr, P)))
    assert ended in (None, "EFAULT")
    return ended is None
