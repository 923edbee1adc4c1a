"""Why guest code cannot simply go on: what ends a slice, and what the vCPU then does about it."""

from __future__ import annotations

from typing import Literal

__all__ = (
    "Access",
    "GuestException",
    "Internal",
    "Invalid",
    "NoMemory",
    "PortAccess",
    "Shutdown",
    "Stop",
)

Access = Literal["r", "w", "x"]

UD, DF, SS, GP, PF = 6, 8, 12, 13, 14  # vectors
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21))


class Stop(Exception):
    """The common base."""


class PortAccess(Stop):
    """IN or OUT of size bytes; ``following`` is the address of the next instruction."""

    def __init__(self, port: int, size: int, following: int, *, out: bool, value: int) -> None:
        super().__init__(f"port {port:#x}")
        self.port = port
        self.size = size
        self.following = following
        self.out = out
        self.value = value


class NoMemory(Stop):
    """Stage 2 has no memory for the access. gpa: bytes; walking: the guest's own page tables were being read."""

    def __init__(
        self,
        gpa: int,
        access: Access,
        kind: Literal["mmio", "memory_fault", "host_error"],
        errno: int = 0,
        *,
        private: bool = False,
    ) -> None:
        super().__init__(f"{kind} at gpa {gpa:#x}")
        self.gpa = gpa
        self.access = access
        self.kind = kind
        self.errno = errno
        self.private = private
        self.walking = False
        self.address = 0  # guest-virtual, once known


class GuestException(Stop):
    """An exception that the guest's own IDT takes; address is for CR2."""

    def __init__(self, vector: int, code: int | None = None, address: int | None = None) -> None:
        super().__init__(f"exception {vector}")
        self.vector = vector
        self.code = code
        self.address = address


class Invalid(Stop):
    """An instruction that the engine does not have: a hypercall, or #UD."""


class Shutdown(Stop):
    """An exception could not be delivered (a triple fault)."""


class Internal(Stop):
    """KVM_EXIT_INTERNAL_ERROR: suberror and its data words (linux/kvm.h)."""

    EMULATION, DELIVERY = 1, 3

    def __init__(self, suberror: int, *data: int) -> None:
        super().__init__(f"internal error {suberror}")
        self.suberror = suberror
        self.data = data
