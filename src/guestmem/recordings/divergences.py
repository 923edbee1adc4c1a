"""The public table of known divergences: where the model is allowed to differ from a kernel, and why.

Nothing else may differ. An entry that can show up in a recording says how it is recognised there; the others name what
the model leaves out, so that no recording of it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestmem.recordings.calls import HostRead, Madvise, Mmap
from guestmem.recordings.ioctls import CheckExtension, EnableCap, PreFault, RecordedExit, RunTouch, SetUserMemoryRegion2
from guestmem.recordings.operation import Operation
from guestmem.recordings.vocabulary import Begin
from guestmem.uapi import (
    CAPABILITIES,
    KVM_CAP_DISABLE_QUIRKS,
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_MEM_GUEST_MEMFD,
    MADV_COLLAPSE,
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
)
from guestmem.units import MIB

__all__ = ("DIVERGENCES", "Divergence", "History", "divergence_of")

Exits = Sequence[RecordedExit] | None

_RECORDED_WITH_SHADOW_PAGING = ("618", "v6.18")


@dataclass(frozen=True, slots=True)
class History:
    """What a difference comes after: the sequence's begin line and its first ``index`` operations (None: all)."""

    begin: Begin
    sequence: Sequence[Operation]
    index: int | None = None

    @property
    def operations(self) -> Sequence[Operation]:
        """The operations so far, cut out only when somebody asks: sequences are long, and differences rare."""
        return self.sequence[: self.index]


Recognise = Callable[[Operation, Exits, History | None], bool]


@dataclass(frozen=True, slots=True)
class Divergence:
    """One listed difference. ``recognise`` is None where it cannot be seen in a recording.

    It is asked with the operation, the exits recorded for a guest touch, and what came before. ``lasting``: what
    follows in the sequence may differ because of it.
    """

    name: str
    subject: str
    reason: str
    recognise: Recognise | None = None
    lasting: bool = True


def _stale_mmio(operation: Operation, exits: Exits, before: History | None) -> bool:
    return any(exit.anomaly == "stale_mmio" for exit in exits or ())


def _livelock(operation: Operation, exits: Exits, before: History | None) -> bool:
    return isinstance(operation, PreFault) and operation.livelock


def _guard_region(operation: Operation, exits: Exits, before: History | None) -> bool:
    return isinstance(operation, Madvise) and operation.advice in (102, 103)


def _collapse(operation: Operation, exits: Exits, before: History | None) -> bool:
    """The mapping is anonymous, and may hold an aligned 2 MiB."""
    return _advised(operation, MADV_COLLAPSE, MAP_ANONYMOUS, 2 * MIB, before)


def _unconfigured(operation: Operation, exits: Exits, before: History | None) -> bool:
    """Merging of any memory; reading ahead of private anonymous memory, which has no file."""
    if isinstance(operation, Madvise) and operation.advice in (MADV_MERGEABLE, MADV_UNMERGEABLE):
        return True
    return _advised(operation, MADV_WILLNEED, MAP_ANONYMOUS | MAP_PRIVATE, 0, before)


def _advised(operation: Operation, advice: int, flags: int, least: int, before: History | None) -> bool:
    """Whether it is that advice on a mapping made with all of the flags, of at least so many bytes."""
    if before is None or not isinstance(operation, Madvise) or operation.advice != advice:
        return False
    made = [each for each in before.operations if isinstance(each, Mmap) and each.out == operation.map]
    return any(each.flags & flags == flags and each.length >= least for each in made)


def _shadow_paging(begin: Begin) -> bool:
    """As the begin line says, else as on the machine that recorded 6.18."""
    if begin.two_dimensional_paging is None:
        return begin.profile in _RECORDED_WITH_SHADOW_PAGING
    return not begin.two_dimensional_paging


def _shadow_prefetch(operation: Operation, exits: Exits, before: History | None) -> bool:
    """Some guest_memfd slot has a userspace_addr that is host-writable and not the very bytes it is bound to."""
    if before is None or not _shadow_paging(before.begin) or not isinstance(operation, RunTouch | HostRead):
        return False
    mapped = {each.out: each for each in before.operations if isinstance(each, Mmap)}
    for slot in before.operations:
        if isinstance(slot, SetUserMemoryRegion2) and slot.flags & KVM_MEM_GUEST_MEMFD and slot.size:
            where = slot.userspace_addr
            if where.buf in ("A", "B", "C"):
                return True
            under = mapped.get(where.map)
            same = under and under.fd == slot.guest_memfd and under.offset + where.off == slot.guest_memfd_offset
            if under and not same:
                return True
    return False


