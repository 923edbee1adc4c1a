"""Operations that are ioctls of KVM, the guest's accesses among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from guestmem.backend import Boot, Exit, Touch
from guestmem.recordings.limits import wraps
from guestmem.recordings.operation import U32, U64, Handle, HostAddress, NewHandle, Observed, Operation, Remark

if TYPE_CHECKING:
    from guestmem.recordings.handles import Handles
    from guestmem.recordings.limits import Limits


class CreateVm(Operation, tag="create_vm"):
    """KVM_CREATE_VM on /dev/kvm, or on whatever ``on`` names."""

    type: U64
    out: NewHandle
    on: Handle = "kvm"

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.create_vm(here.fd(self.on), self.type))


class CheckExtension(Operation, tag="check_extension"):
    """KVM_CHECK_EXTENSION on /dev/kvm or a VM."""

    on: Handle
    cap: U64

    def run(self, here: Handles) -> None:
        self.result = here.backend.check_extension(here.fd(self.on), self.cap)


class EnableCap(Operation, tag="enable_cap"):
    """KVM_ENABLE_CAP on a VM; args are four words, those left out 0."""

    on: Handle
    cap: U32
    args: Annotated[list[U64], msgspec.Meta(max_length=4)] = msgspec.field(default_factory=list)
    flags: U32 = 0

    def run(self, here: Handles) -> None:
        here.backend.enable_cap(here.fd(self.on), self.cap, self.args, self.flags)


class CreateVcpu(Operation, tag="create_vcpu"):
    """KVM_CREATE_VCPU."""

    vm: Handle
    id: U64
    out: NewHandle

    def run(self, here: Handles) -> None:
        self.result = here.made(self.out, here.backend.create_vcpu(here.fd(self.vm), self.id), vcpu_of=self.vm)


class CreateGuestMemfd(Operation, tag="create_guest_memfd"):
    """KVM_CREATE_GUEST_MEMFD; size in bytes, six reserved words."""

    vm: Handle
    size: U64
    flags: U64
    out: NewHandle
    reserved: Annotated[list[U64], msgspec.Meta(max_length=6)] = msgspec.field(default_factory=list)

    def run(self, here: Handles) -> None:
        fd = here.backend.create_guest_memfd(here.fd(self.vm), self.size, self.flags, self.reserved)
        self.result = here.made(self.out, fd)


class SetRegion(Operation):
    """What the two ioctls for memslots have in common; gpa and size in bytes."""

    vm: Handle
    slot: U32
    flags: U32
    gpa: U64
    size: U64
    userspace_addr: HostAddress

    def limit(self, limits: Limits) -> str | None:
        return limits.slot(self.size)


class SetUserMemoryRegion(SetRegion, tag="set_user_memory_region"):
    """KVM_SET_USER_MEMORY_REGION; the last two, in bytes, are read by v10 of restrictedmem only."""

    restricted_fd: Handle = -1
    restricted_offset: U64 = 0

    def run(self, here: Handles) -> None:
        here.backend.set_user_memory_region(
            here.fd(self.vm),
            self.slot,
            self.flags,
            self.gpa,
            self.size,
            here.address(self.userspace_addr),
            here.fd(self.restricted_fd),
            self.restricted_offset,
        )


class SetUserMemoryRegion2(SetRegion, tag="set_user_memory_region2"):
    """KVM_SET_USER_MEMORY_REGION2; the offset in bytes."""

    guest_memfd: Handle
    guest_memfd_offset: U64
    pad1: U32 = 0
    pad2: U64 | Annotated[list[U64], msgspec.Meta(max_length=14)] = 0  # one number fills all fourteen words

    def run(self, here: Handles) -> None:
        here.backend.set_user_memory_region2(
            here.fd(self.vm),
            self.slot,
            self.flags,
            self.gpa,
            self.size,
            here.address(self.userspace_addr),
            here.fd(self.guest_memfd),
            self.guest_memfd_offset,
            self.pad1,
            [self.pad2] * 14 if isinstance(self.pad2, int) else self.pad2,
        )


class SetMemoryAttributes(Operation, tag="set_memory_attributes"):
    """KVM_SET_MEMORY_ATTRIBUTES; address and size in bytes; address_out and size_out what restrictedmem wrote back."""

    vm: Handle
    address: U64
    size: U64
    attributes: U64
    flags: U64
    address_out: Observed[U64 | None] = None
    size_out: Observed[U64 | None] = None

    def run(self, here: Handles) -> None:
        vm = here.fd(self.vm)
        written = here.backend.set_memory_attributes(vm, self.address, self.size, self.attributes, self.flags)
        if written is not None:
            self.address_out, self.size_out = written.address, written.size

    def limit(self, limits: Limits) -> str | None:
        return None if self.flags else limits.attributes(self.address, self.size)


class GmemSetMemoryAttributes(Operation, tag="gmem_set_memory_attributes"):
    """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd; offset and size in bytes, eleven reserved words.

    error_offset is what the kernel wrote back, null if it wrote nothing.
    """

    fd: Handle
    offset: U64
    size: U64
    attributes: U64
    flags: U64
    reserved: Annotated[list[U64], msgspec.Meta(max_length=11)] = msgspec.field(default_factory=list)
    error_offset: Observed[U64 | None] = None

    def run(self, here: Handles) -> None:
        fd = here.fd(self.fd)
        done = here.backend.gmem_set_memory_attributes(
            fd, self.offset, self.size, self.attributes, self.flags, self.reserved
        )
        self.error_offset = done.error_offset
        if done.refused is not None:
            raise done.refused


class PreFault(Operation, tag="pre_fault"):
    """KVM_PRE_FAULT_MEMORY; gpa_out and size_out are what the kernel wrote back."""

    vcpu: Handle
    gpa: U64
    size: U64
    flags: U64
    gpa_out: Observed[U64 | None] = None
    size_out: Observed[U64 | None] = None
    livelock: Remark[bool] = False

    def run(self, here: Handles) -> None:
        done = here.backend.pre_fault_memory(here.fd(self.vcpu), self.gpa, self.size, self.flags)
        self.gpa_out, self.size_out = done.gpa, done.size
        if done.refused is not None:
            raise done.refused

    def limit(self, limits: Limits) -> str | None:
        return None if wraps(self.gpa, self.size) else limits.allocates(self.size)


class RecordedTouch(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One guest access, as ``backend.Touch``."""

    gpa: U64
    rw: Literal["r", "w", "x"]
    size: Literal[1, 2, 4, 8]
    value: U64 = 0


