/* SPDX-License-Identifier: MIT
 *
 * What has to take mappings along: a hole, a conversion, a slot that is deleted. Bytes alone do not show a mapping that
 * stayed, so the leaves are counted (pages_4k and pages_2m of KVM_GET_STATS_FD).
 */
#include "vmm.h"

static uint64_t leaves(struct vmm *m)
{
	uint64_t small, large;
	count_leaves(m, &small, &large);
	return small + 512 * large;
}

int main(void)
{
	struct vmm m = start_vm(KVM_X86_SW_PROTECTED_VM);
	uint64_t size = 16 * PAGE;
	uint8_t *shared = anonymous(size);
	int file = make_file(&m, size, 0);
	CHECK(file >= 0 && set_slot(&m, 1, BASE, size, shared, file, 0) == 0, "the slot");
	CHECK(set_private(&m, BASE, size, 1) == 0, "private");

	store(&m, BASE, 1);
	uint64_t before = leaves(&m);
	store(&m, BASE + PAGE, 2);
	CHECK(leaves(&m) == before + 1, "%lu leaves, and one more page was touched: %lu", before, leaves(&m));

	CHECK(fallocate(file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE, PAGE) == 0, "a hole");
	CHECK(leaves(&m) == before, "a hole leaves %lu leaves instead of %lu", leaves(&m), before);
	CHECK(load(&m, BASE + PAGE) == 0 && load(&m, BASE) == 1, "only the hole is zero");
	CHECK(leaves(&m) == before + 1, "the page is mapped again");

	CHECK(set_private(&m, BASE + PAGE, PAGE, 0) == 0, "one page shared");
	CHECK(leaves(&m) == before, "a conversion leaves %lu leaves instead of %lu", leaves(&m), before);

	CHECK(set_slot(&m, 1, BASE, 0, shared, -1, 0) == 0, "delete");
	CHECK(leaves(&m) == before - 1, "a deleted slot leaves %lu leaves instead of %lu", leaves(&m), before - 1);
	load_faults(&m, BASE, 1);
	return 0;
}
