"""Which names and addresses are ours."""

import socket

import pytest

from nsupervisor.api.http import hosts
from nsupervisor.api.http.hosts import AllowedHosts, is_local_address, local_host_names

LOCAL = {"192.0.2.7", "2001:db8::7", "::1", "255.255.255.255", "224.0.0.1", "ff02::1"}
"""What a socket can be bound to."""


@pytest.mark.parametrize(
    ("address", "host", "allowed"),
    [
        ("0.0.0.0", "192.0.2.7:80", True),
        ("0.0.0.0", "198.51.100.1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("0.0.0.0", "255.255.255.255", False),
        ("0.0.0.0", "224.0.0.1", False),
        ("::", "[2001:db8::7]:80", True),
        ("::", "[::1]", True),
        ("::", "[::]", False),
        ("::", "[ff02::1]", False),
        ("::", "192.0.2.7", True),
        ("::1", "[::1]", True),
        ("::1", "[0:0::1]:9631", True),
        ("::1", "::1", None),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "127.0.0.1", False),
        ("192.0.2.7", "localhost", True),
        ("192.0.2.7", "LocalHost.", True),
    ],
)
def test_addresses(address, host, allowed):
    own = AllowedHosts(address, names={"localhost"}, is_local=LOCAL.__contains__)
    if allowed is None:
        with pytest.raises(ValueError, match="neither a name nor an address"):
            own.allows(host)
    else:
        assert own.allows(host) is allowed


def test_names_are_found_without_a_name_server(tmp_path, monkeypatch):
    file = tmp_path / "hosts"
    file.write_text("127.0.0.1 localhost\n127.0.1.1 box.example.com Box # box2\n192.0.2.1 other.example.com\n")
    monkeypatch.setattr(hosts, "HOSTS_FILE", str(file))
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert local_host_names() == {"localhost", "box", "box.example.com"}
    file.unlink()
    assert local_host_names() == {"localhost", "box"}


def test_an_address_is_local_if_an_interface_has_it():
    assert is_local_address("127.0.0.1")
    assert not is_local_address("198.51.100.1")
