"""A naive oracle: docs/kernel-behaviour.md restated page by page, in dictionaries, as plainly as possible.

Nothing here is fast, ranged or shared with the model: a page holds one number, a leaf is an entry per frame, a rule is
an ``if``. It knows small worlds only (one host buffer, one word per page) and answers with errno names. What it takes
from guestmem are the alignment rules, which have tests of their own, and the numbers of the user-space interface.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from guestmem.geometry import Geometry
from guestmem.rules import Binding, Rule

P = 4096
GPA_PAGES = 1 << 28  # 40 bits
BUFFER_PAGES = 96

MMAP, INIT_SHARED = 1, 2
LOG_DIRTY, READONLY, GUEST_MEMFD = 1, 2, 4


class Refused(Exception):
    """The kernel says no; args[0] is the errno's name."""


@dataclass
class Kernel:
    """What differs between the profiles, as docs/kernel-behaviour.md#differences-between-versions lists it."""

    name: str
    huge: bool = False

    @property
    def overlap(self) -> str:
        return "EINVAL" if self.name in ("v6.12", "v6.18") else "EEXIST"

    def creation_flags(self, private_vm: bool) -> int:
        if self.name == "v6.12":
            return 0
        return MMAP if private_vm and not self.in_place else MMAP | INIT_SHARED

    @property
    def in_place(self) -> bool:
        """Attributes belong to the file."""
        return self.name == "v7.4"

    def may_bind(self, private_vm: bool) -> bool:
        return private_vm or self.name != "v6.12"


@dataclass(eq=False)
class File:
    """A guest_memfd: index -> (first index, order) of its folio, index -> number, poisoned indexes."""

    vm: Vm
    npages: int
    flags: int
    order: int = 0  # of the largest page it takes
    backing: str = "thp"
    asked: int = 0  # order of the page asked for when it was created
    folios: dict[int, tuple[int, int]] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    poison: set[int] = field(default_factory=set)
    users: int = 1  # descriptors and mappings
    private: set[int] = field(default_factory=set)
    pins: list[set[int]] = field(default_factory=list)
    present: dict[int, set[int]] = field(default_factory=dict)  # address of a mapping -> indexes that it shows
    broken: dict[int, set[int]] = field(default_factory=dict)  # ... where it shows a page that was poisoned


@dataclass(eq=False)
class Slot:
    base: int
    npages: int
    flags: int
    hva: int  # page of the buffer
    file: File | None = None
    pgoff: int = 0
    gmem_only: bool = False


@dataclass(eq=False)
class Vm:
    private_type: bool
    slots: dict[int, Slot] = field(default_factory=dict)
    private: set[int] = field(default_factory=set)
    leaves: dict[int, tuple[int, int, object, int]] = field(default_factory=dict)  # gfn -> first, order, source, page
    mmio: dict[int, int] = field(default_factory=dict)
    generation: int = 0
    had_slots: bool = False


