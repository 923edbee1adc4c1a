"""System calls on descriptors of emulated objects that are no ioctl, and the opening of /dev/kvm."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.exec import peer
from guestmem.exec import statistics as statistics_file
from guestmem.exec import syscalls as nr
from guestmem.exec.calls.arguments import signed32, signed64
from guestmem.exec.emulated import CONTINUE, DeviceObject, Emulated, FileObject, Give, Result, StatisticsObject
from guestmem.exec.listener import ProgramCall
from guestmem.exec.windows import punch
from guestmem.uapi import FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from guestmem.exec.supervisor import Supervisor

__all__ = ("BY_DESCRIPTOR", "BY_PATH")

PathHandler = Callable[["Supervisor", ProgramCall], Result]
Handler = Callable[["Supervisor", Emulated, ProgramCall], Result]

_DEVICE: Final = b"/dev/kvm"
_OWN_DESCRIPTORS: Final = (b"/proc/self/fd/", b"/dev/fd/")
_STAT: Final = struct.Struct("<QQQIIIIQqqq6Q24x")  # struct stat, x86-64
_STATX: Final = struct.Struct("<IIQIIIHHQQQQ")  # struct statx up to its times
_STATX_SIZE, _STATX_DEVICE = 256, 136
_STATX_BASIC: Final = 0x7FF


def _open(supervisor: Supervisor, call: ProgramCall) -> Result:
    address, flags = call.arguments[0], call.arguments[1]
    return _opened(supervisor, call, address, signed32(flags))


def _openat(supervisor: Supervisor, call: ProgramCall) -> Result:
    return _opened(supervisor, call, call.arguments[1], signed32(call.arguments[2]))


def _openat2(supervisor: Supervisor, call: ProgramCall) -> Result:
    path = peer.fetch_path(call.tid, call.arguments[1])
    if path != _DEVICE:
        return CONTINUE
    (flags,) = struct.unpack("<Q", peer.fetch(call.tid, call.arguments[2], 8))
    return Give(supervisor.new_device(supervisor.space_of(call.tid)), flags & os.O_CLOEXEC)


def _opened(supervisor: Supervisor, call: ProgramCall, address: int, flags: int) -> Result:
    path = peer.fetch_path(call.tid, address)
    if path == _DEVICE:
        return Give(supervisor.new_device(supervisor.space_of(call.tid)), flags & os.O_CLOEXEC)
    for prefix in _OWN_DESCRIPTORS:
        if path.startswith(prefix) and path[len(prefix) :].isdigit():
            return _reopened(supervisor, call, int(path[len(prefix) :]), flags)
    return CONTINUE


def _reopened(supervisor: Supervisor, call: ProgramCall, fd: int, flags: int) -> Result:
    found = supervisor.find(call.tid, fd)
    if found is None:
        return CONTINUE
    if isinstance(found, DeviceObject):
        return Give(supervisor.new_device(supervisor.space_of(call.tid)), flags & os.O_CLOEXEC)
    if isinstance(found, StatisticsObject):
        return -errno.ENXIO
    found.space.backend.reopen(found.fd, flags)  # anonymous inodes refuse
    return CONTINUE


def _access(supervisor: Supervisor, call: ProgramCall) -> Result:
    """access, faccessat and faccessat2: everybody may use the emulated device."""
    address = call.arguments[0 if call.number == nr.ACCESS else 1]
    return 0 if peer.fetch_path(call.tid, address) == _DEVICE else CONTINUE


def _fallocate(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    mode, offset, length = signed32(call.arguments[1]), signed64(call.arguments[2]), signed64(call.arguments[3])
    object.space.backend.fallocate(object.fd, mode, offset, length)
    if isinstance(object, FileObject) and mode & FALLOC_FL_PUNCH_HOLE and offset < object.file.size:
        punch(object.contents.fd, offset, min(offset + length, object.file.size))
    return 0


def _ftruncate(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    object.space.backend.ftruncate(object.fd, signed64(call.arguments[1]))
    return 0


def _fsync(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    object.space.backend.fsync(object.fd)
    return 0


def _lseek(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return object.space.backend.lseek(object.fd, signed64(call.arguments[1]), signed32(call.arguments[2]))


def _read(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return object.space.backend.read(object.fd, call.arguments[2])


def _write(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return object.space.backend.write(object.fd, call.arguments[2])


def _pread(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return object.space.backend.pread(object.fd, call.arguments[2], signed64(call.arguments[3]))


def _pwrite(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return object.space.backend.pwrite(object.fd, call.arguments[2], signed64(call.arguments[3]))


def _fstat(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    return _stat(object, call, call.arguments[1])


def _newfstatat(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    """With AT_EMPTY_PATH, which the filter has seen."""
    if peer.fetch_path(call.tid, call.arguments[1]):
        return CONTINUE
    return _stat(object, call, call.arguments[2])


def _stat(object: Emulated, call: ProgramCall, address: int) -> Result:
    """A guest_memfd's size and mode are the model's; device and inode are the stand-in's."""
    found = object.space.backend.fstat(object.fd) if isinstance(object, FileObject) else None
    if found is None:
        return CONTINUE
    native = os.fstat(object.standin.fd)
    sizes = found.st_size, found.st_blksize, found.st_blocks
    head = native.st_dev, native.st_ino, found.st_nlink, found.st_mode, 0, 0, 0, 0
    peer.store(call.tid, address, _STAT.pack(*head, *sizes, 0, 0, 0, 0, 0, 0))
    return 0


