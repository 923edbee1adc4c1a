"""Unicorn, with its TLB filled by us: every miss walks the guest's page tables and asks the model for the frame.

The only module that imports Unicorn, which is QEMU's translator (GPLv2) with a library's interface; it runs guest code
as memory-unsafe C. Tricks that its behaviour asks for are explained where they are used.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Final

from guestmem.errors import BackendUnavailable
from guestmem.exec.guestmemory import GuestMemory, Page
from guestmem.exec.vcpu import state as registers
from guestmem.exec.vcpu.state import CpuState
from guestmem.exec.vcpu.stops import Access, GuestException, Invalid, NoMemory, PortAccess, Stop
from guestmem.exec.vcpu.walk import Control, walk
from guestmem.model.vcpu import Vcpu

__all__ = ("Engine", "require")

_SCRATCH: Final = 1 << 50  # a page of the engine's physical space that stands for MMIO while one instruction runs
_PREFIXES: Final = frozenset(b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65")
_DX_PORTS: Final = frozenset(b"\xec\xed\xee\xef")
_STRING_PORTS: Final = frozenset(b"\x6c\x6d\x6e\x6f")
_GENERAL: Final = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP"),
    *(f"R{number}" for number in range(8, 16)),
    *("RIP", "EFLAGS"),
)


def require() -> None:
    """BackendUnavailable unless Unicorn is installed."""
    if importlib.util.find_spec("unicorn") is None:
        raise BackendUnavailable("guestmem exec needs Unicorn: pip install 'guestmem[exec]'")


class MemoryAccess:
    """One access of an instruction that was run on the scratch page."""

    def __init__(self, address: int, size: int, value: int, *, write: bool) -> None:
        self.address = address
        self.size = size
        self.value = value
        self.write = write


class Engine:
    """One vCPU's engine. ``stop_reason`` says how the last slice ended, None for no reason of the guest's."""

    def __init__(self, memory: GuestMemory, vcpu: Vcpu, state: CpuState) -> None:
        import unicorn
        from unicorn import unicorn_const, x86_const

        self._u, self._x, self._error = unicorn_const, x86_const, unicorn.UcError
        self._memory, self._vcpu, self._state = memory, vcpu, state
        self.stop_reason: Stop | None = None
        self.halted = False
        self._asked = False
        self._generation = -1
        self._exact: set[int] = set()  # addresses of IN and OUT at which a stop is exact
        self._before: Any = None  # the context at an IN or OUT at which it is not
        self._scratch_page: int | None = None  # guest-virtual page that shows the scratch page
        self._windows: set[int] = set()
        self._code: dict[int, tuple[Page, bytes]] = {}  # pages that code was fetched from, as they were then
        self._uc: Any = unicorn.Uc(unicorn_const.UC_ARCH_X86, unicorn_const.UC_MODE_64)
        self._set_up()

    def _set_up(self) -> None:
        uc, u, x = self._uc, self._u, self._x
        uc.ctl_set_cpu_model(x.UC_CPU_X86_EPYC_ROME)
        uc.ctl_set_tlb_mode(u.UC_TLB_VIRTUAL)
        uc.ctl_exits_enabled(True)  # else the end address given to emu_start is looked up in the TLB
        uc.ctl_set_exits([])
        uc.mem_map(_SCRATCH, 0x1000)
        uc.hook_add(u.UC_HOOK_TLB_FILL, self._fill)
        uc.hook_add(u.UC_HOOK_INSN, self._in, None, 1, 0, x.UC_X86_INS_IN)
        uc.hook_add(u.UC_HOOK_INSN, self._out, None, 1, 0, x.UC_X86_INS_OUT)
        uc.hook_add(u.UC_HOOK_INSN, self._cpuid, None, 1, 0, x.UC_X86_INS_CPUID)
        uc.hook_add(u.UC_HOOK_INTR, self._vector)
        uc.hook_add(u.UC_HOOK_INSN_INVALID, self._invalid)
        self._general = [getattr(x, f"UC_X86_REG_{name}") for name in _GENERAL]
        self._rip, self._cr2, self._cr3 = x.UC_X86_REG_RIP, x.UC_X86_REG_CR2, x.UC_X86_REG_CR3

    # -- registers ---------------------------------------------------------------------------------------------------

    def load_general(self) -> None:
        """The general registers become the state's."""
        for register, value in zip(self._general, self._state.general, strict=True):
            self._uc.reg_write(register, value)

    def load_system(self) -> None:
        """Segment bases, tables and CR3 become the state's; nothing cached survives."""
        uc, x, state = self._uc, self._x, self._state
        uc.reg_write(x.UC_X86_REG_FS_BASE, state.base(registers.FS))
        uc.reg_write(x.UC_X86_REG_GS_BASE, state.base(registers.GS))
        uc.reg_write(x.UC_X86_REG_GDTR, (0, *state.gdt, 0))
        uc.reg_write(x.UC_X86_REG_IDTR, (0, *state.idt, 0))
        uc.reg_write(self._cr3, state.cr3)
        self._flush()

    def save(self) -> None:
        """The state becomes what the registers are."""
        uc, x, state = self._uc, self._x, self._state
        general = list(uc.reg_read_batch(self._general))
        general[registers.RFLAGS] = (general[registers.RFLAGS] | 2) & 0xFFFFFFFF
        state.general = general
        state.set_base(registers.FS, uc.reg_read(x.UC_X86_REG_FS_BASE))
        state.set_base(registers.GS, uc.reg_read(x.UC_X86_REG_GS_BASE))
        state.gdt = uc.reg_read(x.UC_X86_REG_GDTR)[1:3]
        state.idt = uc.reg_read(x.UC_X86_REG_IDTR)[1:3]
        state.cr3 = uc.reg_read(self._cr3)

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        rip: int = self._uc.reg_read(self._rip)
        return rip

    @rip.setter
    def rip(self, value: int) -> None:
        """Set it."""
        self._uc.reg_write(self._rip, value)

    def read_general(self, *indexes: int) -> list[int]:
        """Some of the general registers, by their place in kvm_regs."""
        return list(self._uc.reg_read_batch([self._general[index] for index in indexes]))

    def write_general(self, index: int, value: int) -> None:
        """One general register, by its place in kvm_regs."""
        self._uc.reg_write(self._general[index], value)

    def set_fault_address(self, address: int) -> None:
        """CR2."""
        self._uc.reg_write(self._cr2, address)

    # -- running -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the slice soon; from any thread. Lost if the slice has not begun."""
        self._asked = True
        self._uc.emu_stop()

    def slice(self) -> None:
        """Run guest code until something stops it: ``stop_reason``, ``halted``, or a request."""
        uc = self._uc
        if self._generation != self._memory.generation:
            self._flush()
            self._generation = self._memory.generation
        self.halted = self._asked = False
        self._memory.counts.slices += 1
        try:
            uc.emu_start(uc.reg_read(self._rip), 0)
            self.halted = self.stop_reason is None and not self._asked
        except self._error:
            if self.stop_reason is None:
                self.stop_reason = GuestException(13, 0)
        if self._before is not None:
            uc.context_restore(self._before)
            self._before = None
            if isinstance(self.stop_reason, PortAccess):
                self.rip = self.stop_reason.following

    def forget_changed_code(self) -> None:
        """Drop translations whose pages the program has changed since; the engine cannot see its stores."""
        for page, was in self._code.values():
            if page.view[page.start : page.start + 0x1000] != was:
                self._code.clear()
                self._uc.ctl_flush_tb()
                return

    def step_on_scratch(self, address: int, data: bytes | None) -> list[MemoryAccess]:
        """Run one instruction with the scratch page in the place of the page of address; its accesses there.

        data: what the scratch page holds at address; None records the accesses and undoes a load.
        """
        uc = self._uc
        page, accesses = address & ~0xFFF, list[MemoryAccess]()
        if data is not None:
            uc.mem_write(_SCRATCH + (address & 0xFFF), data)
        before = uc.context_save() if data is None else None

        def record(uc: Any, kind: int, at: int, size: int, value: int, unused: object) -> None:
            if at & ~0xFFF in (page, _SCRATCH):
                write = kind == self._u.UC_MEM_WRITE
                accesses.append(MemoryAccess(page | at & 0xFFF, size, value, write=write))

        hook = uc.hook_add(self._u.UC_HOOK_MEM_READ | self._u.UC_HOOK_MEM_WRITE, record)
        self._scratch_page = page
        self._flush()
        uc.ctl_flush_tb()  # blocks that were translated without a hook that counts would not count
        try:
            uc.emu_start(uc.reg_read(self._rip), 0, count=1)
        except self._error:
            if self.stop_reason is None:
                self.stop_reason = Invalid()
        finally:
            self._scratch_page = None
            uc.hook_del(hook)
            self._flush()
        if before is not None and (self.stop_reason is not None or not any(access.write for access in accesses)):
            uc.context_restore(before)
        return accesses

    # -- guest-virtual memory ----------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """size bytes at a guest-virtual address, as the supervisor's own access; Stop."""
        found = b""
        while size:
            part = min(size, 0x1000 - (address & 0xFFF))
            page = self._find(address, "r")
            start = page.start + (address & 0xFFF)
            found += bytes(page.view[start : start + part])
            address, size = address + part, size - part
        return found

    def write(self, address: int, data: bytes) -> None:
        """Store at a guest-virtual address; Stop."""
        while data:
            part = min(len(data), 0x1000 - (address & 0xFFF))
            page = self._find(address, "w")
            start = page.start + (address & 0xFFF)
            page.view[start : start + part] = data[:part]
            address, data = address + part, data[part:]

    def _find(self, address: int, access: Access) -> Page:
        gpa, _, _ = self._walk(address, access)
        return self._memory.page(self._vcpu, gpa | address & 0xFFF, access)

    def _walk(self, address: int, access: Access, *, user: bool = False) -> tuple[int, bool, bool]:
        state, memory, vcpu = self._state, self._memory, self._vcpu
        control = Control(state.cr0, self._uc.reg_read(self._cr3), state.cr4, state.efer, user)
        try:
            return walk(lambda gpa: memory.read64(vcpu, gpa), control, address, access)
        except NoMemory as stop:
            stop.walking = True
            raise

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _fill(self, uc: Any, address: int, kind: int, entry: Any, unused: object) -> bool:
        """A TLB miss: address is guest-virtual, kind the access."""
        self._memory.counts.fills += 1
        u = self._u
        if self._scratch_page == address & ~0xFFF:
            entry.paddr, entry.perms = _SCRATCH, u.UC_PROT_ALL
            return True
        access: Access = "w" if kind == u.UC_MEM_WRITE else "x" if kind == u.UC_MEM_FETCH else "r"
        try:
            gpa, may_write, may_execute = self._walk(address & ~0xFFF, access)
            page = self._memory.page(self._vcpu, gpa, access)
        except Stop as stop:
            if isinstance(stop, NoMemory) and not stop.walking:
                stop.gpa |= address & 0xFFF
            if isinstance(stop, GuestException) and stop.address is not None:
                stop.address = address
            if isinstance(stop, NoMemory):
                stop.address = address
            self.stop_reason = stop
            return False
        except BaseException as bug:
            self.stop_reason = Failed(bug)
            return False
        if page.window not in self._windows:
            self._windows.add(page.window)
            uc.mem_map_ptr(page.window, page.size, u.UC_PROT_ALL, page.pointer)
        if access == "x":
            self._code[page.address] = page, bytes(page.view[page.start : page.start + 0x1000])
        entry.paddr = page.address
        # Writable only once the model has seen a store: a page that was read first may still be the zero page.
        entry.perms = (
            u.UC_PROT_READ
            | (u.UC_PROT_WRITE if may_write and page.writable else 0)
            | (u.UC_PROT_EXEC if may_execute else 0)
        )
        return True

    def _in(self, uc: Any, port: int, size: int, unused: object) -> int:
        self._port(uc, port, size, out=False, value=0)
        return 0

    def _out(self, uc: Any, port: int, size: int, value: int, unused: object) -> None:
        self._port(uc, port, size, out=True, value=value)

    def _port(self, uc: Any, port: int, size: int, *, out: bool, value: int) -> None:
        """Stop at IN or OUT.

        A stop that is asked for in the hook lets the rest of the translated block run. So at the first visit of an
        address the context is kept and restored afterwards, and a hook on the following address ends blocks there.
        """
        if self.stop_reason is not None:
            return
        rip = uc.reg_read(self._rip)
        try:
            following = rip + self._length(rip)
        except Stop as stop:
            self.stop_reason = stop
            uc.emu_stop()
            return
        self.stop_reason = PortAccess(port, size, following, out=out, value=value)
        if rip not in self._exact:
            self._exact.add(rip)
            self._before = uc.context_save()
            uc.hook_add(self._u.UC_HOOK_CODE, _nothing, None, following, following)
            uc.ctl_remove_cache(rip, rip + 16)
        uc.emu_stop()

    def _length(self, rip: int) -> int:
        """Bytes of the IN or OUT at rip."""
        for length in range(1, 16):
            opcode = self.read(rip + length - 1, 1)[0]
            if opcode not in _PREFIXES and not 0x40 <= opcode <= 0x4F:
                if opcode in _STRING_PORTS:
                    raise Invalid
                return length if opcode in _DX_PORTS else length + 1
        raise Invalid

    def _cpuid(self, uc: Any, unused: object) -> int:
        function, index = (value & 0xFFFFFFFF for value in self.read_general(0, 2))
        eax, ebx, ecx, edx = self._state.cpuid_of(function, index)
        for register, value in ((0, eax), (1, ebx), (2, ecx), (3, edx)):
            self.write_general(register, value)
        return 1  # the instruction is done

    def _vector(self, uc: Any, number: int, unused: object) -> None:
        if self.stop_reason is None:
            self.stop_reason = GuestException(number)
        uc.emu_stop()

    def _invalid(self, uc: Any, unused: object) -> bool:
        if self.stop_reason is None:
            self.stop_reason = Invalid()
        return False

    def _flush(self) -> None:
        self._memory.counts.flushes += 1
        self._uc.ctl(self._u.UC_CTL_TLB_FLUSH, self._u.UC_CTL_IO_WRITE)  # the binding has no method for it


class Failed(Stop):
    """A bug of ours inside a hook, to be raised outside of it."""

    def __init__(self, bug: BaseException) -> None:
        super().__init__(str(bug))
        self.bug = bug


def _nothing(*unused: object) -> None:
    """A hook that is there for what it does to blocks."""
