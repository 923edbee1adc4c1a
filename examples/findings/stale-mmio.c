/* SPDX-License-Identifier: MIT
 *
 * A page that was MMIO stays MMIO when it is made private. Exit status: 1 it does, 0 it does not, 2 it cannot be tried.
 * cc -static -o stale-mmio stale-mmio.c
 */
#define FAILED 2
#include "../programs/vmm.h"

int main(void)
{
	struct vmm m = start_vm(KVM_X86_SW_PROTECTED_VM);

	/* No slot is there: an MMIO exit, which KVM remembers. Then the load ends with the exit of the port. */
	enter(&m, CODE, BASE, 0);
	CHECK(m.run->exit_reason == KVM_EXIT_MMIO, "exit %u", m.run->exit_reason);
	ioctl(m.vcpu, KVM_RUN, 0);

	CHECK(set_private(&m, BASE, 2 * PAGE, 1) == 0, "attributes");
	load_faults(&m, BASE + PAGE, 1); /* never touched before: a private page without a slot is a memory fault */
	enter(&m, CODE, BASE, 0);
	printf("a private page that was MMIO before: exit %u, a memory fault would be %u\n", m.run->exit_reason,
	       KVM_EXIT_MEMORY_FAULT);
	return m.run->exit_reason == KVM_EXIT_MMIO;
}
