"""What is read for `stats` from files that are no cgroup's."""

import os
import socket

from nsupervisor.service.observe.stats import traffic


def test_traffic_is_counted_over_the_devices_that_a_process_sees():
    with open("/proc/self/net/dev") as file:
        devices = {line.split(":")[0].strip() for line in list(file)[2:]}
    before = traffic(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x" * 5000)
        after = traffic(os.getpid())
    more = {key: after[key] - before[key] for key in before}
    assert all(value >= (5000 if devices == {"lo"} else 0) for value in more.values())


def test_a_process_that_is_gone_has_no_traffic():
    nothing = {"network_receive_bytes": None, "network_transmit_bytes": None}
    assert traffic(None) == nothing
    assert traffic(2**22 + 5) == nothing
