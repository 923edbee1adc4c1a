"""This process as a backend: its descriptors and the KVM ioctls on them.

Every call goes to the kernel with the numbers it was given and comes back with the kernel's errno; nothing is checked
here. What is remembered is what the end of the backend must undo, and which descriptors are vCPUs of which VM. Not
thread-safe.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from types import TracebackType

from guestmem.arguments import checked
from guestmem.backend import (
    AuxKind,
    Backend,
    Boot,
    ConversionResult,
    Exit,
    FileStat,
    PreFaultResult,
    Statistics,
    Touch,
)
from guestmem.errors import BackendUnavailable, KvmError, NotVisible
from guestmem.kvm import statistics, structs
from guestmem.kvm.deadline import Interrupt
from guestmem.kvm.files import Files, open_device
from guestmem.kvm.guest import BOOT_PAGES
from guestmem.kvm.machines import Machines
from guestmem.kvm.memory import Memory
from guestmem.kvm.vcpu import ioctl
from guestmem.units import U64_MAX

__all__ = ("KvmBackend",)

_PRE_FAULT_SECONDS = 5


@checked(Backend, Statistics)
class KvmBackend(Backend, Statistics):
    """Backend "kvm": the calls of ``guestmem.backend.Backend`` on /dev/kvm of this machine (x86-64).

    run_limit_s bounds every KVM_RUN, in whole seconds: EINTR. BackendUnavailable, saying what is missing, if the
    machine is of another architecture or has no usable /dev/kvm.
    """

    name = "kvm"
    boot_pages = BOOT_PAGES

    def __init__(self, run_limit_s: int = 5) -> None:
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            machine = f"{platform.system()} on {platform.machine()}"
            raise BackendUnavailable(f"the guest's code is for Linux on x86-64, not {machine}; use the model")
        self._files = Files()
        self._memory = Memory()
        self._machines = Machines(self._memory, run_limit_s)

    def __enter__(self) -> KvmBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def open_kvm(self) -> int:
        """open("/dev/kvm", O_RDWR); BackendUnavailable."""
        return self._files.installed(open_device())

    def shutdown(self) -> None:
        """Close every descriptor and unmap everything that was made here."""
        for fd in self._files.open_now():
            self.close(fd)
        self._memory.unmap_all()

    # -- any file ---------------------------------------------------------------------------------------------------

    def close(self, fd: int) -> None:
        self._files.close(fd)
        self._machines.closed(fd)

    def dup(self, fd: int) -> int:
        copy = self._files.dup(fd)
        self._machines.duplicated(fd, copy)
        return copy

    def reopen(self, fd: int, oflags: int) -> int:
        """open(2) of /proc/self/fd/N."""
        return self._files.reopen(fd, oflags)

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor of another kind."""
        return self._files.open_aux(kind)

    def fstat(self, fd: int) -> FileStat | None:
        return self._files.fstat(fd)

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        self._files.fallocate(fd, mode, offset, len)

    def ftruncate(self, fd: int, length: int) -> None:
        self._files.ftruncate(fd, length)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return self._files.lseek(fd, offset, whence)

    def read(self, fd: int, len: int) -> int:
        return self._files.transfer("read", fd, len)

    def write(self, fd: int, len: int) -> int:
        """write(2) of zeros."""
        return self._files.transfer("write", fd, len)

    def pread(self, fd: int, len: int, offset: int) -> int:
        return self._files.transfer_at("pread", fd, len, offset)

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        """pwrite(2) of zeros."""
        return self._files.transfer_at("pwrite", fd, len, offset)

    def fsync(self, fd: int) -> None:
        self._files.fsync(fd)

    # -- ioctls -----------------------------------------------------------------------------------------------------

    def check_extension(self, fd: int, cap: int) -> int:
        return ioctl(fd, "KVM_CHECK_EXTENSION", cap, f"{fd=}, {cap=}")

    def enable_cap(self, fd: int, cap: int, args: Sequence[int], flags: int = 0) -> None:
        block = structs.ENABLE_CAP.pack(cap=cap, flags=flags, args=args)
        ioctl(fd, "KVM_ENABLE_CAP", block, f"{fd=}, {cap=}, {flags=:#x}, args={[hex(arg) for arg in args]}")

    def create_vm(self, fd: int, type: int) -> int:
        vm = self._files.installed(ioctl(fd, "KVM_CREATE_VM", type, f"{fd=}, {type=:#x}"))
        self._machines.created_vm(vm)
        return vm

    def create_vcpu(self, fd: int, id: int) -> int:
        vcpu = self._files.installed(ioctl(fd, "KVM_CREATE_VCPU", id, f"{fd=}, {id=:#x}"))
        self._machines.created_vcpu(fd, vcpu)
        return vcpu

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        block = structs.CREATE_GUEST_MEMFD.pack(size=size, flags=flags, reserved=reserved)
        values = f"{fd=}, {size=:#x}, {flags=:#x}"
        return self._files.installed(ioctl(fd, "KVM_CREATE_GUEST_MEMFD", block, values))

    def memfd_restricted(self, flags: int) -> int:
        """Number 451 of the patches is cachestat(2) today, so it is not called: NotVisible."""
        raise NotVisible("memfd_restricted was never merged, and its number is another call's: only a model has it")

    def set_user_memory_region(
        self,
        fd: int,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        userspace_addr: int,
        restricted_fd: int = -1,
        restricted_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: 32 bytes, without the last two."""
        values = f"{fd=}, {slot=:#x}, {flags=:#x}, {gpa=:#x}, {size=:#x}, {userspace_addr=:#x}"
        block = structs.REGION.pack(
            slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=userspace_addr
        )
        ioctl(fd, "KVM_SET_USER_MEMORY_REGION", block, values)

    def set_user_memory_region2(
        self,
        fd: int,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        userspace_addr: int,
        guest_memfd: int,
        guest_memfd_offset: int,
        pad1: int = 0,
        pad2: Sequence[int] = (),
    ) -> None:
        values = f"{fd=}, {slot=:#x}, {flags=:#x}, {gpa=:#x}, {size=:#x}, {userspace_addr=:#x}"
        block = structs.REGION2.pack(
            slot=slot,
            flags=flags,
            guest_phys_addr=gpa,
            memory_size=size,
            userspace_addr=userspace_addr,
            guest_memfd_offset=guest_memfd_offset,
            guest_memfd=guest_memfd,
            pad1=pad1,
            pad2=pad2,
        )
        ioctl(fd, "KVM_SET_USER_MEMORY_REGION2", block, f"{values}, {guest_memfd=}, {guest_memfd_offset=:#x}")

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None:
        block = structs.MEMORY_ATTRIBUTES.pack(address=address, size=size, attributes=attributes, flags=flags)
        values = f"{fd=}, {address=:#x}, {size=:#x}, {attributes=:#x}, {flags=:#x}"
        ioctl(fd, "KVM_SET_MEMORY_ATTRIBUTES", block, values)

    def gmem_set_memory_attributes(
        self, fd: int, offset: int, size: int, attributes: int, flags: int, reserved: Sequence[int] = ()
    ) -> ConversionResult:
        """KVM_SET_MEMORY_ATTRIBUTES2, once: EAGAIN is not tried again."""
        fields = {"offset": offset, "size": size, "attributes": attributes, "flags": flags}
        block = structs.MEMORY_ATTRIBUTES2.pack(**fields, error_offset=U64_MAX, reserved=reserved)
        refused: KvmError | None = None
        try:
            ioctl(fd, "KVM_SET_MEMORY_ATTRIBUTES2", block, f"{fd=}, {offset=:#x}, {size=:#x}, {attributes=:#x}")
        except KvmError as error:
            refused = error
        written = structs.MEMORY_ATTRIBUTES2.get(block, "error_offset")
        return ConversionResult(None if written == U64_MAX else written, refused)

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY, once: neither EINTR nor EAGAIN is tried again. EINTR also when it takes too long."""
        block = structs.PRE_FAULT_MEMORY.pack(gpa=gpa, size=size, flags=flags)
        refused: KvmError | None = None
        try:
            with Interrupt(_PRE_FAULT_SECONDS):
                ioctl(fd, "KVM_PRE_FAULT_MEMORY", block, f"{fd=}, {gpa=:#x}, {size=:#x}, {flags=:#x}")
        except KvmError as error:
            refused = error
        gpa_out, size_out = (structs.PRE_FAULT_MEMORY.get(block, name) for name in ("gpa", "size"))
        return PreFaultResult(gpa_out, size_out, refused)

    def mapped_pages(self, fd: int) -> dict[int, int]:
        """Leaves of a VM by page size in bytes (``backend.Statistics``)."""
        return statistics.mapped_pages(fd)

    # -- host memory ------------------------------------------------------------------------------------------------

    def anonymous(self, size: int, prot: int, align: int) -> int:
        """Private anonymous memory at a multiple of align."""
        return self._memory.anonymous(size, prot, align)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        return self._memory.mmap(fd, length, prot, flags, offset)

    def munmap(self, addr: int, length: int) -> None:
        self._memory.munmap(addr, length)
        self._machines.unmapped(addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        self._memory.mprotect(addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> None:
        self._memory.madvise(addr, length, advice)

    def host_read(self, addr: int, size: int) -> int:
        """One load of 1, 2, 4 or 8 bytes; HostSignal."""
        return self._memory.load(addr, size)

    def host_write(self, addr: int, size: int, value: int) -> None:
        """One store of 1, 2, 4 or 8 bytes; HostSignal."""
        self._memory.store(addr, size, value)

    def pin(self, addr: int, length: int) -> int:
        return self._files.pin(addr, length)

    # -- the guest --------------------------------------------------------------------------------------------------

    def run_touch(self, vcpu_fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Guest accesses; boot None sets slot 1000 at GPA 0xd0000000 before the VM's first run."""
        return self._machines.run_touch(vcpu_fd, boot, touches)
