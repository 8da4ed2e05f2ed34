/*
 * The first process of a workload: reap, forward signals, report how the program ended. It is PID 1 of the workload's
 * PID namespace. Without one it is a subreaper, so that each process that the program leaves becomes its child, and ends
 * with the last of them: a workload without a cgroup is the tree below it.
 *
 * Started by exec, so its memory holds nothing of the keeper. It has one child at first, the standby, which makes the
 * program's process; both run the setup, and the program's process sends an order as the last step before its exec.
 *
 *   descriptor 3  the status channel: the program's wait status, 4 bytes, once. The kernel adds the sender's pid.
 *   descriptor 4  written to once, when the init is ready, and closed (optional)
 *   descriptor 5  a pipe with the order; closed after it
 *   argv[0]       space for the process title
 *
 * All signals are blocked before exec and stay blocked. So none is lost before there is a program, and a PID 1 without
 * handlers, which ignores signals, still finds them in its queue (pid_namespaces(7), signal(7)).
 *
 * Private memory: two pages of the stack, one of them with the title. There are no variables outside of it, and nothing
 * that makes a compiler call memset() or memcpy(), which no library provides here.
 */

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/time_types.h>
#include <stddef.h>

#include "system.h"

enum { STATUS = 3, STARTED = 4, ORDER = 5 };

#define WNOHANG 1
#define SIGCONT 18
#define SIGSET_SIZE 8
#define SI_KERNEL 0x80
#define SI_TKILL -6
#define CLOCK_MONOTONIC 1
#define MADV_DONTNEED 4
#define TITLE_SIZE 128

/* What the program's process sends; nsupervisor/keeper/native/__init__.py packs it. */
struct order {
	int32_t program;   /* its pid in this namespace */
	int32_t identity;  /* bit 0: become user 0 of the user namespace; bit 1: group 0 */
	int32_t signal;    /* for the processes that the program leaves; 0: wait until they have ended */
	int32_t grace_ms;  /* their time after that signal; then SIGKILL */
	char title[TITLE_SIZE - 1];
	char end;
};

/* siginfo_t, as far as it matters here: si_signo, si_errno, si_code. */
struct siginfo {
	int32_t number, error, code, rest[29];
};

static _Noreturn void leave(int code)
{
	for (;;)
		CALL(exit_group, code);
}

/*
 * What ps shows. If the last byte of the arguments is not 0, the kernel takes the first text in them for a title
 * (get_mm_cmdline() in fs/proc/base.c). Without room for it, argv[0] stays.
 */
static void set_title(char *area, size_t size, const char *title)
{
	size_t i = 0;

	if (size < TITLE_SIZE)
		return;
	do
		area[i] = title[i];
	while (title[i++]);
	area[size - 1] = 1;
}

/*
 * No process can be made from here, not even by a tracer: the init is in no workload's cgroup, so such a process would
 * be outside of its limits. Where the kernel has no seccomp, the init runs without the filter.
 */
