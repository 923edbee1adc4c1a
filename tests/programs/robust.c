/* SPDX-License-Identifier: MIT
 *
 * What a program may do around its VM; one case per argument. The guest code is that of vmm.h.
 */
#include "vmm.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static const uint8_t spin[] = {0xeb, 0xfe};
static volatile sig_atomic_t caught;

static void on_signal(int number)
{
	(void)number;
	caught++;
}

static void *kick(void *thread)
{
	struct timespec wait = {.tv_nsec = 200000000};
	nanosleep(&wait, NULL);
	pthread_kill(*(pthread_t *)thread, SIGUSR1);
	return NULL;
}

/* A signal ends KVM_RUN with EINTR; immediate_exit ends it before the guest runs. */
static void signals(void)
{
	struct vmm m = start_vm(0);
	struct sigaction action = {.sa_handler = on_signal};
	pthread_t self = pthread_self(), other;
	memcpy(m.low + CODE + 128, spin, sizeof(spin));
	sigaction(SIGUSR1, &action, NULL);
	CHECK(pthread_create(&other, NULL, kick, &self) == 0, "a thread");
	int failed = enter(&m, CODE + 128, 0, 0);
	CHECK(failed && errno == EINTR && caught == 1, "a signal");
	CHECK(m.run->exit_reason == KVM_EXIT_INTR, "exit %u", m.run->exit_reason);
	struct kvm_regs regs;
	CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rip == CODE + 128, "still spinning");
	m.run->immediate_exit = 1;
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == -1 && errno == EINTR, "immediate_exit");
	m.run->immediate_exit = 0;
	pthread_join(other, NULL);
	m.low[BASE / PAGE % 64] = 1; /* the host's memory is still its own */
	CHECK(load(&m, 0x40000) == 0, "the vCPU goes on");
}

static void *store_later(void *where)
{
	struct timespec wait = {.tv_nsec = 100000000};
	nanosleep(&wait, NULL);
	*(volatile uint64_t *)where = 1;
	return NULL;
}

/* A guest sees at once what another thread stores: it waits for it. */
static void threads(void)
{
	/* 1: cmpq $0,(%rdi); je 1b; out */
	static const uint8_t wait_for[] = {0x48, 0x83, 0x3f, 0x00, 0x74, 0xfa, 0xe6, PORT};
	struct vmm m = start_vm(0);
	pthread_t other;
	memcpy(m.low + CODE + 128, wait_for, sizeof(wait_for));
	CHECK(pthread_create(&other, NULL, store_later, m.low + 0x50000) == 0, "a thread");
	CHECK(enter(&m, CODE + 128, 0x50000, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO, "the guest saw the store");
	CHECK(pthread_join(other, NULL) == 0, "joined");
}

/* A forked child has the descriptors, and every ioctl on the VM is EIO there. */
static void forked(void)
{
	struct vmm m = start_vm(0);
	int status;
	pid_t child = fork();
	if (child == 0) {
		CHECK(ioctl(m.vm, KVM_CHECK_EXTENSION, 3) == -1 && errno == EIO, "of another address space");
		struct vmm own = start_vm(0);
		store(&own, 0x40000, 7);
		CHECK(load(&own, 0x40000) == 7, "a VM of its own");
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0, "the child: %#x", status);
	CHECK(load(&m, 0x40000) == 0, "the parent's VM is untouched");
}

/* Descriptors are files: duplicated, passed over a socket, closed in any order. */
static void descriptors(void)
{
	struct vmm m = start_vm(KVM_X86_SW_PROTECTED_VM);
	int file = make_file(&m, 16 * PAGE, 0), pair[2];
	struct stat st;
	CHECK(fstat(file, &st) == 0 && st.st_size == 16 * PAGE && S_ISREG(st.st_mode), "fstat");
	CHECK(fcntl(file, F_GETFD) == FD_CLOEXEC, "closed on exec");
	CHECK(lseek(file, 0, SEEK_END) == -1 && errno == ESPIPE, "no position");
	CHECK(read(file, &st, 8) == -1 && errno == EINVAL, "no read");
	char own[64];
	snprintf(own, sizeof(own), "/proc/self/fd/%d", file);
	CHECK(open(own, O_RDWR) == -1 && errno == ENXIO, "no second open");

	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0, "sockets");
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &file, sizeof(int));
	CHECK(sendmsg(pair[0], &message, 0) == 1, "sent");
	close(file);
	CHECK(recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC) == 1, "received");
	memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	uint8_t *shared = anonymous(16 * PAGE);
	CHECK(set_slot(&m, 1, BASE, 16 * PAGE, shared, file, 0) == 0, "still the file");
	CHECK(set_private(&m, BASE, 16 * PAGE, 1) == 0, "private");
	store(&m, BASE, 5);

	int again = dup(file);
	close(file);
	CHECK(load(&m, BASE) == 5, "a duplicate holds it");
	close(m.vm);
	close(m.kvm);
	CHECK(load(&m, BASE) == 5, "a vCPU holds its VM");
	close(again);
	load_faults(&m, BASE, 1);
}

