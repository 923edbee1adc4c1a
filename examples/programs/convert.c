/* SPDX-License-Identifier: MIT
 *
 * Private and shared memory of one frame: what a guest stores in one is not seen in the other, a fault on the wrong
 * one says which, and a conversion takes effect at once.
 */
#include "vmm.h"

int main(void)
{
	struct vmm m = start_vm(KVM_X86_SW_PROTECTED_VM);
	uint64_t size = 2 << 20;
	uint8_t *shared = anonymous(size);
	int file = make_file(&m, size, 0);
	CHECK(file >= 0, "a guest_memfd");
	CHECK(set_slot(&m, 1, BASE, size, shared, file, 0) == 0, "the slot");

	/* Shared: the guest and the host see the same bytes. */
	memset(shared, 0x11, size);
	CHECK(load(&m, BASE + 0x1008) == 0x1111111111111111, "what the host stored");
	store(&m, BASE + 0x1008, 0xabcdef);
	CHECK(*(volatile uint64_t *)(shared + 0x1008) == 0xabcdef, "what the guest stored");

	/* Private: zero at first, and not what the host has. */
	CHECK(set_private(&m, BASE, size, 1) == 0, "to private");
	CHECK(load(&m, BASE + 0x1008) == 0, "fresh private memory is zero");
	store(&m, BASE + 0x1008, 0x5ec4e7);
	CHECK(*(volatile uint64_t *)(shared + 0x1008) == 0xabcdef, "the host's bytes stay");
	CHECK(load(&m, BASE + 0x1008) == 0x5ec4e7, "private memory keeps its bytes");

	/* One page back: its neighbours stay private. */
	CHECK(set_private(&m, BASE + 0x1000, PAGE, 0) == 0, "one page to shared");
	CHECK(load(&m, BASE + 0x1008) == 0xabcdef, "the shared page shows the host's bytes again");
	CHECK(load(&m, BASE + 0x2000) == 0, "its neighbour is private");
	CHECK(set_private(&m, BASE + 0x1000, PAGE, 1) == 0, "and back");
	CHECK(load(&m, BASE + 0x1008) == 0x5ec4e7, "private contents survive a conversion");

	/* A hole: the next access finds zero. */
	CHECK(fallocate(file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, size) == 0, "a hole");
	CHECK(load(&m, BASE + 0x1008) == 0, "what was punched is zero");

	/* Private without a file: the fault says private; shared with a slot that is gone: MMIO. */
	uint8_t *plain = anonymous(size);
	CHECK(set_slot(&m, 2, BASE + size, size, plain, -1, 0) == 0, "a slot without a file");
	CHECK(set_private(&m, BASE + size, PAGE, 1) == 0, "private");
	load_faults(&m, BASE + size, 1);
	CHECK(load(&m, BASE + size + PAGE) == 0, "the rest of it is shared");
	CHECK(set_slot(&m, 2, BASE + size, 0, plain, -1, 0) == 0, "delete");
	load_faults(&m, BASE + size, 1);
	CHECK(enter(&m, CODE, BASE + size + PAGE, 0) == 0 && m.run->exit_reason == KVM_EXIT_MMIO, "no slot, shared: MMIO");

	/* The file is closed: the slot has lost it. */
	close(file);
	load_faults(&m, BASE + 0x1008, 1);
	return 0;
}
