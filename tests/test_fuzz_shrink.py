"""Shrinking: what is left still differs, and nothing in it can be left out."""

from __future__ import annotations

from collections.abc import Sequence

from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import sequence
from guestmem.fuzz.shrink import smallest
from guestmem.recordings.calls import Fallocate
from guestmem.recordings.ioctls import CreateGuestMemfd
from guestmem.recordings.operation import Operation

FOUND = sequence(3, Scope(vm_types=(0, 1), attributes=True, two_dimensional_paging=True))


def test_only_what_the_difference_needs_is_left() -> None:
    def differs(operations: Sequence[Operation]) -> bool:
        """A file, then an operation on it with a length above 0x3000."""
        files = {each.out for each in operations if isinstance(each, CreateGuestMemfd)}
        return any(isinstance(each, Fallocate) and each.fd in files and each.len > 0x3000 for each in operations)

    assert differs(FOUND)
    left = smallest(FOUND, differs, limit_s=30)

    assert [type(operation).__name__ for operation in left] == ["CreateVm", "CreateGuestMemfd", "Fallocate"]
    assert differs(left)


def test_a_difference_that_comes_and_goes_is_kept_as_it_was_found() -> None:
    asked = 0

    def differs(operations: Sequence[Operation]) -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    left = smallest(FOUND, differs, limit_s=5)

    assert set(map(type, left)) <= set(map(type, FOUND))
    assert left


def test_without_time_it_is_what_was_found() -> None:
    assert smallest(FOUND, lambda operations: True, limit_s=0) == tuple(FOUND)
