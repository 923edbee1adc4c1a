"""strace logs of a VMM: KVM_SET_USER_MEMORY_REGION with the mmaps behind it, in every spelling strace has.

Names or numbers (``-X raw``, ``-X verbose``, 6.1's ``_IOC(...)``), ``-y`` paths, ``-N`` names, times, pids, and calls
split over two lines. No strace release decodes KVM_SET_USER_MEMORY_REGION2, so guest_memfd slots are *not in the file*:
such calls become a remark that says so and what to use instead. Left out: memory attributes (undecodable too),
mremap, and the address spaces of forked children.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from guestmem.layout.budget import MAX_KEPT, within
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import DEFAULT_HUGE, DEFAULT_HUGE_ASSUMPTION, THP_ASSUMPTION
from guestmem.layout.replay import MappingTable, ProcessMapping, SlotTable
from guestmem.layout.text import lines, number
from guestmem.layout.value import Backing, Layout, ReaderRemark, Slot
from guestmem.uapi import IOCTL_NUMBERS
from guestmem.units import KIB, format_size

__all__ = ("read",)

_PREFIX = re.compile(r"(?:\[pid +(\d+)\] +|(\d+) +)?(?:\d\d:\d\d:\d\d(?:\.\d+)? +|\d+\.\d+ +)?(.*)")
_WHOLE = re.compile(r"(\w+)\((.*)\)\s+= (\S.*)")
_FIRST_HALF = re.compile(r"(\w+)\((.*?),? <unfinished \.\.\.>")
_SECOND_HALF = re.compile(r"<\.\.\. (\w+) resumed>(.*)\)\s+= (\S.*)")
_FAILED = re.compile(r"-1 (E\w+)")
_NAME = re.compile(r"^[a-z_]+=")
_IOC = re.compile(r"_IOC\(([A-Z_|]+), (0x[0-9a-f]+), (0x[0-9a-f]+), (0x[0-9a-f]+)\)")
_STRUCT = re.compile(r"\b(\w++)=([^,{}]+)")
_FD = re.compile(r"(0x[0-9a-f]+|-?\d+)(?:<(.*)>(?:\(deleted\))?)?")

_SET = IOCTL_NUMBERS["KVM_SET_USER_MEMORY_REGION"]
_OPAQUE = {number: name for name, number in IOCTL_NUMBERS.items() if number != _SET}  # not decoded by strace
_FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": 1, "KVM_MEM_READONLY": 2, "KVM_MEM_GUEST_MEMFD": 4, "MFD_HUGETLB": 4,
    "MAP_SHARED": 0x1, "MAP_PRIVATE": 0x2, "MAP_FIXED": 0x10, "MAP_ANONYMOUS": 0x20, "MAP_HUGETLB": 0x40000,
}  # fmt: skip
_HUGE_SHIFT = 26
_CALLS = ("ioctl", "mmap", "munmap", "memfd_create", "madvise")
_INSTEAD = (
    "use QEMU's -trace kvm_set_user_memory, or a debugger that stops on ioctl and dumps the structure (gdb-dump format)"
)


@dataclass(slots=True)
class _Trace:
    """What is known while the log is read; the first pid's address space is that of all threads."""

    source: str
    table: SlotTable = field(default_factory=SlotTable)
    maps: MappingTable = field(default_factory=MappingTable)
    memfds: dict[int, Backing] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    opaque: list[tuple[int, str]] = field(default_factory=list)  # line, ioctl, of calls that succeeded
    guest_memfds: dict[int, int] = field(default_factory=dict)  # fd -> bytes seen mapped
    huge: bool = False  # a default huge page size was assumed

    @property
    def kept(self) -> int:
        """How much of the log is remembered."""
        calls = len(self.table) + len(self.maps) + len(self.opaque)
        return calls + len(self.memfds) + len(self.names) + len(self.guest_memfds)


def read(source: str, data: bytes) -> list[Layout]:
    """The decoded slots that are left at the end, one layout per VM descriptor, with remarks on what is missing."""
    trace = _Trace(source)
    halves: dict[str, tuple[str, str]] = {}
    for line, text in lines(source, data):
        if not any(name in text for name in _CALLS):
            continue
        match = _PREFIX.fullmatch(text)
        if match is None:
            continue
        pid, body = match[1] or match[2] or "", match[3]
        if half := _FIRST_HALF.fullmatch(body):
            halves[pid] = (half[1], half[2])
        elif half := _SECOND_HALF.fullmatch(body):
            name, before = halves.pop(pid, ("", ""))
            if name == half[1]:
                _call(trace, line, name, before + half[2], half[3])
        elif whole := _WHOLE.fullmatch(body):
            _call(trace, line, *whole.groups())
        within(source, len(halves) + trace.kept, MAX_KEPT, "mappings, descriptors and calls", line=line)
    return _layouts(trace)


