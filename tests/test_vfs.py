"""Files that are no guest_memfd: what they answer to calls that were meant for one.

Expected from fs/open.c, fs/read_write.c, fs/eventfd.c, fs/pipe.c and mm/mmap.c of 6.12.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from helpers import KEEP_SIZE, PUNCH, RELEASED, RW, P, errno_of, signal_of

from guestmem.backend import Backend
from guestmem.errors import KvmError
from guestmem.objects import Kvm, Vm
from guestmem.uapi import MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ

KINDS = ("kvm", "vm", "vcpu", "eventfd", "pipe", "devnull", "memfd")
Call = Callable[[Backend, int], object]
O_RDWR, O_PATH = 2, 0o10000000


@pytest.fixture
def fds(kvm: Kvm, vm: Vm) -> dict[str, int]:
    """One descriptor of each kind; the pipe's is its read end, which does not block."""
    backend = kvm.backend
    return {
        "kvm": kvm.fd,
        "vm": vm.fd,
        "vcpu": vm.create_vcpu().fd,
        "eventfd": backend.open_aux("eventfd"),
        "pipe": backend.open_aux("pipe"),
        "devnull": backend.open_aux("devnull"),
        "memfd": backend.open_aux("memfd"),
    }


def answer(call: Callable[[], object]) -> object:
    """What a call returned, or its errno."""
    try:
        return call()
    except KvmError as refused:
        return refused.name


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("call", "answers"),
    [
        (lambda b, fd: b.lseek(fd, 0, 0), (0, 0, 0, 0, "ESPIPE", 0, 0)),
        (lambda b, fd: b.lseek(fd, 0, 5), ("EINVAL",) * 7),
        (lambda b, fd: b.read(fd, 0), ("EINVAL", "EINVAL", "EINVAL", "EINVAL", 0, 0, 0)),
        (lambda b, fd: b.read(fd, 8), ("EINVAL", "EINVAL", "EINVAL", "EAGAIN", "EAGAIN", 0, 0)),
        (lambda b, fd: b.write(fd, 1), ("EINVAL", "EINVAL", "EINVAL", "EINVAL", "EBADF", 1, 1)),
        (lambda b, fd: b.read(fd, 16), ("EINVAL", "EINVAL", "EINVAL", "EAGAIN", "EAGAIN", 0, 0)),
        (lambda b, fd: b.write(fd, 16), ("EINVAL", "EINVAL", "EINVAL", "EINVAL", "EBADF", 16, 16)),
        (lambda b, fd: b.write(fd, 8), ("EINVAL", "EINVAL", "EINVAL", 8, "EBADF", 8, 8)),
        (lambda b, fd: b.pread(fd, 8, 0), ("EINVAL", "ESPIPE", "ESPIPE", "ESPIPE", "ESPIPE", 0, 0)),
        (lambda b, fd: b.pwrite(fd, 8, 0), ("EINVAL", "ESPIPE", "ESPIPE", "ESPIPE", "ESPIPE", 8, 8)),
        (lambda b, fd: b.pread(fd, 8, -1), ("EINVAL",) * 7),
        (lambda b, fd: b.fsync(fd), ("EINVAL",) * 6 + (None,)),
        (lambda b, fd: b.ftruncate(fd, 0), ("EINVAL",) * 6 + (None,)),
        (lambda b, fd: b.fstat(fd), (None,) * 7),
        (lambda b, fd: b.mmap(fd, P, PROT_READ, MAP_PRIVATE, 1), ("EINVAL",) * 7),
    ],
)
def test_every_kind_of_file_has_its_own_answer(
    kvm: Kvm, fds: dict[str, int], call: Call, answers: tuple[object, ...]
) -> None:
    assert {kind: answer(partial(call, kvm.backend, fds[kind])) for kind in KINDS} == dict(
        zip(KINDS, answers, strict=True)
    )


@pytest.mark.parametrize("profile", RELEASED)
def test_only_a_vcpu_and_a_memfd_can_be_mapped_and_a_pipes_read_end_not_be_written(
    kvm: Kvm, fds: dict[str, int]
) -> None:
    def mapped(kind: str, prot: int) -> str | None:
        return errno_of(lambda: kvm.backend.mmap(fds[kind], P, prot, MAP_SHARED, 0))

    writable = {kind: mapped(kind, RW) for kind in KINDS}
    assert writable == dict.fromkeys(KINDS, "ENODEV") | {"vcpu": None, "memfd": None, "pipe": "EACCES"}
    assert mapped("pipe", PROT_READ) == "ENODEV"


