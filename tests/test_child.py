"""Work in a child process: what happens there stays there, and the parent always learns how it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestmem.recordings.child import ChildEnded, messages


def children() -> bool:
    """Whether this process has a child that is not reaped."""
    try:
        return os.waitpid(-1, os.WNOHANG) != (0, 0) or True
    except ChildProcessError:
        return False


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    assert not children()
    yield
    assert not children()


def said(*parts: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(parts)


def one_and_then(action: Callable[[], object]) -> Callable[[], Iterator[bytes]]:
    """A message, and then what must not hurt."""

    def work() -> Iterator[bytes]:
        yield b"first"
        action()

    return work


def test_messages_arrive_whole_and_in_order() -> None:
    parts = [b"", b"a", b"b" * 300_000, b"c"]

    assert list(messages(said(*parts), 10)) == parts


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "it was ended by SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "it was ended by SIGKILL"),
        (lambda: os._exit(3), "it ended with status 3"),
        (lambda: 1 // 0, "ZeroDivisionError"),
        (lambda: time.sleep(60), "it did not answer within 0.3 s"),
    ],
    ids=["crash", "killed", "status", "exception", "hang"],
)
def test_what_came_before_the_end_is_there_and_the_end_is_told(action: Callable[[], object], words: str) -> None:
    got = messages(one_and_then(action), 0.3)

    assert next(got) == b"first"
    with pytest.raises(ChildEnded, match=words):
        next(got)


def test_a_child_that_nobody_listens_to_any_more_is_ended() -> None:
    got = messages(one_and_then(lambda: time.sleep(60)), 60)
    next(got)
    got.close()  # the fixture finds no child


def test_it_has_no_descriptor_of_its_parents() -> None:
    read_end, write_end = os.pipe()

    def work() -> Iterator[bytes]:
        for fd in (read_end, write_end):
            try:
                os.fstat(fd)
                yield b"open"
            except OSError:
                yield b"closed"
        yield str(Path("/proc/self/fd/0").readlink()).encode()

    try:
        assert list(messages(work, 10)) == [b"closed", b"closed", b"/dev/null"]
    finally:
        os.close(read_end)
        os.close(write_end)


def test_ctrl_c_is_not_for_the_child() -> None:
    def work() -> Iterator[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        yield b"still here"

    assert list(messages(work, 10)) == [b"still here"]
