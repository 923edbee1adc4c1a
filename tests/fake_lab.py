"""A lab without a kernel: the agent as an ordinary process, with the model behind it, in the place of QEMU.

Everything between a backend's caller and the guest's agent is real: processes, sockets, the keeper, the time limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Qemu

AGENT = """
from guestmem.lab.agent import Agent
from guestmem.model.process import Process
from guestmem.model.profiles import profile_named
Agent(port, lambda: Process(profile_named("v6.12")), lambda directory: None).run()
"""
HELLO = """
from guestmem.lab import channel
os.write(port, channel.frame(0, channel.encode(channel.Hello("0", "0"))))
"""


# What a session does that never answers; no longer than the agent lives, because it is no machine that takes it along.
HANG = "[time.sleep(0.01) for _ in iter(os.getppid, 1)]"
_TOKEN = f"a lab of the tests of {os.getpid()}"


def fake_qemu(guest: str = AGENT) -> Qemu:
    """A process that runs guest (Python; port is its end of the channel, console of the console) as if it were QEMU."""
    port, far_port = socket.socketpair()
    console, far_console = socket.socketpair()
    inherit = (far_port.fileno(), far_console.fileno())
    code = f"# {_TOKEN}\nimport os, signal, sys, time\nport, console = {inherit}\nos.dup2(console, 2)\n{guest}"
    try:
        return Qemu([sys.executable, "-c", code], inherit, port, console)
    finally:
        far_port.close()
        far_console.close()


def fake_machine(guest: str = AGENT, limit_s: float = 30.0) -> LabMachine:
    """The machine over it, once it said hello."""
    return LabMachine.on(fake_qemu(guest), limit_s)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def labs() -> set[int]:
    """The processes of every fake lab of this process, sessions among them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _TOKEN.encode() in (path / "cmdline").read_bytes():
                found.add(int(path.name))
    return found


def children() -> set[int]:
    """The processes this one has started and not collected."""
    mine = os.getpid()
    return {
        int(pid) for task in Path(f"/proc/{mine}/task").iterdir() for pid in (task / "children").read_text().split()
    }


def descriptors() -> set[str]:
    """This process's descriptors, with what they are."""
    return {f"{fd.name} {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if os.path.lexists(fd)}


def eventually(condition: Callable[[], object], limit_s: float = 20.0) -> bool:
    """Whether the condition comes true; looked at again and again, because ends of processes are not instant."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