@pytest.mark.parametrize(("profile", "errno"), [("v6.12", "ENODEV"), ("v6.18", "EPERM"), ("v7.2", "EPERM")])
@pytest.mark.parametrize("kind", ["vm", "eventfd", "pipe"])
def test_newer_kernels_have_pseudo_files_on_a_noexec_mount(
    kvm: Kvm, fds: dict[str, int], kind: str, errno: str
) -> None:
    assert errno_of(lambda: kvm.backend.mmap(fds[kind], P, PROT_READ | PROT_EXEC, MAP_PRIVATE, 0)) == errno


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(("kind", "offset", "errno"), [("memfd", (1 << 63) - P, "EOVERFLOW"), ("vm", -P, "EOVERFLOW")])
def test_an_offset_is_limited_by_what_the_kind_of_file_can_have(
    kvm: Kvm, fds: dict[str, int], kind: str, offset: int, errno: str
) -> None:
    assert errno_of(lambda: kvm.backend.mmap(fds[kind], P, PROT_READ, MAP_SHARED, offset)) == errno
    assert errno_of(lambda: kvm.backend.mmap(fds["vm"], P, PROT_READ, MAP_SHARED, (1 << 63) - P)) == "ENODEV"


@pytest.mark.parametrize("profile", RELEASED)
def test_anonymous_inodes_cannot_be_opened_by_name_and_other_files_can(kvm: Kvm, fds: dict[str, int]) -> None:
    ends = {kind: errno_of(partial(kvm.backend.reopen, fds[kind], O_RDWR)) for kind in KINDS}

    assert ends == dict.fromkeys(KINDS) | dict.fromkeys(("vm", "vcpu", "eventfd"), "ENXIO")
    assert {errno_of(partial(kvm.backend.reopen, fds[kind], O_PATH)) for kind in KINDS} == {None}


def test_a_reopened_device_is_the_device(kvm: Kvm) -> None:
    again = kvm.backend.reopen(kvm.fd, O_RDWR)
    kvm.close()

    assert errno_of(lambda: kvm.backend.create_vm(again, 0)) is None


# -- a memfd as a file -------------------------------------------------------------------------------------------------


def test_a_memfd_grows_by_writing_and_its_position_moves(kvm: Kvm) -> None:
    backend = kvm.backend
    fd = backend.open_aux("memfd")

    assert backend.write(fd, 100) == 100
    assert backend.lseek(fd, 0, 1) == 100
    assert backend.read(fd, 8) == 0, "at the end"
    assert backend.lseek(fd, -30, 2) == 70
    assert [backend.read(fd, 20), backend.read(fd, 20), backend.read(fd, 20)] == [20, 10, 0]
    assert backend.pread(fd, 200, 40) == 60
    assert backend.pwrite(fd, 10, 300) == 10
    assert backend.lseek(fd, 0, 2) == 310
    assert backend.pwrite(fd, 0, 5000) == 0
    assert backend.lseek(fd, 0, 2) == 310, "writing nothing grows nothing"
    assert errno_of(lambda: backend.lseek(fd, -311, 2)) == "EINVAL"


def test_fallocate_on_a_memfd_grows_it_unless_told_to_keep_the_size(kvm: Kvm) -> None:
    backend = kvm.backend
    fd = backend.open_aux("memfd")

    backend.fallocate(fd, KEEP_SIZE, 0, 4 * P)
    assert backend.lseek(fd, 0, 2) == 0
    backend.fallocate(fd, 0, 0, 4 * P)
    assert backend.lseek(fd, 0, 2) == 4 * P
    assert errno_of(lambda: backend.fallocate(fd, 0x10, 0, P)) == "EOPNOTSUPP"
    assert errno_of(lambda: backend.fallocate(fd, 0, -1, P)) == "EINVAL"


def test_a_hole_in_a_memfd_zeroes_whole_pages_for_every_mapping(kvm: Kvm) -> None:
    backend = kvm.backend
    fd = backend.open_aux("memfd")
    backend.ftruncate(fd, 4 * P)
    addr = backend.mmap(fd, 4 * P, RW, MAP_SHARED, 0)
    for page in range(4):
        kvm.write(addr + page * P, page + 1)

    backend.fallocate(fd, PUNCH, P, P)
    backend.madvise(addr + 2 * P, P, 9)

    assert [kvm.read(addr + page * P) for page in range(4)] == [1, 0, 0, 4]


def test_a_mapping_keeps_a_closed_memfd(kvm: Kvm) -> None:
    backend = kvm.backend
    fd = backend.open_aux("memfd")
    backend.ftruncate(fd, P)
    addr = backend.mmap(fd, P, RW, MAP_SHARED, 0)
    backend.close(fd)

    assert signal_of(lambda: kvm.write(addr, 5)) is None
    assert kvm.read(addr) == 5
