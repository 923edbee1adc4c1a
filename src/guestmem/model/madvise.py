"""madvise(2) on mappings of guest memory: which advice does what, and what it answers (mm/madvise.c).

Only advice that changes what a guest or the process can see has an effect here; the rest is its errno.
"""

from __future__ import annotations

import errno
from typing import Final

from guestmem.errors import HostSignal, KvmError
from guestmem.model.hostmem import AddressSpace, Anonymous, Vma
from guestmem.uapi import PROT_READ, PROT_WRITE
from guestmem.units import U64, align_up

__all__ = ("madvise",)

MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_WIPEONFORK: Final = 18
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
_KNOWN = frozenset((0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25))
_ANONYMOUS_ONLY = frozenset((MADV_FREE, MADV_WIPEONFORK))


def madvise(host: AddressSpace, addr: int, length: int, advice: int) -> None:
    """Advise a range: EINVAL unknown or unsuitable, ENOMEM where nothing is mapped, EFAULT where populating fails."""
    if advice not in _KNOWN:
        raise KvmError(errno.EINVAL, f"{advice=}", check="advice-known")
    if addr % host.page_size:
        raise KvmError(errno.EINVAL, f"{addr=:#x}", check="range-aligned")
    if length == 0:
        return
    end = addr + align_up(length, host.page_size)
    if end >= U64:
        raise KvmError(errno.EINVAL, f"madvise {addr=:#x} {length=:#x}", check="range-no-wrap")
    done = addr
    for start, stop, vma in list(host.vmas.runs(addr, end)):
        if start > done and advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            break
        _apply(host, vma, start, stop, advice)
        done = stop
    if host.vmas.overlaps(addr, end) is False or next(host.vmas.gaps(addr, end), None) is not None:
        raise KvmError(errno.ENOMEM, f"[{addr:#x}, {end:#x}) is not all mapped", check="range-mapped")


def _apply(host: AddressSpace, vma: Vma, start: int, stop: int, advice: int) -> None:
    private = isinstance(vma.source, Anonymous) and not vma.shared
    if advice in _ANONYMOUS_ONLY and not private:
        raise KvmError(errno.EINVAL, f"{advice=} is for private anonymous memory", check="advice-fits-mapping")
    if advice == MADV_COLLAPSE:
        raise KvmError(errno.EINVAL, "the file's pages cannot be collapsed", check="advice-fits-mapping")
    if advice == MADV_REMOVE:
        _remove(host, vma, start, stop)
    elif advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        host.dont_need(start, stop, shared=vma.shared)
    elif advice == MADV_FREE:
        host.may_free(start, stop)
    elif advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        _populate(host, vma, start, stop, write=advice == MADV_POPULATE_WRITE)


def _remove(host: AddressSpace, vma: Vma, start: int, stop: int) -> None:
    if isinstance(vma.source, Anonymous) and not vma.shared:
        raise KvmError(errno.EINVAL, "private anonymous memory has no file", check="advice-fits-mapping")
    if not vma.shared:  # VM_MAYWRITE counts, not the protection of the moment, and every file here is writable
        raise KvmError(errno.EACCES, "a private mapping", check="mapping-shared-writable")
    if not vma.source.discard(start - vma.delta, stop - vma.delta):
        raise KvmError(errno.ENODEV, "the file is no regular one", check="file-has-holes")
    host.file_changed(vma.source, start - vma.delta, stop - vma.delta)


def _populate(host: AddressSpace, vma: Vma, start: int, stop: int, *, write: bool) -> None:
    if not vma.prot & (PROT_WRITE if write else PROT_READ):
        raise KvmError(errno.EINVAL, f"prot={vma.prot}", check="mapping-permits")
    try:
        host.fault_in(vma, start, stop, write=write)
    except HostSignal as signal:
        raise KvmError(errno.EFAULT, str(signal), check="page-can-be-had") from signal
