"""Run recorded operations on a backend: handles become descriptors and addresses, refusals become outcomes.

A runner is one sequence: one fresh process. It knows the recorder's conventions (TRANSCRIPT): a failed operation's
handle stands for descriptor -1, buffers A, B, C, RO and NONE exist on demand, a VM's boot buffer is 64 KiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guestmem.backend import Backend, Boot, Exit, Host, Statistics, Touch
from guestmem.errors import HostSignal, InputError, KvmError, NotVisible, errno_name
from guestmem.recordings import vocabulary as v
from guestmem.uapi import PROT_READ, PROT_WRITE
from guestmem.units import MIB

__all__ = ("BUFFERS", "Outcome", "Runner", "UnknownHandle")

BUFFERS = {
    "A": PROT_READ | PROT_WRITE,
    "B": PROT_READ | PROT_WRITE,
    "C": PROT_READ | PROT_WRITE,
    "RO": PROT_READ,
    "NONE": 0,
}
_BUFFER_SIZE = 64 * MIB
_BUFFER_ALIGN = 2 * MIB
_BOOT_SIZE = 64 * 1024
_PAGE = 4096


class UnknownHandle(InputError):
    """An operation names a handle, buffer or mapping that nothing made."""


class _NotIssued(Exception):
    """An operation needs a mapping that does not exist on this backend: its mmap failed, or it is unmapped."""


@dataclass(slots=True)
class Outcome:
    """What one operation gave: result or errno (a name), what else was observed, and which check refused and why."""

    result: v.Result = None
    errno: str | None = None
    observed: dict[str, Any] = field(default_factory=dict)
    exits: list[list[Exit]] | None = None
    check: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Mapping:
    addr: int
    length: int


class Runner:
    """Runs the operations of one sequence, in order."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.fds: dict[str, int] = {"kvm": backend.open_kvm()}
        self.mappings: dict[str, _Mapping | None] = {}
        self.buffers: dict[str, int] = {}
        # The VM whose guest ran in this operation, and in the one before.
        self._ran: v.Handle | None = None
        self._ran_before: v.Handle | None = None

    def run(self, operation: v.Operation) -> Outcome:
        """Run one operation; UnknownHandle if it names what no operation made.

        What was done to a mapping where it was recorded cannot be done where the mmap failed: that is an outcome.
        """
        self._ran_before, self._ran = self._ran, None
        try:
            return _ACTIONS[type(operation)](self, operation)
        except _NotIssued as reason:
            return Outcome(observed={"not_issued": str(reason)}, reason=str(reason))
        except KvmError as refused:
            self.not_made(operation)
            return Outcome(None, errno_name(refused.errno or 0), check=refused.check, reason=refused.reason)

    def not_made(self, operation: v.Operation) -> None:
        """The operation is not run: what it would make stands for descriptor -1, or for a mapping that is not there."""
        if isinstance(operation, v.Mmap):
            self.mappings[operation.out] = None
        elif (out := getattr(operation, "out", None)) is not None:
            self.fds[out] = -1

    # -- what a recording names --------------------------------------------------------------------------------------

    def fd(self, handle: v.Handle) -> int:
        """The descriptor of a handle; a plain integer stands for itself."""
        if isinstance(handle, int):
            return handle
        try:
            return self.fds[handle]
        except KeyError:
            raise UnknownHandle(f"handle {handle!r} was made by no operation before this one") from None

    def buffer(self, name: str) -> int:
        """The address of a buffer, mapped on first use."""
        addr = self.buffers.get(name)
        if addr is None:
            if name.startswith("boot:"):
                addr = self.backend.anonymous(_BOOT_SIZE, PROT_READ | PROT_WRITE, _BUFFER_ALIGN)
            elif name in BUFFERS:
                addr = self.backend.anonymous(_BUFFER_SIZE, BUFFERS[name], _BUFFER_ALIGN)
            else:
                raise UnknownHandle(f"there is no buffer {name!r}; there are {', '.join(BUFFERS)} and boot:VM")
            self.buffers[name] = addr
        return addr

    def mapping(self, name: str) -> _Mapping:
        """A mapping that exists."""
        try:
            mapping = self.mappings[name]
        except KeyError:
            raise UnknownHandle(f"mapping {name!r} was made by no operation before this one") from None
        if mapping is None:
            raise _NotIssued(f"mapping {name!r} does not exist here: its mmap failed or it is unmapped")
        return mapping

    def address(self, where: v.HostAddress) -> int:
        """The number that a userspace_addr stands for."""
        if where.abs is not None:
            return where.abs
        return self.place(where.map, where.buf, where.off)

    def place(self, map: str, buf: str, off: int) -> int:
        """The address at an offset of a mapping or a buffer."""
        return (self.mapping(map).addr if map else self.buffer(buf)) + off

    def host(self) -> Host:
        """The host under the guest, where the backend lets a test at it."""
        if not isinstance(self.backend, Host):
            raise UnknownHandle(f"backend {self.backend.name!r} cannot do this to its host")
        return self.backend

    def pages(self, vm: v.Handle) -> dict[str, int]:
        """What is mapped without the backend's own guest code, which is there for sure only right after it ran.

        KvmError; NotVisible.
        """
        if not isinstance(self.backend, Statistics):
            raise NotVisible(f"backend {self.backend.name!r} cannot tell what is mapped")
        pages = self.backend.mapped_pages(self.fd(vm))
        if self._ran_before != vm:
            raise NotVisible("what is mapped is known only right after a guest of the VM ran")
        pages[_PAGE] = pages.get(_PAGE, 0) - self.backend.boot_pages
        return {str(size): count for size, count in sorted(pages.items()) if count}

    def ran(self, vm: v.Handle) -> None:
        """A guest of the VM has just run."""
        self._ran = vm

    def made(self, out: str, fd: int) -> Outcome:
        """Remember a new handle."""
        self.fds[out] = fd
        return Outcome(out)


