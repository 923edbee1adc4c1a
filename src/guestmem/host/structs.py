"""The members of kernel structures that the host's look needs, as numbers: taken from BTF, never built in.

A ``KernelStructs`` is plain data, so that a recording can carry it and a test can write one down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guestmem.errors import BackendUnavailable
from guestmem.host.btf import Btf, BtfError

__all__ = ("KernelStructs", "load_structs", "structs_of")

_DIRECTORY = Path("/sys/kernel/btf")
# What every kernel from 6.1 to 7.3 has, and without which nothing can be said.
_NEEDED = (
    "kvm.vm_list",
    "kvm.memslots",
    "kvm.userspace_pid",
    "kvm.nr_memslot_pages",
    "kvm.stat.pages_4k",
    "kvm.stat.pages_2m",
    "kvm.stat.pages_1g",
    "kvm_memslots.generation",
    "kvm_memslots.node_idx",
    "kvm_memslots.id_hash",
    "kvm_memory_slot.id_node",
    "kvm_memory_slot.base_gfn",
    "kvm_memory_slot.npages",
    "kvm_memory_slot.userspace_addr",
    "kvm_memory_slot.flags",
    "kvm_memory_slot.id",
    "kvm_memory_slot.as_id",
    "kvm_memory_slot.arch.lpage_info",
    "kvm_memory_slot.arch.rmap",
)
# Younger than some kernels, or needed only where a symbol is missing.
_WANTED = (
    "kvm.arch.vm_type",
    "kvm.arch.tdp_mmu_roots",
    "kvm.vcpu_array.xa_head",
    "kvm.mem_attr_array.xa_head",
    "kvm_memory_slot.gmem.file",
    "kvm_memory_slot.gmem.pgoff",
    "kvm_mmu_page.link",
    "kvm_mmu_page.role",
    "kvm_mmu_page.spt",
    "kvm_vcpu.arch.root_mmu.root.hpa",
    "xa_node.shift",
    "xa_node.slots",
    "file.f_inode",
    "file.private_data",
    "inode.i_ino",
    "inode.i_size",
    "task_struct.files",
    "files_struct.fdt",
    "fdtable.fd",
)
_SIZES = ("kvm", "kvm_memory_slot", "kvm_mmu_page", "hlist_node", "kvm_lpage_info", "kvm_rmap_head")
_LENGTHS = ("kvm.memslots", "kvm_memslots.id_hash", "xa_node.slots")
_ROLE = "kvm_mmu_page_role"
_MODULE_ONLY = "kvm"


@dataclass(frozen=True, slots=True)
class KernelStructs:
    """offsets and lengths by "struct.path" (bytes; elements of an array), sizes by struct (bytes).

    role: the bit fields of union kvm_mmu_page_role by name, each as (first bit, bits).
    """

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    lengths: Mapping[str, int] = field(default_factory=dict)
    role: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether this kernel has the member."""
        return name in self.offsets

    def offset(self, name: str) -> int:
        """Where the member lies in its structure, bytes."""
        try:
            return self.offsets[name]
        except KeyError:
            raise BackendUnavailable(f"this kernel's types have no {name}: its KVM is not one of 6.1 to 7.3") from None


def structs_of(btf: Btf) -> KernelStructs:
    """The members that are needed, out of BTF; BackendUnavailable names the first that is missing."""
    offsets, lengths = {}, {}
    for name in (*_NEEDED, *_WANTED):
        struct, _, path = name.partition(".")
        member = btf.member(struct, path)
        if member is None:
            continue
        offsets[name] = member.start // 8
        if name in _LENGTHS:
            lengths[name] = btf.length(member.type)
    numbers = {name: btf.struct(name) for name in _SIZES}
    sizes = {name: btf.size(number) for name, number in numbers.items() if number is not None}
    role_type = btf.struct(_ROLE)
    role = {} if role_type is None else _bit_fields(btf, role_type)
    structs = KernelStructs(offsets, sizes, lengths, role)
    for name in _NEEDED:
        structs.offset(name)
    return structs


def load_structs(directory: Path = _DIRECTORY) -> KernelStructs:
    """From the running kernel's BTF: vmlinux's, and KVM's own where it is a module."""
    try:
        btf = Btf((directory / "vmlinux").read_bytes())
        module = directory / _MODULE_ONLY
        if module.exists():
            btf = Btf(module.read_bytes(), btf)
        return structs_of(btf)
    except OSError as error:
        raise BackendUnavailable(
            f"{error.filename}: {error.strerror}; a kernel with CONFIG_DEBUG_INFO_BTF describes its types there"
        ) from None
    except BtfError as error:
        raise BackendUnavailable(f"{directory}: {error}") from None


def _bit_fields(btf: Btf, number: int) -> dict[str, tuple[int, int]]:
    """The fields of the role word: bit fields of an anonymous structure beside the word itself."""
    found = {}
    for name in ("level", "invalid", "guest_mode", "smm", "is_mirror"):
        member = btf.member(_ROLE, name)
        if member is not None:
            found[name] = (member.start, member.width or 8 * btf.size(member.type))
    return found
