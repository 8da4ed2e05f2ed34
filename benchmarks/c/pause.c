// pause FIFO NAME: takes the time (CLOCK_MONOTONIC) as its first act, reports "NS NAME", then does nothing for ever.
#include "report.h"

int main(int argc, char **argv) {
    long long first = now(CLOCK_MONOTONIC);
    if (argc != 3) return 2;
    report(argv[1], "%lld %s\n", first, argv[2]);
    for (;;) pause();
}
