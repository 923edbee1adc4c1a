"""The modelled process: a table of descriptors over the model, speaking the Backend protocol.

This is the outermost layer of the model: it finds what a descriptor names, gives the errno of a wrong one, and hands
the request to the module that knows. It holds no rule of its own about guest memory.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from guestmem.backend import AuxKind, Boot, Exit, FileStat, PreFault, Touch
from guestmem.errors import KvmError
from guestmem.model import gmem, region, vfs
from guestmem.model.attributes import CHECKS as ATTRIBUTES_CHECKS
from guestmem.model.attributes import AttributesRequest, set_attributes
from guestmem.model.auxiliary import AUX_KINDS, RunArea
from guestmem.model.capabilities import check_extension
from guestmem.model.checks import require
from guestmem.model.files import ANONYMOUS, KVM_DEVICE, VCPU, VM, OpenFile
from guestmem.model.gmem import GuestMemfd
from guestmem.model.hostmem import AddressSpace
from guestmem.model.madvise import madvise
from guestmem.model.pools import HostPools
from guestmem.model.profiles import V7_2, Machine, Profile
from guestmem.model.vcpu import MAX_VCPU_IDS, PreFaultRequest, Vcpu
from guestmem.model.vm import Vm
from guestmem.rules import DEFAULT, Rule
from guestmem.uapi import KVM_X86_QUIRK_SLOT_ZAP_ALL, MAP_ANONYMOUS
from guestmem.units import U32_MAX, align_up

__all__ = ("Process", "VcpuFile", "VmFile")

_FIRST_FD = 1 << 16  # plain numbers in recordings name no descriptor of ours
_ST_MODE = 0o100600
F = TypeVar("F", bound=OpenFile)


class VmFile(OpenFile):
    """A VM's descriptor."""

    __slots__ = ("vm",)

    def __init__(self, vm: Vm) -> None:
        super().__init__(VM)
        self.vm = vm

    def release(self) -> None:
        """The VM lives on while vCPUs or files of it do."""
        self.vm.put()


class VcpuFile(OpenFile):
    """A vCPU's descriptor; keeps its VM alive. Mapped, it shows struct kvm_run and two more pages."""

    __slots__ = ("vcpu",)

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(VCPU)
        self.source = RunArea()
        self.vcpu = vcpu
        vcpu.vm.get()

    def release(self) -> None:
        """The vCPU itself stays with its VM; only the descriptor goes."""
        self.vcpu.vm.put()


