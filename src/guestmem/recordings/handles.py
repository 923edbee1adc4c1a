"""What the names of a recording are on a backend: handles, buffers, mappings become descriptors and addresses.

The recorders' conventions: the handle of a failed operation is descriptor -1, buffers A, B, C, RO and NONE are there on
demand, a VM's boot buffer is 64 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.backend import Backend, Host, Statistics
from guestmem.errors import InputError, NotVisible
from guestmem.harness import BOOT_SIZE, BUFFER_ALIGN, BUFFER_SIZE, PAGE_SIZE
from guestmem.uapi import PROT_READ, PROT_WRITE
from guestmem.units import U64_MAX

if TYPE_CHECKING:
    from guestmem.recordings.operation import Handle, HostAddress

__all__ = ("BUFFERS", "Handles", "NotThere", "UnknownHandle")

BUFFERS: Final = MappingProxyType(
    {
        "A": PROT_READ | PROT_WRITE,
        "B": PROT_READ | PROT_WRITE,
        "C": PROT_READ | PROT_WRITE,
        "RO": PROT_READ,
        "NONE": 0,
    }
)


class UnknownHandle(InputError):
    """An operation names a handle, buffer or mapping that nothing made, or two that do not belong together."""


class NotThere(Exception):
    """An operation needs a mapping that does not exist on this backend: its mmap failed, or it is unmapped."""


@dataclass(slots=True)
class _Mapping:
    addr: int
    length: int


class Handles:
    """The names of one sequence, in one fresh process."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.fds: dict[str, int] = {"kvm": backend.open_kvm()}
        self.mappings: dict[str, _Mapping | None] = {}
        self.buffers: dict[str, int] = {}
        self._first_names: dict[Handle, Handle] = {}  # of duplicates, the name of what they are of
        self._vms: dict[Handle, Handle] = {}  # of vCPUs, by first names
        # The VM whose guest ran in this operation, and in the one before.
        self._ran: Handle | None = None
        self._ran_before: Handle | None = None

    def fd(self, handle: Handle) -> int:
        """The descriptor of a handle; a plain integer stands for itself."""
        if isinstance(handle, int):
            return handle
        try:
            return self.fds[handle]
        except KeyError:
            raise UnknownHandle(f"handle {handle!r} was made by no operation before this one") from None

    def made(self, out: str, fd: int, *, copy_of: Handle = "", vcpu_of: Handle = "") -> str:
        """Remember a new handle; its name."""
        self.fds[out] = fd
        self._first_names[out] = self._first_names.get(copy_of, copy_of) or out
        if vcpu_of:
            self._vms[out] = self._first_names.get(vcpu_of, vcpu_of)
        return out

    def require_vm(self, vcpu: Handle, vm: Handle) -> None:
        """UnknownHandle where the vCPU is one of another VM, whose boot buffer and slots are not those of this one."""
        first, its = self._first_names.get(vm, vm), self._vms.get(self._first_names.get(vcpu, vcpu))
        if its is not None and its != first:
            raise UnknownHandle(f"vCPU {vcpu!r} is one of {its!r} and cannot be run as one of {vm!r}")

    def closed(self, handle: Handle) -> None:
        """The descriptor of this handle is gone."""
        if isinstance(handle, str):
            self.fds[handle] = -1

    def buffer(self, name: str) -> int:
        """The address of a buffer, mapped on first use."""
        addr = self.buffers.get(name)
        if addr is None:
            if name.startswith("boot:"):
                addr = self.backend.anonymous(BOOT_SIZE, PROT_READ | PROT_WRITE, BUFFER_ALIGN)
            elif name in BUFFERS:
                addr = self.backend.anonymous(BUFFER_SIZE, BUFFERS[name], BUFFER_ALIGN)
            else:
                raise UnknownHandle(f"there is no buffer {name!r}; there are {', '.join(BUFFERS)} and boot:VM")
            self.buffers[name] = addr
        return addr

    def mapped(self, out: str, addr: int, length: int) -> str:
        """Remember a new mapping of length bytes; its name."""
        self.mappings[out] = _Mapping(addr, length)
        return out

    def unmapped(self, name: str, off: int, length: int | None) -> None:
        """Bytes of a mapping are gone; if that is all of it, so is its name."""
        if off == 0 and length in (None, self._mapping(name).length):
            self.mappings[name] = None

    def span(self, name: str, off: int, length: int | None) -> tuple[int, int]:
        """Address and length of a part of a mapping; without a length it is as long as the whole."""
        mapping = self._mapping(name)
        return (mapping.addr + off) & U64_MAX, mapping.length if length is None else length

    def not_made(self, out: str, *, mapping: bool) -> None:
        """What an operation would make is not there: descriptor -1, or a mapping that does not exist."""
        if mapping:
            self.mappings[out] = None
        else:
            self.fds[out] = -1

    def at(self, map: str, buf: str, off: int) -> int:
        """The address at an offset of a mapping or a buffer, which wraps as a pointer does."""
        return ((self._mapping(map).addr if map else self.buffer(buf)) + off) & U64_MAX

    def address(self, where: HostAddress) -> int:
        """The number that a userspace_addr is."""
        return self.at(where.map, where.buf, where.off) if where.abs is None else where.abs

    def host(self) -> Host:
        """The host under the guest, where the backend lets a test change it; NotVisible."""
        if not isinstance(self.backend, Host):
            raise NotVisible(f"backend {self.backend.name!r} cannot do this to its host")
        return self.backend

    def pages(self, vm: Handle) -> dict[str, int]:
        """What is mapped without the backend's own guest code, which is there for sure only right after it ran.

        KvmError; NotVisible.
        """
        if not isinstance(self.backend, Statistics):
            raise NotVisible(f"backend {self.backend.name!r} cannot show what is mapped")
        pages = self.backend.mapped_pages(self.fd(vm))
        if self._ran_before != vm:
            raise NotVisible("what is mapped is known only right after a guest of the VM ran")
        pages[PAGE_SIZE] = pages.get(PAGE_SIZE, 0) - self.backend.boot_pages
        return {str(size): count for size, count in sorted(pages.items()) if count}

    def ran(self, vm: Handle) -> None:
        """A guest of the VM has just run."""
        self._ran = vm

    def next_operation(self) -> None:
        """What ran until now ran before."""
        self._ran_before, self._ran = self._ran, None

    def _mapping(self, name: str) -> _Mapping:
        try:
            mapping = self.mappings[name]
        except KeyError:
            raise UnknownHandle(f"mapping {name!r} was made by no operation before this one") from None
        if mapping is None:
            raise NotThere(f"mapping {name!r} does not exist here: its mmap failed or it is unmapped")
        return mapping
