/*
 * The standby of a program: performs the operations that the keeper sends, the last of which executes the program.
 *
 * Started by exec in the namespaces of an init, so it holds no memory of the keeper. It knows nothing of a setup's
 * steps: nsupervisor/keeper/setup/plan.py makes a plan of them, which is a list of system calls with their arguments.
 *
 *   descriptor 3   the socket to the keeper: plans come from it, a failure or the success is sent to it
 *   descriptor 5   what becomes the program's standard output
 *   descriptor 6   what becomes its standard error
 *   descriptor 10  the pipe to the init, for the order
 *
 * It also makes the process that enters the namespaces of a program which runs: then descriptor 0 is its standard input,
 * there is no descriptor 10, and the keeper is its parent.
 *
 * All signals are blocked. The first plan is usually one in advance, of what each program in these namespaces needs. An
 * operation of it that fails ends that plan silently: the plan of the program has it once more, and then it is reported.
 */

#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/uio.h>
#include <stddef.h>

#include "hand_over.h"
#include "system.h"

enum { REPORT = 3, ORDER = 4, STDOUT = 5, STDERR = 6, INITIAL_ORDER = 10 };

#define F_SETFD 2
#define FD_CLOEXEC 1
#define ENOENT 2
#define EACCES 13
#define ENOTDIR 20
#define EINVAL 22
#define RULE_PATH_BENEATH 1
#define FILE_RIGHTS 0xc007 /* of Landlock, about something else than a directory; as in landlock.py */
#define SOL_SOCKET 1
#define SCM_RIGHTS 1
#define MSG_CMSG_CLOEXEC 0x40000000
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

/* The operations, in the order of `CALLS` in plan.py. The first four are made of several calls. */
enum { HAND_OVER, SEND_ORDER, SEND_READY, LANDLOCK_ADD_PATH, FIRST_CALL };
static const uint16_t calls[] = {
	__NR_openat, __NR_write, __NR_close, __NR_socket, __NR_ioctl, __NR_mount, __NR_open_tree, __NR_move_mount,
	__NR_mkdirat, __NR_symlinkat, __NR_unshare, __NR_setns, __NR_sethostname, __NR_setsid, __NR_prlimit64,
	__NR_setpriority, __NR_umask, __NR_setgroups, __NR_setresgid, __NR_setresuid, __NR_chdir, __NR_prctl,
	__NR_rt_sigprocmask, __NR_keyctl, __NR_capset, __NR_seccomp, __NR_ioprio_set, __NR_sched_setscheduler,
	__NR_openat2, __NR_mount_setattr, __NR_mknodat, __NR_fsopen, __NR_fsconfig, __NR_fsmount,
	__NR_landlock_create_ruleset, __NR_landlock_add_rule, __NR_landlock_restrict_self, __NR_execve,
};
#define EXECVE (FIRST_CALL + sizeof(calls) / sizeof(calls[0]) - 1)

enum { HAS_CGROUP = 1, IS_ADVANCE = 2, IN_FILE = 4, HAS_TREE = 8 };
enum { TREE = 255, RESULTS, MAX_DATAGRAM = 65536 };

struct plan {
	uint32_t flags;
	uint32_t size;         /* of the whole plan, in bytes */
	uint32_t operations;   /* they follow */
	uint32_t relocations;  /* they follow the operations: offsets in the data, which is the rest, of pointers to data */
};

struct operation {
	uint16_t code;
	uint8_t use;       /* the number of the result to take as the first argument; 0: none */
	uint8_t save;      /* the number under which to keep the result; 0: none */
	uint8_t pointers;  /* bit n: argument n is an offset in the data */
	uint8_t advance;   /* the number of the step in advance to which it belongs; 0: none */
	uint8_t target;    /* the same for the third argument */
	uint8_t reserved;
	uint64_t arguments[5];
	uint64_t accepted[2]; /* bit n: the errno n is not a failure */
	uint64_t failure;     /* the offset of a text, to be followed by the errno and a brace */
};

