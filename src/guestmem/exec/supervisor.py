"""The supervisor: every call of the program that the filter asks about comes here and is answered."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from guestmem.errors import KvmError
from guestmem.exec import peer, statistics
from guestmem.exec import syscalls as nr
from guestmem.exec.calls import device, files, mappings, vcpu, vm
from guestmem.exec.calls.arguments import request, signed32
from guestmem.exec.emulated import (
    AGAIN,
    CONTINUE,
    PARKED,
    DeviceObject,
    Emulated,
    FileObject,
    Give,
    Result,
    StatisticsObject,
    VcpuObject,
    VmObject,
)
from guestmem.exec.guestmemory import Counts, GuestMemory
from guestmem.exec.hearing import HostRegion
from guestmem.exec.ioctl_names import name_of
from guestmem.exec.listener import Gone, Listener, ProgramCall
from guestmem.exec.spaces import Calls, Space
from guestmem.exec.standins import StandIns, number_in
from guestmem.exec.turns import ProgramTurns
from guestmem.exec.vcpu.run import RUN_SIZE, VirtualCpu
from guestmem.exec.windows import MappedFile
from guestmem.exec.workers import Worker
from guestmem.geometry import X86_64
from guestmem.model.process import Process
from guestmem.model.stage2 import LeafCounters
from guestmem.model.vm import GuestMemfd
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
)

__all__ = ("Supervisor", "Totals", "Unserved")

_MANY_SPACES: Final = 64


@dataclass(frozen=True, slots=True)
class Unserved:
    """An ioctl that is not served: its name and number, and what it was issued on."""

    name: str
    request: int
    kind: str


@dataclass(slots=True)
class Totals:
    """What was done, for --stats and the summary."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    unserved: Counter[Unserved] = field(default_factory=Counter)
    vms: list[tuple[int, LeafCounters, Counts]] = field(default_factory=list)  # type, mappings, guest code


