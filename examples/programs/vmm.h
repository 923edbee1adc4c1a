/* SPDX-License-Identifier: MIT
 *
 * A VMM as small as can be, for programs that try out private memory: one VM, one vCPU in 64-bit mode, guest code that
 * does one load or store and reports. It runs in ring 3: a KVM with shadow paging emulates what ring 0 does, and its
 * accesses do not fault. Guest-physical memory:
 *
 *   0x00000000  1 MiB, slot 0, shared: page tables and code
 *   0x01000000  whatever the program sets up; identity mapped up to 1 GiB
 */
#ifndef VMM_H
#define VMM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef KVM_SET_USER_MEMORY_REGION2 /* headers older than Linux 6.8 */
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
#define KVM_EXIT_MEMORY_FAULT 39
struct kvm_userspace_memory_region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
struct kvm_memory_attributes {
	uint64_t address, size, attributes, flags;
};
struct kvm_create_guest_memfd {
	uint64_t size, flags, reserved[6];
};
#endif
#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_SW_PROTECTED_VM 1
#endif

enum { PAGE = 4096, LOW_SIZE = 1 << 20, TABLES = 0x1000, CODE = 0x8000, BASE = 0x1000000, PORT = 0x10 };

#ifndef FAILED /* exit status where a CHECK does not hold */
#define FAILED 1
#endif

#define CHECK(condition, ...)                                                                                          \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			int saved = errno;                                                                             \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                \
			fprintf(stderr, __VA_ARGS__);                                                                  \
			fprintf(stderr, " (errno %d)\n", saved);                                                       \
			exit(FAILED);                                                                                  \
		}                                                                                                      \
	} while (0)

struct vmm {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint8_t *low;
};

/* mov (%rdi),%rax; out %al,$PORT / mov %rsi,(%rdi); out %al,$PORT */
static const uint8_t guest_load[] = {0x48, 0x8b, 0x07, 0xe6, PORT, 0xf4};
static const uint8_t guest_store[] = {0x48, 0x89, 0x37, 0xe6, PORT, 0xf4};

static inline int set_slot(struct vmm *m, uint32_t slot, uint64_t gpa, uint64_t size, void *hva, int file, uint64_t offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = file >= 0 ? KVM_MEM_GUEST_MEMFD : 0,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uint64_t)hva,
		.guest_memfd_offset = offset,
		.guest_memfd = file >= 0 ? file : 0,
	};
	return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

static inline int make_file(struct vmm *m, uint64_t size, uint64_t flags)
{
	struct kvm_create_guest_memfd request = {.size = size, .flags = flags};
	return ioctl(m->vm, KVM_CREATE_GUEST_MEMFD, &request);
}

static inline int set_private(struct vmm *m, uint64_t gpa, uint64_t size, int private)
{
	struct kvm_memory_attributes request = {
		.address = gpa,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};
	return ioctl(m->vm, KVM_SET_MEMORY_ATTRIBUTES, &request);
}

static inline void *anonymous(uint64_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(memory != MAP_FAILED, "no memory");
	return memory;
}

static inline struct vmm start_vm(unsigned long type)
{
	struct vmm m;
	m.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(m.kvm >= 0, "/dev/kvm");
	m.vm = ioctl(m.kvm, KVM_CREATE_VM, type);
	CHECK(m.vm >= 0, "a VM of type %lu", type);
	m.low = anonymous(LOW_SIZE);
	CHECK(set_slot(&m, 0, 0, LOW_SIZE, m.low, -1, 0) == 0, "slot 0");

	uint64_t *top = (uint64_t *)(m.low + TABLES), *upper = top + 512, *middle = upper + 512;
	top[0] = (TABLES + PAGE) | 7;
	upper[0] = (TABLES + 2 * PAGE) | 7;
	for (uint64_t i = 0; i < 512; i++)
		middle[i] = i << 21 | 0xe7;
	memcpy(m.low + CODE, guest_load, sizeof(guest_load));
	memcpy(m.low + CODE + 64, guest_store, sizeof(guest_store));

	m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0);
	CHECK(m.vcpu >= 0, "a vCPU");
	int size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	m.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	CHECK(m.run != MAP_FAILED, "the run page");

	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[128];
	} cpuid = {.head = {.nent = 128}};
	CHECK(ioctl(m.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0, "cpuid"); /* without it there is no 64-bit mode */
	CHECK(ioctl(m.vcpu, KVM_SET_CPUID2, &cpuid) == 0, "cpuid");

	struct kvm_sregs sregs;
	CHECK(ioctl(m.vcpu, KVM_GET_SREGS, &sregs) == 0, "sregs");
	struct kvm_segment code = {.limit = ~0u, .selector = 0x33, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = ~0u, .selector = 0x2b, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1};
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = TABLES;
	sregs.cr0 = 0x80050033;
	sregs.cr4 = 0x20;
	sregs.efer = 0xd00;
	CHECK(ioctl(m.vcpu, KVM_SET_SREGS, &sregs) == 0, "sregs");
	return m;
}