def _call(call: Callable[..., None], *arguments: object) -> Outcome:
    call(*arguments)
    return Outcome(0)


def _region2(runner: Runner, op: v.SetUserMemoryRegion2) -> Outcome:
    runner.backend.set_user_memory_region2(
        runner.fd(op.vm),
        op.slot,
        op.flags,
        op.gpa,
        op.size,
        runner.address(op.userspace_addr),
        runner.fd(op.guest_memfd),
        op.guest_memfd_offset,
        op.pad1,
        [op.pad2] * 14 if isinstance(op.pad2, int) else op.pad2,
    )
    return Outcome(0)


def _region(runner: Runner, op: v.SetUserMemoryRegion) -> Outcome:
    where = runner.address(op.userspace_addr)
    runner.backend.set_user_memory_region(runner.fd(op.vm), op.slot, op.flags, op.gpa, op.size, where)
    return Outcome(0)


def _fstat(runner: Runner, op: v.Fstat) -> Outcome:
    stat = runner.backend.fstat(runner.fd(op.fd))
    if stat is None:
        return Outcome(0)
    observed = {name: getattr(stat, name) for name in ("st_size", "st_blocks", "st_blksize", "st_nlink")}
    return Outcome(0, observed={**observed, "st_mode": oct(stat.st_mode)})


def _mmap(runner: Runner, op: v.Mmap) -> Outcome:
    addr = runner.backend.mmap(runner.fd(op.fd), op.length, op.prot, op.flags, op.offset)
    runner.mappings[op.out] = _Mapping(addr, op.length)
    return Outcome(op.out)


def _munmap(runner: Runner, op: v.Munmap) -> Outcome:
    mapping = runner.mapping(op.map)
    runner.backend.munmap(mapping.addr + op.off, mapping.length if op.length is None else op.length)
    if op.off == 0 and op.length in (None, mapping.length):
        runner.mappings[op.map] = None
    return Outcome(0)


def _mprotect(runner: Runner, op: v.Mprotect) -> Outcome:
    mapping = runner.mapping(op.map)
    runner.backend.mprotect(mapping.addr + op.off, mapping.length if op.length is None else op.length, op.prot)
    return Outcome(0)


def _madvise(runner: Runner, op: v.Madvise) -> Outcome:
    mapping = runner.mapping(op.map)
    runner.backend.madvise(mapping.addr + op.off, mapping.length if op.length is None else op.length, op.advice)
    return Outcome(0)


def _host_read(runner: Runner, op: v.HostRead) -> Outcome:
    try:
        value = runner.backend.host_read(runner.place(op.map, op.buf, op.off), op.size)
    except HostSignal as signal:
        return Outcome(None, observed={"signal": signal.signal}, reason=signal.reason)
    return Outcome(value, observed={"signal": None})


