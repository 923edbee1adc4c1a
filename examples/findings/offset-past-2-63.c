/* SPDX-License-Identifier: MIT
 *
 * A slot is bound at an offset that no file has: its sum with the size passes 2^63. Exit status: 1 it is, 0 it is
 * refused, 2 it cannot be tried.
 * cc -static -o offset-past-2-63 offset-past-2-63.c
 */
#define FAILED 2
#include "../programs/vmm.h"

int main(void)
{
	struct vmm m = start_vm(0);
	if (ioctl(m.vm, KVM_CHECK_EXTENSION, 234) != 1) /* KVM_CAP_GUEST_MEMFD: 6.12 has it for private VMs only */
		m = start_vm(KVM_X86_SW_PROTECTED_VM);
	int file = make_file(&m, 4 * PAGE, 0);
	CHECK(file >= 0, "a guest_memfd");
	int failed = set_slot(&m, 1, BASE, 4 * PAGE, anonymous(4 * PAGE), file, 0x7ffffffffffff000);
	printf("offset 0x7ffffffffffff000 of a file of 16 KiB: %s\n", failed ? strerror(errno) : "bound");
	return !failed;
}
