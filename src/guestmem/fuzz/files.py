"""Operations on descriptors: guest_memfd files, their ranges, and every call on the wrong kind of file."""

from __future__ import annotations

from guestmem.fuzz.draft import Draft, DraftFile
from guestmem.fuzz.values import (
    CAPABILITIES,
    FALLOCATE_MODES,
    FILE_FLAGS,
    FILE_SIZES,
    M2,
    ODD_FILE_SIZES,
    ODD_LENGTHS,
    ODD_MODES,
    S63,
)
from guestmem.harness import PAGE_SIZE as PAGE
from guestmem.recordings import calls, ioctls
from guestmem.recordings.operation import Handle, Operation
from guestmem.uapi import KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL

__all__ = ("close", "create_file", "duplicate", "fallocate", "misplaced", "open_other")


def create_file(s: Draft) -> None:
    """KVM_CREATE_GUEST_MEMFD; sizes and flags that most kernels take, seldom others."""
    odd = s.chance(12)
    vm = s.one([vm for vm in s.vms if s.scope.flags_of(vm.type) is not None and not s.chance(10)] or s.vms)
    taken = s.scope.flags_of(vm.type) or 0
    flags = s.one(FILE_FLAGS) if odd else s.one([each for each in (0, 3, 3, 1) if not each & ~taken])
    size = s.one(ODD_FILE_SIZES) if odd and s.chance(60) else s.one(FILE_SIZES)
    handle = s.vm_handle(30) if odd else vm.handle
    name = s.name("gm")
    reserved = [s.one((0, 1, (1 << 64) - 1)) for _ in range(6)] if s.chance(3) else []
    s.add(ioctls.CreateGuestMemfd, vm=handle, size=size, flags=flags, out=name, reserved=reserved)
    s.files.append(DraftFile(name, vm.handle, size if size < S63 else PAGE, flags))


def fallocate(s: Draft) -> None:
    """Allocate or punch, inside, across and past the end; odd modes, offsets and lengths."""
    file = s.one(s.files[-4:]) if s.files else None
    size = min(file.size, 4 * M2) if file else 4 * PAGE
    offset, length = s.page_of(size), s.one((PAGE, PAGE, 2 * PAGE, 4 * PAGE, M2, size))
    mode = s.one(FALLOCATE_MODES)
    if s.chance(12):
        mode = s.one(ODD_MODES)
    if s.chance(8):
        offset = s.one((1, PAGE - 1, -1, -PAGE, S63 - 1, S63 - PAGE, S63 - 2 * PAGE, size - 1, size + 1, -S63))
    if s.chance(8):
        length = s.one((*ODD_LENGTHS, max(S63 - 1 - offset, 1), max(S63 - PAGE - offset, 1)))
    handle = file.handle if file and not s.chance(6) else s.any_handle()
    s.add(calls.Fallocate, fd=handle, mode=mode, offset=max(offset, -S63), len=min(length, S63 - 1))


def close(s: Draft) -> None:
    """close(2) of a file mostly, of a VM or a vCPU, or of what is closed."""
    handles: list[Handle] = [file.handle for file in s.files[-3:]]
    handles += s.others[-3:]
    if s.chance(15):
        handles += [handle for vm in s.vms for handle in (vm.handle, *vm.vcpus)] + s.closed[-1:]
    if handles:
        handle = s.one(handles)
        s.add(calls.Close, fd=handle)
        if isinstance(handle, str):
            s.closed.append(handle)
            if s.chance(70):
                s.files = [file for file in s.files if file.handle != handle] or s.files