/* Run the guest code at rip once; KVM_RUN's result, errno and m->run as it left them. */
static inline int enter(struct vmm *m, uint64_t rip, uint64_t rdi, uint64_t rsi)
{
	struct kvm_regs regs = {.rip = rip, .rdi = rdi, .rsi = rsi, .rflags = 0x3002 /* IOPL 3 */, .rsp = LOW_SIZE};
	CHECK(ioctl(m->vcpu, KVM_SET_REGS, &regs) == 0, "regs");
	return ioctl(m->vcpu, KVM_RUN, 0);
}

static inline uint64_t load(struct vmm *m, uint64_t gpa)
{
	struct kvm_regs regs;
	int failed = enter(m, CODE, gpa, 0);
	CHECK(!failed && m->run->exit_reason == KVM_EXIT_IO && m->run->io.port == PORT, "load at %#lx: exit %u", gpa,
	      m->run->exit_reason);
	CHECK(ioctl(m->vcpu, KVM_GET_REGS, &regs) == 0, "regs");
	return regs.rax;
}

static inline void store(struct vmm *m, uint64_t gpa, uint64_t value)
{
	int failed = enter(m, CODE + 64, gpa, value);
	CHECK(!failed && m->run->exit_reason == KVM_EXIT_IO && m->run->io.port == PORT, "store at %#lx: exit %u", gpa,
	      m->run->exit_reason);
}

/* A load that must end in KVM_EXIT_MEMORY_FAULT with this flag. */
static inline void load_faults(struct vmm *m, uint64_t gpa, int private)
{
	int failed = enter(m, CODE, gpa, 0);
	uint64_t flags, at;
	memcpy(&flags, (uint8_t *)m->run + 32, 8);
	memcpy(&at, (uint8_t *)m->run + 40, 8);
	CHECK(failed && errno == EFAULT && m->run->exit_reason == KVM_EXIT_MEMORY_FAULT, "load at %#lx: exit %u", gpa,
	      m->run->exit_reason);
	CHECK(flags == (private ? 8 : 0) && at == (gpa & ~0xfffUL), "flags %#lx at %#lx", flags, at);
}

/* How many leaves of 4 KiB and of 2 MiB map the VM's memory (KVM_GET_STATS_FD). */
static inline void count_leaves(struct vmm *m, uint64_t *small, uint64_t *large)
{
	struct {
		uint32_t flags, name_size, num_desc, id_offset, desc_offset, data_offset;
	} header;
	int fd = ioctl(m->vm, KVM_GET_STATS_FD, 0);
	CHECK(fd >= 0 && pread(fd, &header, sizeof(header), 0) == sizeof(header), "statistics");
	size_t each = 16 + header.name_size;
	*small = *large = UINT64_MAX;
	for (uint32_t i = 0; i < header.num_desc; i++) {
		char described[16 + 256];
		uint32_t offset;
		CHECK(each < sizeof(described) && pread(fd, described, each, header.desc_offset + i * each) == (ssize_t)each,
		      "a description");
		memcpy(&offset, described + 8, 4);
		uint64_t *wanted = !strcmp(described + 16, "pages_4k") ? small : !strcmp(described + 16, "pages_2m") ? large : NULL;
		if (wanted)
			CHECK(pread(fd, wanted, 8, header.data_offset + offset) == 8, "a value");
	}
	CHECK(*small != UINT64_MAX && *large != UINT64_MAX, "pages_4k and pages_2m");
	close(fd);
}

#endif
