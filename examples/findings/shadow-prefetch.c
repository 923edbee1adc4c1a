/* SPDX-License-Identifier: MIT
 *
 * With shadow paging a guest reads memory that is not of its file. Exit status: 1 it does, 0 it does not, 2 it cannot be
 * tried (a kernel without mmap of guest_memfd, before 6.18).
 * cc -static -o shadow-prefetch shadow-prefetch.c
 */
#define FAILED 2
#include "../programs/vmm.h"

int main(void)
{
	struct vmm m = start_vm(0);
	uint8_t *other = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int file = make_file(&m, 8 * PAGE, 3); /* GUEST_MEMFD_FLAG_MMAP and _INIT_SHARED */
	CHECK(file >= 0, "a guest_memfd that the host can map");
	CHECK(set_slot(&m, 1, BASE, 8 * PAGE, other, file, 0) == 0, "slot 1");
	memset(other, 0xaa, 8 * PAGE);
	uint64_t first = load(&m, BASE), second = load(&m, BASE + PAGE);
	printf("the file has zeros; the guest reads %#lx in page 0 and %#lx in page 1\n", first, second);
	return first || second;
}
