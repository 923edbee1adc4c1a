"""Inputs that fuzzing or a hostile hand found: each is a layout or one LayoutError, never another exception."""

from __future__ import annotations

import pytest

from guestmem.layout import LayoutError
from guestmem.layout.readers import strace

SET = (
    "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=%s, guest_phys_addr=0, memory_size=4096, "
    "userspace_addr=0x7f0000000000}) = 0\n"
)


def test_a_descriptor_of_strace_may_have_leading_zeros() -> None:
    text = "mmap(NULL, 4096, PROT_READ, MAP_SHARED, 05, 0) = 0x7f0000000000\n" + SET % 0
    (slot,) = strace.read("x", text.encode())[0].slots
    assert slot.region == "fd 5"


def test_strace_flags_shift_by_the_shifts_that_strace_prints_only() -> None:
    with pytest.raises(LayoutError, match="shift"):
        strace.read("x", (SET % "1<<MAP_HUGETLB").encode())
