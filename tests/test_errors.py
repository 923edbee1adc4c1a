"""What can go wrong, one class for each who must act."""

from __future__ import annotations

import errno
import pickle

import pytest

from guestmem.errors import EHWPOISON, HostSignal, KvmError, errno_name


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.EINVAL, "EINVAL"),
        (errno.EEXIST, "EEXIST"),
        (95, "EOPNOTSUPP"),  # Python's table says ENOTSUP for the same number
        (133, "EHWPOISON"),  # Python's table ends before it
        (errno.EAGAIN, "EAGAIN"),
    ],
)
def test_errnos_have_the_names_that_recordings_write(number: int, name: str) -> None:
    assert errno_name(number) == name


def test_a_number_without_a_name_is_shown_as_a_number() -> None:
    assert errno_name(4000) == "errno 4000"


def test_a_refusal_is_an_os_error_with_the_kernels_errno() -> None:
    refused = KvmError(errno.EINVAL, "flags=0x8", check="flags-valid", hint="clear bit 3")

    assert isinstance(refused, OSError)
    assert (refused.errno, refused.name) == (errno.EINVAL, "EINVAL")
    assert (refused.check, refused.reason, refused.hint) == ("flags-valid", "flags=0x8", "clear bit 3")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KvmError(errno.EINVAL), "EINVAL"),
        (KvmError(EHWPOISON), "EHWPOISON"),
        (KvmError(errno.EINVAL, "size=0x0"), "EINVAL size=0x0"),
        (KvmError(errno.EINVAL, "size=0x0", check="size-positive"), "EINVAL [size-positive] size=0x0"),
        (KvmError(errno.EBADF, check="fd-open"), "EBADF [fd-open]"),
        (KvmError(errno.EINVAL, "size=0x1", check="c", hint="round up"), "EINVAL [c] size=0x1 (hint: round up)"),
    ],
)
def test_a_refusal_reads_as_errno_check_values_and_hint(error: KvmError, text: str) -> None:
    assert str(error) == text


def test_a_refusal_survives_the_way_to_another_process() -> None:
    refused = pickle.loads(pickle.dumps(KvmError(errno.EINVAL, "size=0x1", check="size-aligned", hint="round up")))

    assert str(refused) == "EINVAL [size-aligned] size=0x1 (hint: round up)"


@pytest.mark.parametrize(
    ("signal", "text"),
    [(HostSignal("SIGBUS", "past the end"), "SIGBUS: past the end"), (HostSignal("SIGSEGV"), "SIGSEGV")],
)
def test_a_signal_is_no_errno_and_says_which_one(signal: HostSignal, text: str) -> None:
    assert str(signal) == text
    assert not isinstance(signal, OSError)
