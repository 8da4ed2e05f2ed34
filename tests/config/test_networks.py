"""Networks in the configuration: published ports, and what does not fit together."""

import pytest

from nsupervisor.config.kinds import BANDWIDTH, ListOf
from nsupervisor.config.load import parse
from nsupervisor.config.ports import PUBLISHED_PORT, PublishedPort
from nsupervisor.config.to_toml import to_toml
from tests.config.test_load import problems

WEB = '[workload.web]\ncommand = ["a"]\nnamespaces = { network = "cni:default" }\n'


@pytest.mark.parametrize(
    ("text", "port", "written"),
    [
        ("127.0.0.1:8080:80/tcp", PublishedPort("127.0.0.1", 8080, 80, "tcp"), "127.0.0.1:8080:80/tcp"),
        ("8080:80", PublishedPort("", 8080, 80, "tcp"), "8080:80/tcp"),
        ("[::1]:53:5353/udp", PublishedPort("::1", 53, 5353, "udp"), "[::1]:53:5353/udp"),
    ],
)
def test_a_published_port(text: str, port: PublishedPort, written: str) -> None:
    config = parse(f'{WEB}network = {{ publish = ["{text}"] }}\n', "f.toml")
    assert config.workloads["web"].network.publish == (port,)
    assert str(port) == written
    assert to_toml(ListOf(PUBLISHED_PORT), (port,)) == f'["{written}"]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80", "is not a published port"),
        ("a:80:80", "is not a published port"),
        ("0:80", "has a port that cannot be"),
        ("80:70000", "has a port that cannot be"),
        ("300.0.0.1:80:80", "has an address that cannot be"),
        ("80:80/icmp", "has an unknown protocol; write one of tcp, udp, sctp"),
        ("80:80/tcp\n", "is not a published port"),
    ],
)
def test_what_is_no_published_port_is_refused(text: str, message: str) -> None:
    (problem,) = problems(f"{WEB}network = {{ publish = ['''{text}'''] }}\n")
    assert message in problem


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (WEB.replace('"cni:default"', "true") + 'network = { publish = ["80:80"] }', "needs a network that plugins"),
        (f'{WEB}instances = 2\nnetwork = {{ publish = ["80:80"] }}', "would be the port of several instances"),
        (
            f'{WEB}network = {{ publish = ["80:80", "127.0.0.1:80:81"] }}',
            "is published before, by workload.web.network",
        ),
        (WEB.replace("{", "{ user = true,"), "cannot be entered by a program in a user namespace of its own"),
        (WEB.replace("cni:default", "cni:a/b"), 'does not name a namespace to join; write for example "cni:default"'),
    ],
)
def test_what_does_not_fit_is_refused(toml: str, message: str) -> None:
    assert any(message in problem for problem in problems(toml)), problems(toml)


def test_other_addresses_and_protocols_have_ports_of_their_own() -> None:
    ports = '"127.0.0.1:80:80", "127.0.0.2:80:80", "127.0.0.1:80:80/udp"'
    assert problems(f"{WEB}network = {{ publish = [{ports}] }}") == []


def test_a_bandwidth() -> None:
    config = parse(f'{WEB}network.bandwidth_max = "10MB/s"\n', "f.toml")
    assert config.workloads["web"].network.bandwidth_max == 10 << 20
    assert to_toml(BANDWIDTH, 10 << 20) == '"10MB/s"'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (f"{WEB}network.bandwidth_max = 5", "is not a bandwidth"),
        (f'{WEB}network.bandwidth_max = "10M"', "is not a bandwidth"),
        (f'{WEB}network.bandwidth_max = "1B/s"', "is out of range"),
        (f'{WEB}network.bandwidth_max = "99999999TB/s"', 'is out of range; write "1KB/s" to "1TB/s"'),
        (WEB.replace('"cni:default"', "true") + 'network.bandwidth_max = "1MB/s"', "needs a network that plugins"),
    ],
)
def test_what_is_no_bandwidth_is_refused(toml: str, message: str) -> None:
    assert any(message in problem for problem in problems(toml)), problems(toml)
