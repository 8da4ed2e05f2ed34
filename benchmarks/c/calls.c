// calls FIFO NAME COUNT: makes COUNT reads of a byte of /dev/zero, takes its processor time, reports "NS NAME", then waits.
#include "report.h"

int main(int argc, char **argv) {
    char byte;
    if (argc != 4) return 2;
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    long count = atol(argv[3]);
    for (long i = 0; i < count / 10; i++)
        if (read(fd, &byte, 1) != 1) return 3;
    long long begin = now(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = 0; i < count; i++)
        if (read(fd, &byte, 1) != 1) return 3;
    report(argv[1], "%lld %s\n", now(CLOCK_PROCESS_CPUTIME_ID) - begin, argv[2]);
    for (;;) pause();
}
