"""The contents of the files by which programs resolve names. No text from outside makes a line of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.load import parse
from nsupervisor.core.name_files import (
    HOSTS,
    RESOLVER,
    head_of,
    hosts_head,
    is_address,
    parse_resolver,
    wanted_files,
    with_peers,
)
from tests.config.test_load import problems

LOCALHOST = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
BLUE = "# The addresses of the workloads in the network blue:\n"


def peers(**addresses: str) -> str:
    found = {name.replace("__", "@"): text.split() for name, text in addresses.items()}
    return with_peers(LOCALHOST, "blue", found).removeprefix(f"{LOCALHOST}{BLUE}")


def test_the_names_of_peers() -> None:
    assert peers(web="10.0.0.2 fd00::2", db__1="10.0.0.3", db__two="10.0.0.4") == (
        "10.0.0.3 db-1 db\n10.0.0.4 db-two db\n10.0.0.2 web\nfd00::2 web\n"
    )


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ({"localhost": "10.0.0.2", "LocalHost": "10.0.0.3"}, ""),
        ({"web-2": "10.0.0.2", "web__2": "10.0.0.3"}, "10.0.0.2 web-2\n10.0.0.3 web\n"),
        ({"Web": "10.0.0.2", "web": "10.0.0.3"}, "10.0.0.2 Web\n"),
        ({"web": "10.0.0.2\n10.0.0.9"}, "10.0.0.2 web\n10.0.0.9 web\n"),
        ({"web": "10.0.0.2#x 10.0.0.300 fe80::1%eth0"}, ""),
    ],
)
def test_no_one_takes_the_name_of_another(addresses: dict[str, str], expected: str) -> None:
    assert peers(**addresses) == expected


def test_a_name_in_the_head_is_not_repeated() -> None:
    head = hosts_head({"DB": "10.9.9.9"}, "host", ["10.0.0.7"])
    assert head == f"10.9.9.9 DB\n10.0.0.7 host\n{LOCALHOST}"
    text = with_peers(head, "blue", {"db": ["10.0.0.2"], "host": ["10.0.0.3"]})
    assert text == f"{head}{BLUE}"


def test_the_file_of_the_host_is_kept() -> None:
    assert hosts_head({"db": "10.9.9.9"}, None, (), "127.0.0.1 localhost") == "10.9.9.9 db\n127.0.0.1 localhost\n"
    assert hosts_head({}, None, (), "") == "\n"


TEXTS = st.text(st.sampled_from("a@-.#\n\r\x0b\x85\u2028 0:%")) | st.text()


@given(st.dictionaries(TEXTS, TEXTS), TEXTS, st.lists(TEXTS))
def test_no_text_makes_a_line_or_a_name_of_its_own(hosts: dict[str, str], name: str, own: list[str]) -> None:
    head = hosts_head(hosts, name, own)
    text = with_peers(head, "blue", {key: [value, "10.0.0.2"] for key, value in hosts.items()})
    assert head_of(text) == head
    for line in text.split("\n")[:-1]:
        if not line.startswith("#"):
            address, *names = line.split(" ")
            assert is_address(address)
            assert names
            assert all(word.isascii() and word.isprintable() and "#" not in word for word in names)


@given(TEXTS | st.lists(st.sampled_from(["nameserver ", "search ", "options "]) | TEXTS).map("".join))
def test_a_resolver_has_three_kinds_of_lines(text: str) -> None:
    resolver = parse_resolver(text)
    lines = resolver.text.split("\n")[:-1]
    assert all(line.split()[0] in ("nameserver", "search", "options") and line.isprintable() for line in lines)
    assert parse_resolver(resolver.text) == resolver


def test_a_resolver_without_the_loopback_of_the_host() -> None:
    servers = ("127.0.0.53", "fe80::1%eth0", "::1", "0.0.0.0", "::ffff:127.0.0.1", "fe80::1", "::", "10.0.0.1")
    text = "# x\n" + "".join(f"nameserver {server}\n" for server in servers)
    text += "domain old.org\nsearch a.org b.org\noptions edns0 ndots:2\nlookup file bind\n"
    expected = "nameserver 10.0.0.1\nsearch a.org b.org\noptions edns0 ndots:2\n"
    assert parse_resolver(text).without_loopback().text == expected
    changed = parse_resolver(text).changed(["127.0.0.1"], ["."], [])
    assert changed.text == "nameserver 127.0.0.1\nsearch .\noptions edns0 ndots:2\n"


def wanted(keys: str) -> dict[str, tuple[str, ...]]:
    workload = parse(
        f'[workload.a]\ncommand = ["a"]\n{keys}\n[workload.b]\ncommand = ["b"]\nnamespaces.network = true\n', "f"
    ).workloads["a"]
    return {path: file.settings for path, file in wanted_files(workload).items()}


@pytest.mark.parametrize(
    ("keys", "files"),
    [
        ("", {}),
        ("namespaces.network = true", {}),
        ('namespaces.network = "cni:blue"', {HOSTS: (), RESOLVER: ()}),
        ('namespaces.network = "workload:b"', {HOSTS: (), RESOLVER: ()}),
        ('namespaces.network = "path:/run/netns/a"', {RESOLVER: ()}),
        ('namespaces = { network = "cni:blue", mount = false }', {}),
        ('network.hosts = { db = "10.0.0.5" }', {HOSTS: ("db 10.0.0.5",)}),
        (
            'network.dns = { servers = ["10.0.0.1", "::1"], search = ["a.org"], options = ["ndots:2"] }',
            {RESOLVER: ("nameserver 10.0.0.1 ::1", "search a.org", "options ndots:2")},
        ),
        (
            'namespaces.network = "cni:blue"\nmounts = [{ source = "/etc/hosts", destination = "/etc/hosts" }]',
            {RESOLVER: ()},
        ),
    ],
)
def test_the_files_that_a_program_gets(keys: str, files: dict[str, tuple[str, ...]]) -> None:
    assert wanted(keys) == files


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('network.hosts = { "a\\nb" = "10.0.0.5" }', "is not a name of a host"),
        ('network.hosts = { db = "10.0.0.5 evil" }', "is not an IP address"),
        ('network.hosts = { db = "fe80::1%eth0" }', "is not an IP address"),
        ('network.dns.servers = ["dns.example.org"]', "is not an IP address"),
        ('network.dns.servers = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]', "has more than 3 servers"),
        ('network.dns.search = ["a.org b.org"]', "is not a domain"),
        ('network.dns.options = ["ndots:2\\nnameserver 1.1.1.1"]', "is not an option of resolv.conf"),
        ('network.hosts = { db = "10.0.0.5" }\nnamespaces.mount = false', "needs a mount namespace"),
        ('network.dns.search = ["a.org"]\nnamespaces.network = "workload:b"', "write it for b"),
        (
            'network.hosts = { db = "10.0.0.5" }\nmounts = [{ source = "/a", destination = "/etc/hosts" }]',
            "and a mount on /etc/hosts are two files",
        ),
    ],
)
def test_what_cannot_be_is_refused(keys: str, message: str) -> None:
    found = problems(
        f'[workload.a]\ncommand = ["a"]\n{keys}\n[workload.b]\ncommand = ["b"]\nnamespaces.network = true\n'
    )
    assert any(message in problem for problem in found), found


def test_ten_thousand_hosts_are_the_most() -> None:
    def of(count: int) -> list[str]:
        lines = "".join(f'h{number} = "10.0.0.5"\n' for number in range(count))
        return problems(f'[workload.a]\ncommand = ["a"]\n[workload.a.network.hosts]\n{lines}')

    assert of(10_000) == []
    (problem,) = of(10_001)
    assert "has more than 10,000 names; use a name server (network.dns)" in problem