def duplicate(s: Draft) -> None:
    """dup(2), or open through /proc/self/fd."""
    handle, name = s.file_handle(20), s.name("dup")
    if s.chance(70):
        s.add(calls.Dup, fd=handle, out=name)
        if handle in s.vcpus:
            s.vcpus.add(name)
        original = next((file for file in s.files if file.handle == handle), None)
        if original is not None:
            s.files.append(DraftFile(name, original.vm, original.size, original.flags))
            return
    elif isinstance(handle, str) and handle.startswith("gm"):
        s.add(calls.Reopen, fd=handle, out=name, oflags=s.one((2, 0, 1, 0x200000, 0x10000, 0x20000, 0x220000, 0xC0)))
    else:
        return
    s.others.append(name)


def open_other(s: Draft) -> None:
    """A descriptor of another kind."""
    name = s.name("aux")
    s.add(calls.OpenAux, kind=s.one(("memfd", "eventfd", "devnull", "pipe")), out=name)
    s.others.append(name)


def misplaced(s: Draft) -> None:
    """Calls that a guest_memfd refuses, and ioctls on whatever descriptor there is."""
    if s.chance(45):
        s.one(_IOCTLS)(s)
        return
    handle = s.file_handle(30)
    if s.chance(15):
        s.add(calls.Fstat, fd=handle)
    elif _is_guest_memfd(s, handle):
        # Other files answer by rules of their own (divergence "other-files"); only what they are is asked of them.
        length, offset = s.one((0, 8, PAGE)), s.one((0, PAGE, -1, S63 - 1))
        asked: tuple[tuple[type[Operation], dict[str, int]], ...] = (
            (calls.Ftruncate, {"length": s.one((0, PAGE, -1, M2, S63 - 1))}),
            (calls.Lseek, {"offset": s.one((0, PAGE, -1, -S63)), "whence": s.one((0, 1, 2, 3, 4, 5, 9, -1))}),
            (calls.Read, {"len": length}),
            (calls.Write, {"len": length}),
            (calls.Pread, {"len": length, "offset": offset}),
            (calls.Pwrite, {"len": length, "offset": offset}),
            (calls.Fsync, {}),
        )
        kind, arguments = s.one(asked)
        s.add(kind, fd=handle, **arguments)


def _is_guest_memfd(s: Draft, handle: Handle) -> bool:
    return handle in (-1, 9999, 12345) or any(file.handle == handle for file in s.files)


def _check_extension(s: Draft) -> None:
    s.add(ioctls.CheckExtension, on=s.any_handle() if s.chance(50) else s.vm_handle(), cap=s.one(CAPABILITIES))


def _enable_cap(s: Draft) -> None:
    """Mostly the quirk by which a default VM drops every mapping when a slot goes; known capabilities only."""
    handle = s.any_handle() if s.chance(20) else s.vm_handle()
    cap = s.one((KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_DISABLE_QUIRKS))
    args = s.one(([KVM_X86_QUIRK_SLOT_ZAP_ALL], [KVM_X86_QUIRK_SLOT_ZAP_ALL, 0, 0, 1], [], [1 << 62], [S63, 1]))
    s.add(ioctls.EnableCap, on=handle, cap=cap, args=args, flags=s.one((0, 0, 0, 0, 1)))


def _create_vm(s: Draft) -> None:
    handle, type = s.any_handle(), s.one((0, 1, 2, 31, 32, 1 << 32, (1 << 64) - 1))
    s.add(ioctls.CreateVm, on=handle, type=type, out=s.name("other"))


def _create_vcpu(s: Draft) -> None:
    id = s.one((1, 2, 3, 4095, 4096, 4097, 1 << 31, (1 << 32) - 1, 1 << 32))
    s.add(ioctls.CreateVcpu, vm=s.vm_handle(30), id=id, out=s.name("other"))


def _create_file_on_anything(s: Draft) -> None:
    handle, size, flags = s.any_handle(), s.one((0, PAGE, PAGE // 2)), s.one((0, 3))
    s.add(ioctls.CreateGuestMemfd, vm=handle, size=size, flags=flags, out=s.name("other"))


_IOCTLS = (_check_extension, _enable_cap, _create_vm, _create_vcpu, _create_file_on_anything)