def _statx(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
    """With AT_EMPTY_PATH, which the filter has seen."""
    found = object.space.backend.fstat(object.fd) if isinstance(object, FileObject) else None
    if found is None or peer.fetch_path(call.tid, call.arguments[1]):
        return CONTINUE
    native = os.fstat(object.standin.fd)
    data = bytearray(_STATX_SIZE)
    _STATX.pack_into(
        data,
        0,
        *(_STATX_BASIC, found.st_blksize, 0, found.st_nlink, 0, 0, found.st_mode, 0),
        *(native.st_ino, found.st_size, found.st_blocks, 0),
    )
    struct.pack_into("<II", data, _STATX_DEVICE, os.major(native.st_dev), os.minor(native.st_dev))
    peer.store(call.tid, call.arguments[4], bytes(data))
    return 0


def _statistics(read: Handler) -> Handler:
    """Reading a statistics file is native, once it is up to date."""

    def handle(supervisor: Supervisor, object: Emulated, call: ProgramCall) -> Result:
        if not isinstance(object, StatisticsObject):
            return read(supervisor, object, call)
        vm = object.of
        pages = {} if vm is None else vm.space.process.mapped_pages(vm.fd)
        os.pwrite(object.standin.fd, statistics_file.encode(pages), 0)
        return CONTINUE

    return handle


BY_PATH: Final[Mapping[int, PathHandler]] = MappingProxyType(
    {
        nr.OPEN: _open,
        nr.OPENAT: _openat,
        nr.OPENAT2: _openat2,
        nr.ACCESS: _access,
        nr.FACCESSAT: _access,
        nr.FACCESSAT2: _access,
    }
)
BY_DESCRIPTOR: Final[Mapping[int, Handler]] = MappingProxyType(
    {
        nr.FALLOCATE: _fallocate,
        nr.FTRUNCATE: _ftruncate,
        nr.FSYNC: _fsync,
        nr.LSEEK: _statistics(_lseek),
        nr.READ: _statistics(_read),
        nr.READV: _statistics(_read),
        nr.PREAD: _statistics(_pread),
        nr.PREADV: _statistics(_pread),
        nr.WRITE: _write,
        nr.WRITEV: _write,
        nr.PWRITE: _pwrite,
        nr.PWRITEV: _pwrite,
        nr.FSTAT: _fstat,
        nr.NEWFSTATAT: _newfstatat,
        nr.STATX: _statx,
    }
)