struct message {
	void *name;
	int name_size;
	struct iovec *vectors;
	size_t vector_count;
	void *control;
	size_t control_size;
	int flags;
};

struct control {
	size_t size;
	int level, type;
	int fds[3];
};

struct state {
	char *memory;     /* of the plan */
	long results[RESULTS];
	int cgroup;       /* its descriptor, or -1 */
	unsigned done;    /* the last step in advance that has been performed */
};

static _Noreturn void leave(int code)
{
	for (;;)
		CALL(exit_group, code);
}

static size_t length(const char *text)
{
	size_t i = 0;

	while (text[i])
		i++;
	return i;
}

/* Report that an operation has failed, and leave. The keeper turns that into a sentence. */
static _Noreturn void fail(char *text, long number, int code)
{
	char digits[8];
	unsigned i = sizeof(digits);
	struct iovec vectors[2];

	digits[--i] = '}';
	do
		digits[--i] = '0' + number % 10;
	while ((number /= 10) && i);
	vectors[0].iov_base = text;
	vectors[0].iov_len = length(text);
	vectors[1].iov_base = digits + i;
	vectors[1].iov_len = sizeof(digits) - i;
	CALL(writev, REPORT, vectors, 2);
	leave(code);
}

/* Continue as a process that is born in the workload's cgroup: see hand_over.h. */
static long hand_over(const struct state *state)
{
	struct clone_args args = { .flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT };
	long result;

	if (state->cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = state->cgroup;
	}
	result = hand_over_to(&args);
	if (result == 0 && state->cgroup >= 0)
		CALL(close, state->cgroup);
	return result;
}

/* To the init: look after this process. `order` begins with its pid, in this PID namespace. */
static long send_order(int32_t *order, size_t size)
{
	order[0] = CALL(getpid);
	return CALL(write, ORDER, order, size);
}

/* To the keeper: the steps are done. With a pidfd, as the program is not the keeper's child. */
static long send_ready(char *text, size_t size)
{
	struct iovec vector = { text, size };
	struct control control = { offsetof(struct control, fds[1]), SOL_SOCKET, SCM_RIGHTS, { 0, 0, 0 } };
	struct message message = { 0, 0, &vector, 1, &control, sizeof(control), 0 };
	long result, pidfd = CALL(pidfd_open, CALL(getpid), 0);

	if (pidfd < 0)
		return pidfd;
	control.fds[0] = pidfd;
	result = CALL(sendmsg, REPORT, &message, 0);
	CALL(close, pidfd);
	return result;
}

/* Grant rights to what is at a path, if it is there, and below. `path`: its descriptor, or a negated errno. */
static long landlock_add_path(int ruleset, uint64_t rights, long path)
{
	struct {
		uint64_t rights;
		int32_t fd;
	} __attribute__((packed)) rule = { rights, path };
	long result;

	if (path < 0)
		return 0;
	result = CALL(landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0);
	if (result != -EINVAL)
		return result;
	rule.rights &= FILE_RIGHTS; /* not a directory: the kernel refuses the rights that are about directories */
	return CALL(landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0);
}

static int is_accepted(const struct operation *operation, long number)
{
	return number < 128 && operation->accepted[number / 64] >> number % 64 & 1;
}

static long perform(struct state *state, struct operation *operation)
{
	uint64_t *a = operation->arguments;

	switch (operation->code) {
	case HAND_OVER:
		return hand_over(state);
	case SEND_ORDER:
		return send_order((int32_t *)a[0], a[1]);
	case SEND_READY:
		return send_ready((char *)a[0], a[1]);
	case LANDLOCK_ADD_PATH:
		return landlock_add_path(a[0], a[1], a[2]);
	}
	return system_call(calls[operation->code - FIRST_CALL], a[0], a[1], a[2], a[3], a[4]);
}

