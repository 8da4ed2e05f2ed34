/* System calls without a C library, on x86-64 and aarch64 (syscall(2) lists the registers). */

#ifndef NSUPERVISOR_SYSTEM_H
#define NSUPERVISOR_SYSTEM_H

#include <asm/unistd.h>
#include <linux/audit.h>
#include <stdint.h>

#if defined(__x86_64__)

#define THIS_ARCHITECTURE AUDIT_ARCH_X86_64

static inline long system_call(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

#elif defined(__aarch64__)

#define THIS_ARCHITECTURE AUDIT_ARCH_AARCH64

static inline long system_call(long number, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
}

#else
#error "there are system calls here for x86-64 and aarch64 only"
#endif

/* CALL(name, up to five arguments): the result, or a negated errno. Pointers become numbers. */
#define CALL(...) CALL_(__VA_ARGS__, 0, 0, 0, 0, 0, unused)
#define CALL_(name, a, b, c, d, e, ...) \
	system_call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

#define SIGCHLD 17
#define EINTR 4
#define EPERM 1
#define ENOSYS 38

/* The exit code of a process whose setup failed, as shells and container engines use it. */
#define EXIT_SETUP 125

#endif
