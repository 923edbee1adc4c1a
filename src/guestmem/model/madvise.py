"""madvise(2) on mappings of guest memory: which advice does what, and what it answers (mm/madvise.c).

Only advice that changes what a guest or the process can see has an effect here; the rest is its errno.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.errors import HostSignal
from guestmem.model.checks import Check, require
from guestmem.model.hostmem import AddressSpace, Anonymous, RangeRequest, Vma
from guestmem.uapi import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WIPEONFORK,
    PROT_READ,
    PROT_WRITE,
)
from guestmem.units import U64

__all__ = ("madvise",)

_KNOWN = frozenset((0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25))
_ANONYMOUS_ONLY = frozenset((MADV_FREE, MADV_WIPEONFORK))
_POPULATE = frozenset((MADV_POPULATE_READ, MADV_POPULATE_WRITE))


@dataclass(frozen=True, slots=True)
class Advice(RangeRequest):
    """The call."""

    advice: int

    @property
    def writes(self) -> bool:
        """Pages are populated for stores."""
        return self.advice == MADV_POPULATE_WRITE


@dataclass(frozen=True, slots=True)
class MappingAdvice:
    """The part of a call that is about one mapping."""

    call: Advice
    vma: Vma

    @property
    def fits(self) -> bool:
        """The advice is for this kind of memory."""
        private = isinstance(self.vma.source, Anonymous) and not self.vma.shared
        advice = self.call.advice
        if advice in _ANONYMOUS_ONLY:
            return private
        return advice != MADV_COLLAPSE and not (advice == MADV_REMOVE and private)

    @property
    def permitted(self) -> bool:
        """The mapping's protection lets its pages be populated for the access."""
        needed = PROT_WRITE if self.call.writes else PROT_READ
        return self.call.advice not in _POPULATE or bool(self.vma.prot & needed)


ADDRESS_CHECKS: tuple[Check[Advice], ...] = (
    Check(
        "advice-known",
        errno.EINVAL,
        "the advice must be one that the kernel knows",
        "madvise_behavior_valid",
        lambda r: r.advice in _KNOWN,
        lambda r: f"advice={r.advice}",
    ),
    Check(
        "range-aligned",
        errno.EINVAL,
        "the address must be page aligned",
        "do_madvise",
        lambda r: not r.addr % r.host.page_size,
        lambda r: f"addr={r.addr:#x}",
    ),
)

RANGE_CHECKS: tuple[Check[Advice], ...] = (
    Check(
        "range-no-wrap",
        errno.EINVAL,
        "the range must not wrap 64 bits",
        "do_madvise",
        lambda r: r.end < U64,
        str,
    ),
)

MAPPING_CHECKS: tuple[Check[MappingAdvice], ...] = (
    Check(
        "advice-fits-mapping",
        errno.EINVAL,
        "FREE and WIPEONFORK are for private anonymous memory, REMOVE for files; no memory here can be collapsed",
        "madvise_vma_behavior",
        lambda r: r.fits,
        lambda r: f"advice={r.call.advice}",
    ),
    Check(
        "mapping-shared-writable",
        errno.EACCES,
        "REMOVE needs a shared mapping that may be written",
        "madvise_remove",
        # VM_MAYWRITE counts, not the protection of the moment, and every file here is writable.
        lambda r: r.call.advice != MADV_REMOVE or r.vma.shared,
        lambda r: "shared" if r.vma.shared else "private",
    ),
    Check(
        "mapping-permits",
        errno.EINVAL,
        "populating needs a protection that permits the access",
        "faultin_page_range",
        lambda r: r.permitted,
        lambda r: f"prot={r.vma.prot}",
    ),
)

FILE_HAS_HOLES: Check[bool] = Check(
    "file-has-holes",
    errno.ENODEV,
    "REMOVE needs a file that holes can be punched in",
    "vfs_fallocate",
    bool,
    lambda discarded: "discarded" if discarded else "the file has no such operation",
)
PAGE_CAN_BE_HAD: Check[str] = Check(
    "page-can-be-had",
    errno.EFAULT,
    "a page is populated only where an access would not end in a signal",
    "faultin_page_range",
    lambda signal: not signal,
    lambda signal: signal or "every page is present",
)
RANGE_MAPPED: Check[Advice] = Check(
    "range-mapped",
    errno.ENOMEM,
    "the whole range must be mapped; the mappings that are there were advised",
    "madvise_walk_vmas",
    lambda r: not any(r.host.vmas.gaps(r.addr, r.end)),
    lambda r: f"[{r.addr:#x}, {r.end:#x})",
)


def madvise(host: AddressSpace, addr: int, length: int, advice: int) -> None:
    """Advise a range: EINVAL unknown or unsuitable, ENOMEM where nothing is mapped, EFAULT where populating fails."""
    call = Advice(host, addr, length, advice)
    require(ADDRESS_CHECKS, call)
    if length == 0:
        return
    require(RANGE_CHECKS, call)
    done = addr
    for start, stop, vma in list(host.vmas.runs(addr, call.end)):
        if start > done and advice in _POPULATE:
            break
        _apply(MappingAdvice(call, vma), start, stop)
        done = stop
    require((RANGE_MAPPED,), call)


def _apply(part: MappingAdvice, start: int, stop: int) -> None:
    require(MAPPING_CHECKS, part)
    host, vma, advice = part.call.host, part.vma, part.call.advice
    if advice == MADV_REMOVE:
        require((FILE_HAS_HOLES,), vma.source.discard(start - vma.delta, stop - vma.delta))
        host.file_changed(vma.source, start - vma.delta, stop - vma.delta)
    elif advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        host.dont_need(start, stop, shared=vma.shared)
    elif advice == MADV_FREE:
        host.may_free(start, stop)
    elif advice in _POPULATE:
        require((PAGE_CAN_BE_HAD,), _populated(part, start, stop))


def _populated(part: MappingAdvice, start: int, stop: int) -> str:
    """Populate pages; the signal that an access would end in, or nothing."""
    try:
        part.call.host.fault_in(part.vma, start, stop, write=part.call.writes)
    except HostSignal as signal:
        return str(signal)
    return ""
