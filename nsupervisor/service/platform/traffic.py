"""The traffic of a network namespace: the counters of its devices."""

import os
from collections.abc import Mapping

KEYS = ("network_receive_bytes", "network_transmit_bytes", "network_receive_packets", "network_transmit_packets")
NO_TRAFFIC: Mapping[str, int | None] = dict.fromkeys(KEYS)
MAX_FILE_BYTES = 1 << 16
"""The most bytes that are read: about 500 devices."""
_COLUMNS = (0, 8, 1, 9)
"""The columns of the values of `KEYS` in a line."""


def read_traffic(pid: int | None) -> Mapping[str, int | None]:
    """Return what went over the network devices that a process sees, by `KEYS`; None for all if that is not known.

    `pid`: of a process that has not been waited for, so that its number is its own; or None. It is not known of more
    devices than are read: a program that may make devices must not make this slow.
    """
    if pid is None:
        return NO_TRAFFIC
    try:
        fd = os.open(f"/proc/{pid}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = b""
            while len(content) <= MAX_FILE_BYTES and (part := os.read(fd, MAX_FILE_BYTES + 1 - len(content))):
                content += part
        finally:
            os.close(fd)
    except OSError:  # the process has ended just now
        return NO_TRAFFIC
    return NO_TRAFFIC if len(content) > MAX_FILE_BYTES else parse_traffic(content)


def parse_traffic(content: bytes) -> Mapping[str, int | None]:
    """Return the sums over the devices of the file `dev`, proc_pid_net(5).

    The loopback counts only if it is the only device: what leaves the namespace is what others notice.
    """
    lines = (line.rpartition(b":") for line in content.split(b"\n")[2:])
    devices = {name.strip(): numbers.split() for name, colon, numbers in lines if colon}
    counted = [numbers for name, numbers in devices.items() if name != b"lo"] or list(devices.values())
    if not counted:
        return NO_TRAFFIC
    return {key: sum(int(numbers[column]) for numbers in counted) for key, column in zip(KEYS, _COLUMNS, strict=True)}