class Supervisor:
    """All state of one run. One thread receives; each vCPU has one more; ``turns`` keeps them apart."""

    CLOSE_ON_EXEC: Final = os.O_CLOEXEC

    def __init__(
        self,
        listener: Listener,
        new_process: Callable[[int], tuple[Process, Calls]],
        *,
        page_size: int = 0,
        on_unserved: Callable[[Unserved], None] = lambda unserved: None,
    ) -> None:
        self.listener = listener
        self.turns = ProgramTurns()
        self.totals = Totals()
        self.files: dict[GuestMemfd, MappedFile] = {}
        self._new_process = new_process
        self._page_size = page_size  # every guest_memfd whose size allows it gets pages of so many bytes
        self._on_unserved = on_unserved
        self._standins = StandIns()
        self._objects: dict[int, Emulated] = {}
        self._spaces: dict[int, Space] = {}
        self._undelivered: dict[int, tuple[ProgramCall, Result]] = {}  # thread -> what it had asked, and the answer

    # -- the loop ----------------------------------------------------------------------------------------------------

    def serve(self, ended: int, wait: Callable[[], object]) -> None:
        """Answer calls until the last process under the filter is gone.

        ended becomes readable when the program itself has ended; wait is called then.
        """
        poll = select.poll()
        # In this order: what was closed before a call was made is seen with the call, not after it.
        poll.register(self.listener.fd, select.POLLIN)
        poll.register(self._standins.fd, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            ready = poll.poll()
            if any(fd == self._standins.fd for fd, _ in ready):
                with self.turns:
                    self._release()
            for fd, events in ready:
                if fd == self._standins.fd:
                    continue
                if fd == ended:
                    poll.unregister(ended)
                    wait()
                elif events & select.POLLIN:
                    call = self.listener.receive()
                    if call is not None:
                        self._answer(call)
                else:
                    return

    def _answer(self, call: ProgramCall) -> None:
        start = time.perf_counter()
        with self.turns:
            result = self._take_undelivered(call)
            if result is None:
                result = self._guarded(self._dispatch, call)
            self._finish(call, result)
        name = name_of(request(call)) if call.number == nr.IOCTL else nr.name_of(call.number)
        self.totals.calls[name] += 1
        self.totals.seconds[name] = self.totals.seconds.get(name, 0.0) + time.perf_counter() - start

    def _guarded(self, answer: Callable[[ProgramCall], Result], call: ProgramCall) -> Result:
        """Refusals become errnos."""
        try:
            return answer(call)
        except KvmError as refused:
            return -(refused.errno or errno.EIO)
        except (ProcessLookupError, Gone):
            return AGAIN  # nobody waits any more

    def _finish(self, call: ProgramCall, result: Result) -> None:
        try:
            if result is CONTINUE:
                self.listener.go_on(call.id)
            elif isinstance(result, Give):
                self._give(call, result)
            elif isinstance(result, int):
                self.listener.answer(call.id, result)
        except Gone:
            if result is not CONTINUE:
                self._undelivered[call.tid] = call, result

    def _take_undelivered(self, call: ProgramCall) -> Result | None:
        """A signal may have interrupted a call after it was carried out; repeated, it gets the same answer."""
        if not self._undelivered:
            return None
        kept = self._undelivered.pop(call.tid, None)
        if kept is None:
            return None
        before, result = kept
        if (before.number, before.arguments) == (call.number, call.arguments):
            return result
        if isinstance(result, Give):
            self._drop(result.object)
        return None

    def _dispatch(self, call: ProgramCall) -> Result:
        number = call.number
        if number == nr.IOCTL:
            return self._ioctl(call)
        by_path = files.BY_PATH.get(number)
        if by_path is not None:
            return by_path(self, call)
        mapping = mappings.TABLE.get(number)
        if mapping is not None:
            space = self._space_if_any(call.tid)
            if space is None:
                return CONTINUE
            return mapping(self, space, call)
        object = self.find(call.tid, signed32(call.arguments[0]))
        if object is None:
            if number == nr.FTRUNCATE and (space := self._space_if_any(call.tid)) is not None:
                space.memory.truncated(call.tid, signed32(call.arguments[0]))
            return CONTINUE
        if object.fd < 0 and not isinstance(object, StatisticsObject):
            return CONTINUE
        return files.BY_DESCRIPTOR[number](self, object, call)

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def _ioctl(self, call: ProgramCall) -> Result:
        object = self.find(call.tid, signed32(call.arguments[0]))
        if object is None:
            return CONTINUE
        if isinstance(object, VmObject | VcpuObject) and not object.space.has(call.tid):
            return -errno.EIO  # a VM belongs to the address space that made it
        number = request(call)
        if isinstance(object, VcpuObject) and (number == vcpu.RUN or object.queued):
            return self._queue(object, call)
        return self._serve_ioctl(object, number, call)

    def _serve_ioctl(self, object: Emulated, number: int, call: ProgramCall) -> Result:
        if isinstance(object, VmObject):
            of_vm = vm.TABLE.get(number)
            if of_vm is not None:
                return of_vm(self, object, call)
            unknown = errno.ENOTTY
        elif isinstance(object, VcpuObject):
            of_vcpu = vcpu.TABLE.get(number)
            if of_vcpu is not None:
                return of_vcpu(self, object, call)
            unknown = errno.EINVAL
        elif isinstance(object, DeviceObject):
            of_device = device.TABLE.get(number)
            if of_device is not None:
                return of_device(self, object, call)
            unknown = errno.EINVAL
        else:
            return -errno.ENOTTY  # as a real guest_memfd or statistics file answers
        unserved = Unserved(name_of(number), number, object.kind)
        self.totals.unserved[unserved] += 1
        if self.totals.unserved[unserved] == 1:
            self._on_unserved(unserved)
        return -unknown

    def _queue(self, object: VcpuObject, call: ProgramCall) -> Result:
        object.queued += 1
        if object.worker is None:
            object.worker = Worker(f"vcpu-{object.standin.number}", lambda queued: self._in_thread(object, queued))
        object.worker.put(call)
        return PARKED

    def _in_thread(self, object: VcpuObject, call: ProgramCall) -> None:
        """A vCPU's own thread answers a call on it."""
        with self.turns:
            result = self._guarded(lambda queued: self._serve_ioctl(object, request(queued), queued), call)
            object.queued -= 1
            if request(call) != vcpu.RUN:
                self._finish(call, result)
            elif isinstance(result, int):
                try:
                    self.listener.answer(call.id, result)
                except Gone:
                    if result != -errno.EINTR:
                        object.undelivered = result

    def share(self, owner: VmObject, call: ProgramCall) -> bool:
        """Make the program's memory behind the VM's slots shared; whether the call has to be repeated for it."""
        if not owner.waiting:
            return False
        ranges = [(start, end) for start, end, _ in owner.waiting]
        private = owner.space.memory.learn(call.tid, ranges)
        if private:
            owner.space.memory.replace(call, self.listener, private)
        owner.waiting.clear(0, 1 << 64)
        return bool(private)

    # -- descriptors -------------------------------------------------------------------------------------------------

    def find(self, tid: int, fd: int) -> Emulated | None:
        """The object of a descriptor of the program; None if it is not open, or no object of ours."""
        number = number_in(peer.link(tid, fd))
        return None if number is None else self._objects.get(number)

    @staticmethod
    def is_open(tid: int, fd: int) -> bool:
        """Whether the program has such a descriptor."""
        return bool(peer.link(tid, fd))

    def _give(self, call: ProgramCall, give: Give) -> None:
        """Put a descriptor of an object into the program; the object goes if that fails."""
        object = give.object
        standin = object.standin
        self._standins.watch(standin)
        fd = standin.open()
        try:
            self.listener.add(call.id, fd, give.flags, answer=True)
        except Gone:
            self._standins.forget(standin)
            raise
        except OSError as refused:
            self._standins.forget(standin)
            self._drop(object)
            self.listener.answer(call.id, -(refused.errno or errno.EMFILE))
        finally:
            os.close(fd)

    def _release(self) -> None:
        """Objects whose last descriptor went."""
        for number in self._standins.released():
            object = self._objects.get(number)
            if object is not None:
                self._standins.forget(object.standin)
                self._drop(object)

    def _drop(self, object: Emulated) -> None:
        self._objects.pop(object.standin.number, None)
        object.release()

    # -- processes of the program ------------------------------------------------------------------------------------

    def space_of(self, tid: int) -> Space:
        """The process of a thread; made when it first opens the device or makes a VM."""
        found = self._space_if_any(tid)
        if found is not None:
            return found
        if len(self._spaces) >= _MANY_SPACES:
            for group in [group for group, space in self._spaces.items() if space.is_over]:
                del self._spaces[group]
        group = peer.group_of(tid)
        process, backend = self._new_process(group)
        space = self._spaces[group] = Space(group, process, backend)
        return space

    def _space_if_any(self, tid: int) -> Space | None:
        space = self._spaces.get(tid)
        if space is not None or not self._spaces:
            return space
        return next((space for space in self._spaces.values() if space.has(tid)), None)

    def region(self, group: int, address: int, size: int) -> HostRegion | None:
        """The program's memory at an address, as far as it continues there for size bytes; group: whose."""
        space = self._spaces[group]
        found: HostRegion | None = None
        for mapping in peer.mappings(group):
            if found is None and mapping.start <= address < mapping.end:
                object = self._objects.get(number_in(mapping.path) or 0)
                fd = object.fd if isinstance(object, FileObject) and object.space is space else -1
                found = HostRegion(mapping.start, mapping.end, fd, mapping.offset)
                if fd >= 0:
                    return found
            elif found is not None:
                if mapping.start != found.end or found.end >= address + size:
                    break
                found = replace(found, end=mapping.end)
        return found

    # -- new objects -------------------------------------------------------------------------------------------------

    def new_device(self, space: Space) -> Emulated:
        """open("/dev/kvm")."""
        return self._added(DeviceObject(self._standins.make("kvm"), space, space.backend.open_kvm()))

    def new_vm(self, space: Space, type: int) -> Emulated:
        """KVM_CREATE_VM; KvmError."""
        fd = space.backend.create_vm(space.kvm, type)
        made = space.process.vm_of(fd)
        memory = GuestMemory(made, self.files)
        self.totals.vms.append((type, made.stage2.statistics, memory.counts))
        return self._added(VmObject(self._standins.make("vm"), space, fd, made, memory))

    def new_vcpu(self, owner: VmObject, id: int) -> Emulated:
        """KVM_CREATE_VCPU; KvmError."""
        fd = owner.space.backend.create_vcpu(owner.fd, id)
        standin = self._standins.make("vcpu", RUN_SIZE)
        run = standin.map()
        cpu = VirtualCpu(owner.space.process.vcpu_of(fd), owner.memory, memoryview(run), self.turns)
        return self._added(VcpuObject(standin, owner.space, fd, owner, cpu, run))

    def new_guest_memfd(self, owner: VmObject, size: int, flags: int, reserved: Sequence[int]) -> Emulated:
        """KVM_CREATE_GUEST_MEMFD; KvmError."""
        chosen = flags & (GUEST_MEMFD_FLAG_HUGETLB | GUEST_MEMFD_FLAG_INIT_SHARED)
        if self._page_size and size % self._page_size == 0 and not chosen:
            flags, reserved = flags | GUEST_MEMFD_FLAG_HUGETLB, (X86_64.order_of(self._page_size),)
        space = owner.space
        fd = space.backend.create_guest_memfd(owner.fd, size, flags, reserved)
        file = space.process.guest_memfd_of(fd)
        shown = size if flags & GUEST_MEMFD_FLAG_INIT_SHARED else 0  # of a private file every access is SIGBUS
        standin = self._standins.make("guest_memfd", shown)
        if shown:
            contents = MappedFile(os.dup(standin.fd))
        else:
            contents = MappedFile(os.memfd_create("guestmem-exec-contents", os.MFD_CLOEXEC))
            os.ftruncate(contents.fd, size)
        self.files[file] = contents
        return self._added(FileObject(standin, space, fd, file, contents, self.files))

    def new_statistics(self, of: VmObject | None, space: Space) -> Emulated:
        """KVM_GET_STATS_FD."""
        return self._added(StatisticsObject(self._standins.make("statistics", statistics.SIZE), space, -1, of))

    def _added(self, object: Emulated) -> Emulated:
        self._objects[object.standin.number] = object
        return object

    def end(self) -> None:
        """Everything that is left goes."""
        self.turns.end()
        with contextlib.suppress(KvmError):
            for object in list(self._objects.values()):
                self._drop(object)
