"""Numbers of the system calls that the supervisor looks at (x86-64, arch/x86/entry/syscalls/syscall_64.tbl)."""

from __future__ import annotations

from typing import Final

__all__ = ("NAMES", "name_of")

READ: Final = 0
WRITE: Final = 1
OPEN: Final = 2
CLOSE: Final = 3
FSTAT: Final = 5
LSEEK: Final = 8
MMAP: Final = 9
MPROTECT: Final = 10
MUNMAP: Final = 11
IOCTL: Final = 16
PREAD: Final = 17
PWRITE: Final = 18
READV: Final = 19
WRITEV: Final = 20
ACCESS: Final = 21
MREMAP: Final = 25
MADVISE: Final = 28
FSYNC: Final = 74
FTRUNCATE: Final = 77
OPENAT: Final = 257
NEWFSTATAT: Final = 262
FACCESSAT: Final = 269
FALLOCATE: Final = 285
PREADV: Final = 295
PWRITEV: Final = 296
STATX: Final = 332
OPENAT2: Final = 437
FACCESSAT2: Final = 439

NAMES: Final = {number: name.lower() for name, number in list(globals().items()) if isinstance(number, int)}


def name_of(number: int) -> str:
    """The name of a system call that is looked at.

    >>> name_of(16), name_of(285)
    ('ioctl', 'fallocate')
    """
    return NAMES.get(number, f"system call {number}")
