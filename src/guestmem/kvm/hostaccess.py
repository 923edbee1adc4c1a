"""Loads and stores of this process that may have no memory behind them: the true signal, raised as HostSignal.

The access is one machine instruction in an executable page. While it runs, SIGSEGV and SIGBUS go to a handler in the
same page that, if the fault came from that instruction, puts the signal's number into RAX and RIP on the ``ret`` after
it. So the width is the width asked for, the address goes through the same page tables as any other access of the
process, and the signal is the kernel's, not a guess from /proc/self/maps. Copying through a pipe instead would turn
both signals into EFAULT, and a copy of the kernel is not an access of the process.

The handler is installed for the one access and is one-shot (SA_RESETHAND): a foreign fault in that moment returns, runs
again and ends the process as it should. x86-64 only. Handlers belong to the process, not to a thread, so accesses take
turns: one that saw another's handler as "the old one" would restore it late, or find none at its fault.
"""

from __future__ import annotations

import ctypes
import signal
import struct
import threading
from typing import Final

from guestmem.errors import HostSignal
from guestmem.harness import PAGE_SIZE
from guestmem.kvm import libc, sigaction
from guestmem.uapi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE
from guestmem.units import U64

__all__ = ("HostAccess",)

_SLOT = 32  # bytes of code per entry point

# Entry points take (rdi, rsi, rdx) and return 0, or the number of the signal in eax.
# Each is: zero eax (the result), one access, then the common tail; only the access may fault.
_RET = bytes.fromhex("c3")
_LOADS: Final = {  # *rsi = the size bytes at rdi
    1: bytes.fromhex("0fb60f"),  # movzx ecx, byte [rdi]
    2: bytes.fromhex("0fb70f"),  # movzx ecx, word [rdi]
    4: bytes.fromhex("8b0f"),  # mov ecx, [rdi]
    8: bytes.fromhex("488b0f"),  # mov rcx, [rdi]
}
_STORES: Final = {  # the low bytes of rsi to rdi
    1: bytes.fromhex("408837"),  # mov [rdi], sil
    2: bytes.fromhex("668937"),  # mov [rdi], si
    4: bytes.fromhex("8937"),  # mov [rdi], esi
    8: bytes.fromhex("488937"),  # mov [rdi], rsi
}
_ZERO_EAX = bytes.fromhex("31c0")
_KEEP_LOADED = bytes.fromhex("48890e")  # mov [rsi], rcx
_COPY = bytes.fromhex("4889d1f3a4")  # mov rcx, rdx; rep movsb: rdx bytes from rsi to rdi

# ucontext_t of x86-64 Linux: uc_mcontext.gregs starts at 40; RAX is its word 13, RIP its word 16.
_RAX, _RIP = 40 + 8 * 13, 40 + 8 * 16
_SA_SIGINFO, _SA_RESETHAND, _SA_ONSTACK = 0x4, 0x80000000, 0x08000000
_SIGNALS: Final = (signal.SIGSEGV, signal.SIGBUS)
_TURN: Final = threading.Lock()


def _handler(start: int, end: int, landing: int) -> bytes:
    """void handler(int signo, siginfo_t *, ucontext_t *): land faults from [start, end) on a ret, eax = signo."""
    body = b"\x48\x8b\x82" + struct.pack("<i", _RIP)  # mov rax, [rdx + RIP]
    body += b"\x48\xb9" + struct.pack("<Q", start) + b"\x48\x39\xc8"  # mov rcx, start; cmp rax, rcx
    land = b"\x48\x63\xff" + b"\x48\x89\xba" + struct.pack("<i", _RAX)  # movsxd rdi, edi; mov [rdx + RAX], rdi
    land += b"\x48\xb9" + struct.pack("<Q", landing)  # mov rcx, landing
    land += b"\x48\x89\x8a" + struct.pack("<i", _RIP)  # mov [rdx + RIP], rcx
    upper = b"\x48\xb9" + struct.pack("<Q", end) + b"\x48\x39\xc8"  # mov rcx, end; cmp rax, rcx
    upper += b"\x73" + bytes([len(land)])  # jae past land
    return body + b"\x72" + bytes([len(upper) + len(land)]) + upper + land + _RET  # jb past all


class HostAccess:
    """The executable page with its entry points; ``close`` unmaps it."""

    def __init__(self) -> None:
        anonymous = MAP_PRIVATE | MAP_ANONYMOUS
        self._page = libc.call(
            "mmap", "mmap of the access page", 0, PAGE_SIZE, PROT_READ | PROT_WRITE, anonymous, -1, 0
        )
        self._entries: dict[tuple[str, int], int] = {}
        ctypes.memmove(self._page, self._code(), PAGE_SIZE)
        libc.call("mprotect", "mprotect of the access page", self._page, PAGE_SIZE, PROT_READ | PROT_EXEC)
        self._action = sigaction.action(self._handler, _SA_SIGINFO | _SA_RESETHAND | _SA_ONSTACK)
        self._result = bytearray(8)

    def load(self, addr: int, size: int) -> int:
        """The size (1, 2, 4 or 8) bytes at addr, little-endian; HostSignal."""
        self._enter(("load", size), addr, libc.address_of(self._result))
        return int.from_bytes(self._result[:size], "little")

    def store(self, addr: int, size: int, value: int) -> None:
        """Store the low size (1, 2, 4 or 8) bytes of value at addr, little-endian; HostSignal."""
        self._enter(("store", size), addr, value)

    def copy_in(self, addr: int, data: bytes) -> None:
        """Copy data to addr; HostSignal, with the bytes before the fault copied."""
        source = bytearray(data)
        self._enter(("copy", 0), addr, libc.address_of(source), len(source))

    def close(self) -> None:
        """Unmap the page."""
        libc.call("munmap", "munmap of the access page", self._page, PAGE_SIZE)

    def _code(self) -> bytes:
        pieces = {("load", size): code + _KEEP_LOADED for size, code in _LOADS.items()}
        pieces |= {("store", size): code for size, code in _STORES.items()}
        pieces[("copy", 0)] = _COPY
        code = b""
        for index, (name, piece) in enumerate(pieces.items()):
            self._entries[name] = self._page + index * _SLOT
            code += (_ZERO_EAX + piece + _RET).ljust(_SLOT, b"\xcc")
        self._landing = self._page + len(code)
        code = (code + _RET).ljust(len(code) + _SLOT, b"\xcc")
        self._handler = self._page + len(code)
        return (code + _handler(self._page, self._landing, self._landing)).ljust(PAGE_SIZE, b"\xcc")

    def _enter(self, name: tuple[str, int], *arguments: int) -> None:
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
        entry = prototype(self._entries[name])
        words = [argument % U64 for argument in (*arguments, 0, 0)[:3]]
        saved = [(number, sigaction.space()) for number in _SIGNALS]
        with _TURN:
            for number, old in saved:
                sigaction.exchange(number, self._action, old)
            try:
                ended_by = entry(*words)
            finally:
                for number, old in saved:
                    sigaction.exchange(number, old)
        if ended_by:
            raise HostSignal(signal.Signals(ended_by).name, f"no memory for the access at {arguments[0]:#x}")
