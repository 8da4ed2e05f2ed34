/*
 * Replace a process by one that is born elsewhere, such as in another cgroup, and continues in the same memory.
 *
 * Includes <linux/sched.h> and "system.h". Compile with -fno-optimize-sibling-calls.
 */

#ifndef NSUPERVISOR_HAND_OVER_H
#define NSUPERVISOR_HAND_OVER_H

#include <linux/sched.h>

#include "system.h"

/* For the flags that clone(2) has, too: not those above 32 bits, nor CLONE_NEWTIME, which has the bits of its signal. */
static inline int is_for_clone(const struct clone_args *args)
{
	return !(args->flags >> 32) && !(args->flags & 0xff);
}

/* Whether a call has failed because clone3 is not allowed: seccomp filters of containers cannot look into its argument. */
static inline int is_refused(long result)
{
	return result == -ENOSYS || result == -EPERM;
}

/* clone3, or clone(2) where a filter refuses clone3. With no stack of its own: that of the caller, or a copy. */
static inline __attribute__((always_inline)) long clone_process(const struct clone_args *args)
{
	long result = CALL(clone3, args, sizeof(*args));

	if (is_refused(result) && is_for_clone(args))
		result = CALL(clone, args->flags | args->exit_signal);
	return result;
}

/*
 * Call clone3 or clone; end this process as soon as the new one has left the memory. Returns 0 in the new one, or a
 * negated errno. When the parent continues, the child has spoiled the stack that they share. So from the system call
 * on, the parent uses registers only.
 */
static __attribute__((noinline)) long clone_and_end(long number, long first, long second)
{
	long result;

#if defined(__x86_64__)
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;

	__asm__ volatile("	syscall\n"
			 "	test %%rax, %%rax\n"
			 "	jle 1f\n"
			 "	xor %%edi, %%edi\n"
			 "	mov %[exit_group], %%eax\n"
			 "	syscall\n"
			 "	hlt\n"
			 "1:\n"
			 : "=a"(result)
			 : "0"(number), "D"(first), "S"(second), "d"(0L), "r"(r10), "r"(r8),
			   [exit_group] "i"(__NR_exit_group)
			 : "rcx", "r11", "memory");
#else
	register long x0 __asm__("x0") = first;
	register long x1 __asm__("x1") = second;
	register long x2 __asm__("x2") = 0;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = 0;
	register long x8 __asm__("x8") = number;

	__asm__ volatile("	svc #0\n"
			 "	cmp x0, #0\n"
			 "	b.le 1f\n"
			 "	mov x0, #0\n"
			 "	mov x8, %[exit_group]\n"
			 "	svc #0\n"
			 "	brk #0\n"
			 "1:\n"
			 : "+r"(x0), "+r"(x8)
			 : "r"(x1), "r"(x2), "r"(x3), "r"(x4), [exit_group] "i"(__NR_exit_group)
			 : "memory", "cc");
	result = x0;
#endif
	return result;
}

/*
 * Make a process that continues in this memory, and end this one as soon as it has left: a process with the caller's
 * memory, descriptors and namespaces, but born by clone3, for instance into another cgroup. Returns 0 there, or a
 * negated errno, and then the caller is as before. `args` must have CLONE_VM and CLONE_VFORK.
 */
static __attribute__((noinline)) long hand_over_to(const struct clone_args *args)
{
	long result = clone_and_end(__NR_clone3, (long)args, sizeof(*args));

	if (is_refused(result) && is_for_clone(args))
		result = clone_and_end(__NR_clone, (long)args->flags, 0);
	return result;
}

#endif
