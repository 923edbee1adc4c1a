"""A program's calls as operations of a recording: each is run as one, written down, and shown to whoever listens.

Stands between the supervisor and the model of a process. Descriptors become handles; the program's memory behind a slot
becomes a mapping of the recording. What guest code does is no operation, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from guestmem.backend import FileStat, PreFaultResult
from guestmem.errors import KvmError, errno_number
from guestmem.exec.hearing import OperationListener, Regions
from guestmem.exec.spaces import Calls
from guestmem.harness import PAGE_SIZE
from guestmem.model.process import Process
from guestmem.recordings import calls, ioctls
from guestmem.recordings.operation import HostAddress, Operation
from guestmem.recordings.outcome import Answered
from guestmem.recordings.runner import Runner
from guestmem.runmap import RunMap
from guestmem.uapi import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE

__all__ = ("Recorder",)

_LONGEST_READ: Final = 1 << 30  # that a recording may ask for


class Recorder(Calls):
    """One process of the program."""

    def __init__(
        self, sequence: str, process: Process, regions: Regions, listeners: Sequence[OperationListener]
    ) -> None:
        self._sequence, self._process, self._regions, self._listeners = sequence, process, regions, listeners
        self._runner = Runner(process)
        self._handles: dict[int, str] = {}
        self._mapped: dict[int, list[str]] = {}  # descriptor -> mappings of it
        self._known: RunMap[tuple[str, int]] = RunMap()  # addresses -> the mapping's name and start
        self._counts: dict[str, int] = {}

    # -- files -------------------------------------------------------------------------------------------------------

    def open_kvm(self) -> int:
        """No operation: a recording has /dev/kvm open."""
        fd = self._process.open_kvm()
        self._handles[fd] = "kvm"
        return fd

    def close(self, fd: int) -> None:
        if self._handles.get(fd) == "kvm":
            self._process.close(fd)
            return
        for name in self._mapped.pop(fd, ()):
            self._run(calls.Munmap(seq=self._sequence, i=0, map=name))
        self._run(calls.Close(seq=self._sequence, i=0, fd=self._handle(fd)))
        self._handles.pop(fd, None)

    def reopen(self, fd: int, oflags: int) -> int:
        out = self._new("fd")
        return self._made(calls.Reopen(seq=self._sequence, i=0, fd=self._handle(fd), out=out, oflags=oflags), out)

    def fstat(self, fd: int) -> FileStat | None:
        self._run(calls.Fstat(seq=self._sequence, i=0, fd=self._handle(fd)))
        return self._process.fstat(fd)

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        self._run(calls.Fallocate(seq=self._sequence, i=0, fd=self._handle(fd), mode=mode, offset=offset, len=len))

    def ftruncate(self, fd: int, length: int) -> None:
        self._run(calls.Ftruncate(seq=self._sequence, i=0, fd=self._handle(fd), length=length))

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return self._number(calls.Lseek(seq=self._sequence, i=0, fd=self._handle(fd), offset=offset, whence=whence))

    def read(self, fd: int, len: int) -> int:
        return self._number(calls.Read(seq=self._sequence, i=0, fd=self._handle(fd), len=min(len, _LONGEST_READ)))

    def write(self, fd: int, len: int) -> int:
        return self._number(calls.Write(seq=self._sequence, i=0, fd=self._handle(fd), len=min(len, _LONGEST_READ)))

    def pread(self, fd: int, len: int, offset: int) -> int:
        length = min(len, _LONGEST_READ)
        return self._number(calls.Pread(seq=self._sequence, i=0, fd=self._handle(fd), len=length, offset=offset))

    def pwrite(self, fd: int, len: int, offset: int) -> int:
        length = min(len, _LONGEST_READ)
        return self._number(calls.Pwrite(seq=self._sequence, i=0, fd=self._handle(fd), len=length, offset=offset))

    def fsync(self, fd: int) -> None:
        self._run(calls.Fsync(seq=self._sequence, i=0, fd=self._handle(fd)))

    def mmap(self, fd: int, length: int, prot: int, flags: int, offset: int) -> int:
        name = self._new("map")
        handle = self._handle(fd)
        self._run(
            calls.Mmap(
                seq=self._sequence, i=0, fd=handle, length=length, prot=prot, flags=flags, offset=offset, out=name
            )
        )
        self._mapped.setdefault(fd, []).append(name)
        return self._runner.handles.at(name, "", 0)

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def check_extension(self, fd: int, cap: int) -> int:
        return self._number(ioctls.CheckExtension(seq=self._sequence, i=0, on=self._handle(fd), cap=cap))

    def enable_cap(self, fd: int, cap: int, args: Sequence[int], flags: int = 0) -> None:
        operation = ioctls.EnableCap(
            seq=self._sequence, i=0, on=self._handle(fd), cap=cap, args=list(args), flags=flags
        )
        self._run(operation)

    def create_vm(self, fd: int, type: int) -> int:
        out = self._new("vm")
        return self._made(ioctls.CreateVm(seq=self._sequence, i=0, type=type, out=out, on=self._handle(fd)), out)

    def create_vcpu(self, fd: int, id: int) -> int:
        out = self._new("vcpu")
        return self._made(ioctls.CreateVcpu(seq=self._sequence, i=0, vm=self._handle(fd), id=id, out=out), out)

    def create_guest_memfd(self, fd: int, size: int, flags: int, reserved: Sequence[int] = ()) -> int:
        out = self._new("gm")
        words = list(reserved) if any(reserved) else []
        operation = ioctls.CreateGuestMemfd(
            seq=self._sequence, i=0, vm=self._handle(fd), size=size, flags=flags, out=out, reserved=words
        )
        return self._made(operation, out)

    def set_user_memory_region(self, fd: int, slot: int, flags: int, gpa: int, size: int, userspace_addr: int) -> None:
        where = self._address(userspace_addr, size)
        self._run(
            ioctls.SetUserMemoryRegion(
                seq=self._sequence,
                i=0,
                vm=self._handle(fd),
                slot=slot,
                flags=flags,
                gpa=gpa,
                size=size,
                userspace_addr=where,
            )
        )

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
        where = self._address(userspace_addr, size)
        self._run(
            ioctls.SetUserMemoryRegion2(
                seq=self._sequence,
                i=0,
                vm=self._handle(fd),
                slot=slot,
                flags=flags,
                gpa=gpa,
                size=size,
                userspace_addr=where,
                guest_memfd=self._handle(guest_memfd),
                guest_memfd_offset=guest_memfd_offset,
                pad1=pad1,
                pad2=list(pad2) if any(pad2) else 0,
            )
        )

    def set_memory_attributes(self, fd: int, address: int, size: int, attributes: int, flags: int) -> None:
        self._run(
            ioctls.SetMemoryAttributes(
                seq=self._sequence,
                i=0,
                vm=self._handle(fd),
                address=address,
                size=size,
                attributes=attributes,
                flags=flags,
            )
        )

    def pre_fault_memory(self, fd: int, gpa: int, size: int, flags: int) -> PreFaultResult:
        operation = ioctls.PreFault(seq=self._sequence, i=0, vcpu=self._handle(fd), gpa=gpa, size=size, flags=flags)
        answered = self._answered(operation)
        done = answered.operation
        assert done.gpa_out is not None, "bug in guestmem: a pre-fault writes back what is left"
        assert done.size_out is not None, "bug in guestmem: a pre-fault writes back what is left"
        return PreFaultResult(done.gpa_out, done.size_out, _refusal(answered))

    # -- private -----------------------------------------------------------------------------------------------------

    def _run(self, operation: Operation) -> None:
        refused = _refusal(self._answered(operation))
        if refused is not None:
            raise refused

    def _answered(self, operation: Operation) -> Answered[Any]:
        outcome = self._runner.run(operation)
        assert isinstance(outcome, Answered), f"bug in guestmem: {operation.name()} was not answered: {outcome}"
        for listener in self._listeners:
            listener(outcome.operation, outcome.check, outcome.reason)
        return outcome

    def _number(self, operation: Operation) -> int:
        answered = self._answered(operation)
        refused = _refusal(answered)
        if refused is not None:
            raise refused
        return int(answered.operation.result)

    def _made(self, operation: Operation, out: str) -> int:
        self._run(operation)
        fd = self._runner.handles.fd(out)
        self._handles[fd] = out
        return fd

    def _handle(self, fd: int) -> str | int:
        """The name of a descriptor; a file of the program's own that is no object of ours gets one when it is used."""
        name = self._handles.get(fd)
        if name is None and fd and self._process.find_file(fd) is not None:
            name = self._new("other")
            self._made(calls.OpenAux(seq=self._sequence, i=0, kind="devnull", out=name), name)
            self._handles[fd] = name
        return fd if name is None else name

    def _new(self, kind: str) -> str:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}{number}"

    def _address(self, address: int, size: int) -> HostAddress:
        """A userspace_addr as a place in a mapping of the recording; as a number where the program has no memory."""
        if address % PAGE_SIZE == 0:
            known = self._known.get(address)
            if known is None and size:
                known = self._map(address, size)
            if known is not None:
                return HostAddress(map=known[0], off=address - known[1])
        return HostAddress(abs=address)

    def _map(self, address: int, size: int) -> tuple[str, int] | None:
        region = self._regions(address, size)
        if region is None:
            return None
        start, end = next(
            (gap for gap in self._known.gaps(region.start, region.end) if gap[0] <= address < gap[1]),
            (region.start, region.end),
        )
        prot = PROT_READ | PROT_WRITE
        if region.fd >= 0:
            flags, handle = MAP_SHARED, self._handle(region.fd)
        else:
            flags, handle = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1
        name = self._new("map")
        offset = region.offset + start - region.start
        operation = calls.Mmap(
            seq=self._sequence,
            i=0,
            fd=handle,
            length=end - start,
            prot=prot,
            flags=flags,
            offset=offset,
            out=name,
            result=name,
            errno=None,
        )
        for listener in self._listeners:
            listener(operation, "", "")
        self._runner.handles.mapped(name, start, end - start)  # here it is where the program has it
        if region.fd >= 0:
            self._mapped.setdefault(region.fd, []).append(name)
        self._known.set(start, end, (name, start))
        return name, start


def _refusal(answered: Answered[Any]) -> KvmError | None:
    errno = answered.operation.errno
    if not isinstance(errno, str):
        return None
    return KvmError(errno_number(errno), answered.reason, check=answered.check)
