/* SPDX-License-Identifier: MIT
 *
 * How long a program's calls and its guest take. Prints "name microseconds" lines; the same under guestmem exec and on a
 * real /dev/kvm.
 */
#include "vmm.h"

#include <time.h>

enum { CALLS = 20000, EXITS = 5000, STORES = 1000, PAGES = 4096, ROUNDS = 4 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(void)
{
	/* 1: out %al,$PORT; jmp 1b */
	static const uint8_t ports[] = {0xe6, PORT, 0xeb, 0xfc};
	/* 1: mov %rsi,(%rdi); jmp 1b */
	static const uint8_t stores[] = {0x48, 0x89, 0x37, 0xeb, 0xfb};
	/* mov %cr3,%rax; mov %rax,%cr3; 1: mov (%rdi),%rbx; add $4096,%rdi; dec %rsi; jnz 1b; out */
	static const uint8_t pages[] = {0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x48, 0x8b, 0x1f, 0x48, 0x81, 0xc7, 0x00, 0x10,
					0x00, 0x00, 0x48, 0xff, 0xce, 0x75, 0xf1, 0xe6, PORT};
	struct vmm m = start_vm(0);
	memcpy(m.low + CODE + 128, ports, sizeof(ports));
	memcpy(m.low + CODE + 256, stores, sizeof(stores));
	memcpy(m.low + CODE + 384, pages, sizeof(pages));
	uint64_t size = (uint64_t)PAGES * PAGE;
	uint8_t *memory = anonymous(size);
	memset(memory, 1, size);
	CHECK(set_slot(&m, 1, BASE, size, memory, -1, 0) == 0, "a slot");

	double start = now();
	for (int i = 0; i < CALLS; i++)
		CHECK(ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "an ioctl");
	printf("ioctl %.2f\n", (now() - start) / CALLS);

	CHECK(enter(&m, CODE + 128, 0, 0) == 0, "a port");
	start = now();
	for (int i = 0; i < EXITS; i++)
		CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO, "a port");
	printf("port %.2f\n", (now() - start) / EXITS);

	CHECK(enter(&m, CODE + 256, 0x3f000000, 7) == 0, "a device");
	start = now();
	for (int i = 0; i < STORES; i++)
		CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_MMIO, "a device");
	printf("mmio %.2f\n", (now() - start) / STORES);

	for (int round = 0; round <= ROUNDS; round++) {
		if (round == 1)
			start = now();
		CHECK(enter(&m, CODE + 384, BASE, PAGES) == 0 && m.run->exit_reason == KVM_EXIT_IO, "the pages");
	}
	printf("page %.3f\n", (now() - start) / ROUNDS / PAGES);
	return 0;
}
