"""A program's own /dev/kvm calls answered by the model, on a machine without KVM and as an ordinary user.

``run`` starts an unmodified program under a seccomp filter with user notification. Its calls on /dev/kvm and on what
comes of it go to a ``model.process.Process`` through the ``Backend`` protocol; its guest code runs in Unicorn. The
program is not confined: whatever is no call of KVM's, the kernel does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestmem.backend import Backend
from guestmem.exec.listener import Listener
from guestmem.exec.program import start
from guestmem.exec.supervisor import Supervisor, Totals, Unserved
from guestmem.exec.vcpu import engine
from guestmem.model.process import Process
from guestmem.model.profiles import V7_2, Profile
from guestmem.rules import DEFAULT, Rule

__all__ = ("Options", "Report", "Totals", "Unserved", "run")

_SWITCH_S = 0.0005  # between threads of the supervisor: a vCPU's must not keep the program's calls waiting


@dataclass(frozen=True, slots=True)
class Options:
    """How a program is served.

    page_size: bytes, of every guest_memfd whose size allows it; 0 leaves the program's flags as they are. strict: the
    first ioctl that is not served ends the program. wrap: what stands between the calls and the model of a process.
    """

    profile: Profile = V7_2
    rule: Rule = DEFAULT
    page_size: int = 0
    strict: bool = False
    wrap: Callable[[int, Process], Backend] = lambda group, process: process
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

    def new_process(group: int) -> tuple[Process, Backend]:
        process = Process(options.profile, None, options.rule)
        return process, options.wrap(group, process)

    def on_unserved(unserved: Unserved) -> None:
        options.on_unserved(unserved)
        if options.strict:
            program.kill()

    listener = Listener(program.listener)
    supervisor = Supervisor(listener, new_process, page_size=options.page_size, on_unserved=on_unserved)
    threading.Thread(target=supervisor.turns.tick, name="ticker", daemon=True).start()
    try:
        supervisor.serve(program.ended, program.wait)
    except BaseException:
        program.kill()
        raise
    finally:
        supervisor.end()
    return Report(program.wait(), supervisor.totals)
