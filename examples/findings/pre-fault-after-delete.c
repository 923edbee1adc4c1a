/* SPDX-License-Identifier: MIT
 *
 * KVM_PRE_FAULT_MEMORY after a slot was deleted never ends. Exit status: 1 it does not end within two seconds, 0 it
 * ends, 2 it cannot be tried.
 * cc -static -o pre-fault-after-delete pre-fault-after-delete.c
 */
#include <signal.h>

#define FAILED 2
#include "../programs/vmm.h"

#ifndef KVM_PRE_FAULT_MEMORY /* headers older than Linux 6.11 */
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
struct kvm_pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};
#endif

static void wake(int signal)
{
	(void)signal;
}

int main(void)
{
	struct vmm m = start_vm(0);
	struct kvm_pre_fault_memory range = {.gpa = 0, .size = PAGE};
	struct sigaction action = {.sa_handler = wake};

	CHECK(set_slot(&m, 1, BASE, PAGE, anonymous(PAGE), -1, 0) == 0, "slot 1");
	load(&m, BASE);
	CHECK(set_slot(&m, 1, BASE, 0, NULL, -1, 0) == 0, "deleting slot 1");
	sigaction(SIGALRM, &action, NULL);
	alarm(2);
	int failed = ioctl(m.vcpu, KVM_PRE_FAULT_MEMORY, &range);
	printf("pre-fault of a page of slot 0: %s\n", failed ? strerror(errno) : "done");
	CHECK(!failed || errno == EINTR, "pre-fault: it takes two-dimensional paging");
	return failed != 0;
}