/* Memory behind a slot may go and come back. */
static void remapped(void)
{
	struct vmm m = start_vm(0);
	uint64_t size = 16 * PAGE;
	uint8_t *memory = anonymous(size);
	CHECK(set_slot(&m, 1, BASE, size, memory, -1, 0) == 0, "a slot");
	memory[0] = 1;
	CHECK(load(&m, BASE) == 1, "the host's byte");
	CHECK(madvise(memory, size, MADV_DONTNEED) == 0 && memory[0] == 0 && load(&m, BASE) == 0, "dropped");
	memory[0] = 2;
	CHECK(munmap(memory, size) == 0, "munmap");
	CHECK(enter(&m, CODE, BASE, 0) == -1 && errno == EFAULT, "nothing there");
	CHECK(mmap(memory, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, "mmap");
	CHECK(load(&m, BASE) == 0, "fresh memory");
	store(&m, BASE, 3);
	CHECK(memory[0] == 3, "and the host sees the guest's store");
	CHECK(mprotect(memory, size, PROT_READ) == 0, "read-only");
	CHECK(load(&m, BASE) == 3, "a load");
	CHECK(enter(&m, CODE + 64, BASE, 4) == -1 && errno == EFAULT, "a store");
}

/* Too few descriptors: EMFILE, and nothing is lost by it. */
static void limits(void)
{
	struct vmm m = start_vm(0);
	struct rlimit old, none;
	CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0, "limit");
	none = old;
	none.rlim_cur = 3;
	CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0, "limit");
	CHECK(ioctl(m.kvm, KVM_CREATE_VM, 0) == -1 && errno == EMFILE, "no room");
	CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0, "limit");
	int vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
	CHECK(vm >= 0 && close(vm) == 0, "room again");
}

/* A file that may be mapped: the same bytes for host and guest. */
static void shared_file(void)
{
	struct vmm m = start_vm(0);
	uint64_t size = 16 * PAGE;
	int file = make_file(&m, size, 3); /* MMAP, INIT_SHARED */
	CHECK(file >= 0, "a file that can be mapped");
	uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(memory != MAP_FAILED, "mmap");
	CHECK(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0) == MAP_FAILED && errno == EINVAL, "not private");
	memset(memory, 0xaa, size);
	CHECK(set_slot(&m, 1, BASE, size, memory, file, 0) == 0, "a slot");
	CHECK(load(&m, BASE + PAGE) == 0xaaaaaaaaaaaaaaaa, "the host's bytes");
	store(&m, BASE + PAGE, 0x77);
	CHECK(memory[PAGE] == 0x77, "the guest's byte");
	CHECK(fallocate(file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE, PAGE) == 0, "a hole");
	CHECK(memory[PAGE] == 0 && load(&m, BASE + PAGE) == 0, "zero for both");
}

/* An ioctl that nobody serves. */
static void unserved(void)
{
	struct vmm m = start_vm(0);
	CHECK(ioctl(m.vm, _IOW(KVMIO, 0x76, struct kvm_clock_data), 0) == -1 && errno == ENOTTY, "unknown on a VM");
	CHECK(ioctl(m.vcpu, KVM_INTERRUPT, 0) == -1 && errno == EINVAL, "unknown on a vCPU");
}

/* MMIO both ways, and a port that is read. */
static void exits(void)
{
	static const uint8_t read_port[] = {0xe4, PORT, 0x0f, 0xb6, 0xc0, 0xe6, PORT + 1}; /* in; movzx eax, al; out */
	struct vmm m = start_vm(0);
	struct kvm_regs regs;
	CHECK(enter(&m, CODE + 64, BASE + 8, 0x1234) == 0 && m.run->exit_reason == KVM_EXIT_MMIO, "a store");
	CHECK(m.run->mmio.phys_addr == BASE + 8 && m.run->mmio.is_write && m.run->mmio.len == 8, "to %#llx",
	      m.run->mmio.phys_addr);
	CHECK(*(uint64_t *)m.run->mmio.data == 0x1234, "its value");
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO, "goes on");
	CHECK(enter(&m, CODE, BASE + 16, 0) == 0 && m.run->exit_reason == KVM_EXIT_MMIO && !m.run->mmio.is_write, "a load");
	memset(m.run->mmio.data, 0x5a, 8);
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO, "goes on");
	CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rax == 0x5a5a5a5a5a5a5a5a, "what the device answered");

	memcpy(m.low + CODE + 128, read_port, sizeof(read_port));
	CHECK(enter(&m, CODE + 128, 0, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.direction == 0, "in");
	*((uint8_t *)m.run + m.run->io.data_offset) = 0x42;
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->io.port == PORT + 1, "out");
	CHECK(ioctl(m.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rax == 0x42, "what the port answered: %#llx", regs.rax);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} cases[] = {
		{"signals", signals},	      {"threads", threads},   {"forked", forked}, {"descriptors", descriptors},
		{"remapped", remapped},	      {"limits", limits},     {"exits", exits},	  {"shared-file", shared_file},
		{"unserved", unserved},
	};
	for (size_t i = 0; argc > 1 && i < sizeof(cases) / sizeof(cases[0]); i++)
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run();
			return 0;
		}
	return 2;
}
