"""A guest access that stage 2 cannot answer (struct kvm_page_fault), and how it can end."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Literal

from guestmem.model.files import Source
from guestmem.model.stage2 import Leaf
from guestmem.model.vm import GuestMemfd, Memslot, Vm

__all__ = ("HOST_ERROR", "MAPPED", "MMIO", "NO_PAGE", "RETRY", "Fault", "FaultResult")


@dataclass(frozen=True, slots=True)
class FaultResult:
    """How a fault ended.

    mapped: a leaf is there. mmio: the access goes to user space as MMIO. memory_fault: KVM_RUN fails with errno and
    exit reason 39. host_error: KVM_RUN fails with errno and says no more. retry: something changed, start again. spins:
    the same fault is taken again and again, until a signal ends KVM_RUN with EINTR.
    """

    kind: Literal["mapped", "mmio", "memory_fault", "host_error", "retry", "spins"]
    errno: int = 0


MAPPED = FaultResult("mapped")
MMIO = FaultResult("mmio")
HOST_ERROR = FaultResult("host_error", errno.EFAULT)
RETRY = FaultResult("retry")
NO_PAGE = FaultResult("memory_fault", errno.EFAULT)


@dataclass(slots=True)
class Fault:
    """The access, and what the steps have found so far. hva is bytes; gfn, index are pages."""

    vm: Vm
    gfn: int
    write: bool = False
    fetch: bool = False
    reserved: bool = False  # stage 2 holds an outdated MMIO entry for the frame
    private: bool = field(default=False, init=False)
    slot: Memslot | None = field(default=None, init=False)
    mmu_seq: int = field(default=0, init=False)
    gmem: GuestMemfd | None = field(default=None, init=False)  # the file that answers, or None: the hva does
    index: int = field(default=0, init=False)
    folio_order: int = field(default=0, init=False)
    hva: int = field(default=0, init=False)
    source: Source | None = field(default=None, init=False)
    writable: bool = field(default=True, init=False)
    order: int = field(default=0, init=False)
    leaf: Leaf | None = field(default=None, init=False)
