"""Which page sizes an architecture's stage-2 tables can map.

A leaf of order n maps 2**n base pages; order 0 is the base page. Only sizes that KVM 6.12 installs are here:

- x86-64: up to ``KVM_MAX_HUGEPAGE_LEVEL``, 1G (arch/x86/include/asm/kvm_host.h). 512G is for argument's sake.
- arm64: ``KVM_PGTABLE_MIN_BLOCK_LEVEL`` (asm/kvm_pgtable.h) is level 1 for 4K pages and level 2 for 16K and 64K, so the
  64G and 4T blocks of 52-bit addresses are left out. The contiguous bit is no level either: ``user_mem_abort`` maps a
  contiguous PTE range of the host page by page, a contiguous PMD range by single PMD blocks (arch/arm64/kvm/mmu.c).
- riscv64: ``kvm_riscv_gstage_map`` takes 4K, 2M and 1G and fails for all else, though the G-stage walk of Sv48x4 and
  Sv57x4 has levels above (arch/riscv/kvm/mmu.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from guestmem.errors import InputError
from guestmem.text import no_such
from guestmem.units import format_size, is_power_of_two

__all__ = (
    "ARM64_4K",
    "ARM64_16K",
    "ARM64_64K",
    "GEOMETRIES",
    "RISCV64",
    "X86_64",
    "X86_64_512G",
    "Geometry",
    "geometry_named",
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The leaf sizes of stage 2: base_page_size in bytes, orders ascending from 0. Speculative ones no CPU maps yet."""

    name: str
    base_page_size: int
    orders: tuple[int, ...]
    speculative: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not is_power_of_two(self.base_page_size) or self.base_page_size < 4096:
            raise ValueError(f"base page size {self.base_page_size:#x} is not a power of two from 4096 up")
        if not self.orders or self.orders[0] != 0 or list(self.orders) != sorted(set(self.orders)):
            raise ValueError(f"orders {self.orders} must ascend from 0")
        if not set(self.speculative) <= set(self.orders) - {0}:
            raise ValueError(f"speculative orders {self.speculative} are not among the huge ones of {self.orders}")

    @property
    def page_sizes(self) -> tuple[int, ...]:
        """Every leaf size in bytes, ascending."""
        return tuple(self.base_page_size << order for order in self.orders)

    @property
    def largest_order(self) -> int:
        """Order of the largest leaf."""
        return self.orders[-1]

    def page_size(self, order: int) -> int:
        """Bytes of a leaf of this order."""
        return self.base_page_size << order

    def order_of(self, page_size: int) -> int:
        """Order of a leaf size in bytes; ValueError lists what there is."""
        for order in self.orders:
            if self.base_page_size << order == page_size:
                return order
        sizes = ", ".join(format_size(size) for size in self.page_sizes)
        raise InputError(f"{page_size:#x} is no leaf size of {self.name}; there are {sizes}")

    def name_of(self, order: int) -> str:
        """The size of an order as people write it.

        >>> X86_64.name_of(9)
        '2M'
        """
        return format_size(self.page_size(order))

    def largest_fitting(self, size: int) -> int:
        """The largest leaf size, in bytes, that is not larger than size; the base page if none is."""
        return max((page for page in self.page_sizes if page <= size), default=self.base_page_size)


X86_64 = Geometry("x86-64", 4096, (0, 9, 18))
X86_64_512G = Geometry("x86-64-512G", 4096, (0, 9, 18, 27), speculative=(27,))
ARM64_4K = Geometry("arm64-4K", 4096, (0, 9, 18))
ARM64_16K = Geometry("arm64-16K", 16384, (0, 11))
ARM64_64K = Geometry("arm64-64K", 65536, (0, 13))
RISCV64 = Geometry("riscv64", 4096, (0, 9, 18))

GEOMETRIES: Mapping[str, Geometry] = MappingProxyType(
    {geometry.name: geometry for geometry in (X86_64, X86_64_512G, ARM64_4K, ARM64_16K, ARM64_64K, RISCV64)}
)


def geometry_named(name: str) -> Geometry:
    """Find a geometry by name; ValueError lists the names."""
    try:
        return GEOMETRIES[name]
    except KeyError:
        raise InputError(no_such("geometry", name, GEOMETRIES)) from None
