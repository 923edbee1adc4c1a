"""What the tests share: sizes, and twins of the calls that give the errno's name instead of raising.

As in the kernel's selftests a plain call must succeed, and its ``try_`` twin says how it ended: None, or "EINVAL".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from guestmem.backend import Exit, Touch
from guestmem.errors import HostSignal, KvmError, NotVisible
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
from guestmem.uapi import MAP_SHARED, PROT_READ, PROT_WRITE
from guestmem.units import GIB, KIB, MIB

P = 4 * KIB
M2 = 2 * MIB
G1 = GIB
PRIVATE = 1 << 3
MMAP, INIT_SHARED = 1 << 0, 1 << 1
LOG_DIRTY, READONLY, GUEST_MEMFD = 1 << 0, 1 << 1, 1 << 2
RW = PROT_READ | PROT_WRITE
KEEP_SIZE, PUNCH = 0x01, 0x03
RELEASED = ("v6.12", "v6.18", "v7.2", "v7.3")
WITH_PRIVATE_MEMORY = ("v6.12", "v7.2", "v7.3")
WITH_MMAP = ("v6.18", "v7.2", "v7.3")


def errno_of(call: Callable[[], object]) -> str | None:
    """How a call ended: None for success, else the errno's name."""
    try:
        call()
    except KvmError as refused:
        return refused.name
    return None


def check_of(call: Callable[[], object]) -> str | None:
    """The named check that refused a call of the model; None for success."""
    try:
        call()
    except KvmError as refused:
        return named(refused)
    return None


def named(refused: KvmError) -> str:
    """The named check that refused; NotVisible of a real kernel, which says its errno only."""
    if not refused.check:
        raise NotVisible("the check that refused")
    return refused.check


def signal_of(call: Callable[[], object]) -> str | None:
    """The signal that a host access ended in; None if it completed."""
    try:
        call()
    except HostSignal as signal:
        return signal.signal
    return None


@dataclass(frozen=True)
class Region:
    """The argument of KVM_SET_USER_MEMORY_REGION2, ready to be varied field by field."""

    slot: int = 0
    flags: int = 0
    gpa: int = 0
    size: int = 4 * P
    userspace_addr: int = 0x10000
    fd: int = -1
    offset: int = 0

    def but(self, **changes: int) -> Region:
        """The same with some fields changed."""
        return replace(self, **changes)

    def set(self, vm: Vm, *, version: int = 2) -> None:
        """Issue the ioctl; version 1 has no room for file and offset."""
        backend = vm.backend
        if version == 1:
            backend.set_user_memory_region(vm.fd, self.slot, self.flags, self.gpa, self.size, self.userspace_addr)
            return
        backend.set_user_memory_region2(
            vm.fd, self.slot, self.flags, self.gpa, self.size, self.userspace_addr, self.fd, self.offset
        )

    def try_set(self, vm: Vm, *, version: int = 2) -> str | None:
        """Issue the ioctl; the errno's name or None."""
        return errno_of(lambda: self.set(vm, version=version))


def bound(gmem: GuestMemfd, **fields: int) -> Region:
    """A request that binds a file."""
    return Region(flags=GUEST_MEMFD, fd=gmem.fd, **fields)


def try_create_guest_memfd(vm: Vm, size: int, flags: int = 0) -> str | None:
    """KVM_CREATE_GUEST_MEMFD; a file that is made is closed again."""
    return errno_of(lambda: vm.create_guest_memfd(size, flags).close())


def try_set_memory_attributes(vm: Vm, address: int, size: int, attributes: int, flags: int = 0) -> str | None:
    """KVM_SET_MEMORY_ATTRIBUTES."""
    return errno_of(lambda: vm.backend.set_memory_attributes(vm.fd, address, size, attributes, flags))


def try_fallocate(gmem: GuestMemfd, mode: int, offset: int, length: int) -> str | None:
    """fallocate(2)."""
    return errno_of(lambda: gmem.backend.fallocate(gmem.fd, mode, offset, length))


def try_mmap(
    gmem: GuestMemfd, *, length: int = P, prot: int = RW, flags: int = MAP_SHARED, offset: int = 0
) -> str | None:
    """mmap(2); a mapping that is made is unmapped again."""
    backend = gmem.backend
    return errno_of(lambda: backend.munmap(backend.mmap(gmem.fd, length, prot, flags, offset), length))


def try_pre_fault(vcpu: Vcpu, gpa: int, size: int, flags: int = 0) -> tuple[str | None, int, int]:
    """KVM_PRE_FAULT_MEMORY: how it ended, and gpa and size as the kernel wrote them back."""
    done = vcpu.backend.pre_fault_memory(vcpu.fd, gpa, size, flags)
    return (None if done.refused is None else done.refused.name), done.gpa, done.size


def load(vcpu: Vcpu, gpa: int, size: int = 8) -> list[Exit]:
    """A guest load: every exit it took."""
    return vcpu.touch(Touch(gpa, "r", size))


def store(vcpu: Vcpu, gpa: int, value: int = 0x1122334455667788, size: int = 8) -> list[Exit]:
    """A guest store: every exit it took."""
    return vcpu.touch(Touch(gpa, "w", size, value))


def memory_fault(gpa: int, flags: int = PRIVATE, errno: str = "EFAULT", size: int = P) -> list[Exit]:
    """KVM_RUN failing with exit reason 39."""
    return [Exit("memory_fault", errno=errno, flags=flags, gpa=gpa, size=size)]


def leaves(vm: Vm) -> dict[str, int]:
    """Stage-2 leaves by size, as KVM's statistics count them."""
    model = vm.model
    return {model.geometry.name_of(order): count for order, count in model.stage2.count().items()}


def slots(vm: Vm) -> list[tuple[int, int, int, int, int, int]]:
    """Everything user space said about the slots that exist."""
    return [
        (slot.as_id, slot.id, slot.base_gfn, slot.npages, slot.flags, slot.userspace_addr)
        for space in vm.model.spaces
        for slot in space.by_id.values()
    ]


def bindings(gmem: GuestMemfd) -> list[tuple[int, int, int]]:
    """The bound ranges of a file, in pages, with the slot that owns each."""
    return [(start, end, slot.id) for start, end, slot in gmem.model.bindings]


def folios(gmem: GuestMemfd) -> Sequence[tuple[int, int, int]]:
    """The runs of folios of a file: first page, one past the last, order."""
    return list(gmem.model.cache.folios)


def is_model(kvm: Kvm) -> bool:
    """Whether the state behind the calls can be looked at."""
    return kvm.backend.name == "model"
