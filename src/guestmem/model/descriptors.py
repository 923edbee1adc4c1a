"""The descriptors of the modelled process: what a number names, and the errno of a wrong one."""

from __future__ import annotations

import errno
from typing import TypeVar

from guestmem.model.auxiliary import AUX_KINDS, RunArea
from guestmem.model.checks import Check, observed, require
from guestmem.model.files import VCPU, VM, OpenFile, PathFile
from guestmem.model.restrictedmem.file import RestrictedMem
from guestmem.model.vcpu import Vcpu
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.units import U32_MAX

__all__ = ("Descriptors", "VcpuFile", "VmFile")

_FIRST_FD = 1 << 16  # plain numbers in recordings name no descriptor of ours
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


_Named = tuple[int, OpenFile | None]


def _say(named: _Named) -> str:
    fd, file = named
    return f"descriptor {fd} is {'not open' if file is None else file.kind.name}"


def _must_be_open(errno: int, rule: str, source: str) -> Check[_Named]:
    return Check("descriptor-open", errno, rule, source, lambda named: named[1] is not None, _say)


NAME_EXISTS = _must_be_open(errno.ENOENT, "/proc/self/fd must have the number", "proc_lookupfd_common")
FD_EXISTS = _must_be_open(errno.EBADF, "the descriptor must be open", "fdget_raw")
FD_OPEN: Check[_Named] = Check(
    "descriptor-open",
    errno.EBADF,
    "the descriptor must be open, and not as a path only (O_PATH)",
    "fdget",
    lambda named: named[1] is not None and not isinstance(named[1], PathFile),
    _say,
)


def _must_be(kind: type[OpenFile], name: str) -> Check[_Named]:
    return Check(
        f"fd-is-{name.replace('_', '-')}",
        errno.EINVAL,
        f"the descriptor must be a {name}",
        "fault injection",
        lambda named: isinstance(named[1], kind),
        _say,
    )


FD_IS_GUEST_MEMFD = _must_be(GuestMemfd, "guest_memfd")
FD_IS_RESTRICTEDMEM = _must_be(RestrictedMem, "restrictedmem")

FD_TAKES_IOCTL: Check[tuple[int, OpenFile, bool]] = Check(
    "fd-takes-this-ioctl",
    lambda asked: asked[1].kind.unknown_ioctl_errno,
    "the descriptor must be of the kind that the ioctl is for",
    "vfs_ioctl",
    lambda asked: asked[2],
    lambda asked: _say(asked[:2]),
)


class Descriptors:
    """A table of descriptors."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {0: AUX_KINDS["devnull"]()}
        self._next_fd = _FIRST_FD

    def file(self, fd: int) -> OpenFile:
        """The open file of a descriptor; EBADF."""
        file = self._files.get(fd)
        if file is None or isinstance(file, PathFile) or observed():
            require((FD_OPEN,), (fd, file))
        assert file is not None
        return file

    def named_file(self, fd: int) -> OpenFile:
        """The same, or the file that an O_PATH descriptor names; EBADF."""
        return self._found(fd, FD_EXISTS)

    def find_file(self, fd: int) -> OpenFile | None:
        """The open file of a descriptor given as the u32 of an ioctl's argument; None if there is none."""
        file = self._files.get(fd & U32_MAX)
        return None if isinstance(file, PathFile) else file

    def file_by_name(self, fd: int) -> OpenFile:
        """The file that /proc/self/fd names; ENOENT."""
        return self._found(fd, NAME_EXISTS)

    def vm_of(self, fd: int) -> Vm:
        """The VM of a descriptor; EBADF, or ENOTTY and EINVAL as a VM ioctl on it would give."""
        file = self._files.get(fd)
        if not isinstance(file, VmFile) or observed():
            file = self._checked(fd, VmFile)
        return file.vm

    def vcpu_of(self, fd: int) -> Vcpu:
        """The vCPU of a descriptor; EBADF, or ENOTTY and EINVAL as a vCPU ioctl on it would give."""
        file = self._files.get(fd)
        if not isinstance(file, VcpuFile) or observed():
            file = self._checked(fd, VcpuFile)
        return file.vcpu

    def guest_memfd_of(self, fd: int) -> GuestMemfd:
        """The guest_memfd of a descriptor; EBADF, EINVAL."""
        file = self.file(fd)
        require((FD_IS_GUEST_MEMFD,), (fd, file))
        assert isinstance(file, GuestMemfd)
        return file

    def restrictedmem_of(self, fd: int) -> RestrictedMem:
        """The memfd_restricted file of a descriptor; EBADF, EINVAL."""
        file = self.file(fd)
        require((FD_IS_RESTRICTEDMEM,), (fd, file))
        assert isinstance(file, RestrictedMem)
        return file

    def require_kind(self, fd: int, file: OpenFile, *, passed: bool) -> None:
        """ENOTTY or EINVAL unless the file is of the kind that an ioctl is for."""
        if not passed or observed():
            require((FD_TAKES_IOCTL,), (fd, file, passed))

    def install(self, file: OpenFile) -> int:
        """A new descriptor of the file."""
        fd = self._next_fd
        self._next_fd += 1
        self._files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        """close(2)."""
        self.named_file(fd).put()
        del self._files[fd]

    def dup(self, fd: int) -> int:
        """dup(2): another descriptor of the same open file."""
        file = self.named_file(fd)
        file.get()
        return self.install(file)

    def close_all(self) -> None:
        """Close every descriptor."""
        for fd in list(self._files):
            self.close(fd)

    def _found(self, fd: int, check: Check[_Named]) -> OpenFile:
        file = self._files.get(fd)
        require((check,), (fd, file))
        assert file is not None
        return file

    def _checked(self, fd: int, wanted: type[F]) -> F:
        file = self.file(fd)
        self.require_kind(fd, file, passed=isinstance(file, wanted))
        assert isinstance(file, wanted)
        return file
