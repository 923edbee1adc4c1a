"""The emulated objects that the program has descriptors of, and what answering a call can come to."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from guestmem.exec.guestmemory import GuestMemory
from guestmem.exec.standins import StandIn
from guestmem.exec.vcpu.run import VirtualCpu
from guestmem.exec.windows import MappedFile, punch
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.runmap import RunMap

if TYPE_CHECKING:
    from guestmem.exec.spaces import Space
    from guestmem.exec.workers import Worker

__all__ = (
    "AGAIN",
    "CONTINUE",
    "PARKED",
    "DeviceObject",
    "Emulated",
    "FileObject",
    "Give",
    "Result",
    "StatisticsObject",
    "VcpuObject",
    "VmObject",
)


class Marker:
    """An answer that is no number."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __repr__(self) -> str:
        return self.meaning


CONTINUE: Final = Marker("the kernel does the call")
PARKED: Final = Marker("a vCPU's thread answers")
AGAIN: Final = Marker("the program's thread asks again")


@dataclass(eq=False, slots=True)
class Emulated:
    """An open file. ``fd`` is its descriptor in the space's backend, -1 if it has none there."""

    standin: StandIn
    space: Space
    fd: int

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "object"

    def release(self) -> None:
        """The last descriptor and mapping are gone."""
        if self.fd >= 0:
            self.space.backend.close(self.fd)
        self.standin.close()


@dataclass(eq=False, slots=True)
class DeviceObject(Emulated):
    """/dev/kvm."""

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "/dev/kvm"


@dataclass(eq=False, slots=True)
class VmObject(Emulated):
    """A VM. ``waiting``: addresses behind slots that are not shared with the program yet."""

    vm: Vm
    memory: GuestMemory
    waiting: RunMap[bool] = field(default_factory=RunMap)
    hypercall_exits: int = 0

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "a VM"


@dataclass(eq=False, slots=True)
class VcpuObject(Emulated):
    """A vCPU. ``queued``: calls that its thread has yet to answer."""

    owner: VmObject
    cpu: VirtualCpu
    run: mmap.mmap
    worker: Worker | None = None
    queued: int = 0
    undelivered: int | None = None  # a KVM_RUN's result that no thread waited for any more

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "a vCPU"

    def release(self) -> None:
        """Its thread ends too."""
        if self.worker is not None:
            self.worker.end()
        Emulated.release(self)


@dataclass(eq=False, slots=True)
class FileObject(Emulated):
    """A guest_memfd. ``contents`` holds its bytes; the stand-in is the same file only if the program may map them."""

    file: GuestMemfd
    contents: MappedFile
    files: dict[GuestMemfd, MappedFile]

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "a guest_memfd"

    def release(self) -> None:
        """Its pages go too."""
        Emulated.release(self)
        self.files.pop(self.file, None)
        punch(self.contents.fd, 0, self.file.size)
        self.contents.close()


@dataclass(eq=False, slots=True)
class StatisticsObject(Emulated):
    """KVM_GET_STATS_FD of a VM, or of a vCPU, which counts nothing here."""

    of: VmObject | None

    @property
    def kind(self) -> str:
        """What it is called in messages."""
        return "a statistics file"


@dataclass(frozen=True, slots=True)
class Give:
    """The program gets a descriptor of a new object; flags: O_CLOEXEC or 0."""

    object: Emulated
    flags: int


Result = int | Give | Marker
Objects = Mapping[int, Emulated]
