"""Operations on memory: the host's mappings, loads and stores, and those of the guest."""

from __future__ import annotations

from typing import Literal

from guestmem.fuzz.draft import Draft, DraftMap, DraftVm
from guestmem.fuzz.slots import some_buffer
from guestmem.fuzz.values import ADVICE, M2, ODD_PROTECTIONS, PROTECTIONS
from guestmem.harness import BOOT_GPA, BOOT_SIZE
from guestmem.harness import PAGE_SIZE as PAGE
from guestmem.recordings import calls, ioctls
from guestmem.recordings.operation import Handle
from guestmem.uapi import MADV_COLLAPSE, MADV_HUGEPAGE, MAP_SHARED
from guestmem.units import GIB, U64

__all__ = ("advise", "hold", "host_access", "map_file", "pre_fault", "protect", "touch", "unmap")

_IN_PAGE = (0, 0, 0, 8, 0x7F8, 0xFF8)  # where an access lies in its page
_WIDTHS: tuple[Literal[1, 4, 8], ...] = (1, 4, 8, 8)
_LOAD_STORE: tuple[Literal["r", "w"], ...] = ("r", "w")


def map_file(s: Draft) -> None:
    """mmap(2) of a guest_memfd: whole, in part, past its end; odd lengths, protections, flags and offsets."""
    if not s.files or len(s.maps) > 5:
        return
    file = s.one([each for each in s.files if each.flags & 1] or s.files)
    size = min(file.size, 4 * M2)
    length, offset = s.one((size, size, size + 2 * PAGE, PAGE, 4 * PAGE)), s.one((0, 0, 0, PAGE, s.page_of(size)))
    prot, flags = s.one((3, 3, 3, 1)), MAP_SHARED
    if s.chance(10):
        length = s.one((0, 1, PAGE - 1, PAGE + 1, M2 + 1, 1 << 47, U64 - PAGE, U64 - 1))
    if s.chance(10):
        prot = s.one(PROTECTIONS)
    if s.chance(10):
        flags = s.one((0, 2, 3, 4, 8, 0x80003, 0x40001, 0x4001, 0x8001 if length <= 4 * M2 else 1, 0x21, 0x22, 0x22))
    if s.chance(6):
        offset = s.one((1, PAGE - 1, -PAGE, -1, (1 << 63) - PAGE, 1 << 44))
    handle: Handle = s.any_handle() if s.chance(4) else file.handle
    if handle in s.vcpus:
        return  # that would be struct kvm_run, which the backend itself works with
    name = s.name("map")
    s.add(calls.Mmap, fd=handle, length=length, prot=prot, flags=flags, offset=offset, out=name)
    if length < GIB:
        s.maps.append(DraftMap(name, file, -(-length // PAGE) * PAGE, offset))


def unmap(s: Draft) -> None:
    """munmap(2) of all or of a part, which leaves a hole."""
    if s.maps:
        map = s.one(s.maps)
        if s.chance(50):
            s.add(calls.Munmap, map=map.handle)
            s.maps.remove(map)
        else:
            off = s.page_of(map.length)
            s.add(calls.Munmap, map=map.handle, off=off, length=s.one((PAGE, PAGE, 2 * PAGE, 0, 1, PAGE + 1)))


def protect(s: Draft) -> None:
    """mprotect(2) of a part or all."""
    if s.maps:
        map = s.one(s.maps)
        off, length = s.page_of(map.length), s.one((PAGE, PAGE, 2 * PAGE, map.length, 0, PAGE - 1))
        s.add(
            calls.Mprotect,
            map=map.handle,
            off=off,
            length=length,
            prot=s.one(PROTECTIONS if s.chance(90) else ODD_PROTECTIONS),
        )


def advise(s: Draft) -> None:
    """madvise(2): populating, dropping, and MADV_REMOVE, which punches a hole."""
    if s.maps:
        map = s.one(s.maps)
        off, length = s.page_of(map.length), s.one((PAGE, PAGE, 2 * PAGE, 4 * PAGE, map.length, 0, 1))
        if s.chance(5):
            length = s.one((U64 - PAGE, U64 - 1, (U64 - off) % U64))
        advice = s.one(ADVICE)
        if advice in (22, 23, 25) and length > 16 * M2:
            advice = 9
        s.add(calls.Madvise, map=map.handle, off=off, length=length, advice=advice)


def hold(s: Draft) -> None:
    """Hold pages of a mapping, or drop such references."""
    held = [name for name in s.others if name.startswith("pin")]
    if held and s.chance(40):
        s.add(calls.UnpinPages, pin=s.one(held))
    elif s.maps:
        map, name = s.one(s.maps), s.name("pin")
        length = s.one((PAGE, PAGE, 2 * PAGE, 16 * PAGE, 1, 0))
        s.add(calls.PinPages, map=map.handle, off=s.page_of(map.length) + s.one((0, 0, 0, 1)), length=length, out=name)
        s.others.append(name)


def host_access(s: Draft) -> None:
    """A load or store of the process, in a mapping or a buffer."""
    width = s.one(_WIDTHS)
    if s.maps and s.chance(60):
        map = s.one(s.maps)
        at = PAGE - width // 2 if s.chance(4) else min(s.one(_IN_PAGE), PAGE - width)  # sometimes across two pages
        where = {"map": map.handle, "off": s.page_of(map.length) + at}
    else:
        place = some_buffer(s)
        where = {"buf": place.buf, "off": place.off + min(s.one(_IN_PAGE), PAGE - width)}
    if s.chance(50):
        s.add(calls.HostRead, size=width, **where)
    else:
        s.add(calls.HostWrite, size=width, value=s.random.getrandbits(8 * width), **where)


def touch(s: Draft) -> None:
    """Guest loads and stores: pages of slots, their neighbours, and what was touched before."""
    machines = [vm for vm in s.vms if vm.vcpus]
    if not machines:
        return
    vm = s.one([vm for vm in machines if vm.slots] or machines)
    if not vm.slots and s.chance(90):
        return  # nothing but MMIO
    touches: list[ioctls.RecordedTouch] = []
    for _ in range(s.one((1, 1, 2, 3, 4, 6))):
        gpa = _page_to_touch(s, vm) if not touches or s.chance(70) else touches[-1].gpa // PAGE * PAGE
        if gpa is not None:
            width = s.one(_WIDTHS)
            rw = s.one(_LOAD_STORE)
            value = s.random.getrandbits(8 * width) if rw == "w" else 0
            gpa += min(s.one(_IN_PAGE), PAGE - width)
            touches.append(ioctls.RecordedTouch(gpa=gpa, rw=rw, size=width, value=value))
    vcpu: Handle = s.one(vm.vcpus)
    if s.chance(3):
        vcpu = s.any_handle()
        if vcpu in s.vcpus:
            return  # a vCPU of another VM has another boot memory
    if touches:
        s.add(ioctls.RunTouch, vm=vm.handle, vcpu=vcpu, boot_gpa=BOOT_GPA, touches=touches)
        if s.scope.two_dimensional_paging and vcpu in vm.vcpus and not _huge_pages_were_asked_for(s):
            s.add(ioctls.MappedPages, vm=vm.handle)


def _huge_pages_were_asked_for(s: Draft) -> bool:
    """Whether some of the host's memory may be of pages that the model does not know of."""
    return any(
        isinstance(each, calls.Madvise) and each.advice in (MADV_HUGEPAGE, MADV_COLLAPSE) for each in s.operations
    )


def _page_to_touch(s: Draft, vm: DraftVm) -> int | None:
    """A guest-physical page that the guest's page tables can express and that is not its own code."""
    gpa = s.gpa()
    if vm.slots and s.chance(88):
        slot = s.one(list(vm.slots.values()))
        gpa = slot.gpa // PAGE * PAGE + s.page_of(min(slot.size, 4 * M2))
    own = BOOT_GPA - PAGE <= gpa <= BOOT_GPA + BOOT_SIZE
    return None if own or gpa + PAGE > 1 << s.scope.gpa_bits else gpa


def pre_fault(s: Draft) -> None:
    """KVM_PRE_FAULT_MEMORY; not where an outdated root makes 6.12 spin until a signal."""
    vm = s.one(s.vms)
    spins = s.scope.two_dimensional_paging and vm.type == 0 and vm.outdated
    vcpu: Handle = s.one(vm.vcpus) if vm.vcpus and not spins and not s.chance(8) else s.any_handle()
    if spins and vcpu in s.vcpus:
        return
    gpa, size = s.gpa(), s.one((PAGE, PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE, M2, M2 + PAGE))
    if vm.slots and s.chance(75):
        gpa = s.one(list(vm.slots.values())).gpa
    if s.chance(8):
        gpa = s.one((1, PAGE - 1, U64 - PAGE, U64 - 2 * PAGE, 1 << 52, 1 << 40))
    if s.chance(8):
        size = s.one((0, 1, PAGE - 1, U64 - PAGE, U64 - 1, (U64 - gpa) % U64))
    s.add(ioctls.PreFault, vcpu=vcpu, gpa=gpa, size=size, flags=s.one((0,) * 15 + (1,)))