def _call(trace: _Trace, line: int, name: str, text: str, result: str) -> None:
    failed = _FAILED.match(result)
    if name not in _CALLS or result.startswith("?") or (result.startswith("-") and (failed is None or name != "ioctl")):
        return
    args = [_without_comments(_NAME.sub("", arg.strip(), count=1)).strip() for arg in _split(text)]
    if name == "ioctl" and len(args) == 3:
        _ioctl(trace, line, args, result, failed[1] if failed else "")
    elif name == "memfd_create" and len(args) == 2:
        fd, _ = _descriptor(result)
        flags = _flags(trace, line, args[1])
        trace.memfds[fd] = _hugetlb(trace, flags) if flags & _FLAGS["MFD_HUGETLB"] else Backing("shmem")
        trace.names[fd] = f"memfd {args[0].strip(chr(34))} (fd {fd})"
    elif name == "mmap" and len(args) == 6:
        _mmap(trace, line, args, result)
    elif name == "munmap" and len(args) == 2:
        start = _number(trace, line, args[0], "address")
        trace.maps.unmap(start, start + _number(trace, line, args[1], "length"))


def _without_comments(text: str) -> str:
    """The text less every /* comment */; a pattern would start over at each comment that is never closed."""
    parts, at = [], 0
    while (start := text.find("/*", at)) >= 0 and (end := text.find("*/", start + 2)) >= 0:
        parts.append(text[at:start])
        at = end + 2
    return "".join([*parts, text[at:]])


def _split(text: str) -> list[str]:
    """Arguments at the commas outside of braces, brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for index, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif char in "{[(":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _ioctl(trace: _Trace, line: int, args: list[str], result: str, errno: str) -> None:
    fd, _ = _descriptor(args[0])
    command = _command(args[1])
    if command == _SET and args[2].startswith("{"):
        _set(trace, line, fd, dict(_STRUCT.findall(args[2])), errno)
    elif errno:
        return
    elif command == _SET:
        trace.opaque.append((line, "KVM_SET_USER_MEMORY_REGION"))
    elif command in _OPAQUE:
        trace.opaque.append((line, _OPAQUE[command]))
        if command == IOCTL_NUMBERS["KVM_CREATE_GUEST_MEMFD"]:
            trace.guest_memfds[_descriptor(result)[0]] = 0


def _command(text: str) -> int | None:
    """The ioctl's number, from a name, a number, "A or B", or _IOC(direction, type, number, size)."""
    if match := _IOC.fullmatch(text):
        direction = 2 * ("_IOC_READ" in match[1]) + ("_IOC_WRITE" in match[1])
        kind, number_, size = (int(part[:10], 16) for part in match.groups()[1:])
        return direction << 30 | size << 16 | kind << 8 | number_
    if text.startswith("0x"):
        try:
            return int(text[:20], 16)
        except ValueError:
            return None
    return next((IOCTL_NUMBERS[name] for name in text.split(" or ") if name in IOCTL_NUMBERS), None)


def _set(trace: _Trace, line: int, vm: int, fields: dict[str, str], errno: str) -> None:
    def get(name: str) -> int:
        if name not in fields:
            raise LayoutError(trace.source, "the structure lacks it", line=line, field=name)
        return _number(trace, line, fields[name].strip(), name)

    hva, slot = get("userspace_addr"), get("slot")
    mapping = trace.maps.find(hva)
    backing = Backing() if mapping is None else mapping.backing
    asked = Slot(
        gpa=get("guest_phys_addr"),
        size=get("memory_size"),
        hva=hva,
        flags=_flags(trace, line, fields.get("flags", "0")),
        region="" if mapping is None else mapping.name,
        offset=None if mapping is None else mapping.offset + hva - mapping.start,
        backing=backing,
        number=slot & 0xFFFF,
        address_space=slot >> 16,
    )
    if errno:
        trace.table.refuse(f"fd {vm}", asked, errno)
    else:
        trace.table.set(f"fd {vm}", asked)


