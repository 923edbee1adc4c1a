"""The modelled process: a table of descriptors over the model, speaking the Backend protocol.

This is the outermost layer of the model: it finds what a descriptor names and hands the call to the module that knows.
It holds no rule of its own about guest memory.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from guestmem.arguments import Turns, checked
from guestmem.backend import (
    SHMEM_POLICIES,
    AttributesWritten,
    AuxKind,
    Backend,
    Boot,
    ConversionResult,
    Exit,
    FileStat,
    Host,
    PreFaultResult,
    ShmemPolicy,
    Statistics,
    Touch,
)
from guestmem.errors import CallUnfinished, KvmError
from guestmem.model import create, file_calls, mmap
from guestmem.model.attributes import AttributesRequest, ConversionRequest, convert, set_attributes
from guestmem.model.auxiliary import AUX_KINDS
from guestmem.model.capabilities import check_extension, enable_cap
from guestmem.model.checks import Check, observed, require
from guestmem.model.descriptors import Descriptors, VcpuFile, VmFile
from guestmem.model.fallocate import FallocateRequest, fallocate
from guestmem.model.files import ANONYMOUS, KVM_DEVICE, OpenFile, PathFile
from guestmem.model.hostmem import AddressSpace
from guestmem.model.madvise import madvise
from guestmem.model.pin import pin
from guestmem.model.pools import HostPools
from guestmem.model.profiles import NEWEST, Machine, Profile, has_guest_memfd
from guestmem.model.region import set_memory_region
from guestmem.model.region_checks import Region
from guestmem.model.restrictedmem import attributes as restrictedmem
from guestmem.model.restrictedmem.calls import CreationRequest, memfd_restricted
from guestmem.model.restrictedmem.file import RestrictedMem
from guestmem.model.restrictedmem.shmem import Shmem
from guestmem.model.vcpu import PreFaultRequest, Vcpu
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.rules import Rule
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, MAP_ANONYMOUS

__all__ = ("Process",)

_ST_MODE = 0o100600

OFFSET_IN_FILE: Check[tuple[GuestMemfd, int]] = Check(
    "offset-in-file",
    errno.EINVAL,
    "the offset must be inside the file",
    "fault injection",
    lambda asked: asked[1] < asked[0].size,
    lambda asked: f"offset={asked[1]:#x} file size {asked[0].size:#x}",
)
SHMEM_CHECKS: tuple[Check[tuple[Shmem, ShmemPolicy, int]], ...] = (
    Check(
        "policy-known",
        errno.EINVAL,
        "the policy must be a word of shmem_enabled",
        "shmem_enabled_store",
        lambda asked: asked[1] in SHMEM_POLICIES,
        lambda asked: f"policy {asked[1]!r:.40}, there are {', '.join(SHMEM_POLICIES)}",
    ),
    Check(
        "page-size-known",
        errno.EINVAL,
        "a huge page must be a leaf size of the host",
        "ours: Linux has one size",
        lambda asked: asked[2] in asked[0].geometry.page_sizes,
        lambda asked: f"page size {asked[2]:#x}, geometry {asked[0].geometry.name}",
    ),
)


@checked(Backend, Host, Statistics, in_turns=True)
class Process(Descriptors, Backend, Host, Statistics):
    """One process on a modelled host; the backend "model". The protocols say what each call does."""

    name = "model"
    boot_pages = 0  # no code runs

    def __init__(self, profile: Profile = NEWEST, machine: Machine | None = None, rule: Rule | None = None) -> None:
        super().__init__()
        self.turns = Turns()
        self.profile = profile
        self.machine = machine or profile.machine
        self.rule = profile.rule if rule is None else rule
        self.pools = HostPools(dict(self.machine.pools))
        self.shmem = Shmem(self.machine.geometry, self.pools)
        self.page_size = self.machine.geometry.base_page_size
        self.host = AddressSpace(self.page_size, self.machine.user_limit)
        self.vms: list[Vm] = []

    def __enter__(self) -> Process:
        return self

    def __exit__(self, type: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def open_kvm(self) -> int:
        """open("/dev/kvm")."""
        return self.install(OpenFile(KVM_DEVICE))

    def shutdown(self) -> None:
        """Close every descriptor, then unmap everything, as exit(2) does; after a call that was cut short, nothing."""
        with suppress(CallUnfinished):
            self.close_all()
            self.host.unmap_all()

    # -- any file ----------------------------------------------------------------------------------------------------

    def reopen(self, fd: int, oflags: int) -> int:
        """open("/proc/self/fd/N"): ENXIO for anonymous inodes; ENOENT where no descriptor has that number."""
        return self.install(file_calls.reopen(self.file_by_name(fd), oflags))

    def open_aux(self, kind: AuxKind) -> int:
        """A descriptor that is not KVM's."""
        return self.install(AUX_KINDS[kind]())

    def fstat(self, fd: int) -> FileStat | None:
        """fstat(2); st_blocks stays 0, also after allocation (kvm_gmem_getattr)."""
        file = self.named_file(fd)
        if isinstance(file, PathFile):
            file = file.named
        if isinstance(file, RestrictedMem):
            return file.stat()
        if not isinstance(file, GuestMemfd):
            return None
        return FileStat(file.size, 0, self.page_size, _ST_MODE, 1)

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        fallocate(FallocateRequest(self.profile, self.file(fd), mode, offset, len))

    def ftruncate(self, fd: int, length: int) -> None:
        file_calls.ftruncate(self.find_file(fd), length)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return file_calls.lseek(self.file(fd), offset, whence)

    def read(self, fd: int, len: int) -> int:
        return file_calls.transfer(self.file(fd), "read", len)

    def write(self, fd: int, len: int) -> int:
        return file_calls.transfer(self.file(fd), "write", len)

    def pread(self, fd: int, len: int, offset: int) -> int:
        """pread(2); a negative offset is EINVAL before the descriptor is looked at."""
        return file_calls.transfer_at(self.find_file(fd), "pread", len, offset)

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        return file_calls.transfer_at(self.find_file(fd), "pwrite", len, offset)

    def fsync(self, fd: int) -> None:
        file_calls.fsync(self.file(fd))

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def check_extension(self, fd: int, cap: int) -> int:
        """KVM_CHECK_EXTENSION on /dev/kvm or on a VM."""
        file = self.file(fd)
        vm = file.vm if isinstance(file, VmFile) else None
        self.require_kind(fd, file, passed=vm is not None or file.kind is KVM_DEVICE)
        return check_extension(self.profile, self.machine, vm, cap)

    def enable_cap(self, fd: int, cap: int, args: Sequence[int], flags: int = 0) -> None:
        """KVM_ENABLE_CAP on a VM: only quirks can be disabled."""
        enable_cap(self.vm_of(fd), cap, args, flags)

    def create_vm(self, fd: int, type: int) -> int:
        """KVM_CREATE_VM: EINVAL for a type that KVM_CAP_VM_TYPES does not report."""
        file = self.file(fd)
        self.require_kind(fd, file, passed=file.kind is KVM_DEVICE)
        require(create.VM_CHECKS, (self.machine, type))
        vm = Vm(type, self.profile, self.machine, self.rule, self.host, self.pools)
        self.vms.append(vm)
        return self.install(VmFile(vm))

    def create_vcpu(self, fd: int, id: int) -> int:
        """KVM_CREATE_VCPU: EINVAL for an id past the limit, EEXIST for one in use."""
        vm = self.vm_of(fd)
        require(create.VCPU_CHECKS, (vm, id))
        vm.vcpu_ids.add(id)
        return self.install(VcpuFile(Vcpu(vm, id)))

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        """KVM_CREATE_GUEST_MEMFD."""
        vm = self.vm_of(fd)
        self._require_known(fd, known=has_guest_memfd(self.profile, self.machine))
        return self.install(create.create_guest_memfd(create.GuestMemfdRequest(vm, size, flags, reserved)))

    def memfd_restricted(self, flags: int) -> int:
        """memfd_restricted(2): ENOSYS but for profile restrictedmem."""
        return self.install(memfd_restricted(CreationRequest(self.profile.revision, self.shmem, flags)))

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
        """KVM_SET_USER_MEMORY_REGION; the last two are read by v10 of restrictedmem only."""
        revision = self.profile.revision
        if revision is None or not revision.extended_v1:  # upm reads them too, from where nothing was copied to
            restricted_fd, restricted_offset = -1, 0
        region = Region(1, slot, flags, gpa, size, userspace_addr, restricted_fd, restricted_offset)
        set_memory_region(self.vm_of(fd), region, self._file_for(region))

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
        vm, revision = self.vm_of(fd), self.profile.revision
        self._require_known(fd, known=revision is None or not revision.extended_v1)
        region = Region(2, slot, flags, gpa, size, userspace_addr, guest_memfd, guest_memfd_offset)
        set_memory_region(vm, region, self._file_for(region))

    def _file_for(self, region: Region) -> OpenFile | None:
        return self.find_file(region.fd) if region.flags & KVM_MEM_GUEST_MEMFD else None

    def _require_known(self, fd: int, *, known: bool) -> None:
        """An ioctl that the kernel does not have is one for another kind of descriptor."""
        if not known or observed():
            self.require_kind(fd, self.file(fd), passed=known)

    def set_memory_attributes(
        self, fd: int, address: int, size: int, attributes: int, flags: int
    ) -> AttributesWritten | None:
        """KVM_SET_MEMORY_ATTRIBUTES; profile restrictedmem writes back what is left to do."""
        request = AttributesRequest(self.vm_of(fd), address, size, attributes, flags)
        if self.profile.revision is not None:
            return restrictedmem.set_attributes(request)
        set_attributes(request)
        return None

    def gmem_set_memory_attributes(
        self, fd: int, offset: int, size: int, attributes: int, flags: int, reserved: Sequence[int] = ()
    ) -> ConversionResult:
        """KVM_SET_MEMORY_ATTRIBUTES2: ENOTTY unless attributes belong to files."""
        try:
            file = self.file(fd)
            in_place = isinstance(file, GuestMemfd) and file.vm.in_place
            self.require_kind(fd, file, passed=in_place)
            assert isinstance(file, GuestMemfd)
            return convert(ConversionRequest(file, offset, size, attributes, flags, reserved))
        except KvmError as refused:
            return ConversionResult(refused=refused)

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        try:
            vcpu = self.vcpu_of(fd)
            self._require_known(fd, known=self.profile.revision is None)
        except KvmError as refused:
            return PreFaultResult(gpa, size, refused)
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
        require(mmap.OFFSET_CHECKS, (offset, self.page_size))
        file = OpenFile(ANONYMOUS) if flags & MAP_ANONYMOUS else self.file(fd)
        return mmap.mmap(self.host, mmap.MmapRequest(self.profile, self.page_size, file, length, prot, flags, offset))

    def munmap(self, addr: int, length: int) -> None:
        mmap.munmap(self.host, addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        mmap.mprotect(self.host, addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> None:
        madvise(self.host, addr, length, advice)

    def host_read(self, addr: int, size: int) -> int:
        """A load by the process."""
        return self.host.load(addr, size)

    def host_write(self, addr: int, size: int, value: int) -> None:
        """A store by the process; nothing is stored if any byte of it cannot be."""
        self.host.store(addr, size, value)

    def pin(self, addr: int, length: int) -> int:
        """Hold a reference to each page of the range, as vmsplice(2) into a pipe does; EFAULT."""
        return self.install(pin(self.host, addr, length))

    # -- what a test may do to the host ------------------------------------------------------------------------------

    def poison(self, fd: int, offset: int) -> None:
        """Memory failure hits the page of a file at offset (bytes); EINVAL past the end of a guest_memfd."""
        file = self.file(fd)
        if isinstance(file, RestrictedMem):
            file.poison(offset // self.page_size)
            return
        gmem = self.guest_memfd_of(fd)
        require((OFFSET_IN_FILE,), (gmem, offset))
        gmem.poison(offset >> gmem.vm.page_shift)

    def set_shmem_enabled(self, policy: ShmemPolicy, page_size: int) -> None:
        """Write the host's setting, which restrictedmem files ask at each allocation; EINVAL."""
        require(SHMEM_CHECKS, (self.shmem, policy, page_size))
        self.shmem.set(policy, page_size)

    # -- the guest ---------------------------------------------------------------------------------------------------

    def run_touch(self, vcpu_fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Guest accesses; boot is for real kernels only."""
        vcpu = self.vcpu_of(vcpu_fd)
        return [vcpu.touch(touch) for touch in touches]
