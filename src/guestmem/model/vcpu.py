"""A vCPU: guest accesses and KVM_PRE_FAULT_MEMORY.

An access is answered by stage 2 when a leaf allows it, else by a fault. The guest is reduced to single loads, stores
and fetches; its own code and page tables are not part of the model.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.backend import Exit, PreFaultResult, Touch
from guestmem.errors import KvmError, errno_name
from guestmem.harness import mmio_answer
from guestmem.model.checks import Check, flags_zero, note, observed, require
from guestmem.model.fault import STEPS, resolve
from guestmem.model.hostmem import Anonymous
from guestmem.model.page_fault import MAPPED, MMIO, Fault, FaultResult
from guestmem.model.restrictedmem.fault import STEPS_2023
from guestmem.model.stage2 import Leaf
from guestmem.model.vm import Vm
from guestmem.uapi import KVM_MEMORY_EXIT_FLAG_PRIVATE
from guestmem.units import U64, align_down

__all__ = ("PRE_FAULT_CHECKS", "PreFaultRequest", "Translation", "Vcpu")


@dataclass(frozen=True, slots=True)
class PreFaultRequest:
    """struct kvm_pre_fault_memory; gpa and size are bytes."""

    vcpu: Vcpu
    gpa: int
    size: int
    flags: int


PRE_FAULT_CHECKS: tuple[Check[PreFaultRequest], ...] = (
    flags_zero("kvm_vcpu_pre_fault_memory"),
    Check(
        "range-valid",
        errno.EINVAL,
        "gpa and size must be page aligned, size not 0, and gpa + size below 2**64",
        "kvm_vcpu_pre_fault_memory",
        lambda r: not (r.gpa | r.size) & (r.vcpu.vm.page_size - 1) and r.size > 0 and r.gpa + r.size < U64,
        lambda r: f"gpa={r.gpa:#x} size={r.size:#x}",
    ),
    Check(
        "shadow-pages-allowed",
        errno.ENOSPC,
        "with shadow paging the VM must have had a memslot, which is what its number of shadow pages follows from",
        "kvm_mmu_load",
        lambda r: r.vcpu.vm.machine.two_dimensional_paging or r.vcpu.vm.had_slots,
        lambda r: "no memslot was ever set",
    ),
    Check(
        "two-dimensional-paging",
        errno.EOPNOTSUPP,
        "only two-dimensional paging is indexed by GPA",
        "kvm_tdp_map_page",
        lambda r: r.vcpu.vm.machine.two_dimensional_paging,
        lambda r: "the machine uses shadow paging",
    ),
    Check(
        "root-current",
        errno.EINTR,
        "the vCPU's page-table root must not be older than the last slot deletion, else the call spins until a signal",
        "kvm_arch_vcpu_pre_fault_memory",
        lambda r: not r.vcpu.root_is_stale,
        lambda r: "a slot was deleted or moved since this vCPU last ran",
        "run the vCPU once, or use a kernel that renews the root (7.2)",
    ),
)


def _page_check(name: str, kind: str, rule: str, hint: str = "") -> Check[tuple[FaultResult, int]]:
    return Check(
        name,
        lambda fault: errno.ENOENT if kind == "mmio" else fault[0].errno,
        rule,
        "kvm_tdp_map_page",
        lambda fault: fault[0].kind != kind,
        lambda fault: f"gpa={fault[1]:#x}",
        hint,
    )


PRE_FAULT_PAGE_CHECKS = (
    _page_check("gpa-has-memory", "mmio", "a memslot must have the page", "set a memslot there"),
    _page_check(
        "memory-fault", "memory_fault", "a guest read of the page must not exit to user space as a memory fault"
    ),
    _page_check("host-error", "host_error", "the host must be able to fault in the page at the slot's userspace_addr"),
)


@dataclass(frozen=True, slots=True)
class Translation:
    """How an access to a frame is answered: by a leaf, or without one by the result of the fault it took."""

    leaf: Leaf | None
    result: FaultResult
    private: bool = False  # the fault counted the access as private


class Vcpu:
    """One vCPU of a VM."""

    def __init__(self, vm: Vm, id: int) -> None:
        self.vm: Vm = vm
        self.id = id
        self.steps = STEPS if vm.profile.revision is None else STEPS_2023
        self._root: int | None = None  # generation of the page-table root it has loaded
        self._shutdowns = vm.shutdowns

    @property
    def root_is_stale(self) -> bool:
        """Whether pre-fault would find an outdated root and, before 7.2, not renew it."""
        vm = self.vm
        if vm.profile.pre_fault_renews_root:
            return False
        return self._root is not None and self._root != vm.root_generation

    def touch(self, touch: Touch) -> list[Exit]:
        """One guest access: the exits it took, the last one "done" unless it was abandoned."""
        vm = self.vm
        if self._shutdowns != vm.shutdowns:
            self._shutdowns = vm.shutdowns
            return [Exit("shutdown")]
        answer = self.translate(touch.gpa >> vm.page_shift, write=touch.rw == "w", fetch=touch.rw == "x")
        if answer.leaf is None:
            return _exits(vm, answer, touch)
        return [_access(answer.leaf, touch, vm.page_shift)]

    def translate(self, gfn: int, *, write: bool, fetch: bool) -> Translation:
        """What answers an access to a frame: a leaf, by a fault if need be, or how that fault ended."""
        vm = self.vm
        self._root = vm.root_generation
        leaf = vm.stage2.get(gfn)
        if leaf is not None and (leaf.writable or not write):
            if observed():
                self._explain_leaf(gfn, leaf)
            return Translation(leaf, MAPPED)
        fault = Fault(vm, gfn, write=write, fetch=fetch, reserved=vm.mmio.is_stale(gfn))
        result = MMIO if vm.mmio.is_current(gfn) else resolve(fault, self.steps)
        if result.kind != "mapped":
            vm.stage2.statistics.exits[result.kind] += 1
        return Translation(fault.leaf, result, fault.private)

    def pre_fault(self, request: PreFaultRequest) -> PreFaultResult:
        """KVM_PRE_FAULT_MEMORY: map the range as a guest read would, page by page; 0 once any page was done."""
        try:
            require(PRE_FAULT_CHECKS, request)
        except KvmError as refused:
            return PreFaultResult(request.gpa, request.size, refused)
        self._root = self.vm.root_generation
        gpa, end = request.gpa, request.gpa + request.size
        while gpa < end:
            fault = Fault(self.vm, gpa >> self.vm.page_shift)
            result = resolve(fault, self.steps)
            if result.kind != "mapped":
                return PreFaultResult(gpa, end - gpa, _pre_fault_error(result, gpa) if gpa == request.gpa else None)
            gpa = min(end, self._mapped_until(fault, end))
        return PreFaultResult(gpa, end - gpa)

    def _mapped_until(self, fault: Fault, end: int) -> int:
        """Where the mapping just made ends, in bytes; base pages that must follow the same way are done at once."""
        vm = self.vm
        first = align_down(fault.gfn, 1 << fault.order)
        last = first + (1 << fault.order)
        alike = min(_alike_until(fault), end >> vm.page_shift)
        if alike > last:
            if fault.gmem is not None:
                fault.gmem.cache.populate(fault.index + 1, fault.index + alike - fault.gfn)
            else:
                _read_fault(fault, alike - fault.gfn)
            assert fault.leaf is not None
            vm.stage2.map(last, fault.leaf, alike - last)
            vm.mmio.forget(last, alike)
            last = alike
        return last << vm.page_shift

    def _explain_leaf(self, gfn: int, leaf: Leaf) -> None:
        """Tell an observer what answers an access that takes no fault, and what forbids larger leaves now."""
        vm = self.vm
        note("stage-2", "a {} leaf maps gfn {:#x}".format, vm.geometry.name_of(leaf.order), gfn)
        fault = Fault(vm, gfn)
        for step in self.steps[:-1]:  # all but the one that maps
            if step.__name__ in _LOOKS:
                step(fault)


_LOOKS = ("read_attribute", "look_up_slot", "get_page", "decide_level")


def _alike_until(fault: Fault) -> int:
    """End of the frames after this one that a read would map the same way: base pages only, nothing in between."""
    vm, slot = fault.vm, fault.slot
    assert slot is not None
    if fault.order or vm.pools.free(0) is not None:
        return 0
    end = vm.private_until(fault.gfn, slot.end_gfn)[1]
    if fault.gmem is not None:
        if fault.gmem.cache.largest_order:
            return 0
        poison = next(fault.gmem.cache.poisoned.runs(fault.index, None), None)
        return end if poison is None else min(end, fault.gfn + poison[0] - fault.index)
    vma = vm.host.vmas.run_at(fault.hva)
    if vma is None or vma[2].page_order or not isinstance(fault.source, Anonymous):
        return 0
    alike = min(vma[1], vm.host.alike_until(vma[2], fault.hva))
    return min(end, fault.gfn + (alike - fault.hva) // vm.page_size)


def _read_fault(fault: Fault, pages: int) -> None:
    """The pages of the host's mapping become present, from the one of the fault on."""
    host = fault.vm.host
    vma = host.vmas.get(fault.hva)
    assert vma is not None
    host.fault_in(vma, fault.hva, fault.hva + pages * fault.vm.page_size, write=False)


