/* SPDX-License-Identifier: MIT
 *
 * Setting slots: what is refused and with which errno, and that the file's offset is what a slot shows.
 */
#include "vmm.h"

#define REFUSED(call, error) CHECK((call) == -1 && errno == (error), "wanted errno %d", error)

int main(int argc, char **argv)
{
	int overlap = argc > 1 ? atoi(argv[1]) : EEXIST; /* of two bindings: EINVAL before Linux 7.2 */
	struct vmm m = start_vm(KVM_X86_SW_PROTECTED_VM);
	uint64_t size = 4 * PAGE;
	uint8_t *shared = anonymous(4 * size);
	int file = make_file(&m, 2 * size, 0);
	CHECK(file >= 0, "a guest_memfd");

	REFUSED(make_file(&m, 0, 0), EINVAL);
	REFUSED(make_file(&m, PAGE + 1, 0), EINVAL);
	REFUSED(make_file(&m, PAGE, 1ULL << 63), EINVAL);
	REFUSED(set_slot(&m, 1, BASE, size, shared, m.kvm, 0), EINVAL);
	REFUSED(set_slot(&m, 1, BASE, size, shared, 9999, 0), EBADF);
	REFUSED(set_slot(&m, 1, BASE, size, shared, file, PAGE / 2), EINVAL);
	REFUSED(set_slot(&m, 1, BASE, size, shared, file, 2 * size), EINVAL);
	REFUSED(set_slot(&m, 1, BASE, 4 * size, shared, file, 0), EINVAL);
	REFUSED(set_slot(&m, 1, LOW_SIZE - PAGE, size, shared, file, 0), EEXIST);
	CHECK(set_slot(&m, 1, BASE, size, shared, file, size) == 0, "the second half of the file");
	REFUSED(set_slot(&m, 2, BASE + size, size, shared + size, file, size - PAGE), overlap);
	CHECK(set_slot(&m, 2, BASE + size, size, shared + size, file, 0) == 0, "the first half");
	REFUSED(set_slot(&m, 2, BASE + size, size, shared + size, file, 0), EINVAL);

	/* Each slot shows its own part of the file, also once the slots have changed places. */
	CHECK(set_private(&m, BASE, 2 * size, 1) == 0, "private");
	store(&m, BASE + PAGE, 0x2222);
	store(&m, BASE + size + PAGE, 0x1111);
	CHECK(set_slot(&m, 1, BASE, 0, shared, -1, 0) == 0 && set_slot(&m, 2, BASE + size, 0, shared, -1, 0) == 0, "delete");
	CHECK(set_slot(&m, 1, BASE, 2 * size, shared, file, 0) == 0, "the whole file");
	CHECK(load(&m, BASE + PAGE) == 0x1111, "the first half");
	CHECK(load(&m, BASE + size + PAGE) == 0x2222, "the second half");
	return 0;
}