/* Returns only from a plan in advance. */
static void run_plan(struct state *state)
{
	struct plan *plan = (struct plan *)state->memory;
	struct operation *operations = (struct operation *)(plan + 1), *operation = operations, *refused = 0;
	uint64_t *relocations = (uint64_t *)(operations + plan->operations);
	char *data = (char *)(relocations + plan->relocations);
	unsigned i, k, done = state->done;

	for (i = 0; i < plan->relocations; i++)
		*(uint64_t *)(data + relocations[i]) += (uint64_t)data;
	for (i = 0; i < plan->operations; i++) {
		long result;

		operation = operations + i;
		if (operation->advance && operation->advance <= done)
			continue;
		for (k = 0; k < 5; k++)
			if (operation->pointers & 1 << k)
				operation->arguments[k] += (uint64_t)data;
		if (operation->use)
			operation->arguments[0] = state->results[operation->use];
		if (operation->target)
			operation->arguments[2] = state->results[operation->target];
		result = perform(state, operation);
		if (result >= 0 || is_accepted(operation, -result)) {
			state->results[operation->save] = result;
		} else if (plan->flags & IS_ADVANCE) {
			return;
		} else if (operation->code != EXECVE) {
			fail(data + operation->failure, -result, EXIT_SETUP);
		} else if (result == -EACCES) { /* like execvp(3): a later directory may have one that works */
			refused = refused ? refused : operation;
		} else if (result != -ENOENT && result != -ENOTDIR) {
			fail(data + operation->failure, -result, EXIT_NOT_EXECUTABLE);
		}
		if (plan->flags & IS_ADVANCE && (i + 1 == plan->operations || operation[1].advance != operation->advance))
			state->done = operation->advance;
	}
	if (plan->flags & IS_ADVANCE)
		return;
	if (refused)
		fail(data + refused->failure, EACCES, EXIT_NOT_EXECUTABLE);
	fail(data + operation->failure, ENOENT, EXIT_NOT_FOUND);
}

/* Wait for a plan, with the cgroup's descriptor and that of a file with a plan that is too large for a datagram. */
static void receive_plan(struct state *state)
{
	struct iovec vector = { state->memory, MAX_DATAGRAM };
	struct control control;
	struct message message = { 0, 0, &vector, 1, &control, sizeof(control), 0 };
	struct plan *plan = (struct plan *)state->memory;
	const int *fds = control.fds;
	long count;

	do
		count = CALL(recvmsg, REPORT, &message, MSG_CMSG_CLOEXEC);
	while (count == -EINTR);
	if (count < (long)sizeof(*plan)) /* the keeper does not need this standby any more, or has ended */
		leave(0);
	state->cgroup = plan->flags & HAS_CGROUP ? *fds++ : -1;
	if (plan->flags & HAS_TREE)
		state->results[TREE] = *fds++;
	if (plan->flags & IN_FILE) {
		uint32_t size = plan->size, place = 0;

		CALL(brk, state->memory + size);
		while (place < size && (count = CALL(pread64, *fds, state->memory + place, size - place, place)) > 0)
			place += count;
		CALL(close, *fds);
		if (place < size)
			leave(EXIT_SETUP);
	}
}

__attribute__((used)) static _Noreturn void run(void)
{
	struct state state;

	state.done = 0;
	state.results[0] = 0;
	CALL(prctl, PR_SET_NAME, "nsupervisor-for");
	CALL(fcntl, REPORT, F_SETFD, FD_CLOEXEC);
	CALL(dup3, INITIAL_ORDER, ORDER, O_CLOEXEC);
	CALL(dup3, STDOUT, 1, 0);
	CALL(dup3, STDERR, 2, 0);
	CALL(close_range, STDOUT, ~0u, 0);
	state.memory = (char *)((CALL(brk, 0) + 15) & -16);
	CALL(brk, state.memory + MAX_DATAGRAM);
	for (;;) {
		receive_plan(&state);
		run_plan(&state);
	}
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
	"	xor %ebp, %ebp\n"
	"	and $-16, %rsp\n"
	"	call run\n");
#else
__asm__(".globl _start\n_start:\n"
	"	mov x29, #0\n"
	"	bl run\n");
#endif
