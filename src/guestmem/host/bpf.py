"""Kernel memory through a BPF program of 25 instructions, assembled here: no compiler and no library is needed.

The program (type SYSCALL, Linux 5.14 on, run by BPF_PROG_RUN) takes up to 512 requests from a map that this process
has mapped, answers each with bpf_probe_read_kernel, which returns -EFAULT for a bad address and never faults, and
leaves the bytes in the same map. It also notes the address of the task that runs it, which is where descriptors of
this process are found. Needs CAP_BPF and CAP_PERFMON; lockdown=confidentiality refuses it, lockdown=integrity does not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np

from guestmem.host import calls
from guestmem.host.memory import PAGE, Unreadable, u64

__all__ = ("BpfMemory", "assemble")

_REQUESTS = 512  # a run
_LONGEST = 1 << 16  # bytes of a request
_DATA = 1 << 14  # where the bytes start in the map
_SPACE = 2 << 20  # bytes that a run can bring, and one request more behind them
_TASK, _FIRST = 8, 64  # where the task's address and the first request lie
_REQUEST = np.dtype([("address", "<u8"), ("length", "<u4"), ("place", "<u4")])  # the result takes the length's place
_GET_CURRENT_TASK, _PROBE_READ_KERNEL = 35, 113  # helpers (include/uapi/linux/bpf.h)
_MAP_VALUE = 2  # the source register of a load that makes its operand the address of a map's value


class BpfMemory:
    """Reads by the program; OSError from the constructor where the kernel refuses it."""

    name = "bpf"

    def __init__(self) -> None:
        self._map = calls.bpf_create_map(_DATA + _SPACE + _LONGEST)
        try:
            self._program = calls.bpf_load(assemble(self._map.fd), b"guestmem_read")
        except BaseException:
            self._map.close()
            raise

    def read(self, address: int, length: int) -> bytes:
        """As KernelMemory says."""
        parts = []
        for skip in range(0, length, _SPACE):
            size = min(_SPACE, length - skip)
            sizes = [min(_LONGEST, size - at) for at in range(0, size, _LONGEST)]
            data, failed = self._run([address + skip + at for at in range(0, size, _LONGEST)], sizes)
            if failed:
                raise Unreadable(address, length)
            parts.append(data)
        return b"".join(parts)

    def read_pages(self, addresses: Sequence[int]) -> tuple[bytes, list[int]]:
        """As KernelMemory says: 512 pages a run."""
        parts: list[bytes] = []
        failed: list[int] = []
        for first in range(0, len(addresses), _REQUESTS):
            some = addresses[first : first + _REQUESTS]
            data, bad = self._run(some, [PAGE] * len(some))
            parts.append(data)
            failed += [first + index for index in bad]
        return parts[0] if len(parts) == 1 else b"".join(parts), failed

    def current_task(self) -> int:
        """The address of this thread's task_struct."""
        self._map.write(0, bytes(4))
        calls.bpf_run(self._program)
        return u64(self._map.read(_TASK, 8))

    def close(self) -> None:
        """As KernelMemory says."""
        os.close(self._program)
        self._map.close()

    def _run(self, addresses: Sequence[int], lengths: Sequence[int]) -> tuple[bytes, list[int]]:
        """Answer up to 512 requests; their bytes one after the other, and which failed."""
        requests = np.empty(len(addresses), _REQUEST)
        requests["address"], requests["length"] = addresses, lengths
        ends = np.cumsum(requests["length"], dtype=np.uint32)
        requests["place"] = ends - requests["length"]
        self._map.write(0, len(addresses).to_bytes(4, "little"))
        self._map.write(_FIRST, requests.tobytes())
        calls.bpf_run(self._program)
        answers = np.frombuffer(self._map.read(_FIRST, requests.nbytes), _REQUEST)
        return self._map.read(_DATA, int(ends[-1])), np.flatnonzero(answers["length"]).tolist()


def assemble(map_fd: int) -> bytes:
    """The program for a map of this descriptor. Comments give each instruction in C."""
    code: list[bytes] = []
    jumps: dict[int, str] = {}
    labels: dict[str, int] = {}

    def emit(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0, to: str = "") -> None:
        if to:
            jumps[len(code)] = to
        code.append(struct.pack("<BBhi", opcode, dst | src << 4, offset, value))

    emit(0x18, 6, _MAP_VALUE, 0, map_fd)  # r6 = the map's value
    emit(0x00)
    emit(0x85, value=_GET_CURRENT_TASK)
    emit(0x7B, 6, 0, _TASK)  # *(u64 *)(r6 + 8) = r0
    emit(0xB7, 7)  # r7 = 0
    emit(0x61, 9, 6, 0)  # r9 = *(u32 *)r6
    labels["next request"] = len(code)
    emit(0x3D, 7, 9, to="end")  # if r7 >= r9
    emit(0x25, 7, value=_REQUESTS - 1, to="end")  # if r7 > 511
    emit(0xBF, 8, 7)  # r8 = r7
    emit(0x67, 8, value=4)  # r8 <<= 4
    emit(0x57, 8, value=(_REQUESTS - 1) << 4)  # r8 &= 0x1ff0, for the verifier
    emit(0x0F, 8, 6)  # r8 += r6
    emit(0x79, 3, 8, _FIRST)  # r3 = the address
    emit(0x61, 2, 8, _FIRST + 8)  # r2 = the length
    emit(0x61, 1, 8, _FIRST + 12)  # r1 = where the bytes go
    emit(0x25, 2, value=_LONGEST, to="done")  # too long: the length stays as a result
    emit(0x25, 1, value=_SPACE, to="done")
    emit(0x0F, 1, 6)  # r1 += r6
    emit(0x07, 1, value=_DATA)  # r1 += 16384
    emit(0x85, value=_PROBE_READ_KERNEL)
    emit(0x63, 8, 0, _FIRST + 8)  # the result takes the place of the length
    labels["done"] = len(code)
    emit(0x07, 7, value=1)  # r7 += 1
    emit(0x05, to="next request")
    labels["end"] = len(code)
    emit(0xB7, 0)  # r0 = 0
    emit(0x95)  # return
    for place, label in jumps.items():
        opcode, registers, _, value = struct.unpack("<BBhi", code[place])
        code[place] = struct.pack("<BBhi", opcode, registers, labels[label] - place - 1, value)
    return b"".join(code)