def _mmap(trace: _Trace, line: int, args: list[str], result: str) -> None:
    flags = _flags(trace, line, args[3])
    fd, path = _descriptor(args[4])
    start = _number(trace, line, result.split()[0], "result of mmap")
    length = -(-_number(trace, line, args[1], "length") // (4 * KIB)) * 4 * KIB
    offset = _number(trace, line, args[5], "offset")
    if flags & _FLAGS["MAP_HUGETLB"]:
        backing = _hugetlb(trace, flags)
    elif fd < 0 or flags & _FLAGS["MAP_ANONYMOUS"]:
        backing, fd = Backing("anonymous"), -1
    else:
        backing = trace.memfds.get(fd, Backing("file"))
    if fd in trace.guest_memfds or (path or "").startswith(("anon_inode:[kvm-gmem]", "/[kvm-gmem]")):
        trace.guest_memfds[fd] = max(trace.guest_memfds.get(fd, 0), offset + length)
    name = trace.names.get(fd) or path or (f"fd {fd}" if fd >= 0 else f"anonymous {start:#x}")
    trace.maps.map(ProcessMapping(start, start + length, name, offset, backing, fd))


def _hugetlb(trace: _Trace, flags: int) -> Backing:
    shift = flags >> _HUGE_SHIFT & 63
    trace.huge = trace.huge or shift == 0
    return Backing("hugetlb", 1 << shift if shift else DEFAULT_HUGE)


def _flags(trace: _Trace, line: int, text: str) -> int:
    """A sum of names, numbers and ``21<<SHIFT`` forms; unknown names count as 0."""
    value = 0
    for part in text.split("|"):
        left, shifted, right = part.strip().partition("<<")
        if shifted:
            if right.strip() not in ("MAP_HUGE_SHIFT", "MFD_HUGE_SHIFT"):
                raise LayoutError(trace.source, "needed a shift of strace", line=line, field="flags", value=part)
            value |= (_number(trace, line, left, "flags") & 63) << _HUGE_SHIFT
        elif left[:1].isdigit():
            value |= _number(trace, line, left, "flags")
        else:
            value |= _FLAGS.get(left, 0)
    return value


def _descriptor(text: str) -> tuple[int, str | None]:
    """The number and, with -y, the path of a descriptor; -2 for what is none."""
    match = _FD.match(text)
    return (int(match[1][:12], 16 if match[1].startswith("0x") else 10), match[2]) if match else (-2, None)


def _number(trace: _Trace, line: int, text: str, field: str) -> int:
    if text == "NULL":
        return 0
    return number(trace.source, text, 16 if text.startswith("0x") else 10, line=line, field=field)


def _layouts(trace: _Trace) -> list[Layout]:
    remarks = _missing(trace)
    notes = [THP_ASSUMPTION]
    if trace.huge and any(slot.backing.kind == "hugetlb" for vm in trace.table.vms() for slot in trace.table.slots(vm)):
        notes.append(DEFAULT_HUGE_ASSUMPTION)
    vms = [vm for vm in trace.table.vms() if trace.table.slots(vm) or trace.table.refused(vm)]
    if not vms and not remarks:
        needed = "no memslot is left at the end of the log"
        raise LayoutError(trace.source, needed, remedy="start the VMM under strace -f -e trace=ioctl,memfd_create,mmap")
    return [
        Layout(
            trace.source,
            "strace",
            tuple(_named(slot) for slot in trace.table.slots(vm)),
            assumptions=tuple(notes),
            remarks=remarks,
            refused_calls=trace.table.refused(vm),
        )
        for vm in vms or [""]
    ]


def _named(slot: Slot) -> Slot:
    return slot if slot.region else replace(slot, region=f"hva {slot.hva or 0:#x}", offset=0)


def _missing(trace: _Trace) -> tuple[ReaderRemark, ...]:
    """What strace could not show, in one remark."""
    if not trace.opaque:
        return ()
    counts: dict[str, list[int]] = {}
    for line, name in trace.opaque:
        counts.setdefault(name, []).append(line)
    calls = ", ".join(f"{len(at)} {name} (line {at[0]})" for name, at in counts.items())
    files = "; ".join(
        f"guest_memfd fd {fd}" + (f" is at least {format_size(size)} long" if size else "")
        for fd, size in trace.guest_memfds.items()
    )
    message = f"strace cannot show these calls, so the slots that they set are missing: {calls}" + (
        f"; {files}" if files else ""
    )
    return (ReaderRemark("slots-missing", "warning", message, _INSTEAD),)
