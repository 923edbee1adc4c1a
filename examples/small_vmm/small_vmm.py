"""The part of a VMM that converts guest memory between private and shared, as small as possible."""

from __future__ import annotations

import guestmem
from guestmem import Kvm, Vm

PAGE = 4096


class Ram:
    """A range of guest memory: in the host's memory while it is shared, and in a guest_memfd while it is private."""

    def __init__(self, kvm: Kvm, vm: Vm, gpa: int, size: int) -> None:
        self.vm, self.gpa, self.size = vm, gpa, size
        self.file = vm.create_guest_memfd(size)
        self.hva = kvm.anonymous(size)
        vm.set_user_memory_region2(
            0, gpa=gpa, size=size, userspace_addr=self.hva, guest_memfd=self.file, guest_memfd_offset=0
        )

    def make_private(self, gpa: int, size: int) -> None:
        """From here on the guest's accesses go to the file, which starts as zeros."""
        self.vm.set_memory_attributes(gpa, size, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def make_shared(self, gpa: int, size: int) -> None:
        """From here on the guest's accesses go to the host's memory; the private contents are gone."""
        self.vm.set_memory_attributes(gpa, size, 0)
        self.file.punch_hole(gpa - self.gpa, size)
