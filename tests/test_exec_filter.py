"""The seccomp filter asks the supervisor about what may be its own, and about nothing else."""

from __future__ import annotations

import mmap

import pytest

from guestmem.exec import bpf
from guestmem.exec import syscalls as nr
from guestmem.exec.bpf import ALLOW, NOTIFY, Data

CODE = bpf.program()
KVM_RUN, TCGETS = 0xAE80, 0x5401
MAP_FIXED = 0x10
AT_EMPTY_PATH = 0x1000
I386 = 0x40000003


def asked(number: int, *arguments: int) -> bool:
    answer = bpf.run(CODE, Data(number, arguments))
    assert answer in (ALLOW, NOTIFY)
    return answer == NOTIFY


def test_an_ioctl_of_kvm_is_asked_about_and_any_other_is_free() -> None:
    assert asked(nr.IOCTL, 3, KVM_RUN)
    assert asked(nr.IOCTL, 3, 0x40A0AE49)
    assert not asked(nr.IOCTL, 3, TCGETS)
    assert not asked(nr.IOCTL, 3, 0xAE)


def test_mapping_a_file_or_over_something_is_asked_about_and_fresh_anonymous_memory_is_free() -> None:
    assert asked(nr.MMAP, 0, 4096, 3, mmap.MAP_SHARED)
    assert asked(nr.MMAP, 0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED)
    assert not asked(nr.MMAP, 0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_a_mapping_that_the_supervisor_has_made_is_not_asked_about() -> None:
    assert not asked(nr.MMAP, 0x1000, 4096, 3, bpf.INJECTED << 32 | mmap.MAP_SHARED | MAP_FIXED)


@pytest.mark.parametrize("number", [nr.READ, nr.WRITE, nr.LSEEK, nr.PREAD, nr.PWRITE, nr.READV, nr.WRITEV])
def test_reading_and_writing_is_free_on_the_standard_descriptors(number: int) -> None:
    assert [fd for fd in range(6) if asked(number, fd)] == [3, 4, 5]


def test_only_a_stat_of_a_descriptor_is_asked_about() -> None:
    assert asked(nr.NEWFSTATAT, 3, 0, 0, AT_EMPTY_PATH)
    assert asked(nr.STATX, 3, 0, AT_EMPTY_PATH)
    assert not asked(nr.NEWFSTATAT, 3, 0, 0, 0x100)
    assert not asked(nr.STATX, 3, 0, 0)


@pytest.mark.parametrize("number", [3, 32, 56, 59, 72, 202, 231])  # close, dup, clone, execve, fcntl, futex, exit_group
def test_what_the_kernel_does_for_descriptors_and_processes_is_free(number: int) -> None:
    assert not asked(number, 3)


def test_a_32_bit_call_is_left_to_the_kernel() -> None:
    assert bpf.run(CODE, Data(nr.IOCTL, (3, KVM_RUN), arch=I386)) == ALLOW
