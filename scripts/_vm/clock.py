"""The frequency of this processor's time stamp counter, measured, so that the guest need not do it.

QEMU's emulation hands the host's counter through. The guest would calibrate it against a timer that is itself emulated,
which goes wrong on a busy host: the clock then runs too fast or the boot hangs.
"""

import ctypes
import mmap
import time
from pathlib import Path

# rdtsc; shl rdx, 32; or rax, rdx; ret
READ_COUNTER = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"


def counter_khz() -> int:
    """Ticks of the counter per millisecond."""
    try:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that allows no writable code
        return _nominal_khz()
    code.write(READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def sample() -> tuple[float, int]:
        tries = []
        for _ in range(5):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            ticks = read()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            tries.append((after - before, (before + after) / 2, ticks))
        return min(tries)[1:]  # the one that was interrupted least

    start, first = sample()
    time.sleep(0.05)
    end, last = sample()
    return round((last - first) * 1e6 / (end - start))


def _nominal_khz() -> int:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    raise OSError("no cpu MHz in /proc/cpuinfo")
