// How the helper programs tell the benchmark when something happened: one short line a write(2) to a FIFO, which is
// atomic up to PIPE_BUF, so many programs can share one.
#pragma once
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static inline long long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Write one line to the FIFO at `path`; ends the program when that cannot be done.
static inline void report(const char *path, const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, line, size) != size) exit(3);
    close(fd);
}
