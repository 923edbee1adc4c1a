"""libvirt domain XML: what QEMU will get as options, and the slots that follow from it.

Sizes are rounded and backends chosen as libvirt 11 and 12 do (domxml-to-native); addresses come from the machine type
through ``qemu_machine``. Parsed with defusedxml: a document with a DTD or entities is refused. Left out: what does
not change slots, pflash and PCI BARs, machines other than pc, q35 and microvm, and other architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, ParseError

from guestmem.layout.error import LayoutError, printable
from guestmem.layout.placement import (
    DEFAULT_HUGE,
)
from guestmem.layout.qemu_layout import QemuVm, lay_out
from guestmem.layout.qemu_machine import (
    Device,
    QemuMachine,
    Ram,
    parse_machine,
)
from guestmem.layout.text import number
from guestmem.layout.value import Assumption, Backing, Layout
from guestmem.units import GIB, KIB, MIB, TIB, U64, align_up, is_power_of_two

__all__ = ("read",)

_UNITS = {
    "b": 1, "bytes": 1, "KB": 10**3, "k": KIB, "KiB": KIB, "MB": 10**6, "M": MIB, "MiB": MIB,
    "GB": 10**9, "G": GIB, "GiB": GIB, "TB": 10**12, "T": TIB, "TiB": TIB,
}  # fmt: skip
_MAX_NODES = 1024
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_GUEST_MEMFD_TYPES = ("sev-snp", "tdx")


@dataclass(frozen=True, slots=True)
class _HugePage:
    """One <page> of <hugepages>: size in bytes (0: the host's default) and the guest nodes it is for."""

    size: int
    nodes: frozenset[int] | None


@dataclass(slots=True)
class _Domain:
    """What <domain> says about memory, in bytes."""

    source: str
    root: Element
    machine: QemuMachine
    pages: list[_HugePage]
    source_type: str
    protected: str  # "sev-snp", "tdx" or ""
    default_huge: bool = False  # a host default page size was assumed

    def backing(self, node: int, access: str | None, page_size: int | None = None) -> Backing:
        """The backend of a guest node or device: memfd, file or anonymous, with or without huge pages."""
        size = self._page_size(node) if page_size is None else page_size
        if size is not None and size > 4 * KIB:
            return Backing("hugetlb", size)
        if self.source_type == "memfd":
            return Backing("shmem")
        return Backing("file") if self.source_type == "file" or access else Backing("anonymous")

    def _page_size(self, node: int) -> int | None:
        chosen = [page for page in self.pages if page.nodes is not None and node in page.nodes]
        chosen = chosen or [page for page in self.pages if page.nodes is None]
        if not chosen:
            return None
        if chosen[0].size == 0:
            self.default_huge = True
            return DEFAULT_HUGE
        return chosen[0].size


def read(source: str, data: bytes) -> list[Layout]:
    """The memslots QEMU would set for the domain before its firmware runs."""
    domain = _domain(source, _parse(source, data))
    nodes = _nodes(domain)
    most, notes = _command_line(domain)
    vm = QemuVm(domain.machine, nodes, _devices(domain, notes), _has_vga(domain.root), most, domain.protected)
    if domain.root.get("type") == "qemu":
        text = "the domain is emulated (type qemu), without KVM: these would be its slots with KVM"
        notes.append(Assumption("slots", text, "<domain type='kvm'>"))
    vm.notes, vm.default_huge = notes, domain.default_huge
    return [lay_out(source, "libvirt", "libvirt", vm)]


def _parse(source: str, data: bytes) -> Element:
    import defusedxml.ElementTree
    from defusedxml.common import DefusedXmlException

    try:
        root: Element = defusedxml.ElementTree.fromstring(data, forbid_dtd=True)
    except ParseError as error:
        raise LayoutError(source, f"needed XML ({printable(error, 80)})", line=error.position[0]) from None
    except DefusedXmlException:
        remedy = "remove the DOCTYPE: libvirt writes none"
        raise LayoutError(source, "no DTD or entity may be declared", field="XML", remedy=remedy) from None
    except (ValueError, RecursionError, LookupError) as error:
        raise LayoutError(source, f"needed XML ({printable(error, 80)})") from None
    domain = root if root.tag == "domain" else root.find("domain")
    if domain is None:
        raise LayoutError(source, "needed <domain>", field="root element", value=root.tag, remedy="use virsh dumpxml")
    return domain


def _domain(source: str, root: Element) -> _Domain:
    hypervisor = root.get("type", "kvm")
    if hypervisor not in ("kvm", "qemu"):
        needed = "needed kvm or qemu: no other domain has KVM's memslots"
        raise LayoutError(source, needed, field="domain type", value=hypervisor)
    type_ = root.find("os/type")
    name = type_.get("machine", "") if type_ is not None else ""
    machine = parse_machine(name or "pc")
    arch = type_.get("arch", "x86_64") if type_ is not None else "x86_64"
    if machine is None or arch not in ("x86_64", "i686"):
        needed = "only x86 machines pc, q35 and microvm are laid out"
        raise LayoutError(source, needed, field="os/type machine", value=f"{arch} {name}", remedy="use qmp: instead")
    source_type = root.find("memoryBacking/source")
    security = root.find("launchSecurity")
    kind = "" if security is None else security.get("type", "")
    domain = _Domain(
        source,
        root,
        machine,
        [],
        source_type.get("type", "anonymous") if source_type is not None else "anonymous",
        kind if kind in _GUEST_MEMFD_TYPES else "",
    )
    hugepages = root.find("memoryBacking/hugepages")
    if hugepages is not None:
        domain.pages = [_page(domain, page) for page in hugepages.findall("page")] or [_HugePage(0, None)]
    return domain


def _page(domain: _Domain, page: Element) -> _HugePage:
    size = _scaled(domain, page.get("size", ""), page.get("unit", "KiB"), "hugepages/page size")
    text = page.get("nodeset")
    nodes = None if text is None else _nodeset(domain, text)
    return _HugePage(size and _page_size(domain, size, "hugepages/page size"), nodes)


def _nodeset(domain: _Domain, text: str) -> frozenset[int]:
    """Parse "0-2,4,^1"; at most _MAX_NODES nodes."""
    nodes: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().lstrip("^").partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or len(first) > 4 or len(last) > 4:
            raise LayoutError(domain.source, 'needed nodes as "0-2,4,^1"', field="nodeset", value=text)
        span = range(int(first), int(last or first) + 1)
        if part.strip().startswith("^"):
            nodes.difference_update(span)
        else:
            nodes.update(span)
    return frozenset(nodes)


def _nodes(domain: _Domain) -> list[Ram]:
    """Boot memory: the NUMA cells, or <memory> less the memory devices, each rounded up to 1 MiB."""
    cells = domain.root.findall("cpu/numa/cell")
    if len(cells) > _MAX_NODES:
        raise LayoutError(domain.source, f"at most {_MAX_NODES} cells", field="cpu/numa", value=len(cells))
    if cells:
        nodes = [_cell(domain, index, cell) for index, cell in enumerate(cells)]
        if domain.machine.older_than(5, 1) and all(node.backing.kind == "anonymous" for node in nodes):
            return [Ram("pc.ram", sum(node.size for node in nodes), nodes[0].backing)]  # -numa node,mem=
        return nodes
    memory = domain.root.find("memory")
    if memory is None:
        raise LayoutError(domain.source, "needed <memory> or <numa> cells", field="memory", remedy="use virsh dumpxml")
    devices = sum(_size_of(domain, device, "target/size") for device in _device_elements(domain))
    size = _size(domain, memory, "memory") - devices
    if size <= 0:
        raise LayoutError(domain.source, "needed more than its memory devices", field="memory", value=memory.text)
    access = domain.root.find("memoryBacking/access")
    backing = domain.backing(0, access.get("mode") if access is not None else None)
    name = "microvm.ram" if domain.machine.family == "microvm" else "pc.ram"
    return [Ram(name, align_up(size, MIB), backing)]


def _cell(domain: _Domain, index: int, cell: Element) -> Ram:
    size = _scaled(domain, cell.get("memory", ""), cell.get("unit", "KiB"), "numa/cell memory")
    if size == 0:
        raise LayoutError(domain.source, "needed memory above 0", field="numa/cell memory", value=cell.get("memory"))
    access = domain.root.find("memoryBacking/access")
    mode = cell.get("memAccess") or (access.get("mode") if access is not None else None)
    return Ram(f"ram-node{index}", align_up(size, MIB), domain.backing(index, mode))


def _device_elements(domain: _Domain) -> list[Element]:
    found = [device for device in domain.root.findall("devices/memory") if device.get("model") != "sgx-epc"]
    if len(found) > _MAX_NODES:
        raise LayoutError(domain.source, f"at most {_MAX_NODES} memory devices", field="devices", value=len(found))
    return found


def _command_line(domain: _Domain) -> tuple[int | None, list[Assumption]]:
    """What <qemu:commandline> says of memory: max-ram-below-4g in bytes, and a note on the rest."""
    args = [arg.get("value", "") for arg in domain.root.findall(f"{{{_QEMU}}}commandline/{{{_QEMU}}}arg")]
    most, unread = None, []
    for option, value in pairwise([*args, ""]):
        if option in ("-machine", "-M"):
            for part in value.split(","):
                name, _, size = part.partition("=")
                if name == "max-ram-below-4g":
                    most = _option_size(domain, size)
        elif option.startswith("-"):
            unread.append(option)
    if not unread:
        return most, []
    shown = ", ".join(printable(option, 40) for option in unread[:6]) + (", ..." if len(unread) > 6 else "")
    return most, [Assumption("slots", f"qemu:commandline is not read: {shown}", "qmp: of the running domain")]


def _option_size(domain: _Domain, text: str) -> int:
    """A size as QEMU's options have it, "1G" or bytes."""
    digits, unit = (text[:-1], text[-1:]) if text[-1:].upper() in ("K", "M", "G", "T") else (text, "B")
    scale = _UNITS["b" if unit == "B" else unit.upper() if unit != "k" else "k"] if unit != "K" else KIB
    return number(domain.source, digits[:64], 10, line=0, field="max-ram-below-4g") * scale


def _devices(domain: _Domain, notes: list[Assumption]) -> list[tuple[Device, int]]:
    """Memory devices, each with what of it is a slot: a whole DIMM, of virtio-mem all or what is plugged."""
    devices: list[tuple[Device, int]] = []
    counts: dict[str, int] = {}
    for element in _device_elements(domain):
        model = element.get("model", "")
        name = f"mem{model.replace('-', '')}{counts.setdefault(model, 0)}"
        counts[model] += 1
        device = _device(domain, element, name)
        devices.append((device, _plugged(domain, element, device, notes)))
    return devices


def _device(domain: _Domain, element: Element, name: str) -> Device:
    size = align_up(_size_of(domain, element, "target/size"), 2 * MIB)
    node = element.find("target/node")
    node_id = 0 if node is None else _number(domain, node.text or "", 10, "target/node")
    page = element.find("source/pagesize")
    page_size = None if page is None else _page_size(domain, _size(domain, page, "source/pagesize"), "source/pagesize")
    backing = domain.backing(node_id, element.get("access"), page_size)
    if element.find("source/path") is not None:
        backing = Backing("file")
    size = _without_label(domain, element, size)
    align = max(backing.page_size, 2 * MIB if backing.kind == "anonymous" else 4 * KIB)
    if element.find("target/block") is not None:
        block = _size_of(domain, element, "target/block")
        if not is_power_of_two(block):
            raise LayoutError(domain.source, "needed a power of two", field="target/block", value=block)
        align = max(align, block)
    return Device(Ram(name, size, backing), align, _address(domain, element))


def _without_label(domain: _Domain, element: Element, size: int) -> int:
    """An NVDIMM's label is cut from its end, and the rest is made a multiple of its alignment."""
    if element.find("target/label/size") is not None:
        label = _size_of(domain, element, "target/label/size")
        if not 0 < label < size:
            raise LayoutError(domain.source, "needed less than the device has", field="target/label/size", value=label)
        size -= label
    if element.find("source/alignsize") is not None:
        unit = _page_size(domain, _size_of(domain, element, "source/alignsize"), "source/alignsize")
        size -= size % unit
    return size


def _plugged(domain: _Domain, element: Element, device: Device, notes: list[Assumption]) -> int:
    """Bytes of the device that are a memslot."""
    target = element.find("target")
    if target is None or target.get("dynamicMemslots") != "yes":
        return device.ram.size
    known = "target/current" if element.find("target/current") is not None else "target/requested"
    size = min(device.ram.size, _size_of(domain, element, known)) if element.find(known) is not None else 0
    text = f"{device.ram.name}: dynamic memslots hold what is plugged, taken as {known} rounded up to 1G"
    notes.append(Assumption("slots", text, "dump the XML of the running domain"))
    return min(device.ram.size, align_up(size, GIB))


def _address(domain: _Domain, element: Element) -> int | None:
    for path in ("target/address", "address"):
        found = element.find(path)
        if found is not None and found.get("base"):
            return _number(domain, found.get("base", ""), 0, f"{path} base")
    return None


def _has_vga(root: Element) -> bool:
    models = [model.get("type") for model in root.findall("devices/video/model")]
    return any(model not in ("none", "ramfb", "bochs") for model in models)


def _size_of(domain: _Domain, element: Element, path: str) -> int:
    found = element.find(path)
    if found is None:
        raise LayoutError(domain.source, "missing", field=f"{element.tag}/{path}", remedy="use virsh dumpxml")
    return _size(domain, found, path)


def _size(domain: _Domain, element: Element, field: str) -> int:
    return _scaled(domain, element.text or "", element.get("unit", "KiB"), field)


def _scaled(domain: _Domain, text: str, unit: str, field: str) -> int:
    if unit not in _UNITS:
        known = ", ".join(_UNITS)
        raise LayoutError(domain.source, f"needed one of {known}", field=f"{field} unit", value=unit)
    size = _number(domain, text, 10, field) * _UNITS[unit]
    if size >= U64:
        raise LayoutError(domain.source, "needed a size below 2**64 bytes", field=field, value=f"{text} {unit}")
    return size


def _number(domain: _Domain, text: str, base: int, field: str) -> int:
    return number(domain.source, text[:64].strip(), base, line=0, field=field)


def _page_size(domain: _Domain, size: int, field: str) -> int:
    if not (is_power_of_two(size) and 4 * KIB <= size <= GIB):
        raise LayoutError(domain.source, "needed a page size from 4K to 1G", field=field, value=size)
    return size
