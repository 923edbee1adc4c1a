"""The backend over /dev/kvm inside a bigger program: other threads, signals, handlers and descriptors are left alone.

Skips where there is no usable /dev/kvm.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestmem.backend import Boot, Exit, Touch
from guestmem.errors import BackendUnavailable, HostSignal, KvmError
from guestmem.kvm import KvmBackend, sigaction
from guestmem.uapi import FALLOC_FL_KEEP_SIZE, MAP_SHARED, PROT_READ, PROT_WRITE
from guestmem.units import MIB

P = 4096
GPA = 1 * MIB
RW = PROT_READ | PROT_WRITE


@pytest.fixture
def backend() -> Iterator[KvmBackend]:
    """This process as a backend; everything it makes is gone after the test."""
    with KvmBackend() as backend:
        try:
            backend.close(backend.open_kvm())
        except BackendUnavailable as reason:
            pytest.skip(str(reason))
        yield backend


class Guest:
    """A default VM with one vCPU and one page of memory at GPA."""

    def __init__(self, backend: KvmBackend) -> None:
        self.backend = backend
        self.vm = backend.create_vm(backend.open_kvm(), 0)
        self.vcpu = backend.create_vcpu(self.vm, 0)
        self.hva = backend.anonymous(P, RW, P)
        backend.set_user_memory_region(self.vm, 1, 0, GPA, P, self.hva)

    def touch(self, *touches: Touch) -> list[list[Exit]]:
        return self.backend.run_touch(self.vcpu, None, touches)


@pytest.fixture
def guest(backend: KvmBackend) -> Guest:
    """A guest of this process."""
    return Guest(backend)


ON_A_DESCRIPTOR: dict[str, Callable[[KvmBackend, int], object]] = {
    "close": lambda b, fd: b.close(fd),
    "dup": lambda b, fd: b.dup(fd),
    "fstat": lambda b, fd: b.fstat(fd),
    "fallocate": lambda b, fd: b.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, P),
    "ftruncate": lambda b, fd: b.ftruncate(fd, P),
    "lseek": lambda b, fd: b.lseek(fd, 0, os.SEEK_SET),
    "read": lambda b, fd: b.read(fd, 1),
    "write": lambda b, fd: b.write(fd, 1),
    "pread": lambda b, fd: b.pread(fd, 1, 0),
    "pwrite": lambda b, fd: b.pwrite(fd, 1, 0),
    "fsync": lambda b, fd: b.fsync(fd),
    "mmap": lambda b, fd: b.mmap(fd, P, RW, MAP_SHARED, 0),
    "check_extension": lambda b, fd: b.check_extension(fd, 10),
    "create_vm": lambda b, fd: b.create_vm(fd, 0),
    "create_vcpu": lambda b, fd: b.create_vcpu(fd, 0),
    "create_guest_memfd": lambda b, fd: b.create_guest_memfd(fd, P, 0),
    "set_user_memory_region": lambda b, fd: b.set_user_memory_region(fd, 0, 0, 0, P, 0),
    "set_user_memory_region2": lambda b, fd: b.set_user_memory_region2(fd, 0, 0, 0, P, 0, -1, 0),
    "set_memory_attributes": lambda b, fd: b.set_memory_attributes(fd, 0, P, 8, 0),
    "run_touch": lambda b, fd: b.run_touch(fd, None, [Touch(0, "r", 1)]),
}


def open_descriptors() -> dict[str, str]:
    """Each descriptor of this process, and what it names; the one that lists them excluded."""
    links = ((entry.name, entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return {name: str(entry.readlink()) for name, entry in links if not str(entry.readlink()).startswith("/proc/")}


@pytest.mark.parametrize("call", ON_A_DESCRIPTOR.values(), ids=ON_A_DESCRIPTOR)
@pytest.mark.parametrize("fd", [-1, 1 << 31, 1 << 32, -(1 << 32), (1 << 63) - 1, -(1 << 63)])
def test_a_number_that_no_descriptor_can_have_is_ebadf_and_hits_no_other(
    backend: KvmBackend, call: Callable[[KvmBackend, int], object], fd: int
) -> None:
    before = open_descriptors()

    with pytest.raises(KvmError) as refused:
        call(backend, fd)

    assert refused.value.name == "EBADF"
    assert open_descriptors() == before


@pytest.mark.parametrize("access", ["load", "store"])
@pytest.mark.parametrize(
    "addr",
    [0, (1 << 47) - P, 1 << 47, 1 << 62, (1 << 64) - P],
    ids=["null", "last", "beyond", "non-canonical", "kernel"],
)
def test_an_address_that_no_mapping_can_have_is_sigsegv(backend: KvmBackend, addr: int, access: str) -> None:
    with pytest.raises(HostSignal) as ended:
        backend.host_read(addr, 8) if access == "load" else backend.host_write(addr, 8, 1)
    assert ended.value.signal == "SIGSEGV"


def test_the_handlers_of_the_program_are_as_they_were(backend: KvmBackend) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGBUS, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(HostSignal):
            backend.host_read(0, 8)
        os.kill(os.getpid(), signal.SIGBUS)
    finally:
        signal.signal(signal.SIGBUS, old)

    assert seen == [signal.SIGBUS]


def in_threads(count: int, run: Callable[[], None]) -> None:
    """Run it in that many threads at once; the first failure is raised here."""
    failures: list[BaseException] = []

    def noting_failures() -> None:
        try:
            run()
        except BaseException as failure:  # whatever it is, the test must hear of it
            failures.append(failure)

    threads = [threading.Thread(target=noting_failures) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_backends_of_several_threads_do_not_meet(backend: KvmBackend) -> None:
    def live_shortly() -> None:
        for _ in range(10):
            with KvmBackend() as own:
                guest = Guest(own)
                for value in range(1, 10):
                    done = guest.touch(Touch(GPA, "w", 8, value), Touch(GPA, "r", 8))
                    assert done[1] == [Exit("done", value=value)]
                    assert own.host_read(guest.hva, 8) == value
                    with pytest.raises(HostSignal):
                        own.host_read(guest.hva + P, 8)

    in_threads(3, live_shortly)


def test_threads_take_turns_with_the_handlers_of_the_process(
    backend: KvmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    addr, handlers_set_by, exchange = backend.anonymous(P, RW, P), list[int](), sigaction.exchange

    def noting_the_thread(number: int, new: bytearray, old: bytearray | None = None) -> None:
        handlers_set_by.append(threading.get_ident())
        exchange(number, new, old)
        time.sleep(0.001)  # the others get their chance to come in between

    monkeypatch.setattr(sigaction, "exchange", noting_the_thread)

    def read() -> None:
        for _ in range(5):
            backend.host_read(addr, 8)

    in_threads(3, read)

    calls_of_an_access = [set(handlers_set_by[i : i + 4]) for i in range(0, len(handlers_set_by), 4)]
    assert len(calls_of_an_access) == 3 * 5
    assert all(len(threads) == 1 for threads in calls_of_an_access), "two signals installed and restored by one thread"


def test_a_touch_is_whole_when_signals_arrive_all_the_time(guest: Guest) -> None:
    arrived = 0

    def count(number: int, frame: object) -> None:
        nonlocal arrived
        arrived += 1

    old = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        value = 0
        while arrived < 500:
            value += 1
            done = guest.touch(Touch(GPA, "w", 8, value), Touch(2 * GPA, "r", 4), Touch(GPA, "r", 8))
            assert done[1][0] == Exit("mmio", gpa=2 * GPA, len=4, is_write=0)
            assert done[2] == [Exit("done", value=value)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_guest_runs_from_boot_memory_of_the_callers_choice(guest: Guest) -> None:
    boot = Boot(0x40000000, guest.backend.anonymous(64 * 1024, RW, P))
    guest.backend.set_user_memory_region(guest.vm, 0, 0, boot.gpa, 64 * 1024, boot.hva)

    exits = guest.backend.run_touch(guest.vcpu, boot, [Touch(boot.gpa + 64 * 1024 - 8, "r", 8), Touch(2 * GPA, "r", 1)])

    assert exits[0] == [Exit("done", value=0)]
    assert exits[1] == [Exit("mmio", gpa=2 * GPA, len=1, is_write=0), Exit("done", value=0x5A)]
