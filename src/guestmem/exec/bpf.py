"""The seccomp filter: which system calls of the program the supervisor is asked about.

Classic BPF over struct seccomp_data (linux/seccomp.h). Everything else costs the program nothing but the filter itself.
What is asked about and is none of ours is answered "continue": the filter selects, it polices nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from guestmem.exec import syscalls as nr
from guestmem.uapi import KVMIO, MAP_ANONYMOUS, MAP_FIXED

__all__ = ("ALLOW", "INJECTED", "NOTIFY", "Data", "program", "run")

ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000
INJECTED: Final = 0x9E57  # upper half of mmap's flags, which the kernel ignores: a call that the supervisor had made
_AUDIT_ARCH_X86_64: Final = 0xC000003E
_AT_EMPTY_PATH: Final = 0x1000
_STDERR: Final = 2

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x25, 0x45, 0x06, 0x54
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

# Asked about whatever their arguments are.
_ALWAYS: Final = (
    nr.OPENAT,
    nr.MUNMAP,
    nr.MADVISE,
    nr.MPROTECT,
    nr.OPEN,
    nr.OPENAT2,
    nr.MREMAP,
    nr.FALLOCATE,
    nr.FTRUNCATE,
    nr.FSYNC,
    nr.FSTAT,
    nr.ACCESS,
    nr.FACCESSAT,
    nr.FACCESSAT2,
)
# Asked about for descriptors above the standard ones, which are never ours.
_BEYOND_STANDARD: Final = (
    nr.READ,
    nr.WRITE,
    nr.LSEEK,
    nr.PREAD,
    nr.PWRITE,
    nr.READV,
    nr.WRITEV,
    nr.PREADV,
    nr.PWRITEV,
)
# Asked about with AT_EMPTY_PATH, by which they look at a descriptor: call and the argument that holds the flags.
_BY_DESCRIPTOR: Final = ((nr.NEWFSTATAT, 3), (nr.STATX, 2))


@dataclass(frozen=True, slots=True)
class Data:
    """struct seccomp_data as far as the filter reads it."""

    number: int
    arguments: tuple[int, ...] = ()
    arch: int = _AUDIT_ARCH_X86_64

    def pack(self) -> bytes:
        """The bytes that the filter sees."""
        arguments = (*self.arguments, *(0,) * (6 - len(self.arguments)))
        return struct.pack("<IIQ6Q", self.number, self.arch, 0, *arguments)


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def _argument(index: int) -> int:
    """Offset of the low half of an argument."""
    return _ARGUMENTS + 8 * index


def _if_number(number: int, body: list[Instruction]) -> list[Instruction]:
    """The body for one call; it ends in returns."""
    return [(_EQUAL, 0, len(body), number), *body]


def _instructions() -> list[Instruction]:
    asked, allowed = (_RETURN, 0, 0, NOTIFY), (_RETURN, 0, 0, ALLOW)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        allowed,
        (_LOAD, 0, 0, _NUMBER),
    ]
    code += _if_number(
        nr.IOCTL,
        [(_LOAD, 0, 0, _argument(1)), (_AND, 0, 0, 0xFF00), (_EQUAL, 0, 1, KVMIO << 8), asked, allowed],
    )
    code += _if_number(
        nr.MMAP,
        [
            (_LOAD, 0, 0, _argument(3) + 4),
            (_EQUAL, 4, 0, INJECTED),
            (_LOAD, 0, 0, _argument(3)),
            (_ANY_BIT, 1, 0, MAP_FIXED),
            (_ANY_BIT, 1, 0, MAP_ANONYMOUS),
            asked,
            allowed,
        ],
    )
    for number in _BEYOND_STANDARD:
        code += _if_number(number, [(_LOAD, 0, 0, _argument(0)), (_GREATER, 0, 1, _STDERR), asked, allowed])
    for number, flags in _BY_DESCRIPTOR:
        code += _if_number(number, [(_LOAD, 0, 0, _argument(flags)), (_ANY_BIT, 0, 1, _AT_EMPTY_PATH), asked, allowed])
    for number in _ALWAYS:
        code += _if_number(number, [asked])
    return [*code, allowed]


def program() -> bytes:
    """The filter as the kernel takes it: struct sock_filter after struct sock_filter."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in _instructions())


def run(code: bytes, data: Data) -> int:
    """What a filter answers for a call: ALLOW or NOTIFY. The kernel's interpreter, for the instructions used here."""
    seen = data.pack()
    accumulator = position = 0
    while True:
        opcode, if_true, if_false, constant = struct.unpack_from("<HBBI", code, 8 * position)
        position += 1
        if opcode == _RETURN:
            return int(constant)
        if opcode == _LOAD:
            accumulator = int.from_bytes(seen[constant : constant + 4], "little")
        elif opcode == _AND:
            accumulator &= constant
        else:
            holds = {
                _EQUAL: accumulator == constant,
                _GREATER: accumulator > constant,
                _ANY_BIT: bool(accumulator & constant),
            }[opcode]
            position += if_true if holds else if_false