static void allow_only_what_follows(void)
{
#define ALLOW(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	static const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCHITECTURE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(rt_sigtimedwait),
		ALLOW(wait4),
		ALLOW(kill),
		ALLOW(rt_sigqueueinfo),
		ALLOW(clock_gettime),
		ALLOW(read),
		ALLOW(write),
		ALLOW(close),
		ALLOW(setgroups),
		ALLOW(setresgid),
		ALLOW(setresuid),
		ALLOW(prctl),
		ALLOW(setpriority),
		ALLOW(exit_group),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), (struct sock_filter *)filter };

	CALL(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	CALL(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}

/*
 * There is no order: the setup has ended before the program. Each process of the setup has ended or is about to; the
 * one that was made last says how.
 */
static _Noreturn void end_without_program(void)
{
	int32_t status = 0, latest_status = 0;
	long pid, latest = 0;

	while ((pid = CALL(wait4, -1, &status, 0, 0)) > 0 || pid == -EINTR)
		if (pid > latest) {
			latest = pid;
			latest_status = status;
		}
	CALL(write, STATUS, &latest_status, sizeof(latest_status));
	leave(latest_status & 0x7f ? 128 | (latest_status & 0x7f) : latest_status >> 8 & 0xff);
}

static int64_t milliseconds(void)
{
	struct __kernel_timespec now = { 0, 0 };

	CALL(clock_gettime, CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait for a signal; until `deadline` (of milliseconds()) if that is not 0. False once it has passed. */
static int wait_for_signal(struct siginfo *info, int64_t deadline)
{
	const uint64_t all = ~(uint64_t)0;
	struct __kernel_timespec timeout, *limit = 0;

	if (deadline) {
		int64_t left = deadline - milliseconds();

		if (left <= 0)
			return 0;
		timeout.tv_sec = left / 1000;
		timeout.tv_nsec = left % 1000 * 1000000;
		limit = &timeout;
	}
	info->number = 0; /* for when the call is interrupted or its time is up */
	CALL(rt_sigtimedwait, &all, info, limit, SIGSET_SIZE);
	return 1;
}

/* To the program, which is not reaped, so its pid is not another process'. With its value, if it was queued with one. */
static void forward(int program, const struct siginfo *info)
{
	if (info->code == SI_KERNEL) /* the terminal sends to the whole process group, so the program has it already */
		return;
	if (info->number == SIGCHLD && info->code > 0) /* about a child */
		return;
	if (info->code < 0 && info->code != SI_TKILL)
		CALL(rt_sigqueueinfo, program, info->number, info);
	else
		CALL(kill, program, info->number);
}

/*
 * `is_first`: this is PID 1 of a namespace. If not, kill(-1) would reach all processes of the user, and an end here would
 * end no other.
 */
static _Noreturn void look_after(const struct order *order, int is_first)
{
	int32_t status = 0;
	int program = order->program, code = 0;
	int64_t deadline = 0;
	struct siginfo info;

	for (;;) {
		long pid = CALL(wait4, -1, &status, WNOHANG, 0);

		if (pid > 0 && pid == program) {
			CALL(write, STATUS, &status, sizeof(status));
			code = status & 0x7f ? 128 | (status & 0x7f) : status >> 8 & 0xff;
			program = 0;
			/* What is left to do may wait for those that react to the report. */
			CALL(setpriority, 0, 0, 19);
			if (order->signal && is_first) {
				CALL(kill, -1, order->signal);
				CALL(kill, -1, SIGCONT); /* a stopped process does not handle the signal */
				deadline = milliseconds() + order->grace_ms;
			}
		}
		if (pid > 0)
			continue;
		if (pid < 0) /* no child is left, so no process but those that entered the namespace from outside */
			leave(code);
		if (!wait_for_signal(&info, deadline))
			leave(code); /* and the kernel kills all others in the namespace */
		if (info.number > 0 && program)
			forward(program, &info);
	}
}

/*
 * In a user namespace, as its root: so the init may signal the program, whichever user that becomes. It needs none of
 * the keeper's groups. The kernel refuses to drop them in a user namespace of an unprivileged keeper.
 */
static void become_root(int identity)
{
	CALL(setgroups, 0, 0);
	if (identity & 2)
		CALL(setresgid, 0, 0, 0);
	if (identity & 1)
		CALL(setresuid, 0, 0, 0);
	CALL(prctl, PR_SET_DUMPABLE, 0); /* a change of ids sets it to what fs.suid_dumpable says, proc(5) */
}

__attribute__((used)) static _Noreturn void run(long *stack)
{
	char *area = (char *)stack[1];
	size_t size = 0;
	int is_first = CALL(getpid) == 1;
	struct order order;
	long length;

	while (area[size++])
		;
	set_title(area, size, "nsupervisor: init");
	/* What lies between, arguments for a C library, takes up to two pages. */
	CALL(madvise, (long)stack & -4096, ((long)area & -4096) - ((long)stack & -4096), MADV_DONTNEED);
	CALL(prctl, PR_SET_NAME, "nsupervisor-ini");
	CALL(prctl, PR_SET_DUMPABLE, 0);
	if (!is_first && CALL(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		leave(EXIT_SETUP);
	CALL(chdir, "/");
	CALL(close_range, 0, STATUS - 1, 0);
	CALL(close_range, ORDER + 1, ~0u, 0);
	allow_only_what_follows();
	CALL(write, STARTED, "i", 1);
	CALL(close, STARTED);
	do
		length = CALL(read, ORDER, &order, offsetof(struct order, end));
	while (length == -EINTR);
	if (length < (long)offsetof(struct order, title) || order.program <= 1)
		end_without_program();
	((char *)&order)[length] = 0;
	if (order.identity)
		become_root(order.identity);
	set_title(area, size, order.title);
	CALL(close, ORDER);
	look_after(&order, is_first);
}

/* The stack begins with a page of its own, so that run() can return those above to the kernel. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-4096, %rsp\n"
	"	call run\n");
#else
__asm__(".globl _start\n_start:\n"
	"	mov x29, #0\n"
	"	mov x0, sp\n"
	"	and x1, x0, #-4096\n"
	"	mov sp, x1\n"
	"	bl run\n");
#endif
