"""However the process ends that has a lab, no process of the lab is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_lab import eventually, is_running

OWNER = """
import os, sys, time
sys.path[:0] = [{tests!r}]
from fake_lab import children, fake_machine, {guest}
machine = fake_machine({guest}{more})
print(machine.pid, *children(), flush=True)
{then}
"""


def owner(then: str, guest: str = "AGENT", more: str = "") -> subprocess.Popen[str]:
    code = OWNER.format(tests=str(Path(__file__).parent), guest=guest, more=more, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    return [int(word) for word in process.stdout.readline().split()]


@pytest.mark.parametrize("guest", ["AGENT", "HELLO"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_is_left_when_the_owner_is_killed(guest: str, how: signal.Signals) -> None:
    # HELLO never looks whether the host is there, as a hung guest; there the keeper is what ends it.
    with owner("time.sleep(1000)", guest, "" if guest == "AGENT" else "+ 'time.sleep(1000)'") as process:
        started = pids(process)
        assert len(started) >= 2, "the machine and its keeper"
        process.send_signal(how)
        process.communicate()
    assert eventually(lambda: not any(is_running(pid) for pid in started))


def test_the_guest_ends_by_itself_when_owner_and_keeper_are_killed_together() -> None:
    with owner("time.sleep(1000)") as process:
        machine, *others = pids(process)
        for pid in others:
            if pid != machine:
                os.kill(pid, signal.SIGKILL)
        assert is_running(machine)
        process.kill()
        process.communicate()
    assert eventually(lambda: not is_running(machine))


@pytest.mark.parametrize("then", ["del machine", "machine.close()", "1 // 0", "sys.exit(3)"])
def test_no_process_is_left_when_the_owner_just_ends(then: str) -> None:
    with owner(then) as process:
        started = pids(process)
        process.communicate()
    assert eventually(lambda: not any(is_running(pid) for pid in started))


def test_a_forked_child_that_ends_does_not_end_its_parents_machine() -> None:
    forking = "pid = os.fork()\nif not pid: sys.exit()\nos.waitpid(pid, 0)\nfrom guestmem.lab import channel\n"
    with owner(forking + "print(machine.start(channel.Open()))") as process:
        pids(process)
        assert process.communicate() == ("1\n", "")