class RecordedExit(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One exit, as ``backend.Exit``; anomaly marks kernel state that depends on history."""

    exit: str
    errno: str | None = None
    value: U64 | None = None
    gpa: U64 | None = None
    len: int | None = None
    is_write: int | None = None
    data: str | None = None
    flags: U64 | None = None
    size: U64 | None = None
    anomaly: Remark[str | None] = None

    def without_remark(self) -> RecordedExit:
        """Only what was observed."""
        return self if self.anomaly is None else msgspec.structs.replace(self, anomaly=None)


class RunTouch(Operation, tag="run_touch"):
    """KVM_RUN of a vCPU of the VM once per touch; ``exits`` has a list for each."""

    vm: Handle
    vcpu: Handle
    boot_gpa: U64
    touches: list[RecordedTouch]
    exits: Observed[list[list[RecordedExit]] | None] = None

    def run(self, here: Handles) -> None:
        here.require_vm(self.vcpu, self.vm)
        boot = Boot(self.boot_gpa, here.buffer(f"boot:{self.vm}"))
        touches = [Touch(touch.gpa, touch.rw, touch.size, touch.value) for touch in self.touches]
        exits = here.backend.run_touch(here.fd(self.vcpu), boot, touches)
        here.ran(self.vm)
        self.exits = [[_recorded(exit) for exit in each] for each in exits] or None

    def arguments(self, touch: int | None = None) -> dict[str, Any]:
        if touch is not None:
            return {"vcpu": self.vcpu, **msgspec.to_builtins(self.touches[touch])}
        return {name: value for name, value in super().arguments().items() if name != "touches"}

    @property
    def parts(self) -> int:
        return len(self.touches) if self.exits else 0

    def ended(self, touch: int | None = None) -> str:
        exits = self.exits_of(touch)
        if exits is None:
            return super().ended()
        return " ".join(word for word in (exits[0].exit, exits[0].errno) if word) if exits else "no exit"

    def observed(self, touch: int | None = None) -> Any:
        exits = self.exits_of(touch)
        if exits is None:
            return super().observed() if touch is None else {"errno": self.errno}
        return [msgspec.to_builtins(exit.without_remark()) for exit in exits]

    def agrees(self, other: Operation, touch: int | None = None) -> bool:
        if touch is None or not isinstance(other, RunTouch):
            return super().agrees(other)
        ours, theirs = self.exits_of(touch), other.exits_of(touch)
        if ours is None or theirs is None:
            return ours is theirs and self.errno == other.errno
        return [exit.without_remark() for exit in ours] == [exit.without_remark() for exit in theirs]

    def exits_of(self, touch: int | None) -> list[RecordedExit] | None:
        """The exits of one touch; None if it has none."""
        if touch is None or self.exits is None or touch >= len(self.exits):
            return None
        return self.exits[touch]


class MappedPages(Operation, tag="mapped_pages"):
    """guestmem's own: what KVM counts as mapped right after a guest ran, without the guest's code and page tables.

    pages: how many leaves, by page size in bytes.
    """

    vm: Handle
    pages: Observed[dict[Annotated[str, msgspec.Meta(pattern="^[0-9]{1,20}$")], int] | None] = None

    def run(self, here: Handles) -> None:
        self.pages = here.pages(self.vm)


def _recorded(exit: Exit) -> RecordedExit:
    return RecordedExit(
        exit.kind, exit.errno, exit.value, exit.gpa, exit.len, exit.is_write, exit.data, exit.flags, exit.size
    )
