"""Who hears of a program's calls as operations of a recording, and what the recorder asks the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from guestmem.recordings.operation import Operation

__all__ = ("OperationListener", "HostRegion", "Regions")


@dataclass(frozen=True, slots=True)
class HostRegion:
    """Memory of the program, [start, end); fd: the guest_memfd that it maps from offset on, -1 for any other memory."""

    start: int
    end: int
    fd: int = -1
    offset: int = 0


Regions = Callable[[int, int], HostRegion | None]  # what is at an address; as long as it can be, for so many bytes


class OperationListener(Protocol):
    """Sees every operation once it was run."""

    def __call__(self, operation: Operation, check: str, reason: str) -> None:
        """check and reason are the model's, of a refusal."""
