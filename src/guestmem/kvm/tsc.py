"""How fast this host's time stamp counter runs: what a guest under emulation reads with RDTSC.

QEMU's TCG hands out the host's counter and gives no guest its rate. A kernel measures it against the PIT, which fails
on a busy host; then it has no rate, and its KVM never enters a guest (kvm_guest_time_update asks to be run again).
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

__all__ = ("rate_khz",)

_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SECONDS = 0.01
_TRIES = 5


def rate_khz() -> int:
    """Ticks per millisecond, to about a thousandth; 0 where a process may not make code of its own."""
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0
    code.write(_READ)
    counter: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    first, from_ns = _reading(counter)
    time.sleep(_SECONDS)
    last, to_ns = _reading(counter)
    return (last - first) * 1_000_000 // (to_ns - from_ns)


def _reading(counter: Callable[[], int]) -> tuple[int, int]:
    """The counter and the clock (ns) at one moment: the closest of some tries, in case of an interruption."""
    tries = []
    for _ in range(_TRIES):
        before, ticks, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        tries.append((after - before, ticks, (before + after) // 2))
    _, ticks, moment = min(tries)
    return ticks, moment
