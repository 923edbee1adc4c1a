/* SPDX-License-Identifier: MIT
 *
 * An access to a slot without host memory fails without KVM_EXIT_MEMORY_FAULT, which KVM_CAP_MEMORY_FAULT_INFO promises.
 * Exit status: 1 it does, 0 the exit has the address, 2 it cannot be tried.
 * cc -static -o fault-without-memory-fault fault-without-memory-fault.c
 */
#define FAILED 2
#include "../programs/vmm.h"

int main(void)
{
	struct vmm m = start_vm(0);
	void *memory = anonymous(PAGE);

	CHECK(ioctl(m.vm, KVM_CHECK_EXTENSION, 232) == 1, "KVM_CAP_MEMORY_FAULT_INFO");
	CHECK(set_slot(&m, 1, BASE, PAGE, memory, -1, 0) == 0, "slot 1");
	munmap(memory, PAGE);
	CHECK(enter(&m, CODE, BASE, 0) && errno == EFAULT, "exit %u", m.run->exit_reason);
	printf("no memory behind the slot: EFAULT, exit %u, a memory fault would be %u\n", m.run->exit_reason,
	       KVM_EXIT_MEMORY_FAULT);
	return m.run->exit_reason != KVM_EXIT_MEMORY_FAULT;
}
