"""Running a vCPU: one guest access at a time, from KVM_RUN to the exit that ends it.

Invariant: between two touches no MMIO access is left half done, so that registers can be set for the next one.
Every KVM_RUN is bounded by a deadline.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence

from guestmem.backend import Exit, Touch
from guestmem.errors import KvmError, UnexpectedExit, errno_name
from guestmem.harness import PAGE_SIZE, mmio_answer
from guestmem.kvm import libc
from guestmem.kvm.deadline import Deadline, signal_mask
from guestmem.kvm.guest import Guest
from guestmem.kvm.structs import IOCTLS, KVM_RUN, SREGS
from guestmem.uapi import (
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_UNKNOWN,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from guestmem.units import align_down

__all__ = ("Vcpu", "ioctl")


def ioctl(fd: int, name: str, argument: int | bytearray = 0, values: str = "") -> int:
    """One ioctl of the table; KvmError with the kernel's errno, the name and the values given."""
    number = argument if isinstance(argument, int) else libc.address_of(argument)
    return libc.call("ioctl", f"{name}({values})", fd, IOCTLS[name].number, number)


class Vcpu:
    """What is known of a vCPU apart from its descriptors: whose code and page tables its registers point at."""

    def __init__(self, run_limit_s: int) -> None:
        self._run_limit_s = run_limit_s
        self._guest: Guest | None = None
        self._set_up = False

    def run(self, fd: int, run_size: int, cpuid: bytearray, guest: Guest, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Make the touches, one after the other. The run area is mapped for the call only: it pins the vCPU."""
        self._set_up_once(fd, cpuid)
        area = libc.call("mmap", "mmap of kvm_run", 0, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        try:
            with Deadline(self._run_limit_s) as deadline:
                run_area = _RunArea(fd, area, run_size, deadline)
                return [self._touch(run_area, guest, touch) for touch in touches]
        finally:
            libc.call("munmap", "munmap of kvm_run", area, run_size)

    def _set_up_once(self, fd: int, cpuid: bytearray) -> None:
        if not self._set_up:
            ioctl(fd, "KVM_SET_CPUID2", cpuid)
            ioctl(fd, "KVM_SET_SIGNAL_MASK", signal_mask())
            self._set_up = True

    def _enter(self, fd: int, guest: Guest) -> None:
        if self._guest is not guest:
            current = bytearray(SREGS.size)
            ioctl(fd, "KVM_GET_SREGS", current)
            ioctl(fd, "KVM_SET_SREGS", guest.sregs(current))
            self._guest = guest

    def _touch(self, area: _RunArea, guest: Guest, touch: Touch) -> list[Exit]:
        self._enter(area.fd, guest)
        ioctl(area.fd, "KVM_SET_REGS", guest.regs(touch))
        exits: list[Exit] = []
        while True:
            area.run()
            if area.failed or area.reason not in (KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN):
                return [*exits, area.failure(touch)]
            if area.reason == KVM_EXIT_SHUTDOWN:
                return [*exits, self._shut_down(touch)]
            if align_down(area.get("mmio.phys_addr"), PAGE_SIZE) == guest.doorbell:
                return [*exits, self._doorbell(area, touch)]
            exits.append(area.mmio())

    def _doorbell(self, area: _RunArea, touch: Touch) -> Exit:
        value = area.get("mmio.data") & (1 << 8 * touch.size) - 1
        area.settle()
        if touch.rw == "x":
            self._guest = None  # the trap of the single step may have reset the registers
        return Exit("done", value=value if touch.rw == "r" else None)

    def _shut_down(self, touch: Touch) -> Exit:
        """After a fetched instruction the trap shuts the vCPU down, which resets its registers; else it never may."""
        self._guest = None
        if touch.rw != "x":
            raise UnexpectedExit(f"the guest shut down at {touch}; is its boot memory in a slot, and no slot after it?")
        return Exit("done")


class _RunArea:
    """struct kvm_run of a vCPU, and KVM_RUN."""

    def __init__(self, fd: int, addr: int, size: int, deadline: Deadline) -> None:
        self.fd = fd
        self.failed = 0  # errno of the last KVM_RUN, 0 for none
        self._view = memoryview((ctypes.c_ubyte * size).from_address(addr)).cast("B")
        self._deadline = deadline

    @property
    def reason(self) -> int:
        """kvm_run.exit_reason."""
        return self.get("exit_reason")

    def get(self, name: str) -> int:
        """A field of struct kvm_run."""
        return KVM_RUN.get(self._view, name)

    def run(self) -> None:
        """KVM_RUN until it ends by itself; KvmError(EINTR) if it does not in time."""
        KVM_RUN.set(self._view, "exit_reason", KVM_EXIT_UNKNOWN)  # kernels before 6.8 leave the old one on failure
        self._deadline.arm()
        while True:
            _, self.failed = libc.try_call("ioctl", self.fd, IOCTLS["KVM_RUN"].number, 0)
            if self.failed != errno.EINTR:
                return
            if self._deadline.passed():
                raise KvmError(errno.EINTR, f"KVM_RUN did not end within {self._deadline.seconds} s")

    def settle(self) -> None:
        """Let KVM finish the MMIO access it just reported, without entering the guest.

        An instruction that loads and then stores reports the store as another exit.
        """
        KVM_RUN.set(self._view, "immediate_exit", 1)
        failed, reason = 0, KVM_EXIT_MMIO
        while not failed and reason == KVM_EXIT_MMIO:
            _, failed = libc.try_call("ioctl", self.fd, IOCTLS["KVM_RUN"].number, 0)
            reason = self.reason
        KVM_RUN.set(self._view, "immediate_exit", 0)
        if failed != errno.EINTR and reason != KVM_EXIT_SHUTDOWN:
            raise UnexpectedExit(f"KVM_RUN with immediate_exit gave errno {failed}, exit reason {reason}")

    def mmio(self) -> Exit:
        """The MMIO access, which is answered if it is a load."""
        gpa, length, is_write = self.get("mmio.phys_addr"), self.get("mmio.len"), self.get("mmio.is_write")
        if not is_write:
            KVM_RUN.set(self._view, "mmio.data", mmio_answer(length))
            return Exit("mmio", gpa=gpa, len=length, is_write=0)
        data = self.get("mmio.data").to_bytes(8, "little")[:length].hex()
        return Exit("mmio", gpa=gpa, len=length, is_write=1, data=data)

    def failure(self, touch: Touch) -> Exit:
        """KVM_RUN failed: with the data of a memory fault, or without a reason."""
        name, reason = errno_name(self.failed), self.reason
        if self.failed and reason == KVM_EXIT_MEMORY_FAULT:
            flags, gpa, size = (self.get(f"memory_fault.{field}") for field in ("flags", "gpa", "size"))
            return Exit("memory_fault", errno=name, flags=flags, gpa=gpa, size=size)
        if self.failed and reason == KVM_EXIT_UNKNOWN:
            return Exit("unknown", errno=name)
        raise UnexpectedExit(f"KVM_RUN ended with errno {self.failed}, exit reason {reason} at {touch}")
