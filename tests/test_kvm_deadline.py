"""A call that would never end ends: EINTR after its time, in any thread, and nothing of the program is changed."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from guestmem.errors import KvmError
from guestmem.kvm import deadline, libc
from guestmem.kvm.deadline import Interrupt


def read_from_a_pipe_that_nobody_writes_to(errnos: list[str]) -> None:
    reader, writer = os.pipe()
    space = bytearray(1)
    try:
        with Interrupt(1), pytest.raises(KvmError) as ended:
            libc.call("read", "read", reader, libc.address_of(space), 1)
        errnos.append(ended.value.name)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_call_that_waits_for_ever_ends_with_eintr() -> None:
    errnos: list[str] = []
    read_from_a_pipe_that_nobody_writes_to(errnos)

    assert errnos == ["EINTR"]


def test_it_does_in_a_thread_that_is_not_the_main_one() -> None:
    errnos: list[str] = []
    thread = threading.Thread(target=read_from_a_pipe_that_nobody_writes_to, args=(errnos,))
    thread.start()
    thread.join(30)

    assert errnos == ["EINTR"]


def test_the_programs_handler_and_mask_are_as_before() -> None:
    def handler(number: int, frame: object) -> None: ...

    before, mask = signal.signal(deadline.SIGNAL, handler), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with Interrupt(60):
            pass

        assert signal.getsignal(deadline.SIGNAL) is handler
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        signal.signal(deadline.SIGNAL, before)
