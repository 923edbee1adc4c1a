"""The runner of the kernel's selftests: what it builds, and how it reads their ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conformance.running import Outcome, on_model
from conformance.selftests import TESTS, is_needed


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("tools/testing/selftests/kvm/guest_memfd_test.c", True),
        ("arch/x86/include/uapi/asm/kvm.h", True),
        ("drivers/dma/ioat/hw.h", True),
        ("drivers/dma/ioat/init.c", False),
        ("arch/arm64/kvm/mmu.c", False),
        ("toolsmith", False),
    ],
)
def test_only_what_the_selftests_need_is_unpacked(path: str, needed: bool) -> None:
    assert is_needed(path) is needed


def test_two_ends_agree_only_at_the_same_assertion() -> None:
    first, second = Outcome("fail", 1.0, "guest_memfd_test.c:354"), Outcome("fail", 9.0, "guest_memfd_test.c:360")

    assert first.agrees(Outcome("fail", 2.0, "guest_memfd_test.c:354"))
    assert not first.agrees(second)
    assert str(first) == "fail at guest_memfd_test.c:354"


def test_each_test_is_listed_once() -> None:
    assert len({test.title for test in TESTS}) == len(TESTS)


@pytest.mark.parametrize(("code", "how"), [(0, "pass"), (4, "skip"), (1, "fail")])
def test_the_exit_status_says_how_a_test_ended(code: int, how: str) -> None:
    pytest.importorskip("unicorn", reason="the extra exec is not installed")
    assert on_model(Path(sys.executable), ["-c", f"raise SystemExit({code})"], "v7.2", 60).how == how