class Oracle:
    """The world."""

    def __init__(
        self, kernel: Kernel, geometry: Geometry, rule: Rule, pools: dict[int, int], host_order: int, thp_order: int = 0
    ) -> None:
        self.kernel = kernel
        self.geometry = geometry
        self.rule = rule
        self.free = dict(pools)
        self.host_order = host_order
        self.thp_order = thp_order
        self.vms: list[Vm] = []
        self.files: list[File] = []
        self.buffer: dict[int, int] = {}
        self.zero: set[int] = set()  # pages of the buffer that were read and never written, if it is of base pages

    # -- 2: the file -------------------------------------------------------------------------------------------------

    def create_file(self, vm: Vm, size: int, flags: int, asked: int = 0) -> File:
        backing, order = ("hugetlb", asked) if asked else ("thp", self.thp_order)
        if flags & ~self.kernel.creation_flags(vm.private_type):
            raise Refused("EINVAL")
        if size <= 0 or size % (P << asked):
            raise Refused("EINVAL")
        if backing == "hugetlb":
            if flags & INIT_SHARED:
                raise Refused("EINVAL")
            wanted = size // (P << order)
            if self.free.get(order, wanted) < wanted:
                raise Refused("ENOMEM")
            if order in self.free:
                self.free[order] -= wanted
        file = File(vm, size // P, flags, order, backing, asked)
        if not flags & INIT_SHARED:
            file.private.update(range(file.npages))
        self.files.append(file)
        return file

    def fallocate(self, file: File, offset: int, size: int, *, punch: bool) -> None:
        if size <= 0 or offset < 0:
            raise Refused("EINVAL")
        unit = P << file.order if file.backing == "hugetlb" else P
        if offset % unit or size % unit:
            raise Refused("EINVAL")
        held = (index for pinned in file.pins for index in pinned)
        if punch and file.backing == "hugetlb" and any(offset <= index * P < offset + size for index in held):
            raise Refused("EAGAIN")
        if punch:
            for index in range(offset // P, min((offset + size) // P, file.npages)):
                self._forget_page(file, index)
            self._punch(file, offset // P, (offset + size) // P)
            return
        if offset + size > file.npages * P:
            raise Refused("EINVAL")
        for index in range(offset // P, (offset + size) // P):
            self.folio(file, index)

    def folio(self, file: File, index: int) -> tuple[int, int]:
        """The folio of an index; made if it is missing."""
        if index in file.folios:
            return file.folios[index]
        if file.backing == "hugetlb":
            orders = [file.order]
        else:
            orders = [order for order in reversed(self.geometry.orders) if order <= file.order]
        for order in orders:
            first = index - index % (1 << order)
            block = range(first, first + (1 << order))
            if any(page in file.folios for page in block) or block[-1] >= file.npages:
                continue
            if file.backing != "hugetlb":  # whose pages were taken when it was created
                if self.free.get(order, 1) == 0:
                    continue
                if order in self.free:
                    self.free[order] -= 1
            for page in block:
                file.folios[page] = first, order
            return first, order
        raise Refused("ENOMEM")

    def _punch(self, file: File, start: int, end: int) -> None:
        for index in range(start, min(end, file.npages)):
            file.words.pop(index, None)
            self.unmapped(file, index)
        for first, order in sorted(set(file.folios.values())):
            block = range(first, first + (1 << order))
            gone = [index for index in block if start <= index < end]
            if not gone:
                continue
            if len(gone) < len(block):
                if file.backing == "hugetlb":
                    continue
                for index in block:
                    file.folios[index] = index, 0
                if 0 in self.free:
                    self.free[0] += len(gone)
            elif order in self.free and file.backing != "hugetlb":
                self.free[order] += 1
            for index in gone:
                del file.folios[index]
                file.poison.discard(index)
                for pinned in file.pins:
                    pinned.discard(index)

    def poison(self, file: File, index: int) -> None:
        if index in file.folios:
            self._forget_page(file, index)
            file.poison.add(index)
            for mapping, shown in file.present.items():
                if index in shown:
                    file.broken.setdefault(mapping, set()).add(index)
            self.unmapped(file, index)

    def drop_file(self, file: File) -> None:
        """A descriptor or a mapping goes; with the last one everything does."""
        file.users -= 1
        if file.users:
            return
        for slot in file.vm.slots.values():
            if slot.file is file:
                slot.file = None
                for gfn in range(slot.base, slot.base + slot.npages):
                    self.zap(file.vm, gfn)
        if file.backing == "hugetlb":
            if file.order in self.free:
                self.free[file.order] += file.npages >> file.order
        else:
            for _, order in set(file.folios.values()):
                if order in self.free:
                    self.free[order] += 1
        file.folios.clear()
        file.words.clear()
        file.poison.clear()

    def _forget_page(self, file: File, index: int) -> None:
        for slot in file.vm.slots.values():
            if slot.file is file and slot.pgoff <= index < slot.pgoff + slot.npages:
                self.zap(file.vm, slot.base + index - slot.pgoff)

    def host_page(self, file: File, index: int, mapping: int) -> None:
        """A host access through the mapping at an address; raises SIGBUS."""
        if index in file.broken.get(mapping, ()):
            raise Refused("SIGBUS")
        if index in file.private or index >= file.npages or index in file.poison:
            raise Refused("SIGBUS")
        try:
            self.folio(file, index)
        except Refused:
            raise Refused("SIGBUS") from None
        file.present.setdefault(mapping, set()).add(index)

    def unmapped(self, file: File, index: int) -> None:
        """No mapping shows the page any more."""
        for shown in file.present.values():
            shown.discard(index)

    def buffer_page(self, page: int, *, write: bool) -> None:
        """An access to a page of the buffer: the zero page until the first store, which takes it from every guest."""
        if self.host_order or page in self.buffer:
            return
        if not write:
            self.zero.add(page)
            return
        self.buffer[page] = 0
        if page not in self.zero:
            return
        self.zero.remove(page)
        for vm in self.vms:
            for slot in vm.slots.values():
                if slot.hva <= page < slot.hva + slot.npages:
                    self.zap(vm, slot.base + page - slot.hva)

    # -- 3: slots ----------------------------------------------------------------------------------------------------

    def set_region(
        self, vm: Vm, id: int, flags: int, gpa: int, size: int, hva: int, file: File | None, offset: int
    ) -> None:
        gmem = bool(flags & GUEST_MEMFD)
        valid = (GUEST_MEMFD if self.kernel.may_bind(vm.private_type) else 0) | (0 if gmem else LOG_DIRTY | READONLY)
        if flags & ~valid or size % P or gpa % P or (gmem and offset % P):
            raise Refused("EINVAL")
        old = vm.slots.get(id)
        if size == 0:
            if old is None:
                raise Refused("EINVAL")
            self._drop_slot_mappings(vm, old)
            del vm.slots[id]
            return
        base, npages = gpa // P, size // P
        if old is not None and (
            gmem or old.hva != hva or old.npages != npages or (old.flags ^ flags) & (READONLY | GUEST_MEMFD)
        ):
            raise Refused("EINVAL")
        if old is not None and old.base == base:
            self._set_flags(vm, old, flags)
            return
        for other_id, other in vm.slots.items():
            if other_id != id and other.base < base + npages and base < other.base + other.npages:
                raise Refused("EEXIST")
        if gmem:
            self._check_binding(vm, file, gpa, size, offset)
        if old is not None:
            self._drop_slot_mappings(vm, old)
        if base + npages > GPA_PAGES:
            raise Refused("EINVAL")
        vm.generation += 1
        if old is not None:
            old.base, old.flags = base, flags
            return
        slot = Slot(base, npages, flags, hva)
        if gmem:
            assert file is not None
            slot.file, slot.pgoff, slot.gmem_only = file, offset // P, bool(file.flags & MMAP) or self.kernel.in_place
        vm.slots[id] = slot
        vm.had_slots = True

    def _check_binding(self, vm: Vm, file: File | None, gpa: int, size: int, offset: int) -> None:
        if file is None or not file.users:
            raise Refused("EBADF")
        if file.vm is not vm or offset + size > file.npages * P:
            raise Refused("EINVAL")
        start, end = offset // P, (offset + size) // P
        for slot in vm.slots.values():
            if slot.file is file and slot.pgoff < end and start < slot.pgoff + slot.npages:
                raise Refused(self.kernel.overlap)
        if self.kernel.huge and self.rule.refuses(self._binding(file, gpa, size, offset)) is not None:
            raise Refused("EINVAL")

    def _binding(self, file: File, gpa: int, size: int, offset: int) -> Binding:
        return Binding(gpa, size, offset, P << file.asked, P << file.order, self.geometry)

    def _drop_slot_mappings(self, vm: Vm, slot: Slot) -> None:
        vm.generation += 1
        if vm.private_type:
            for gfn in range(slot.base, slot.base + slot.npages):
                self.zap(vm, gfn)
        else:
            vm.leaves.clear()
            vm.mmio.clear()

    def _set_flags(self, vm: Vm, slot: Slot, flags: int) -> None:
        if slot.flags == flags:
            return
        vm.generation += 1
        was, slot.flags = slot.flags, flags
        frames = range(slot.base, slot.base + slot.npages)
        if flags & LOG_DIRTY and not was & LOG_DIRTY:
            for gfn in frames:
                if gfn in vm.leaves:
                    _, _, source, page = vm.leaves[gfn]
                    vm.leaves[gfn] = gfn, 0, source, page
        elif was & LOG_DIRTY and not flags & LOG_DIRTY:
            for gfn in frames:
                if gfn in vm.leaves:
                    order = self._host_order(vm, slot, gfn)
                    if order > vm.leaves[gfn][1]:
                        self._recover(vm, slot, gfn, order)

    def _recover(self, vm: Vm, slot: Slot, gfn: int, order: int) -> None:
        first = gfn - gfn % (1 << order)
        for page in range(first, first + (1 << order)):
            if self.kernel.name == "v6.12":
                self.zap(vm, page)
            else:
                vm.leaves[page] = first, order, self.buffer, slot.hva + page - slot.base

    # -- 4: attributes -----------------------------------------------------------------------------------------------

    def set_attributes(self, vm: Vm, address: int, size: int, *, private: bool) -> None:
        if self.kernel.name == "v6.18" or self.kernel.in_place:
            raise Refused("ENOTTY")
        if private and not vm.private_type:
            raise Refused("EINVAL")
        if size == 0 or address % P or size % P:
            raise Refused("EINVAL")
        frames = range(address // P, (address + size) // P)
        if all((gfn in vm.private) == private for gfn in frames):
            return
        for gfn in frames:
            self.zap(vm, gfn)
            (vm.private.add if private else vm.private.discard)(gfn)

    def convert(self, file: File, offset: int, size: int, *, private: bool) -> tuple[str | None, int | None]:
        """Pages of a file become private or shared: errno and error_offset."""
        if not self.kernel.in_place:
            return "ENOTTY", None
        if not file.vm.private_type or size == 0 or offset % P or size % P or offset + size > file.npages * P:
            return "EINVAL", None
        pages = range(offset // P, (offset + size) // P)
        if all((index in file.private) == private for index in pages):
            return None, None
        if private:
            for index in pages:
                self.unmapped(file, index)
            for index in pages:
                if any(index in pinned for pinned in file.pins):
                    return "EAGAIN", index * P
        for index in pages:
            if (index in file.private) != private:
                self._forget_page(file, index)
                (file.private.add if private else file.private.discard)(index)
        return None, None

    def is_private(self, vm: Vm, gfn: int) -> bool:
        """By the VM's frames, or by the page of the file that the frame's slot has there."""
        if not self.kernel.in_place:
            return gfn in vm.private
        slot = self._slot_of(vm, gfn)
        return slot is not None and slot.file is not None and slot.pgoff + gfn - slot.base in slot.file.private

    # -- 5 and 6: faults ---------------------------------------------------------------------------------------------

    def zap(self, vm: Vm, gfn: int) -> None:
        """Remove the leaf of a frame, all of it."""
        if gfn in vm.leaves:
            first, order, _, _ = vm.leaves[gfn]
            for page in range(first, first + (1 << order)):
                vm.leaves.pop(page, None)

    def touch(self, vm: Vm, gfn: int, *, write: bool, value: int = 0) -> tuple[str, int]:
        """A guest access to a frame's word: how it ended (done, mmio, private EFAULT, ...) and what was read."""
        slot = self._slot_of(vm, gfn)
        faults = gfn not in vm.leaves or (write and slot is not None and slot.flags & READONLY)
        if not faults and write:
            _, _, source, page = vm.leaves[gfn]
            faults = source is self.buffer and page in self.zero
        if faults:
            ended = self.fault(vm, gfn, write=write)
            if ended != "mapped":
                return ended, 0
        _, _, source, page = vm.leaves[gfn]
        words = source.words if isinstance(source, File) else self.buffer
        if write:
            words[page] = value
            return "done", 0
        return "done", words.get(page, 0)

    def fault(self, vm: Vm, gfn: int, *, write: bool, reserved: bool | None = None) -> str:
        if reserved is None:
            if vm.mmio.get(gfn) == vm.generation:
                return "mmio"
            reserved = gfn in vm.mmio
        private = self.is_private(vm, gfn)
        if private and (reserved or not vm.private_type):
            return "shared EFAULT"
        slot = self._slot_of(vm, gfn)
        if slot is None:
            if private:
                return "private EFAULT"
            if gfn < GPA_PAGES:
                vm.mmio[gfn] = vm.generation
            return "mmio"
        kind = "private" if private else "shared"
        if private or slot.gmem_only:
            return self._fault_file(vm, slot, gfn, kind)
        if write and slot.flags & READONLY:
            return "mmio"
        page = slot.hva + gfn - slot.base
        if page >= BUFFER_PAGES:
            return "host EFAULT"
        self.buffer_page(page, write=write)
        self._map(vm, slot, gfn, self._host_order(vm, slot, gfn), self.buffer, page - gfn)
        return "mapped"

    def _fault_file(self, vm: Vm, slot: Slot, gfn: int, kind: str) -> str:
        file = slot.file
        if file is None:
            return f"{kind} EFAULT"
        index = slot.pgoff + gfn - slot.base
        try:
            _, folio_order = self.folio(file, index)
        except Refused as refused:
            return f"{kind} {refused.args[0]}"
        if index in file.poison:
            return f"{kind} EHWPOISON"
        order = 0
        for candidate in self.geometry.orders:
            if candidate and self._file_block_ok(vm, slot, gfn, index, folio_order, candidate):
                order = candidate
        self._map(vm, slot, gfn, order, file, index - gfn)
        return "mapped"

    def _file_block_ok(self, vm: Vm, slot: Slot, gfn: int, index: int, folio_order: int, order: int) -> bool:
        file, size = slot.file, 1 << order
        assert file is not None
        if order > folio_order:
            return False
        binding = self._binding(file, slot.base * P, slot.npages * P, slot.pgoff * P)
        if self.kernel.huge and self.rule.fault_order(binding, index * P, folio_order) < order:
            return False
        frames = range(gfn - gfn % size, gfn - gfn % size + size)
        inside = all(slot.base <= page < slot.base + slot.npages for page in frames)
        same = all(self.is_private(vm, page) == self.is_private(vm, gfn) for page in frames)
        first = index - index % size
        sound = not any(page in file.poison for page in range(first, first + size))
        placed = (slot.base - slot.hva) % size == 0
        return inside and same and sound and placed and (gfn - index) % size == 0

    def _host_order(self, vm: Vm, slot: Slot, gfn: int) -> int:
        best = 0
        for order in self.geometry.orders:
            size = 1 << order
            frames = range(gfn - gfn % size, gfn - gfn % size + size)
            host = slot.hva + frames[0] - slot.base
            if (
                order <= self.host_order
                and not slot.flags & LOG_DIRTY
                and all(slot.base <= page < slot.base + slot.npages for page in frames)
                and all((page in vm.private) == (gfn in vm.private) for page in frames)
                and host % size == 0
                and host + size <= BUFFER_PAGES
            ):
                best = order
        return best

    def _map(self, vm: Vm, slot: Slot, gfn: int, order: int, source: object, to_page: int) -> None:
        first = gfn - gfn % (1 << order)
        self._split(vm, first, order)
        for page in range(first, first + (1 << order)):
            vm.leaves[page] = first, order, source, page + to_page
            vm.mmio.pop(page, None)

    def _split(self, vm: Vm, gfn: int, order: int) -> None:
        while gfn in vm.leaves and vm.leaves[gfn][1] > order:
            old = vm.leaves[gfn][1]
            lower = max(smaller for smaller in self.geometry.orders if smaller < old)
            for page in range(gfn - gfn % (1 << old), gfn - gfn % (1 << old) + (1 << old)):
                _, _, source, shown = vm.leaves[page]
                vm.leaves[page] = page - page % (1 << lower), lower, source, shown

    def _slot_of(self, vm: Vm, gfn: int) -> Slot | None:
        for slot in vm.slots.values():
            if slot.base <= gfn < slot.base + slot.npages:
                return slot
        return None

    def pre_fault(self, vm: Vm, gpa: int, size: int) -> tuple[str | None, int, int]:
        """The errno, and what is left of the range; the caller keeps the vCPU's root fresh."""
        if gpa % P or size % P or size == 0:
            return "EINVAL", gpa, size
        if self.kernel.name == "v6.18":
            return ("EOPNOTSUPP" if vm.had_slots else "ENOSPC"), gpa, size
        start, end = gpa, gpa + size
        while gpa < end:
            ended = self.fault(vm, gpa // P, write=False, reserved=False)
            if ended != "mapped":
                errno = "ENOENT" if ended == "mmio" else ended.split()[1]
                return (errno if gpa == start else None), gpa, end - gpa
            first, order, _, _ = vm.leaves[gpa // P]
            gpa = min(end, (first + (1 << order)) * P)
        return None, gpa, 0
