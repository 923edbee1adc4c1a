"""The guest's own page tables: from a guest-virtual page to a guest-physical one (Intel SDM volume 3, 4.5).

Four or five levels, pages of 4 KiB, 2 MiB and 1 GiB, NX, WP, the user bit. Accessed and dirty bits are not set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guestmem.exec.vcpu.stops import GP, PF, Access, GuestException

__all__ = ("CR0_WP", "CR4_LA57", "Control", "walk")

CR0_WP: Final = 1 << 16
CR4_LA57: Final = 1 << 12
_EFER_NXE: Final = 1 << 11
_PRESENT, _WRITABLE, _USER, _LARGE, _NO_EXECUTE = 1, 2, 4, 0x80, 1 << 63
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_CODE_PRESENT, _CODE_WRITE, _CODE_USER, _CODE_FETCH = 1, 2, 4, 16
_FOUR: Final = (39, 30, 21, 12)
_FIVE: Final = (48, *_FOUR)


@dataclass(frozen=True, slots=True)
class Control:
    """The control registers that a walk depends on."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    user: bool = False  # the access is made at privilege level 3


def walk(read64: Callable[[int], int], control: Control, address: int, access: Access) -> tuple[int, bool, bool]:
    """(gpa of the page, writable, executable) of the page of an address; GuestException, and what read64 raises."""
    five = control.cr4 & CR4_LA57
    top = address >> (56 if five else 47)
    if top and top != (0xFF if five else 0x1FFFF):
        raise GuestException(GP, 0)
    write, fetch, user = access == "w", access == "x", control.user
    table = control.cr3 & _FRAME
    allowed, forbidden = _WRITABLE | _USER, 0
    shift = 12
    for shift in _FIVE if five else _FOUR:
        entry = read64(table + (address >> shift & 511) * 8)
        if not entry & _PRESENT:
            raise _page_fault(address, write, fetch, user, 0)
        allowed &= entry
        forbidden |= entry
        table = entry & _FRAME
        if entry & _LARGE and shift in (21, 30):
            break
    size = 1 << shift
    page = (table & -size) | (address & (size - 1) & ~0xFFF)
    executable = not (forbidden & _NO_EXECUTE and control.efer & _EFER_NXE)
    writable = bool(allowed & _WRITABLE) or not (user or control.cr0 & CR0_WP)
    if (write and not writable) or (fetch and not executable) or (user and not allowed & _USER):
        raise _page_fault(address, write, fetch, user, _CODE_PRESENT)
    return page, writable, executable


def _page_fault(address: int, write: bool, fetch: bool, user: bool, code: int) -> GuestException:
    code |= _CODE_WRITE * write | _CODE_FETCH * fetch | _CODE_USER * user
    return GuestException(PF, code, address)
