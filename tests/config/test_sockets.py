"""The sockets of workloads: which addresses are understood, and which fit together."""

import pytest

from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.sockets import SocketAddress, SocketConfig, overlap, parse_socket_address, passed_sockets

HEAD = '[workload.web]\ncommand = ["true"]\n'


def problems(*lines: str, before: str = "") -> list[str]:
    """Return the problems of a file with a socket for each line; "other: " in front of one is for another workload."""
    text = before + HEAD
    own = [line for line in lines if not line.startswith("other: ")]
    text += "".join(f"[[workload.web.sockets]]\n{line}\n" for line in own)
    others = [line.removeprefix("other: ") for line in lines if line.startswith("other: ")]
    if others:
        text += '[workload.other]\ncommand = ["true"]\n'
        text += "".join(f"[[workload.other.sockets]]\n{line}\n" for line in others)
    try:
        parse(text, "site.toml")
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", SocketAddress("127.0.0.1", 80)),
        ("[::1]:65535", SocketAddress("::1", 65535)),
        ("/run/web.sock", SocketAddress(path="/run/web.sock")),
        ("@web/1", SocketAddress(path="@web/1")),
        (f"/{'a' * 106}", SocketAddress(path=f"/{'a' * 106}")),
    ],
)
def test_addresses(text: str, address: SocketAddress) -> None:
    assert parse_socket_address(text) == address
    assert problems(f'listen_stream = "{text}"') == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('listen_stream = "80"',), "is not an address; write"),
        (("listen_stream = 80",), 'does not say who may connect; write "127.0.0.1:80"'),
        (('listen_stream = ":80"',), "does not say who may connect"),
        (('listen_stream = "localhost:80"',), "is not an address"),
        (('listen_stream = "127.0.0.1:0"',), "has a port that cannot be"),
        (('listen_stream = "127.0.0.1:65536"',), "has a port that cannot be"),
        (('listen_stream = "/"',), "is not the path of a socket"),
        (('listen_stream = "/run/../web"',), "is not the path of a socket"),
        (('listen_stream = "/run//web"',), "is not the path of a socket"),
        (('listen_stream = "@"',), "is not the path of a socket"),
        ((f'listen_stream = "/{"a" * 107}"',), "is longer than 107 bytes"),
        (("backlog = 1",), "has no address; write exactly one of"),
        (('listen_stream = "@a"\nlisten_datagram = "@b"',), "has 2 addresses; write exactly one of"),
        (('listen_sequential_packet = "127.0.0.1:1"',), "is not a Unix socket"),
        (('listen_stream = "127.0.0.1:1"\nsocket_user = "root"',), "socket_user: is for a Unix socket with a path"),
        (('listen_stream = "@a"\nremove_on_stop = true',), "remove_on_stop: is for a Unix socket with a path"),
        (('listen_stream = "127.0.0.1:1"\nbind_ipv6_only = "both"',), "is for an IPv6 address"),
        (('listen_stream = "/a"\nreuse_port = true',), "is for an IP address"),
        (('listen_stream = "@a"\nfile_descriptor_name = "a:b"',), "is not a name of at most 255"),
        (('listen_stream = "@a"\nbacklog = 0',), "is out of range"),
        (('listen_stream = "/run/nsupervisor/web"',), "is in the runtime directory of the service"),
        (('listen_stream = "@a"', 'listen_datagram = "@a"'), "is the address of another socket of it"),
        (('listen_stream = "@a"', 'other: listen_stream = "@a"'), 'is an address of workload "web", too (@a)'),
        (
            ('listen_stream = "0.0.0.0:80"', 'other: listen_stream = "127.0.0.1:80"'),
            'is an address of workload "web", too (0.0.0.0:80)',
        ),
        (tuple(f'listen_stream = "@{number}"' for number in range(65)), "is one more than a workload can have"),
    ],
)
def test_what_is_refused(lines: tuple[str, ...], message: str) -> None:
    found = problems(*lines)
    assert len(found) == 1, found
    assert message in found[0]


def test_the_address_of_the_metrics_is_refused() -> None:
    (found,) = problems('listen_stream = "0.0.0.0:9631"', before='[supervisor]\nmetrics = "127.0.0.1:9631"\n')
    assert "is the address of supervisor.metrics" in found


def tcp(text: str, **keys: object) -> SocketConfig:
    return SocketConfig(listen_stream=text, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (tcp("127.0.0.1:80"), tcp("127.0.0.1:80"), True),
        (tcp("127.0.0.1:80"), tcp("127.0.0.1:81"), False),
        (tcp("127.0.0.1:80"), tcp("127.0.0.2:80"), False),
        (tcp("127.0.0.1:80"), SocketConfig(listen_datagram="127.0.0.1:80"), False),
        (tcp("0.0.0.0:80"), tcp("127.0.0.2:80"), True),
        (tcp("[::1]:80"), tcp("[0:0::1]:80"), True),
        (tcp("[::]:80"), tcp("127.0.0.1:80"), True),
        (tcp("[::]:80", bind_ipv6_only="ipv6-only"), tcp("0.0.0.0:80"), False),
        (tcp("[::1]:80"), tcp("0.0.0.0:80"), False),
        (tcp("127.0.0.1:80", reuse_port=True), tcp("127.0.0.1:80", reuse_port=True), False),
        (tcp("127.0.0.1:80", reuse_port=True), tcp("127.0.0.1:80"), True),
        (tcp("/run/a"), tcp("/run/a"), True),
        (tcp("/run/a"), tcp("127.0.0.1:80"), False),
    ],
)
def test_which_sockets_the_kernel_does_not_allow_together(
    one: SocketConfig, other: SocketConfig, expected: bool
) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


def test_instances_have_the_same_sockets_unless_their_addresses_differ() -> None:
    text = HEAD + 'instances = 2\nexpand = true\n[[workload.web.sockets]]\nlisten_stream = "127.0.0.1:{port}"\n'
    same = parse(text.replace("{port}", "8000"), "site.toml").workloads["web"]
    assert [instance for instance, _ in same.each_variant()] == [None]
    each = parse(text.replace("{port}", "800{instance}"), "site.toml").workloads["web"]
    keys = [passed_sockets("web", variant.sockets) for _, variant in each.each_variant()]
    assert keys == [[("web stream 127.0.0.1:8001", "web")], [("web stream 127.0.0.1:8002", "web")]]


@pytest.mark.parametrize("line", ['type = "notify"', "watchdog_sec = 5", "file_descriptor_store_max = 1"])
def test_a_program_that_sends_notifications_needs_access_to_the_notify_socket(line: str) -> None:
    parse(f'{HEAD}notify_access = "none"\n', "site.toml")
    with pytest.raises(ConfigError, match="is for a program without notifications"):
        parse(f'{HEAD}{line}\nnotify_access = "none"\n', "site.toml")
