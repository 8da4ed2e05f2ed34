"""Which parts of traffic control a kernel has. The devices of the host stay as they are."""

import errno
import socket
import struct

import pytest

from nsupervisor.linux import traffic_control
from nsupervisor.linux.traffic_control import find_missing_limiter
from tests.needs import needs


@needs("root", "netns")
def test_what_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = socket.if_nameindex()
    assert find_missing_limiter() in (
        None,
        "the queueing discipline tbf (module sch_tbf)",
        "the queueing discipline ingress (module sch_ingress)",
    )
    queue = traffic_control._queue
    monkeypatch.setattr(traffic_control, "_queue", lambda parent, kind: queue(parent, b"no-such"))
    assert find_missing_limiter() == "the queueing discipline tbf (module sch_tbf)"
    assert socket.if_nameindex() == before


def test_an_answer_is_an_error_or_none() -> None:
    class Netlink:
        answer = b""

        def sendto(self, data: bytes, address: tuple[int, int]) -> None:
            assert struct.unpack_from("=I", data)[0] == len(data)

        def recv(self, size: int) -> bytes:
            return self.answer

    netlink = Netlink()
    for number in (0, errno.ENOENT, errno.EINVAL):
        netlink.answer = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -number)
        assert traffic_control._request(netlink, 36, b"") == number  # type: ignore[arg-type]
    netlink.answer = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EPERM)
    with pytest.raises(PermissionError):
        traffic_control._request(netlink, 36, b"")  # type: ignore[arg-type]