def _foreign_capability(operation: Operation, exits: Exits, before: History | None) -> bool:
    return isinstance(operation, CheckExtension) and operation.cap not in CAPABILITIES


def _enabled_capability(operation: Operation, exits: Exits, before: History | None) -> bool:
    return isinstance(operation, EnableCap) and operation.cap not in (KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2)


DIVERGENCES: tuple[Divergence, ...] = (
    Divergence(
        "stale-mmio",
        "a GPA without a slot that was touched as MMIO and then made private",
        "KVM caches MMIO in page-table entries that setting attributes does not invalidate. The model keeps the "
        "entries but not the page tables they are in, so one that went with its table would show",
        _stale_mmio,
    ),
    Divergence(
        "pre-fault-livelock",
        "KVM_PRE_FAULT_MEMORY that waits for a slot deletion, or spins, until a signal ends it",
        "when it ends depends on the signal; the model answers EINTR at once where 6.12's outdated root makes it spin, "
        "and knows no concurrent deletion",
        _livelock,
    ),
    Divergence(
        "shadow-prefetch",
        "with shadow paging, a slot of a guest_memfd with MMAP whose userspace_addr is other, writable memory",
        "a fault there fills the leaves around it through userspace_addr, also where they belong to the file "
        "(docs/findings.md); which ones depends on the host's page tables, which the model does not have",
        _shadow_prefetch,
    ),
    Divergence(
        "other-capabilities",
        "KVM_CHECK_EXTENSION of capabilities that have nothing to do with guest memory",
        "the model answers 0 for every number outside its table",
        _foreign_capability,
        lasting=False,
    ),
    Divergence(
        "enabled-capabilities",
        "KVM_ENABLE_CAP of anything but quirks",
        "the model answers EINVAL: neither dirty rings nor dirty bits that start as set are modelled, nor what lies "
        "outside of guest memory",
        _enabled_capability,
    ),
    Divergence(
        "guard-regions",
        "MADV_GUARD_INSTALL and MADV_GUARD_REMOVE",
        "guard markers in host page tables have nothing to do with guest memory; the model does not know the advice",
        _guard_region,
    ),
    Divergence(
        "collapse",
        "MADV_COLLAPSE of anonymous memory that holds an aligned 2 MiB",
        "khugepaged's work: whether it can depends on the pages and their anon_vma, which the model does not have; it "
        "answers EINVAL, as for all other memory",
        _collapse,
    ),
    Divergence(
        "unconfigured-advice",
        "MADV_MERGEABLE and MADV_UNMERGEABLE; MADV_WILLNEED of private anonymous memory",
        "a kernel built without CONFIG_KSM does not know the former (EINVAL), one without CONFIG_SWAP answers EBADF to "
        "the latter; the lab's is built without both, the model is one with both",
        _unconfigured,
        lasting=False,
    ),
    Divergence(
        "other-files",
        "files that are no guest_memfd",
        "modelled as far as their answers to misplaced calls show; a private mapping of a memfd writes through",
    ),
    Divergence("smm", "address space 1", "slots of it are validated and kept, but no access ever uses them"),
    Divergence("numa", "NUMA placement and memory policies", "one node; mbind is not modelled"),
    Divergence("threads", "races of real threads", "operations run one after another"),
    Divergence(
        "emulated-accesses",
        "KVM's own accesses to guest memory (instruction emulation, string I/O, paravirtual pages)",
        "a touch is a native load, store or fetch; accesses across a page and fetches from MMIO need the emulator",
    ),
    Divergence(
        "host-poison",
        "memory failure in memory that is no guest_memfd",
        "it reaches a process as SIGBUS, not through KVM; poison of guest_memfd pages is modelled",
    ),
    Divergence(
        "exhaustion",
        "EMFILE, ENOMEM of kernel structures, EINTR of an allocation",
        "the model has no descriptor limit, no kernel memory and no signals; host pages run out as the pools say",
    ),
    Divergence(
        "foreign-process",
        "EIO from a process that did not create the VM, and EFAULT for a bad argument pointer",
        "one process; arguments are values",
    ),
    Divergence(
        "hardware-types",
        "SEV, SNP and TDX VMs",
        "only default and software-protected VMs exist",
    ),
)


def divergence_of(operation: Operation, exits: Exits, before: History | None = None) -> Divergence | None:
    """The listed divergence that an observed difference falls under, if any; before: what ran before it."""
    for divergence in DIVERGENCES:
        if divergence.recognise is not None and divergence.recognise(operation, exits, before):
            return divergence
    return None