class Process:
    """One process on a modelled host; the backend "model"."""

    name = "model"
    boot_pages = 0  # no code runs

    def __init__(self, profile: Profile = V7_2, machine: Machine | None = None, rule: Rule = DEFAULT) -> None:
        self.profile = profile
        self.machine = machine or profile.machine
        self.rule = rule
        self.pools = HostPools(dict(self.machine.pools))
        self.page_size = self.machine.geometry.base_page_size
        self.host = AddressSpace(self.page_size, self.machine.user_limit)
        self.vms: list[Vm] = []
        self._files: dict[int, OpenFile] = {0: AUX_KINDS["devnull"]()}
        self._next_fd = _FIRST_FD

    def __enter__(self) -> Process:
        return self

    def __exit__(self, type: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def open_kvm(self) -> int:
        """open("/dev/kvm")."""
        return self._install(OpenFile(KVM_DEVICE))

    def shutdown(self) -> None:
        """Close every descriptor, then unmap everything, as exit(2) does in some order."""
        for fd in list(self._files):
            self.close(fd)
        self.host.unmap_all()

    def file(self, fd: int) -> OpenFile:
        """The open file of a descriptor; EBADF."""
        file = self._raw_file(fd)
        if isinstance(file, vfs.PathFile):
            raise KvmError(errno.EBADF, f"descriptor {fd} is O_PATH", check="fd-open")
        return file

    def vm_of(self, fd: int) -> Vm:
        """The VM of a descriptor; EBADF, or ENOTTY and EINVAL as a VM ioctl on it would give."""
        file = self.file(fd)
        if not isinstance(file, VmFile):
            raise self._wrong_file(fd, file)
        return file.vm

    def vcpu_of(self, fd: int) -> Vcpu:
        """The vCPU of a descriptor; EBADF, or ENOTTY and EINVAL as a vCPU ioctl on it would give."""
        file = self.file(fd)
        if not isinstance(file, VcpuFile):
            raise self._wrong_file(fd, file)
        return file.vcpu

    def guest_memfd_of(self, fd: int) -> GuestMemfd:
        """The guest_memfd of a descriptor; EBADF, EINVAL."""
        file = self.file(fd)
        if not isinstance(file, GuestMemfd):
            raise KvmError(errno.EINVAL, f"descriptor {fd} is a {file.kind.name}", check="fd-is-guest-memfd")
        return file

    def find_file(self, fd: int) -> OpenFile | None:
        """The open file of a descriptor given as the u32 of an ioctl's argument; None if there is none."""
        file = self._files.get(fd & U32_MAX)
        return None if isinstance(file, vfs.PathFile) else file

    # -- any file ----------------------------------------------------------------------------------------------------

    def close(self, fd: int) -> None:
        """close(2)."""
        self._raw_file(fd).put()
        del self._files[fd]

    def dup(self, fd: int) -> int:
        """dup(2): another descriptor of the same open file."""
        file = self._raw_file(fd)
        file.get()
        return self._install(file)

    def reopen(self, fd: int, oflags: int) -> int:
        """open("/proc/self/fd/N"): ENXIO for anonymous inodes; ENOENT where no descriptor has that number."""
        file = self._files.get(fd)
        if file is None:
            raise KvmError(errno.ENOENT, f"no /proc/self/fd/{fd}", check="fd-open")
        return self._install(vfs.reopened(file, oflags))

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor that is no KVM object."""
        return self._install(AUX_KINDS[kind]())

    def fstat(self, fd: int) -> FileStat | None:
        """fstat(2); st_blocks stays 0, also after allocation (kvm_gmem_getattr)."""
        file = self._raw_file(fd)
        if isinstance(file, vfs.PathFile):
            file = file.named
        if not isinstance(file, GuestMemfd):
            return None
        return FileStat(file.size, 0, self.page_size, _ST_MODE, 1)

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        """fallocate(2)."""
        file = self.file(fd)
        require(vfs.FALLOCATE_CHECKS, vfs.FallocateRequest(self.profile, file, mode, offset, len))
        if isinstance(file, GuestMemfd):
            request = gmem.FallocateRequest(file, mode, offset, len)
            require(gmem.FALLOCATE_CHECKS, request)
            gmem.fallocate(request)
        else:
            vfs.fallocate_aux(file, mode, offset, len)

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""
        vfs.ftruncate(self.find_file(fd), length)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2)."""
        return vfs.lseek(self.file(fd), offset, whence)

    def read(self, fd: int, len: int) -> int:
        """read(2)."""
        return vfs.transfer(self.file(fd), "read", len)

    def write(self, fd: int, len: int) -> int:
        """write(2)."""
        return vfs.transfer(self.file(fd), "write", len)

    def pread(self, fd: int, len: int, offset: int) -> int:
        """pread(2); a negative offset is EINVAL before the descriptor is looked at."""
        return vfs.transfer_at(self.find_file(fd), "pread", len, offset)

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        """pwrite(2)."""
        return vfs.transfer_at(self.find_file(fd), "pwrite", len, offset)

    def fsync(self, fd: int) -> None:
        """fsync(2)."""
        vfs.fsync(self.file(fd))

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def check_extension(self, fd: int, cap: int) -> int:
        """KVM_CHECK_EXTENSION on /dev/kvm or on a VM."""
        file = self.file(fd)
        if isinstance(file, VmFile):
            return check_extension(self.profile, self.machine, file.vm, cap)
        if file.kind is KVM_DEVICE:
            return check_extension(self.profile, self.machine, None, cap)
        raise self._wrong_file(fd, file)

    def create_vm(self, fd: int, type: int) -> int:
        """KVM_CREATE_VM: EINVAL for a type that KVM_CAP_VM_TYPES does not report."""
        file = self.file(fd)
        if file.kind is not KVM_DEVICE:
            raise self._wrong_file(fd, file)
        if type not in self.machine.vm_types:
            raise KvmError(
                errno.EINVAL,
                f"VM type {type:#x} is not offered: {self.machine.vm_types}",
                check="vm-type-offered",
                hint="KVM_CAP_VM_TYPES has a bit for each type",
            )
        vm = Vm(type, self.profile, self.machine, self.rule, self.host, self.pools)
        self.vms.append(vm)
        return self._install(VmFile(vm))

    def disable_quirks(self, fd: int, quirks: int) -> None:
        """KVM_ENABLE_CAP with KVM_CAP_DISABLE_QUIRKS2, for the quirk that concerns memory; EINVAL for any other bit.

        Without KVM_X86_QUIRK_SLOT_ZAP_ALL a slot that goes takes along its own mappings only.
        """
        vm = self.vm_of(fd)
        if quirks & ~KVM_X86_QUIRK_SLOT_ZAP_ALL:
            raise KvmError(errno.EINVAL, f"{quirks=:#x}", check="quirk-known")
        if quirks:
            vm.slot_zap_all = False

    def create_vcpu(self, fd: int, id: int) -> int:
        """KVM_CREATE_VCPU: EINVAL for an id past the limit, EEXIST for one in use."""
        vm = self.vm_of(fd)
        if id >= MAX_VCPU_IDS:
            raise KvmError(errno.EINVAL, f"vCPU id {id:#x}, limit {MAX_VCPU_IDS}", check="vcpu-id")
        if id in vm.vcpu_ids:
            raise KvmError(errno.EEXIST, f"vCPU id {id} is in use", check="vcpu-id-free")
        vm.vcpu_ids.add(id)
        return self._install(VcpuFile(Vcpu(vm, id)))

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD; the reserved words are not looked at."""
        request = gmem.CreateRequest(self.vm_of(fd), size, flags)
        require(gmem.CREATE_CHECKS, request)
        return self._install(gmem.create(request))

    def set_user_memory_region(self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        vm = self.vm_of(fd)
        request = region.RegionRequest(vm, 1, slot, flags, gpa, size, userspace_addr, 0, 0, self.find_file)
        region.set_memory_region(request)

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
        """KVM_SET_USER_MEMORY_REGION2; the pads are not looked at."""
        region.set_memory_region(
            region.RegionRequest(
                self.vm_of(fd),
                2,
                slot,
                flags,
                gpa,
                size,
                userspace_addr,
                guest_memfd,
                guest_memfd_offset,
                self.find_file,
            )
        )

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES."""
        request = AttributesRequest(self.vm_of(fd), address, size, attributes, flags)
        require(ATTRIBUTES_CHECKS, request)
        set_attributes(request)

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFault:
        """KVM_PRE_FAULT_MEMORY on a vCPU."""
        try:
            vcpu = self.vcpu_of(fd)
        except KvmError as refused:
            return PreFault(gpa, size, refused)
        return vcpu.pre_fault(PreFaultRequest(vcpu, gpa, size, flags))

    def mapped_pages(self, fd: int) -> dict[int, int]:
        """Leaves of a VM by page size in bytes (``backend.Statistics``)."""
        vm = self.vm_of(fd)
        return {vm.page_size << order: count for order, count in vm.stage2.count().items()}

    # -- host memory -------------------------------------------------------------------------------------------------

    def anonymous(self, size: int, prot: int, align: int, page_order: int = 0) -> int:
        """Private anonymous memory; page_order is the size of the host's own mappings, which the model cannot guess."""
        return self.host.map_anonymous(size, prot, align, page_order)

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        """mmap(2) at an address of the model's choice."""
        if offset % self.page_size:
            raise KvmError(errno.EINVAL, f"{offset=:#x}", check="offset-page-aligned")
        anonymous = bool(flags & MAP_ANONYMOUS)
        file = OpenFile(ANONYMOUS) if anonymous else self.file(fd)
        request = vfs.MmapRequest(self.profile, self.page_size, file, length, prot, flags, offset)
        require(vfs.MMAP_FIRST_CHECKS, request)
        self.host.find_hole(align_up(length, self.page_size), self.page_size)
        require(vfs.MMAP_ANONYMOUS_CHECKS if anonymous else vfs.MMAP_FILE_CHECKS, request)
        if anonymous:
            return self.host.map_anonymous(length, prot, self.page_size, shared=request.shared)
        return self.host.map_file(file, length, prot, offset, shared=request.shared, may_exec=not request.noexec)

    def munmap(self, addr: int, length: int) -> None:
        """munmap(2)."""
        self.host.munmap(addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """mprotect(2)."""
        self.host.mprotect(addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """madvise(2)."""
        madvise(self.host, addr, length, advice)

    def host_read(self, addr: int, size: int) -> int:
        """A load by the process."""
        return self.host.load(addr, size)

    def host_write(self, addr: int, size: int, value: int) -> None:
        """A store by the process; nothing is stored if any byte of it cannot be."""
        self.host.store(addr, size, value)

    # -- what a test may do to the host ------------------------------------------------------------------------------

    def poison(self, fd: int, offset: int) -> None:
        """Memory failure hits the page of a guest_memfd at offset (bytes); EINVAL past the end."""
        gmem = self.guest_memfd_of(fd)
        if offset >= gmem.size:
            raise KvmError(errno.EINVAL, f"{offset=:#x}, file size {gmem.size:#x}", check="offset-in-file")
        gmem.poison(offset >> gmem.vm.page_shift)

    def set_huge_page_size(self, fd: int, page_size: int) -> None:
        """Change what a shmem-backed file takes from now on; EINVAL for other files and for sizes that do not exist."""
        gmem = self.guest_memfd_of(fd)
        try:
            gmem.cache.set_huge_order(gmem.vm.geometry.order_of(page_size))
        except ValueError as error:
            raise KvmError(errno.EINVAL, str(error), check="page-size-can-change") from error

    # -- the guest ---------------------------------------------------------------------------------------------------

    def run_touch(self, vcpu_fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Guest accesses; boot is for real kernels only."""
        vcpu = self.vcpu_of(vcpu_fd)
        return [vcpu.touch(touch) for touch in touches]

    # -- private -----------------------------------------------------------------------------------------------------

    def _raw_file(self, fd: int) -> OpenFile:
        file = self._files.get(fd)
        if file is None:
            raise KvmError(errno.EBADF, f"descriptor {fd} is not open", check="fd-open")
        return file

    def _install(self, file: OpenFile) -> int:
        fd = self._next_fd
        self._next_fd += 1
        self._files[fd] = file
        return fd

    @staticmethod
    def _wrong_file(fd: int, file: OpenFile) -> KvmError:
        return KvmError(
            file.kind.unknown_ioctl_errno, f"descriptor {fd} is a {file.kind.name}", check="fd-takes-this-ioctl"
        )
