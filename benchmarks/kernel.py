"""The peer: the same two ioctls on the real kernel, where /dev/kvm with guest_memfd is there."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ("KernelSlot", "Unavailable", "kernel_slot")

_CREATE_VM, _CHECK_EXTENSION, _CREATE_GUEST_MEMFD, _REGION2 = 0xAE01, 0xAE03, 0xC040AED4, 0x40A0AE49
_CAP_GUEST_MEMFD, _CAP_VM_TYPES = 234, 235
_GUEST_MEMFD_FLAG = 1 << 2


class Unavailable(Exception):
    """This machine has no kernel to compare with; says why."""


class KernelSlot:
    """A VM with a guest_memfd, on the real kernel."""

    def __init__(self, vm: int, gmem: int) -> None:
        self.vm = vm
        self.gmem = gmem

    def bind(self, size: int) -> None:
        """Bind a slot of size bytes at gpa 0, offset 0."""
        self._region(_GUEST_MEMFD_FLAG, size)

    def unbind(self) -> None:
        """Delete it."""
        self._region(0, 0)

    def _region(self, flags: int, size: int) -> None:
        fcntl.ioctl(self.vm, _REGION2, struct.pack("=IIQQQQII112x", 0, flags, 0, size, 0, 0, self.gmem, 0))


@contextmanager
def kernel_slot(size: int) -> Iterator[KernelSlot]:
    """A VM whose type can bind a guest_memfd of size bytes; Unavailable says what is missing."""
    fds: list[int] = []
    try:
        fds.append(_open())
        types = fcntl.ioctl(fds[0], _CHECK_EXTENSION, _CAP_VM_TYPES)
        fds.append(fcntl.ioctl(fds[0], _CREATE_VM, 1 if types & 2 else 0))
        if not fcntl.ioctl(fds[1], _CHECK_EXTENSION, _CAP_GUEST_MEMFD):
            raise Unavailable("this kernel's KVM has no guest_memfd for any VM type it offers")
        argument = bytearray(struct.pack("=QQ48x", size, 0))
        fds.append(fcntl.ioctl(fds[1], _CREATE_GUEST_MEMFD, argument))
        yield KernelSlot(fds[1], fds[2])
    finally:
        for fd in reversed(fds):
            with suppress(OSError):
                os.close(fd)


def _open() -> int:
    try:
        return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"/dev/kvm: {errno.errorcode.get(error.errno or 0, error.errno)}") from error
