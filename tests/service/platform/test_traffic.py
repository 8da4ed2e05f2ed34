"""The counters of network devices that a process sees."""

import os
import socket

import pytest

from nsupervisor.service.platform import traffic
from nsupervisor.service.platform.traffic import KEYS, NO_TRAFFIC, parse_traffic, read_traffic

HEAD = b"Inter-|   Receive                  |  Transmit\n face |bytes packets |bytes packets\n"
LO = b"    lo:     500       5    0    0    0     0          0         0      500       5  0 0 0 0 0 0\n"
ETH = b"  eth0:18446744073709551615 70 1 2 0 0 0 0 900 9 0 0 0 0 0 0\n"


def test_traffic_is_counted_over_the_devices_that_a_process_sees() -> None:
    with open("/proc/self/net/dev") as file:
        devices = {line.split(":")[0].strip() for line in list(file)[2:]}
    before = read_traffic(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x" * 5000)
        after = read_traffic(os.getpid())
    more = [(after[key] or 0) - (before[key] or 0) for key in KEYS]
    wanted = [5000, 5000, 1, 1] if devices == {"lo"} else [0, 0, 0, 0]
    assert all(value >= least for value, least in zip(more, wanted, strict=True))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (HEAD + LO + ETH, (18446744073709551615, 900, 70, 9)),
        (HEAD + LO + ETH + ETH.replace(b"eth0", b"a b:c"), (2 * 18446744073709551615, 1800, 140, 18)),
        (HEAD + LO, (500, 500, 5, 5)),
        (HEAD, (None, None, None, None)),
        (b"", (None, None, None, None)),
    ],
)
def test_loopback_counts_if_it_is_all(content: bytes, values: tuple[int | None, ...]) -> None:
    assert parse_traffic(content) == dict(zip(KEYS, values, strict=True))


def test_a_process_that_is_gone_has_no_traffic() -> None:
    assert read_traffic(None) == NO_TRAFFIC
    assert read_traffic(2**22 + 5) == NO_TRAFFIC


def test_more_devices_than_are_read_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_traffic(os.getpid()) != NO_TRAFFIC
    monkeypatch.setattr(traffic, "MAX_FILE_BYTES", 200)
    assert read_traffic(os.getpid()) == NO_TRAFFIC
