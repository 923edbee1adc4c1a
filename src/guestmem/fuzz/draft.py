"""What a sequence under construction believes to exist, and the operations so far.

The beliefs are only good enough to aim: an operation may well have failed, and then later ones hit what is not there,
which is a case like any other. Pure: chance comes in as a ``random.Random``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from guestmem.fuzz.values import BASES, GPA_STEPS, NOT_OPEN
from guestmem.harness import PAGE_SIZE as PAGE
from guestmem.recordings.operation import Handle, HostAddress, Operation

__all__ = ("Draft", "DraftFile", "DraftMap", "DraftSlot", "DraftVm", "Scope")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """What the kernels under comparison have, so that sequences go there: VM types, and where guest accesses end."""

    vm_types: tuple[int, ...] = (0,)
    attributes: bool = False  # VMs of type 1 have private memory
    two_dimensional_paging: bool = False  # else KVM_PRE_FAULT_MEMORY does nothing, and leaves may be prefetched
    gpa_bits: int = 40
    creation_flags: tuple[tuple[int, int], ...] = ()  # VM types that can bind a guest_memfd, and the flags it may have

    def flags_of(self, type: int) -> int | None:
        """The creation flags that a VM of this type takes; None where it can bind no guest_memfd."""
        return dict(self.creation_flags).get(type)


@dataclass(slots=True)
class DraftSlot:
    """A memslot as it was asked for."""

    gpa: int
    size: int
    flags: int
    userspace_addr: HostAddress


@dataclass(slots=True)
class DraftVm:
    """A VM, its vCPUs and slots; ``outdated``: a slot went or moved, so a vCPU may have an outdated root."""

    handle: str
    type: int
    vcpus: list[str] = field(default_factory=list)
    slots: dict[int, DraftSlot] = field(default_factory=dict)
    outdated: bool = False

    def is_free(self, gpa: int, size: int) -> bool:
        """Whether no slot lies there."""
        return all(gpa + size <= slot.gpa or slot.gpa + slot.size <= gpa for slot in self.slots.values())


@dataclass(slots=True)
class DraftFile:
    """A guest_memfd."""

    handle: str
    vm: str
    size: int
    flags: int


@dataclass(slots=True)
class DraftMap:
    """A mapping of a guest_memfd, or of anonymous memory (file None)."""

    handle: str
    file: DraftFile | None
    length: int
    offset: int


class Draft:
    """One sequence: beliefs, operations, chance."""

    def __init__(self, random: Random, scope: Scope, seq: str) -> None:
        self.random = random
        self.scope = scope
        self.seq = seq
        self.operations: list[Operation] = []
        self.base = random.choice(BASES)
        self.vms: list[DraftVm] = []
        self.files: list[DraftFile] = []
        self.maps: list[DraftMap] = []
        self.vcpus: set[str] = set()  # every name of a vCPU, those of duplicates among them
        self.others: list[str] = []  # descriptors of other kinds, duplicates among them
        self.closed: list[str] = []
        self._names: dict[str, int] = {}

    def add(self, kind: type[Operation], /, **arguments: Any) -> None:
        """Append an operation."""
        self.operations.append(kind(seq=self.seq, i=len(self.operations), **arguments))

    def name(self, kind: str) -> str:
        """A handle that was never used."""
        number = self._names.get(kind, 0)
        self._names[kind] = number + 1
        return f"{kind}{number}"

    # -- chance ------------------------------------------------------------------------------------------------------

    def one(self, values: Sequence[T]) -> T:
        """Any of them, each as likely as it is listed."""
        return self.random.choice(values)

    def chance(self, percent: float) -> bool:
        """True that often."""
        return self.random.random() * 100 < percent

    # -- aim ---------------------------------------------------------------------------------------------------------

    def gpa(self) -> int:
        """A guest-physical address near the others."""
        return self.base + self.one(GPA_STEPS)

    def free_gpa(self, vm: DraftVm, size: int) -> int:
        """A guest-physical address near the others, mostly where no slot lies yet."""
        for _ in range(6):
            gpa = self.gpa()
            if vm.is_free(gpa, size) or self.chance(5):
                return gpa
        return self.gpa()

    def new_slot(self, vm: DraftVm, ids: Sequence[int]) -> int:
        """A slot number, mostly one without a slot."""
        unused = [id for id in ids if id not in vm.slots]
        return self.one(unused) if unused and self.chance(85) else self.one(ids)

    def any_handle(self) -> Handle:
        """A descriptor of any kind, open, closed or never open."""
        handles: list[Handle] = ["kvm", 0, *NOT_OPEN, *self.others[-3:], *self.closed[-3:]]
        for vm in self.vms:
            handles += [vm.handle, *vm.vcpus]
        return self.one(handles + [file.handle for file in self.files[-3:]])

    def vm_handle(self, wrong: float = 3) -> Handle:
        """A VM, seldom something else."""
        return self.any_handle() if self.chance(wrong) else self.one(self.vms).handle

    def file_handle(self, wrong: float = 5) -> Handle:
        """One of the last files, seldom something else."""
        return self.any_handle() if self.chance(wrong) or not self.files else self.one(self.files[-4:]).handle

    def page_of(self, length: int) -> int:
        """The offset (bytes) of a page of that many bytes: the first ones mostly, the last ones, one past them."""
        pages = max(length // PAGE, 1)
        return PAGE * self.one(
            (0, 0, 0, 1, 2, 3, pages // 2, pages - 1, pages - 1, pages, self.random.randrange(pages))
        )
