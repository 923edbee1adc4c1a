"""What the lab costs: to boot, and for each call. `python -m benchmarks.lab`, with the lab built."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from guestmem import lab
from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import sequence
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin
from guestmem.targets import target_named

CALLS = 2000
SEQUENCES = 60
SCOPE = Scope(vm_types=(0, 1), attributes=True, two_dimensional_paging=True, creation_flags=((1, 0),))  # 6.12's


def main() -> None:
    """Print every figure once: the median of some runs, with the smallest and the largest."""
    say("open to first answered ioctl", "s", [timed(first_ioctl) for _ in range(5)])
    say("a command over 9p: true", "s", [timed(lambda: command("true")) for _ in range(3)])
    python = (sys.executable, "-c", "import guestmem.kvm, msgspec")
    say(
        "a command over 9p: Python and what the agent imports", "s", [timed(lambda: command(*python)) for _ in range(3)]
    )
    with lab.boot() as machine:
        say("a fresh process in a running lab", "ms", [timed(lambda: fresh(machine)) * 1e3 for _ in range(9)])
        with lab.LabBackend.on(machine) as backend:
            kvm = backend.open_kvm()
            call = lab.Call("check_extension", (kvm, 10))
            one = [timed(lambda: backend.batch([call])) * 1e6 for _ in range(CALLS)]
            say("one call, KVM_CHECK_EXTENSION", "us", one)
            many = [timed(lambda: backend.batch([call] * CALLS)) * 1e6 / CALLS for _ in range(5)]
            say(f"the same in a batch of {CALLS}", "us", many)
    with closing(target_named("lab")) as whole:
        one_by_one = [operations_a_second(replace(whole, far=None)) for _ in range(3)]
        say("operations of random sequences, call by call", "/s", one_by_one)
        at_once = [operations_a_second(whole) for _ in range(3)]
        say("the same, a sequence in one request", "/s", at_once)
    print(f"{'in one request / call by call':<54} {statistics.median(at_once) / statistics.median(one_by_one):>9.2f}")


def operations_a_second(target: Target) -> float:
    """Random sequences on a lab that runs, without a model beside it; guest touches counted one by one."""
    begin = Begin(seq="")
    sequences = [sequence(seed, SCOPE) for seed in range(SEQUENCES)]
    list(target.run(begin, sequences[0]))  # the guest imports the runner once
    count = sum(max(1, len(getattr(operation, "touches", ()))) for each in sequences for operation in each)
    seconds = timed(lambda: [list(target.run(begin, each)) for each in sequences])
    return count / seconds


def first_ioctl() -> None:
    """Boot, open /dev/kvm, ask it, end."""
    with lab.open_backend() as backend:
        backend.check_extension(backend.open_kvm(), 235)


def command(*argv: str) -> None:
    """Boot, run a program with the host's files, end."""
    assert lab.exec_(argv) == 0


def fresh(machine: lab.LabMachine) -> None:
    """Open a backend, open /dev/kvm, end it."""
    with lab.LabBackend.on(machine) as backend:
        backend.open_kvm()


def timed(action: Callable[[], object]) -> float:
    """Seconds it takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def say(what: str, unit: str, figures: list[float]) -> None:
    """One line of the report."""
    middle = statistics.median(figures)
    print(f"{what:<54} {middle:>9.4g} {unit:<2}  ({min(figures):.4g} to {max(figures):.4g}, {len(figures)} runs)")


if __name__ == "__main__":
    main()