def _access(leaf: Leaf, touch: Touch, page_shift: int) -> Exit:
    offset = touch.gpa - (leaf.delta << page_shift)
    if touch.rw == "w":
        leaf.source.contents.write(offset, touch.size, touch.value)
        return Exit("done")
    value = leaf.source.contents.read(offset, touch.size)
    note("access", "reads {:#x}".format, value)
    return Exit("done", value=value if touch.rw == "r" else None)


def _exits(vm: Vm, translation: Translation, touch: Touch) -> list[Exit]:
    result, revision = translation.result, vm.profile.revision
    if result.kind == "mmio":
        if touch.rw == "w":
            data = (touch.value & ((1 << 8 * touch.size) - 1)).to_bytes(touch.size, "little").hex()
            return [Exit("mmio", gpa=touch.gpa, len=touch.size, is_write=1, data=data), Exit("done")]
        answer = mmio_answer(touch.size)
        return [Exit("mmio", gpa=touch.gpa, len=touch.size, is_write=0), Exit("done", value=answer)]
    name = errno_name(result.errno) if result.errno else None
    if result.kind == "memory_fault":
        private = KVM_MEMORY_EXIT_FLAG_PRIVATE if revision is None else revision.exit_flag_private
        gpa = align_down(touch.gpa, vm.page_size)
        return [Exit("memory_fault", errno=name, flags=private * translation.private, gpa=gpa, size=vm.page_size)]
    return [Exit("unknown", errno=name)]


def _pre_fault_error(result: FaultResult, gpa: int) -> KvmError | None:
    try:
        require(PRE_FAULT_PAGE_CHECKS, (result, gpa))
    except KvmError as refused:
        return refused
    return None
