/*
 * The two clones of a start that Python cannot make itself, because parent and child share their memory and thus their
 * stack. A library without a C library, which the zygote and the standby load with ctypes.
 *
 * The caller has one thread, blocks all signals, and keeps these descriptors in place:
 */

#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#include "system.h"

enum { STARTED = 4, EXITS = 7, ORDER = 9 };        /* for the caller */
enum { INIT_STATUS = 3, INIT_ORDER = 5 };          /* for the init, which has STARTED in its place */

#define F_SETFD 2
#define EXPORT __attribute__((visibility("default")))

static _Noreturn void fail(long error)
{
	int32_t number = (int32_t)-error;

	CALL(write, STARTED, &number, sizeof(number));
	for (;;)
		CALL(exit_group, EXIT_SETUP);
}

/*
 * Keep three capabilities over the exec. It takes all from a process whose user is not 0 in its namespace, and that has
 * no ids before its maps are written (capabilities(7)). With them the init becomes root later, and may signal anybody
 * there.
 */
static void keep_capabilities(void)
{
	const int kept[] = { CAP_KILL, CAP_SETGID, CAP_SETUID };
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	unsigned i;

	CALL(capget, &header, data);
	for (i = 0; i < 3; i++)
		data[0].inheritable |= 1u << kept[i];
	CALL(capset, &header, data);
	for (i = 0; i < 3; i++)
		CALL(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept[i], 0, 0);
}

/* In PID 1 of the new namespaces, in memory lent by the zygote. Comes back in the standby only. */
static __attribute__((noinline)) long become_init(uint64_t flags, int binary, char *title)
{
	struct clone_args args = { .exit_signal = SIGCHLD };
	char *argv[] = { title, 0 }, *environment[] = { 0 };
	long standby = CALL(clone3, &args, sizeof(args));

	if (standby == 0)
		return 0;
	if (standby < 0)
		fail(standby);
	CALL(setsid);
	CALL(dup3, EXITS, INIT_STATUS, 0);
	CALL(dup3, ORDER, INIT_ORDER, 0);
	CALL(fcntl, STARTED, F_SETFD, 0);
	if (flags & CLONE_NEWUSER)
		keep_capabilities();
	fail(CALL(execveat, binary, "", argv, environment, AT_EMPTY_PATH));
}

/*
 * Make an init in new namespaces, and a standby as its child. `flags` are clone3's; `binary` is a descriptor of the
 * init's program, and `title` its argv[0]. Returns the init's pid in the zygote, as a sibling of which it is born, 0 in
 * the standby, and a negated errno if there is no init. What happens after the birth of the init, the init reports by
 * STARTED.
 *
 * As with vfork(2), the zygote waits until the init has executed its program, so the init never has a copy of the
 * zygote's memory. The standby does: it is forked. The init writes to the stack below this function's frame only, and
 * does not return from here.
 */
EXPORT long start_init(uint64_t flags, int binary, char *title)
{
	struct clone_args args = { .flags = flags | CLONE_PARENT | CLONE_VM | CLONE_VFORK };
	long pid = CALL(clone3, &args, sizeof(args));

	return pid ? pid : become_init(flags, binary, title);
}

/*
 * Make a process that continues in this memory, and end this one as soon as it has left: a process with the caller's
 * memory, descriptors and namespaces, but born by clone3, for instance into another cgroup. Returns 0 there, or a
 * negated errno, and then the caller is as before. `args` must have CLONE_VM and CLONE_VFORK.
 *
 * When the parent continues, the child has spoiled the stack that they share. So from the system call on, the parent
 * uses registers only.
 */
EXPORT long hand_over(const struct clone_args *args)
{
	long result;

#if defined(__x86_64__)
	__asm__ volatile("	syscall\n"
			 "	test %%rax, %%rax\n"
			 "	jle 1f\n"
			 "	xor %%edi, %%edi\n"
			 "	mov %[exit_group], %%eax\n"
			 "	syscall\n"
			 "	hlt\n"
			 "1:\n"
			 : "=a"(result)
			 : "0"((long)__NR_clone3), "D"(args), "S"(sizeof(*args)), [exit_group] "i"(__NR_exit_group)
			 : "rcx", "r11", "memory");
#else
	register const struct clone_args *x0 __asm__("x0") = args;
	register long x1 __asm__("x1") = sizeof(*args);
	register long x8 __asm__("x8") = __NR_clone3;

	__asm__ volatile("	svc #0\n"
			 "	cmp x0, #0\n"
			 "	b.le 1f\n"
			 "	mov x0, #0\n"
			 "	mov x8, %[exit_group]\n"
			 "	svc #0\n"
			 "	brk #0\n"
			 "1:\n"
			 : "+r"(x0), "+r"(x8)
			 : "r"(x1), [exit_group] "i"(__NR_exit_group)
			 : "memory", "cc");
	result = (long)x0;
#endif
	return result;
}
