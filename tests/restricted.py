"""A VM and files of the system of 2023, for the tests of ``guestmem.model.restrictedmem``."""

from __future__ import annotations

from typing import Any

from helpers import M2, P, errno_of

import guestmem
from guestmem.backend import Exit
from guestmem.model.profiles import Machine
from guestmem.objects import Kvm, RestrictedMem, Vcpu, Vm
from guestmem.rules import Rule

REVISIONS = ("restrictedmem", "restrictedmem-v10", "restrictedmem-upm", "restrictedmem-v11c")
EXCLUSIVE = ("restrictedmem", "restrictedmem-upm", "restrictedmem-v11c")
V10, UPM, V11C = REVISIONS[1:]


class World:
    """One process with a VM that has private memory, and a vCPU of it."""

    def __init__(
        self, profile: str = "restrictedmem", rule: str | Rule | None = None, machine: Machine | None = None
    ) -> None:
        self.profile = profile
        self.kvm: Kvm = guestmem.open("model", profile=profile, rule=rule, machine=machine)
        self.vm = self.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        self.vcpu = self.vm.create_vcpu()

    def file(self, size: int = 8 * M2, **asked: int) -> RestrictedMem:
        """A file of a size."""
        file = self.kvm.memfd_restricted(**asked)
        if size:
            file.truncate(size)
        return file

    def bind(
        self,
        file: RestrictedMem,
        *,
        slot: int = 0,
        gpa: int = 0,
        size: int = M2,
        offset: int = 0,
        flags: int = 4,
        hva: int | None = None,
        vm: Vm | None = None,
    ) -> None:
        """Set a private slot by the ioctl that the revision has; its userspace_addr agrees with the GPA."""
        vm, where = vm or self.vm, gpa if hva is None else hva
        if self.profile == V10:
            vm.set_user_memory_region_ext(
                slot,
                gpa=gpa,
                size=size,
                userspace_addr=where,
                restrictedmem=file,
                restricted_offset=offset,
                flags=flags,
            )
        else:
            vm.set_user_memory_region2(
                slot,
                gpa=gpa,
                size=size,
                userspace_addr=where,
                guest_memfd=file,
                guest_memfd_offset=offset,
                flags=flags,
            )

    def try_bind(self, file: RestrictedMem, **how: Any) -> str | None:
        """The errno's name, or None."""
        return errno_of(lambda: self.bind(file, **how))

    def private(self, start: int, size: int, vm: Vm | None = None) -> None:
        """Make frames private; bytes."""
        (vm or self.vm).set_memory_attributes(start, size, 8)

    def touch(self, gpa: int, vcpu: Vcpu | None = None) -> Exit:
        """A guest load; its last exit."""
        return (vcpu or self.vcpu).touch(guestmem.backend.Touch(gpa, "r", 8))[-1]

    def leaves(self, vm: Vm | None = None) -> list[tuple[int, int, int]]:
        """What is mapped: first frame, frames, and the page of the file that the first one shows."""
        found = (vm or self.vm).model.stage2.leaves
        self.kvm.check_invariants()
        return [(start, end - start, start - leaf.delta) for start, end, leaf in found]

    def pages(self, file: RestrictedMem) -> list[tuple[int, int]]:
        """The file's folios: first index and how many pages."""
        return [
            (first, 1 << order)
            for start, end, order in file.model.cache.folios
            for first in range(start, end, 1 << order)
        ]


STALE = int.from_bytes(b"\xaa" * 8, "little")
__all__ = ("EXCLUSIVE", "REVISIONS", "STALE", "UPM", "V10", "V11C", "P", "World")
