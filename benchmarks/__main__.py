"""Print every figure the README quotes, with what it is compared to."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import guestmem
from benchmarks import hosts, layouts, sequences
from benchmarks.kernel import Unavailable, kernel_slot
from benchmarks.measure import median_us, say
from benchmarks.programs import programs
from benchmarks.traces import traces
from guestmem.recordings.run import run_recording
from guestmem.targets import target_named
from guestmem.units import GIB, MIB, TIB

PRIVATE = guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE
RECORDINGS = Path(__file__).parent.parent / "examples" / "recordings"


def main() -> None:
    """Run every measurement once."""
    bind_and_unbind()
    attributes()
    faults()
    memory()
    recordings()
    sequences.random_sequences()
    layouts.large_layout()
    layouts.fleets()
    hosts.looks()
    traces()
    programs()
    start()


def bind_and_unbind() -> None:
    """Bind and unbind a slot of 1 GiB: the model against the kernel's two ioctls."""
    with guestmem.open("model", profile="v7.2") as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        gmem = vm.create_guest_memfd(GIB)

        def model() -> None:
            vm.set_user_memory_region2(0, gpa=0, size=GIB, guest_memfd=gmem)
            vm.delete_region(0)

        ours = median_us(model, 2000)
    try:
        with kernel_slot(GIB) as slot:

            def kernel() -> None:
                slot.bind(GIB)
                slot.unbind()

            theirs = median_us(kernel, 200)
        compared = f"kernel {theirs:.0f} us: {theirs / ours:.0f} times faster"
    except Unavailable as reason:
        compared = f"kernel skipped: {reason}"
    say("bind and unbind a 1 GiB slot", f"{ours:.1f} us", compared)


def attributes() -> None:
    """Set attributes over 2 MiB and over 1 TiB: the cost must not depend on the size."""
    with guestmem.open("model") as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        figures = []
        for size in (2 * MIB, TIB):

            def convert(size: int = size) -> None:
                vm.set_memory_attributes(TIB, size, PRIVATE)
                vm.set_memory_attributes(TIB, size, 0)

            figures.append(median_us(convert, 2000) / 2)
    say("set attributes over 1 TiB", f"{figures[1]:.1f} us", f"over 2 MiB: {figures[0]:.1f} us")


def faults() -> None:
    """Private guest faults, each on a page never touched before."""
    pages = 20_000
    with guestmem.open("model") as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        gmem = vm.create_guest_memfd(GIB)
        vm.set_user_memory_region2(0, gpa=0, size=GIB, guest_memfd=gmem)
        vm.set_memory_attributes(0, GIB, PRIVATE)
        vcpu = vm.create_vcpu()
        gpas = iter(range(0, 2 * pages * 4096, 4096))

        def touch() -> None:
            vcpu.read(next(gpas))

        fault = median_us(touch, pages)
    say("a guest load that faults in a private page", f"{fault:.1f} us")


def memory() -> None:
    """What a VM of 16 TiB with 10,000 attribute runs takes."""
    tracemalloc.start()
    with guestmem.open("model", profile="next") as kvm:
        vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        gmem = vm.create_guest_memfd(16 * TIB)
        for slot in range(4):
            offset = slot * 4 * TIB
            vm.set_user_memory_region2(slot, gpa=offset, size=4 * TIB, guest_memfd=gmem, guest_memfd_offset=offset)
        for run in range(10_000):
            vm.set_memory_attributes(run * GIB, 2 * MIB, PRIVATE)
        size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    say("a 16 TiB VM with 10,000 attribute runs", f"{size / 1e6:.1f} MB")


def recordings() -> None:
    """Running the shipped recordings, reading and comparing included."""
    operations, begin = 0, time.perf_counter()
    for _ in range(5):
        for path in sorted(RECORDINGS.glob("*.gz")):
            report = run_recording(path, target_named("model"))
            operations += report.operations
    rate = operations / (time.perf_counter() - begin)
    say("running recordings", f"{rate:,.0f} op/s")


def start() -> None:
    """`guestmem --help` against an interpreter that does nothing."""
    command = [sys.executable, "-c"]
    bare = median_us(lambda: _run([*command, "pass"]), 9) / 1000
    help_ms = median_us(lambda: _run([sys.executable, "-m", "guestmem", "--help"]), 9) / 1000
    say("guestmem --help", f"{help_ms:.0f} ms", f"python -c pass: {bare:.0f} ms")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
