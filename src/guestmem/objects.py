"""One object per kind of descriptor: Kvm, Vm, Vcpu, GuestMemfd, Mapping. The same on every backend.

Methods bear the ioctl's name in snake case and raise KvmError with the kernel's errno. What only a model can show
(folios, leaves, attributes) is asked through ``Kvm.model``, ``Vm.model`` and ``GuestMemfd.model``; of a real kernel
that is NotVisible.

    >>> import guestmem
    >>> with guestmem.open("model", profile="v7.2") as kvm:
    ...     vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    ...     gmem = vm.create_guest_memfd(0x200000)
    ...     hva = kvm.anonymous(0x200000)
    ...     vm.set_user_memory_region2(0, gpa=0, size=0x200000, userspace_addr=hva, guest_memfd=gmem)
    ...     vm.set_memory_attributes(0, 0x1000, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    ...     vcpu = vm.create_vcpu()
    ...     vcpu.write(0x0, 0x1234), vcpu.read(0x0), kvm.read(hva)
    ([Exit(kind='done')], 4660, 0)
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from guestmem.backend import Backend, Exit, FileStat, ShmemPolicy, Statistics, Touch
from guestmem.errors import NotVisible
from guestmem.harness import PAGE_SIZE
from guestmem.uapi import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_PRIVATE,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    RMFD_HUGE_SHIFT,
)
from guestmem.units import MIB, format_size, is_power_of_two

if TYPE_CHECKING:
    from guestmem.model.process import Process
    from guestmem.model.restrictedmem.file import RestrictedMem as ModelRestrictedMem
    from guestmem.model.vm import GuestMemfd as ModelGuestMemfd
    from guestmem.model.vm import Vm as ModelVm

__all__ = ("GuestAccessFailed", "GuestMemfd", "Kvm", "Mapping", "Pin", "RestrictedMem", "Vcpu", "Vm")

_TYPES = {KVM_X86_DEFAULT_VM: "KVM_X86_DEFAULT_VM", KVM_X86_SW_PROTECTED_VM: "KVM_X86_SW_PROTECTED_VM"}
_FLAGS = {
    GUEST_MEMFD_FLAG_MMAP: "MMAP",
    GUEST_MEMFD_FLAG_INIT_SHARED: "INIT_SHARED",
    GUEST_MEMFD_FLAG_HUGETLB: "HUGETLB",
}


class GuestAccessFailed(Exception):
    """A guest access did not complete as memory; ``exits`` says how it ended."""

    def __init__(self, exits: list[Exit]) -> None:
        super().__init__(", ".join(repr(exit) for exit in exits))
        self.exits = exits


class _Descriptor:
    """A descriptor of the backend, closed once."""

    def __init__(self, backend: Backend, fd: int) -> None:
        self.backend = backend
        self.fd = fd

    def close(self) -> None:
        """close(2); a second close is EBADF, as in the kernel."""
        self.backend.close(self.fd)

    def _made_with(self) -> dict[str, str]:
        """What is known of it since it was made, for its repr."""
        return {}

    def __repr__(self) -> str:
        shown = {**self._made_with(), "fd": str(self.fd), "backend": repr(self.backend.name)}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


class Kvm(_Descriptor):
    """/dev/kvm, and the process that has it open; leaving the block ends the process."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, backend.open_kvm())

    def __enter__(self) -> Kvm:
        return self

    def __exit__(self, type: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.backend.shutdown()

    @property
    def model(self) -> Process:
        """The modelled process; NotVisible on a real kernel."""
        return _process(self.backend)

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on the device."""
        return self.backend.check_extension(self.fd, cap)

    def create_vm(self, type: int = KVM_X86_DEFAULT_VM) -> Vm:
        """KVM_CREATE_VM; EINVAL for a type the kernel does not offer."""
        return Vm(self.backend, self.backend.create_vm(self.fd, type), type)

    def memfd_restricted(self, flags: int = 0, *, page_size: int = 0) -> RestrictedMem:
        """memfd_restricted(2): ENOSYS but for profile restrictedmem. page_size (bytes) goes into flags; ours."""
        if page_size:
            flags |= _logarithm(page_size) << RMFD_HUGE_SHIFT
        return RestrictedMem(self.backend, self.backend.memfd_restricted(flags))

    def set_shmem_enabled(self, policy: ShmemPolicy, *, page_size: int = 2 * MIB) -> None:
        """Write the host's shmem_enabled; page_size (bytes) is that of a huge page, other than 2M ours. Model only."""
        _process(self.backend).set_shmem_enabled(policy, page_size)

    def anonymous(self, size: int, *, prot: int = PROT_READ | PROT_WRITE, align: int = 2 * MIB) -> int:
        """Map size bytes of private anonymous memory at a multiple of align; the address."""
        return self.backend.anonymous(size, prot, align)

    def read(self, addr: int, size: int = 8) -> int:
        """Load size bytes as the host; HostSignal where the process would get one."""
        return self.backend.host_read(addr, size)

    def write(self, addr: int, value: int, size: int = 8) -> None:
        """Store size bytes as the host; HostSignal where the process would get one."""
        self.backend.host_write(addr, size, value)

    def check_invariants(self) -> None:
        """Verify everything the model promises; AssertionError is a bug in guestmem."""
        from guestmem.model.invariants import check_process

        check_process(self.model)


class Vm(_Descriptor):
    """A virtual machine; its repr counts the slots that were set through this object."""

    def __init__(self, backend: Backend, fd: int, type: int | None = None) -> None:
        super().__init__(backend, fd)
        self._type = type
        self._slots: set[int] = set()

    def _made_with(self) -> dict[str, str]:
        if self._type is None:
            return {}
        return {"type": _TYPES.get(self._type, str(self._type)), "slots": str(len(self._slots))}

    @property
    def model(self) -> ModelVm:
        """The modelled VM: spaces (slots), attributes, stage2, gmems; NotVisible on a real kernel."""
        return _process(self.backend).vm_of(self.fd)

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on the VM."""
        return self.backend.check_extension(self.fd, cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP with up to four words; EINVAL for what the kernel does not let a VM enable."""
        self.backend.enable_cap(self.fd, cap, args, flags)

    def create_vcpu(self, id: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU."""
        return Vcpu(self.backend, self.backend.create_vcpu(self.fd, id), id)

    def create_guest_memfd(self, size: int, flags: int = 0, *, page_size: int = 0) -> GuestMemfd:
        """KVM_CREATE_GUEST_MEMFD; size in bytes. page_size (bytes): hugetlb pages of that size (profile next).

        It becomes the flag HUGETLB, and the page_order in what is reserved elsewhere.
        """
        base = getattr(self.backend, "page_size", PAGE_SIZE)  # a model may be of another architecture
        order = _logarithm(page_size) - _logarithm(base) if page_size else 0
        if order:
            flags |= GUEST_MEMFD_FLAG_HUGETLB
        fd = self.backend.create_guest_memfd(self.fd, size, flags, (order,) if order else ())
        return GuestMemfd(self.backend, fd, size, flags, page_size if order else 0)

    def set_user_memory_region(self, slot: int, *, gpa: int, size: int, userspace_addr: int, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION; gpa, size and userspace_addr in bytes, size 0 deletes."""
        self.backend.set_user_memory_region(self.fd, slot, flags, gpa, size, userspace_addr)
        self._count(slot, size)

    def set_user_memory_region_ext(
        self,
        slot: int,
        *,
        gpa: int,
        size: int,
        userspace_addr: int = 0,
        restrictedmem: RestrictedMem,
        restricted_offset: int = 0,
        flags: int = KVM_MEM_PRIVATE,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION with kvm_userspace_memory_region_ext, as v10 of restrictedmem has it; bytes."""
        fd = restrictedmem.fd
        self.backend.set_user_memory_region(self.fd, slot, flags, gpa, size, userspace_addr, fd, restricted_offset)
        self._count(slot, size)

    def set_user_memory_region2(
        self,
        slot: int,
        *,
        gpa: int,
        size: int,
        userspace_addr: int = 0,
        guest_memfd: GuestMemfd | RestrictedMem | None = None,
        guest_memfd_offset: int = 0,
        flags: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2; addresses, size and offset in bytes. A file sets its flag."""
        fd = -1
        if guest_memfd is not None:
            fd, flags = guest_memfd.fd, flags | KVM_MEM_GUEST_MEMFD
        self.backend.set_user_memory_region2(self.fd, slot, flags, gpa, size, userspace_addr, fd, guest_memfd_offset)
        self._count(slot, size)

    def delete_region(self, slot: int) -> None:
        """Delete a slot: size 0."""
        self.set_user_memory_region2(slot, gpa=0, size=0)

    def _count(self, slot: int, size: int) -> None:
        if size:
            self._slots.add(slot)
        else:
            self._slots.discard(slot)

    def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES; address and size in bytes."""
        self.backend.set_memory_attributes(self.fd, address, size, attributes, 0)

    def mapped_pages(self) -> dict[int, int]:
        """Leaves of the second-level tables by page size in bytes; NotVisible where the backend cannot report them.

        Right after a touch, and without the pages that the backend's own guest code takes then: on every backend what
        the guest's accesses mapped.
        """
        if not isinstance(self.backend, Statistics):
            raise NotVisible(f"backend {self.backend.name!r} does not report what is mapped")
        return self.backend.mapped_pages(self.fd)


class Vcpu(_Descriptor):
    """A virtual CPU."""

    def __init__(self, backend: Backend, fd: int, id: int | None = None) -> None:
        super().__init__(backend, fd)
        self._id = id

    def _made_with(self) -> dict[str, str]:
        return {} if self._id is None else {"id": str(self._id)}

    def touch(self, touch: Touch) -> list[Exit]:
        """One guest access: every exit it took."""
        return self.backend.run_touch(self.fd, None, [touch])[0]

    def read(self, gpa: int, size: int = 8) -> int:
        """A guest load that must be answered by memory; GuestAccessFailed otherwise."""
        exits = self.touch(Touch(gpa, "r", size))
        value = exits[0].value
        if exits[0].kind != "done" or value is None:
            raise GuestAccessFailed(exits)
        return value

    def write(self, gpa: int, value: int, size: int = 8) -> list[Exit]:
        """A guest store: every exit it took."""
        return self.touch(Touch(gpa, "w", size, value))

    def fetch(self, gpa: int) -> list[Exit]:
        """A guest instruction fetch: every exit it took."""
        return self.touch(Touch(gpa, "x", 1))

    def pre_fault_memory(self, gpa: int, size: int) -> tuple[int, int]:
        """KVM_PRE_FAULT_MEMORY; what is left of the range (gpa, size in bytes) after at least one page was done."""
        done = self.backend.pre_fault_memory(self.fd, gpa, size, 0)
        if done.refused is not None:
            raise done.refused
        return done.gpa, done.size


class GuestMemfd(_Descriptor):
    """A guest_memfd."""

    def __init__(self, backend: Backend, fd: int, size: int | None = None, flags: int = 0, page_size: int = 0) -> None:
        super().__init__(backend, fd)
        self._size = size
        self._flags = flags
        self._page_size = page_size

    def _made_with(self) -> dict[str, str]:
        if self._size is None:
            return {}
        shown = {"size": format_size(self._size), "flags": _flags_text(self._flags)}
        return {**shown, "page_size": format_size(self._page_size)} if self._page_size else shown

    @property
    def model(self) -> ModelGuestMemfd:
        """The modelled file: cache (folios, contents), bindings; NotVisible on a real kernel."""
        return _process(self.backend).guest_memfd_of(self.fd)

    def allocate(self, offset: int, size: int) -> None:
        """fallocate(KEEP_SIZE); bytes."""
        self.backend.fallocate(self.fd, FALLOC_FL_KEEP_SIZE, offset, size)

    def punch_hole(self, offset: int, size: int) -> None:
        """fallocate(KEEP_SIZE | PUNCH_HOLE); bytes."""
        self.backend.fallocate(self.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size)

    def set_memory_attributes(self, offset: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2; offset and size in bytes.

        ENOTTY where attributes do not belong to files (before 7.4); EAGAIN, with ``error_offset`` in the exception,
        where a page that is to become private is held.
        """
        done = self.backend.gmem_set_memory_attributes(self.fd, offset, size, attributes, 0)
        if done.refused is not None:
            done.refused.error_offset = done.error_offset
            raise done.refused

    def make_private(self, offset: int, size: int) -> None:
        """Only the guest may use the pages from now on; their contents stay."""
        self.set_memory_attributes(offset, size, KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def make_shared(self, offset: int, size: int) -> None:
        """The host may use the pages too from now on; their contents stay on software-protected VMs."""
        self.set_memory_attributes(offset, size, 0)

    def mmap(self, length: int, *, offset: int = 0, prot: int = PROT_READ | PROT_WRITE) -> Mapping:
        """mmap(MAP_SHARED); ENODEV unless created with the MMAP flag."""
        return Mapping(self.backend, self.backend.mmap(self.fd, length, prot, MAP_SHARED, offset), length)

    def stat(self) -> FileStat:
        """fstat(2)."""
        stat = self.backend.fstat(self.fd)
        assert stat is not None
        return stat

    def dup(self) -> GuestMemfd:
        """Another descriptor of the same file."""
        return GuestMemfd(self.backend, self.backend.dup(self.fd), self._size, self._flags, self._page_size)

    def poison(self, offset: int) -> None:
        """Memory failure hits the page at offset (bytes). Model only."""
        _process(self.backend).poison(self.fd, offset)


class RestrictedMem(_Descriptor):
    """A memfd_restricted file, which is no VM's and has no size at first. Profile restrictedmem only."""

    @property
    def model(self) -> ModelRestrictedMem:
        """The modelled file: cache (folios), contents, observers; NotVisible on a real kernel."""
        return _process(self.backend).restrictedmem_of(self.fd)

    def truncate(self, size: int) -> None:
        """ftruncate(2), bytes; EPERM once there is a size."""
        self.backend.ftruncate(self.fd, size)

    def allocate(self, offset: int, size: int, *, keep_size: bool = False) -> None:
        """fallocate(2), bytes; without keep_size the file may become larger."""
        self.backend.fallocate(self.fd, FALLOC_FL_KEEP_SIZE if keep_size else 0, offset, size)

    def punch_hole(self, offset: int, size: int) -> None:
        """fallocate(KEEP_SIZE | PUNCH_HOLE); bytes."""
        self.backend.fallocate(self.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size)

    def stat(self) -> FileStat:
        """fstat(2)."""
        stat = self.backend.fstat(self.fd)
        assert stat is not None
        return stat

    def dup(self) -> RestrictedMem:
        """Another descriptor of the same file."""
        return RestrictedMem(self.backend, self.backend.dup(self.fd))

    def poison(self, offset: int) -> None:
        """Memory failure hits the page at offset (bytes); HostSignal. Model only."""
        _process(self.backend).poison(self.fd, offset)


class Pin(_Descriptor):
    """Pages of the process that are held."""


class Mapping:
    """A host mapping of a file: addr and length in bytes."""

    def __init__(self, backend: Backend, addr: int, length: int) -> None:
        self.backend = backend
        self.addr = addr
        self.length = length

    def read(self, offset: int = 0, size: int = 8) -> int:
        """Load as the host; HostSignal."""
        return self.backend.host_read(self.addr + offset, size)

    def write(self, offset: int, value: int, size: int = 8) -> None:
        """Store as the host; HostSignal."""
        self.backend.host_write(self.addr + offset, size, value)

    def unmap(self) -> None:
        """munmap(2)."""
        self.backend.munmap(self.addr, self.length)

    def pin(self, offset: int, length: int) -> Pin:
        """Hold the pages of a part, as a device does: they cannot become private until ``close``. EFAULT."""
        return Pin(self.backend, self.backend.pin(self.addr + offset, length))


def _logarithm(page_size: int) -> int:
    if not is_power_of_two(page_size):
        raise ValueError(f"page_size {page_size:#x} is not a power of two")
    return page_size.bit_length() - 1


def _flags_text(flags: int) -> str:
    """Creation flags by name, as in "MMAP|HUGETLB"; bits without a name in hexadecimal."""
    shown = [name for bit, name in _FLAGS.items() if flags & bit]
    rest = flags & ~sum(_FLAGS)
    return "|".join([*shown, *([f"{rest:#x}"] if rest else [])]) or "0"


def _process(backend: Backend) -> Process:
    from guestmem.model.process import Process

    if not isinstance(backend, Process):
        raise NotVisible(f"backend {backend.name!r} is a real kernel; it does not show its state to user space")
    return backend
