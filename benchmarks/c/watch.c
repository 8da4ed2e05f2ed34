// watch FILE [KEY]: prints "BEFORE_NS AFTER_NS VALUE" each time that the value in a cgroup's file goes up. KEY picks a
// line "KEY VALUE"; without it the file holds one number. BEFORE is the time (CLOCK_MONOTONIC) at which the last reading
// with the old value began, so the change came after it; AFTER is when the new value had been read.
// Of a pressure file, KEY is a trigger ("some 100000 500000"): it sets one like that, and tells of each time that the
// kernel says that it was set off; BEFORE and AFTER are then the same moment, a wake-up after the kernel's act.
// It looks every 0.2 ms, before everybody else where it may, so that it is not a busy machine that is measured; and not
// more often, because a look takes some 40 us away from what is being measured.
#define _GNU_SOURCE
#include "report.h"
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>

static long long value(int fd, const char *key) {
    char text[4096];
    ssize_t size = pread(fd, text, sizeof text - 1, 0);
    if (size < 0) exit(5);
    text[size] = 0;
    if (!key) return atoll(text);
    size_t length = strlen(key);
    for (char *line = text; line && *line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (!strncmp(line, key, length) && line[length] == ' ') return atoll(line + length);
    }
    exit(6);
}

static int wait_for_trigger(int fd, const char *trigger) {
    struct pollfd told = {fd, POLLPRI, 0};
    if (write(fd, trigger, strlen(trigger) + 1) < 0) return 7;
    for (long long at = now(CLOCK_MONOTONIC), count = 0;; at = now(CLOCK_MONOTONIC)) {
        printf("%lld %lld %lld\n", at, at, count++);
        if (poll(&told, 1, -1) != 1 || told.revents & POLLERR) return 8;
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    const char *key = argc > 2 ? argv[2] : 0;
    int stalls = strstr(argv[1], ".pressure") != 0;
    int fd = open(argv[1], (stalls ? O_RDWR | O_NONBLOCK : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) return 3;
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, 9);
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){1});  // not granted everywhere, and then it has to do without
    setlinebuf(stdout);
    if (stalls) return wait_for_trigger(fd, key);
    long long old = value(fd, key), before = now(CLOCK_MONOTONIC);
    printf("%lld %lld %lld\n", before, before, old);
    for (;;) {
        struct timespec nap = {0, 200000};
        long long start = now(CLOCK_MONOTONIC), new = value(fd, key);
        if (new > old) printf("%lld %lld %lld\n", before, now(CLOCK_MONOTONIC), new);
        old = new;
        before = start;
        nanosleep(&nap, 0);
    }
}
