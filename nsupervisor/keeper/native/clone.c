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

#include "hand_over.h"
#include "system.h"

enum { REPORT = 3, STARTED = 4, STDOUT = 5, STDERR = 6, EXITS = 7, ORDER = 9, ORDER_WRITER = 10 }; /* the caller's */
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

/* In the standby, in memory lent by the zygote. It keeps what setup.c expects; all else is closed by the exec. */
static __attribute__((noinline)) _Noreturn void become_setup(int binary)
{
	const int kept[] = { REPORT, STDOUT, STDERR, ORDER_WRITER };
	char *argv[] = { "nsupervisor: standby", 0 }, *environment[] = { 0 };
	unsigned i;

	for (i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		CALL(fcntl, kept[i], F_SETFD, 0);
	fail(CALL(execveat, binary, "", argv, environment, AT_EMPTY_PATH));
}

/*
 * In the first process of the new namespaces, in memory lent by the zygote. Comes back in a standby without a program of its own
 * only: that one is forked, while one that executes `setup` needs no copy of the memory.
 */
static __attribute__((noinline)) long become_init(uint64_t flags, int binary, int setup, char *title)
{
	struct clone_args args = { .flags = setup < 0 ? 0 : CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD };
	char *argv[] = { title, 0 }, *environment[] = { 0 };
	long standby = clone_process(&args);

	if (standby == 0) {
		if (setup < 0)
			return 0;
		become_setup(setup);
	}
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
 * init's program, `setup` one of the standby's or -1, and `title` the init's argv[0]. Returns the init's pid in the zygote, as a sibling of which it is born, 0 in
 * the standby, and a negated errno if there is no init. What happens after the birth of the init, the init reports by
 * STARTED.
 *
 * As with vfork(2), the zygote waits until the init has executed its program, so the init never has a copy of the
 * zygote's memory. A standby without a program does: it is forked. The init writes to the stack below this function's frame only, and
 * does not return from here.
 */
EXPORT long start_init(uint64_t flags, int binary, int setup, char *title)
{
	struct clone_args args = { .flags = flags | CLONE_PARENT | CLONE_VM | CLONE_VFORK };
	long pid = clone_process(&args);

	return pid ? pid : become_init(flags, binary, setup, title);
}

/* hand_over_to() of hand_over.h, for the standby that is forked. */
EXPORT long hand_over(const struct clone_args *args)
{
	return hand_over_to(args);
}
