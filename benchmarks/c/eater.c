// eater FIFO NAME memory|growing|processes|turns COUNT: reports "NS NAME", waits a little, then takes too much of something:
//   memory: COUNT MiB, touched page by page (to be killed by the OOM killer);
//   growing: COUNT MiB too, one every 10 ms; reports "NS NAME crossed" when half of that has been taken;
//   processes: COUNT children that do nothing; a refused fork(2) ends the attempt;
//   turns: COUNT children that all want the last processor, so that they wait for each other; they let others go first.
// The wait lets whatever watches be at rest again, and makes the moment independent of its sampling.
#define _GNU_SOURCE
#include "report.h"
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

static void take_turns(void) {
    cpu_set_t all, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof all, &all)) exit(5);
    for (int cpu = CPU_SETSIZE; cpu-- && !CPU_COUNT(&one);)
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) || nice(19) != 19) exit(6);
    for (volatile int i = 0;; i++);
}

int main(int argc, char **argv) {
    long long first = now(CLOCK_MONOTONIC);
    if (argc != 5) return 2;
    report(argv[1], "%lld %s\n", first, argv[2]);
    srand(first);
    int growing = !strcmp(argv[3], "growing");  // many look once a second: anywhere between two looks
    usleep(100000 + rand() % (growing ? 1000000 : 250000));
    long count = atol(argv[4]);
    if (growing || !strcmp(argv[3], "memory")) {
        size_t size = count << 20;
        char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return 4;
        for (size_t i = 0; i < size; i += 4096) {
            if (growing && !(i & ((1 << 20) - 1))) {
                if (i == size / 2) report(argv[1], "%lld %s crossed\n", now(CLOCK_MONOTONIC), argv[2]);
                usleep(10000);
            }
            memory[i] = 1;
        }
    } else {
        for (long i = 0; i < count; i++) {
            pid_t child = fork();
            if (child < 0) break;
            if (!child && !strcmp(argv[3], "turns")) take_turns();
            if (!child) for (;;) pause();
        }
    }
    for (;;) pause();
}
