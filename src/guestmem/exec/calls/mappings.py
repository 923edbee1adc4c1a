"""What the program does to its mappings: mmap, munmap, mprotect, mremap, madvise."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.exec import syscalls as nr
from guestmem.exec.calls.arguments import signed32, signed64
from guestmem.exec.emulated import CONTINUE, FileObject, Result, StatisticsObject
from guestmem.exec.listener import ProgramCall
from guestmem.exec.windows import punch
from guestmem.model.vm import GuestMemfd
from guestmem.uapi import MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED, MAP_TYPE, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from guestmem.exec.spaces import Space
    from guestmem.exec.supervisor import Supervisor

__all__ = ("TABLE",)

Handler = Callable[["Supervisor", "Space", ProgramCall], Result]

_DONTNEED, _FREE, _REMOVE, _DONTNEED_LOCKED, _COLLAPSE = 4, 8, 9, 24, 25
_DROPS: Final = (_DONTNEED, _REMOVE, _DONTNEED_LOCKED)
_DECIDED_BY_THE_MODEL: Final = (_REMOVE, _COLLAPSE)


def _mmap(supervisor: Supervisor, space: Space, call: ProgramCall) -> Result:
    address, length, prot, flags, fd, offset = call.arguments
    flags = signed32(flags)
    if flags & MAP_FIXED:
        space.memory.unmap(address, length)
    if flags & MAP_ANONYMOUS:
        return CONTINUE
    object = supervisor.find(call.tid, signed32(fd))
    if object is None:
        if flags & MAP_TYPE == MAP_SHARED and prot & PROT_WRITE:
            space.memory.mapped_file(call.tid, signed32(fd))
        return CONTINUE
    if isinstance(object, StatisticsObject):
        return -errno.ENODEV
    process = object.space.process
    backend = object.space.backend
    # Whether it may be mapped is the model's decision; where, the kernel's: the model's own mapping goes at once.
    there = backend.mmap(object.fd, length, signed32(prot), flags & ~MAP_FIXED, signed64(offset))
    process.munmap(there, length)
    if isinstance(object, FileObject):
        space.memory.mapped_guest_memfd(object.standin.number, object.file)
    return CONTINUE


def _munmap(supervisor: Supervisor, space: Space, call: ProgramCall) -> Result:
    space.memory.unmap(call.arguments[0], call.arguments[1])
    return CONTINUE


def _mremap(supervisor: Supervisor, space: Space, call: ProgramCall) -> Result:
    """The old range is unknown from now on; where the new one is, the mappings will show."""
    space.memory.forget(call.arguments[0], call.arguments[1])
    return CONTINUE


def _mprotect(supervisor: Supervisor, space: Space, call: ProgramCall) -> Result:
    space.memory.protect(call.arguments[0], call.arguments[1], call.arguments[2] & (PROT_READ | PROT_WRITE | 4))
    return CONTINUE


def _madvise(supervisor: Supervisor, space: Space, call: ProgramCall) -> Result:
    address, length, advice = call.arguments[0], call.arguments[1], signed32(call.arguments[2])
    if advice in _DECIDED_BY_THE_MODEL and space.memory.learn_guest_mappings(call.tid, address, length):
        space.process.madvise(address, length, advice)
        if advice == _REMOVE:
            for first, last, vma in space.process.host.vmas.runs(address, address + length):
                if isinstance(vma.source, GuestMemfd):
                    punch(supervisor.files[vma.source].fd, first - vma.delta, last - vma.delta)
        return CONTINUE
    if advice == _FREE and space.memory.is_replaced(address, length):
        return 0  # of a shared mapping it would be refused; the pages may stay
    if advice in _DROPS:
        space.memory.drop_pages(address, length)
    return CONTINUE


TABLE: Final[Mapping[int, Handler]] = MappingProxyType(
    {
        nr.MMAP: _mmap,
        nr.MUNMAP: _munmap,
        nr.MPROTECT: _mprotect,
        nr.MREMAP: _mremap,
        nr.MADVISE: _madvise,
    }
)
