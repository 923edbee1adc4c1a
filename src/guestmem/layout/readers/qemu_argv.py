"""QEMU's command line, as ``ps``, libvirt's log or a start script has it: nothing is started.

Read are -m, -machine, -accel, -object memory-backend-* (also as JSON, and as JSON whose quotes a shell ate), -numa,
pc-dimm, nvdimm and virtio-mem devices, -mem-path and confidential-guest-support. Addresses come from the machine type
through ``qemu_machine``. Left out: what does not change the slots of RAM, pflash, and machines other than x86's.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from guestmem.layout.error import LayoutError
from guestmem.layout.placement import DEFAULT_HUGE
from guestmem.layout.qemu_layout import QemuVm, lay_out
from guestmem.layout.qemu_machine import Device, QemuMachine, Ram, parse_machine
from guestmem.layout.text import number
from guestmem.layout.value import Assumption, Backing, Layout
from guestmem.units import GIB, KIB, MIB, TIB, U64, align_up, is_power_of_two

__all__ = ("read",)

Options = dict[str, str]

_SIZES = {"b": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(0x[0-9a-fA-F]{1,16}|\d{1,20})([bkmgtBKMGT]?)(?:i?B)?")
_MOST = 1024  # objects and devices of memory
_DEFAULT_MEMORY = 128 * MIB
_BACKENDS = ("memory-backend-ram", "memory-backend-file", "memory-backend-memfd")
_DEVICES = {"pc-dimm": "memdev", "nvdimm": "memdev", "virtio-mem-pci": "memdev", "virtio-mem": "memdev"}
_PROTECTED = {"sev-snp-guest": "sev-snp", "tdx-guest": "tdx"}
_VGA = ("VGA", "virtio-vga", "qxl-vga", "cirrus-vga", "vmware-svga", "secondary-vga")
_HUGE_PATH = re.compile(r"huge(?:pages|tlbfs)?[-_]?(1G|1048576kB)?", re.IGNORECASE)


@dataclass(slots=True)
class _CommandLine:
    """The options about memory, each as key and value."""

    source: str
    machine: Options = field(default_factory=dict)
    memory: Options = field(default_factory=dict)
    objects: dict[str, Options] = field(default_factory=dict)  # by id
    nodes: list[Options] = field(default_factory=list)
    devices: list[Options] = field(default_factory=list)
    mem_path: str = ""
    vga: bool = True
    emulated: bool = False


def read(source: str, data: bytes) -> list[Layout]:
    """The memslots that a QEMU with this command line would set before its firmware runs."""
    said = _options(source, _words(source, data))
    name = said.machine.get("type", "pc")
    machine = parse_machine(name)
    if machine is None:
        needed = "only x86 machines pc, q35 and microvm are laid out"
        raise LayoutError(source, needed, field="-machine", value=name, remedy="use qmp: of the running VM instead")
    vm = QemuVm(machine, [], vga=said.vga)
    vm.nodes = _nodes(said, machine, vm)
    vm.devices = [_device(said, options, index, vm) for index, options in enumerate(said.devices)]
    if "max-ram-below-4g" in said.machine:
        vm.most_below_4g = _size(source, said.machine["max-ram-below-4g"], 1, "max-ram-below-4g")
    guard = said.objects.get(said.machine.get("confidential-guest-support", ""), {})
    vm.protected = _PROTECTED.get(guard.get("qom-type", ""), "")
    if said.emulated:
        text = "the VM is emulated (-accel tcg), without KVM: these would be its slots with KVM"
        vm.notes.append(Assumption("slots", text, "-accel kvm"))
    return [lay_out(source, "qemu-argv", "qemu", vm)]


def _words(source: str, data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace").replace("\\\n", " ")
    try:
        return shlex.split(text, comments=False)
    except ValueError:  # an apostrophe in a name: then nothing is quoted
        return text.split()


def _options(source: str, words: list[str]) -> _CommandLine:
    said = _CommandLine(source)
    for name, value in _pairs(words):
        match name:
            case "-m" | "-memory":
                said.memory |= _keys(value, "size")
            case "-machine" | "-M":
                said.machine |= _keys(value, "type")
            case "-object":
                _object(said, _keys(value, "qom-type"))
            case "-numa":
                _node(said, _keys(value, "kind"))
            case "-device":
                options = _keys(value, "driver")
                said.vga = said.vga or options.get("driver") in _VGA
                if options.get("driver") in _DEVICES:
                    said.devices.append(options)
            case "-mem-path":
                said.mem_path = value
            case "-nodefaults":
                said.vga = False
            case "-vga":
                said.vga = value != "none"
            case "-accel":
                said.emulated = value.partition(",")[0] == "tcg"
        if len(said.objects) + len(said.devices) + len(said.nodes) > _MOST:
            raise LayoutError(source, f"at most {_MOST} objects, nodes and devices of memory")
    if said.machine.get("accel", "").partition(":")[0] == "tcg":
        said.emulated = True
    return said


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Every option with the word after it; with two dashes or one."""
    for at, word in enumerate(words):
        if word.startswith("-") and len(word) > 1:
            name = "-" + word.lstrip("-")
            follows = words[at + 1] if at + 1 < len(words) else ""
            yield name, "" if follows.startswith("-") else follows


def _keys(value: str, first: str) -> Options:
    """The keys of an option's value: JSON, JSON without its quotes, or name=value; first names a bare first word."""
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = dict(part.partition(":")[::2] for part in re.split(r",(?![^\[]*\])", value.strip("{}")))
        if isinstance(found, dict):
            return {str(key): _text(item) for key, item in found.items()}
        return {}
    keys: Options = {}
    for at, part in enumerate(value.replace(",,", "\0").split(",")):
        name, equals, item = part.replace("\0", ",").partition("=")
        if equals:
            keys[name] = item
        elif at == 0:
            keys[first] = name
        else:
            keys[name] = "on"
    return keys


