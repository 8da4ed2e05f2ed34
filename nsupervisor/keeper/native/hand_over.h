/*
 * Replace a process by one that is born elsewhere, such as in another cgroup, and continues in the same memory.
 *
 * Includes <linux/sched.h> and "system.h". Compile with -fno-optimize-sibling-calls.
 */

#ifndef NSUPERVISOR_HAND_OVER_H
#define NSUPERVISOR_HAND_OVER_H

#include <linux/sched.h>

#include "system.h"

/*
 * Make a process that continues in this memory, and end this one as soon as it has left: a process with the caller's
 * memory, descriptors and namespaces, but born by clone3, for instance into another cgroup. Returns 0 there, or a
 * negated errno, and then the caller is as before. `args` must have CLONE_VM and CLONE_VFORK.
 *
 * When the parent continues, the child has spoiled the stack that they share. So from the system call on, the parent
 * uses registers only.
 */
static __attribute__((noinline)) long hand_over_to(const struct clone_args *args)
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

#endif
