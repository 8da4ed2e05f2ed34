// writer FIFO NAME GATE lines|blocks BYTES SECONDS: reports "NS NAME start", waits for the file GATE, then writes lines of
// 100 bytes to its standard output as fast as it can until BYTES or SECONDS are reached, reports
// "NS NAME done BYTES ELAPSED_NS OWN_CPU_NS" and does nothing for ever. Each line begins with its number (10 digits).
//   lines: a write(2) for each line; blocks: a write(2) for each 64 KiB, which ends in the middle of a line.
#include "report.h"
#include <string.h>

enum { LINE = 100, BLOCK = 65536, LINES = BLOCK / LINE * LINE + LINE };

static char buffer[2 * LINES], template[LINE];

static void put_line(char *line, long long n) {
    memcpy(line, template, LINE);
    for (int digit = 9; digit >= 0; digit--, n /= 10) line[digit] = '0' + n % 10;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    const char *fifo = argv[1], *name = argv[2];
    int blocks = !strcmp(argv[4], "blocks");
    long long limit = atoll(argv[5]), done = 0, lines = 0;
    double seconds = atof(argv[6]);
    memset(template, 'x', LINE);
    template[10] = ' ';
    template[LINE - 1] = '\n';
    report(fifo, "%lld %s start\n", now(CLOCK_MONOTONIC), name);
    while (access(argv[3], F_OK)) usleep(2000);
    long long start = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID), end = start + (long long)(seconds * 1e9);
    long long held = 0;  // bytes in the buffer that have not been written
    for (;;) {
        long long want = blocks ? BLOCK : LINE;
        for (; held < want; held += LINE) put_line(buffer + held, lines++);
        int last = done + want >= limit || ((lines & 63) == 0 && now(CLOCK_MONOTONIC) >= end)
                   || (blocks && now(CLOCK_MONOTONIC) >= end);
        if (last) want = held;  // to the end of a line
        for (long long at = 0; at < want;) {
            ssize_t written = write(1, buffer + at, want - at);
            if (written < 0) return 4;
            at += written;
        }
        done += want;
        held -= want;
        if (last) break;
        memmove(buffer, buffer + want, held);
    }
    long long stop = now(CLOCK_MONOTONIC);
    report(fifo, "%lld %s done %lld %lld %lld\n", stop, name, done, stop - start, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    for (;;) pause();
}