def _text(value: object) -> str:
    """A value of JSON as the option has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value).strip()
    return {"true": "on", "false": "off"}.get(text, text)


def _object(said: _CommandLine, options: Options) -> None:
    if options.get("qom-type", "").startswith(("memory-backend-", *_PROTECTED)) and "id" in options:
        said.objects[options["id"]] = options


def _node(said: _CommandLine, options: Options) -> None:
    if options.get("kind") == "node" and ("memdev" in options or "mem" in options):
        said.nodes.append(options)


def _nodes(said: _CommandLine, machine: QemuMachine, vm: QemuVm) -> list[Ram]:
    """Boot memory: the nodes with memory, or that of -m."""
    by_size = [node for node in said.nodes if "mem" in node]
    if said.nodes and not by_size:
        return [_backend(said, node["memdev"], vm) for node in said.nodes]
    size = sum(_size(said.source, node["mem"], MIB, "-numa mem") for node in by_size)
    size = size or _size(said.source, said.memory.get("size", ""), MIB, "-m", _DEFAULT_MEMORY)
    backend = said.machine.get("memory-backend")
    if backend is not None:
        found = _backend(said, backend, vm)
        return [Ram(found.name, size, found.backing)]
    name = "microvm.ram" if machine.family == "microvm" else "pc.ram"
    return [Ram(name, size, _file(said.mem_path, vm) if said.mem_path else Backing("anonymous"))]


def _backend(said: _CommandLine, id: str, vm: QemuVm) -> Ram:
    options = said.objects.get(id)
    if options is None or options.get("qom-type") not in _BACKENDS:
        needed = f"needed an -object of {', '.join(_BACKENDS)} with this id"
        raise LayoutError(said.source, needed, field="memdev", value=id)
    size = _size(said.source, options.get("size", ""), 1, f"{id} size")
    if not size:
        raise LayoutError(said.source, "needed a size above 0", field=f"{id} size", value=options.get("size"))
    kind = options["qom-type"]
    if kind == "memory-backend-file":
        return Ram(id, size, _file(options.get("mem-path", ""), vm))
    if kind == "memory-backend-memfd":
        if options.get("hugetlb") != "on":
            return Ram(id, size, Backing("shmem"))
        vm.default_huge = vm.default_huge or "hugetlbsize" not in options
        page = _size(said.source, options.get("hugetlbsize", ""), 1, f"{id} hugetlbsize", DEFAULT_HUGE)
        if not (is_power_of_two(page) and 4 * KIB <= page <= GIB):
            raise LayoutError(said.source, "needed a page size", field=f"{id} hugetlbsize", value=page)
        return Ram(id, size, Backing("hugetlb", page))
    return Ram(id, size, Backing("shmem" if options.get("share") == "on" else "anonymous"))


def _file(path: str, vm: QemuVm) -> Backing:
    """What a path tells: a mount point that is named after huge pages is taken as one."""
    match = _HUGE_PATH.search(path)
    if match is None:
        return Backing("file")
    page = GIB if match[1] else DEFAULT_HUGE
    if not match[1]:
        vm.default_huge = True
    text = f"the path {path} is taken as hugetlbfs, by its name"
    if all(note.text != text for note in vm.notes):
        vm.notes.append(Assumption("backing", text, "--backing [REGION=]KIND[:SIZE]"))
    return Backing("hugetlb", page)


def _device(said: _CommandLine, options: Options, index: int, vm: QemuVm) -> tuple[Device, int]:
    """A memory device, and how much of it is a slot."""
    source, driver = said.source, options["driver"]
    ram = _backend(said, options.get("memdev", ""), vm)
    if "label-size" in options:
        ram = Ram(ram.name, max(0, ram.size - _size(source, options["label-size"], 1, "label-size")), ram.backing)
    align = max(ram.backing.page_size, 2 * MIB if ram.backing.kind == "anonymous" else 4 * KIB)
    if "block-size" in options:
        block = _size(source, options["block-size"], 1, "block-size")
        if not is_power_of_two(block):
            raise LayoutError(source, "needed a power of two", field="block-size", value=block)
        align = max(align, block)
    place = options.get("memaddr") if driver.startswith("virtio-mem") else options.get("addr")
    gpa = None if not place else number(source, place, 16 if place.startswith("0x") else 10, line=0, field="addr")
    plugged = ram.size
    if options.get("dynamic-memslots") == "on":
        wanted = _size(source, options.get("requested-size", ""), 1, "requested-size", 0)
        plugged = min(ram.size, align_up(wanted, GIB))
        text = f"{ram.name}: dynamic memslots hold what is plugged, taken as requested-size rounded up to 1G"
        vm.notes.append(Assumption("slots", text, "qmp: of the running VM"))
    return Device(ram, align, gpa), plugged


def _size(source: str, text: str, unit: int, field: str, default: int | None = None) -> int:
    """A size of an option, in bytes; a bare number counts units."""
    if not text and default is not None:
        return default
    match = _SIZE.fullmatch(text)
    if match is None:
        raise LayoutError(source, "needed a size, as 4G", field=field, value=text)
    count = int(match[1], 0)
    size = count * (_SIZES[match[2].lower()] if match[2] else unit)
    if size >= U64:
        raise LayoutError(source, "needed a size below 2**64 bytes", field=field, value=text)
    return size
