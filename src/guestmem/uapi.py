"""Numbers of the KVM user-space interface that concern guest memory (x86-64, Linux 7.2).

One table for both the model and the real backends. Each group names the header it is from; tests compare it with the
kernel's uapi header where one is installed.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

# include/uapi/linux/kvm.h: the type byte of its ioctls
KVMIO: Final = 0xAE

# include/uapi/linux/kvm.h: struct kvm_userspace_memory_region2.flags
KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1
KVM_MEM_GUEST_MEMFD: Final = 1 << 2
KVM_MEM_PRIVATE: Final = KVM_MEM_GUEST_MEMFD  # the same bit in restrictedmem, which was never merged

# include/uapi/linux/kvm.h: struct kvm_memory_attributes.attributes
KVM_MEMORY_ATTRIBUTE_PRIVATE: Final = 1 << 3

# include/uapi/linux/kvm.h: struct kvm_create_guest_memfd.flags
GUEST_MEMFD_FLAG_MMAP: Final = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED: Final = 1 << 1

# Of the HugeTLB work in progress (07fb82367304), in public trees only: provisional, other posted series claim the same
# bit. With it the first byte of the old reserve is page_order, in base pages: 9 is 2M on x86-64, 18 is 1G.
GUEST_MEMFD_FLAG_HUGETLB: Final = 1 << 2

# Ours: flags of memfd_restricted, as the last mail of April 2023 asks for (ZEhbsHqBapHtdrg7@google.com). The page size
# is written as its base-2 logarithm, the encoding that mmap (MAP_HUGE_SHIFT) and memfd_create (MFD_HUGE_SHIFT) share.
RMFD_HUGE_SHIFT: Final = 26
RMFD_HUGE_MASK: Final = 0x3F

# include/uapi/linux/kvm.h: struct kvm_run.exit_reason and .memory_fault.flags
KVM_EXIT_UNKNOWN: Final = 0
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_MEMORY_FAULT: Final = 39
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final = 1 << 3

# include/uapi/linux/kvm.h: the encoded requests that traces of system calls show
IOCTL_NUMBERS: Final = MappingProxyType(
    {
        "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
        "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49,
        "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2,
        "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    }
)
DEV_KVM: Final = "/dev/kvm"

# arch/x86/include/uapi/asm/kvm.h: KVM_CREATE_VM types
KVM_X86_DEFAULT_VM: Final = 0
KVM_X86_SW_PROTECTED_VM: Final = 1

# arch/x86/include/uapi/asm/kvm.h: KVM_CAP_DISABLE_QUIRKS2
KVM_X86_QUIRK_SLOT_ZAP_ALL: Final = 1 << 7
KVM_X86_QUIRK_IGNORE_GUEST_PAT: Final = 1 << 9

# include/uapi/linux/kvm.h: KVM_CHECK_EXTENSION
KVM_CAP_USER_MEMORY: Final = 3
KVM_CAP_NR_MEMSLOTS: Final = 10
KVM_CAP_SYNC_MMU: Final = 16
KVM_CAP_DESTROY_MEMORY_REGION_WORKS: Final = 21
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: Final = 30
KVM_CAP_READONLY_MEM: Final = 81
KVM_CAP_DISABLE_QUIRKS: Final = 116
KVM_CAP_MAX_VCPU_ID: Final = 128
KVM_CAP_MULTI_ADDRESS_SPACE: Final = 118
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: Final = 168
KVM_CAP_DIRTY_LOG_RING: Final = 192
KVM_CAP_DISABLE_QUIRKS2: Final = 213
KVM_CAP_DIRTY_LOG_RING_ACQ_REL: Final = 223
KVM_CAP_USER_MEMORY2: Final = 231
KVM_CAP_MEMORY_FAULT_INFO: Final = 232
KVM_CAP_MEMORY_ATTRIBUTES: Final = 233
KVM_CAP_GUEST_MEMFD: Final = 234
KVM_CAP_VM_TYPES: Final = 235
KVM_CAP_PRE_FAULT_MEMORY: Final = 236
KVM_CAP_X86_APIC_BUS_CYCLES_NS: Final = 237
KVM_CAP_GUEST_MEMFD_FLAGS: Final = 244
KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: Final = 252  # queued for 7.4

# Those that concern guest memory: the ones named here.
CAPABILITIES: Final = frozenset(number for name, number in dict(globals()).items() if name.startswith("KVM_CAP_"))

# include/uapi/linux/falloc.h
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_NO_HIDE_STALE: Final = 0x04
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
FALLOC_FL_UNSHARE_RANGE: Final = 0x40
FALLOC_FL_WRITE_ZEROES: Final = 0x80

# include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_SHARED_VALIDATE: Final = 0x03
MAP_TYPE: Final = 0x0F
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_GROWSDOWN: Final = 0x100
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_POPULATE: Final = 0x8000
MAP_HUGETLB: Final = 0x40000
MAP_SYNC: Final = 0x80000
MAP_FIXED_NOREPLACE: Final = 0x100000
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_WIPEONFORK: Final = 18
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
MADV_HWPOISON: Final = 100
MADV_SOFT_OFFLINE: Final = 101
