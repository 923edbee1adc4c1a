"""A program's own /dev/kvm calls answered by the model, on a machine without KVM and as an ordinary user.

``run`` starts an unmodified program under a seccomp filter with user notification. Its calls on /dev/kvm and on what
comes of it go to a ``model.process.Process`` through the ``Backend`` protocol; its guest code runs in Unicorn. The
program is not confined: the kernel does every call that is not for KVM.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestmem.exec.hearing import HostRegion, OperationListener
from guestmem.exec.listener import Listener
from guestmem.exec.program import start
from guestmem.exec.spaces import Calls
from guestmem.exec.supervisor import Supervisor, Totals, Unserved
from guestmem.exec.vcpu import engine
from guestmem.model.process import Process
from guestmem.model.profiles import V7_2, Machine, Profile
from guestmem.rules import DEFAULT, Rule

__all__ = ("OperationListener", "Options", "Report", "Totals", "Unserved", "run")

_SWITCH_S = 0.0005  # between threads of the supervisor: a vCPU's must not keep the program's calls waiting


@dataclass(frozen=True, slots=True)
class Options:
    """How a program is served. machine: None is the profile's own.

    page_size: bytes, of every guest_memfd whose size allows it; 0 leaves the program's flags as they are. strict: the
    first ioctl that is not served ends the program. listeners: who sees the operations of a process, by its id.
    """

    profile: Profile = V7_2
    machine: Machine | None = None
    rule: Rule = DEFAULT
    page_size: int = 0
    strict: bool = False
    listeners: Callable[[int], Sequence[OperationListener]] = lambda group: ()
    on_unserved: Callable[[Unserved], None] = lambda unserved: None


@dataclass(frozen=True, slots=True)
class Report:
    """How it went. exit_status: the program's, 128 + the signal that killed it."""

    exit_status: int
    totals: Totals


def run(command: Sequence[str], options: Options | None = None) -> Report:
    """Run a command with the model as its /dev/kvm; BackendUnavailable where this machine lacks something."""
    options = options or Options()
    engine.require()
    program = start(command)
    program.forward_signals()
    sys.setswitchinterval(_SWITCH_S)

    def new_process(group: int) -> tuple[Process, Calls]:
        process = Process(options.profile, options.machine, options.rule)
        listeners = options.listeners(group)
        if not listeners:
            return process, process

        from guestmem.exec.recorder import Recorder

        def region(address: int, size: int) -> HostRegion | None:
            return supervisor.region(group, address, size)

        return process, Recorder(f"process-{group}", process, region, listeners)

    def on_unserved(unserved: Unserved) -> None:
        options.on_unserved(unserved)
        if options.strict:
            program.kill()

    supervisor = Supervisor(
        Listener(program.listener), new_process, page_size=options.page_size, on_unserved=on_unserved
    )
    threading.Thread(target=supervisor.turns.tick, name="ticker", daemon=True).start()
    try:
        supervisor.serve(program.ended, program.wait)
    except BaseException:
        program.kill()
        raise
    finally:
        supervisor.end()
    return Report(program.wait(), supervisor.totals)