def _host_write(runner: Runner, op: v.HostWrite) -> Outcome:
    try:
        runner.backend.host_write(runner.place(op.map, op.buf, op.off), op.size, op.value)
    except HostSignal as signal:
        return Outcome(None, observed={"signal": signal.signal}, reason=signal.reason)
    return Outcome(0, observed={"signal": None})


def _pre_fault(runner: Runner, op: v.PreFault) -> Outcome:
    done = runner.backend.pre_fault_memory(runner.fd(op.vcpu), op.gpa, op.size, op.flags)
    observed = {"gpa_out": done.gpa, "size_out": done.size}
    if done.refused is None:
        return Outcome(0, observed=observed)
    refused = done.refused
    return Outcome(None, errno_name(refused.errno or 0), observed=observed, check=refused.check, reason=refused.reason)


def _run_touch(runner: Runner, op: v.RunTouch) -> Outcome:
    boot = Boot(op.boot_gpa, runner.buffer(f"boot:{op.vm}"))
    touches = [Touch(touch.gpa, touch.rw, touch.size, touch.value) for touch in op.touches]
    exits = runner.backend.run_touch(runner.fd(op.vcpu), boot, touches)
    runner.ran(op.vm)
    return Outcome(0, exits=exits)


_ACTIONS: dict[type[v.Operation], Callable[[Runner, Any], Outcome]] = {
    v.CreateVm: lambda r, op: r.made(op.out, r.backend.create_vm(r.fd(op.on), op.type)),
    v.CheckExtension: lambda r, op: Outcome(r.backend.check_extension(r.fd(op.on), op.cap)),
    v.CreateVcpu: lambda r, op: r.made(op.out, r.backend.create_vcpu(r.fd(op.vm), op.id)),
    v.CreateGuestMemfd: lambda r, op: r.made(
        op.out, r.backend.create_guest_memfd(r.fd(op.vm), op.size, op.flags, op.reserved)
    ),
    v.SetUserMemoryRegion: _region,
    v.SetUserMemoryRegion2: _region2,
    v.SetMemoryAttributes: lambda r, op: _call(
        r.backend.set_memory_attributes, r.fd(op.vm), op.address, op.size, op.attributes, op.flags
    ),
    v.Fallocate: lambda r, op: _call(r.backend.fallocate, r.fd(op.fd), op.mode, op.offset, op.len),
    v.Ftruncate: lambda r, op: _call(r.backend.ftruncate, r.fd(op.fd), op.length),
    v.Lseek: lambda r, op: Outcome(r.backend.lseek(r.fd(op.fd), op.offset, op.whence)),
    v.Read: lambda r, op: Outcome(r.backend.read(r.fd(op.fd), op.len)),
    v.Write: lambda r, op: Outcome(r.backend.write(r.fd(op.fd), op.len)),
    v.Pread: lambda r, op: Outcome(r.backend.pread(r.fd(op.fd), op.len, op.offset)),
    v.Pwrite: lambda r, op: Outcome(r.backend.pwrite(r.fd(op.fd), op.len, op.offset)),
    v.Fsync: lambda r, op: _call(r.backend.fsync, r.fd(op.fd)),
    v.Dup: lambda r, op: r.made(op.out, r.backend.dup(r.fd(op.fd))),
    v.Close: lambda r, op: _close(r, op),
    v.Reopen: lambda r, op: r.made(op.out, r.backend.reopen(r.fd(op.fd), op.oflags)),
    v.Fstat: _fstat,
    v.OpenAux: lambda r, op: r.made(op.out, r.backend.open_aux(op.kind)),
    v.Mmap: _mmap,
    v.Munmap: _munmap,
    v.Mprotect: _mprotect,
    v.Madvise: _madvise,
    v.HostRead: _host_read,
    v.HostWrite: _host_write,
    v.PreFault: _pre_fault,
    v.MappedPages: lambda r, op: Outcome(0, observed={"pages": r.pages(op.vm)}),
    v.Poison: lambda r, op: _call(r.host().poison, r.fd(op.fd), op.offset),
    v.SetHugePageSize: lambda r, op: _call(r.host().set_huge_page_size, r.fd(op.fd), op.page_size),
    v.RunTouch: _run_touch,
}


def _close(runner: Runner, op: v.Close) -> Outcome:
    runner.backend.close(runner.fd(op.fd))
    if isinstance(op.fd, str):
        runner.fds[op.fd] = -1
    return Outcome(0)
