// spawner RUNS NAMESPACES PROGRAM [ARGUMENT...]: starts PROGRAM that many times, one after the other, and prints for each
// the nanoseconds from the request until it has been reaped. Any other end than exit status 0 ends the attempt.
// NAMESPACES: "-" for posix_spawn (how other products are started), else a list of mount,pid,uts,ipc,network,user,proc
// for a bare clone3 (what the kernel itself costs); "proc" mounts a new /proc.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static const struct { const char *name; uint64_t flag; } KINDS[] = {
    {"mount", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC},
    {"network", CLONE_NEWNET}, {"user", CLONE_NEWUSER}, {"proc", 0},
};

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static pid_t bare_clone(uint64_t flags, int proc, char **command) {
    // The parent sleeps until the execve, so the child may use its memory's copy without a race for the processor.
    struct clone_args arguments = {.flags = flags | CLONE_VFORK, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) fail("clone3");
    if (pid) return pid;
    if (proc && (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0)
                 || mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0))) _exit(122);
    execv(command[0], command);
    _exit(127);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int runs = atoi(argv[1]), bare = strcmp(argv[2], "-"), proc = 0;
    uint64_t flags = 0;
    for (char *name = bare ? strtok(argv[2], ",") : 0; name; name = strtok(0, ",")) {
        size_t i = 0, count = sizeof KINDS / sizeof *KINDS;
        while (i < count && strcmp(KINDS[i].name, name)) i++;
        if (i == count) return 2;
        flags |= KINDS[i].flag;
        proc |= !KINDS[i].flag;
    }
    char **command = argv + 3;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    for (int run = 0; run < runs; run++) {
        pid_t pid;
        int status;
        long long start = now();
        if (bare) pid = bare_clone(flags, proc, command);
        else if ((errno = posix_spawnp(&pid, command[0], &actions, 0, command, environ))) fail(command[0]);
        while (waitpid(pid, &status, 0) < 0) if (errno != EINTR) fail("waitpid");
        long long end = now();
        if (status) {
            fprintf(stderr, "%s: wait status %#x\n", command[0], status);
            return 1;
        }
        printf("%lld\n", end - start);
    }
}
