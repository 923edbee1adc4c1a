/* SPDX-License-Identifier: MIT
 *
 * A guest_memfd is made for a VM that has none. Exit status: 1 it is, and no slot takes it; 0 capability, creation and
 * slot agree; 2 it cannot be tried.
 * cc -static -o file-that-nothing-binds file-that-nothing-binds.c
 */
#define FAILED 2
#include "../programs/vmm.h"

int main(void)
{
	struct vmm m = start_vm(0);
	int offered = ioctl(m.vm, KVM_CHECK_EXTENSION, 234); /* KVM_CAP_GUEST_MEMFD */
	int file = make_file(&m, PAGE, 0);
	int bound = file >= 0 && set_slot(&m, 1, BASE, PAGE, anonymous(PAGE), file, 0) == 0;

	printf("capability %d, file %s, slot %s\n", offered, file >= 0 ? "made" : "refused", bound ? "bound" : "refused");
	return file >= 0 && !bound;
}
