"""supervisor.metrics: where it is, and how it is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.load import parse
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.units import format_address, parse_address


def metrics(value):
    return parse(f"[supervisor]\nmetrics = {value}\n", "site.toml").supervisor.metrics


def test_it_is_off_when_absent():
    assert parse("[supervisor]\n", "site.toml").supervisor.metrics is None


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ('"127.0.0.1:9631"', ("127.0.0.1", 9631)),
        ('"0.0.0.0:1"', ("0.0.0.0", 1)),
        ('"[::1]:65535"', ("::1", 65535)),
        ('"[::ffff:127.0.0.1]:80"', ("::ffff:127.0.0.1", 80)),
    ],
)
def test_it_is_an_ip_address_and_a_port(value, address):
    assert metrics(value) == address


EXAMPLE = "is not an address; write an IP address and a port, for example"
NOBODY = (
    'does not say who may connect; write "127.0.0.1:9631" for this machine alone, or "0.0.0.0:9631" for every network'
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('":9631"', f'":9631" {NOBODY}'),
        ('"9631"', f'"9631" {NOBODY}'),
        ("9631", f"9631 {NOBODY}"),
        ('""', f'"" {NOBODY}'),
        ('"localhost:9000"', f'"localhost:9000" {EXAMPLE} "127.0.0.1:9000"'),
        ('"::1:9631"', f'"::1:9631" {EXAMPLE} "127.0.0.1:9631"'),
        ('"[::g]:9631"', f'"[::g]:9631" {EXAMPLE} "127.0.0.1:9631"'),
        ('"127.0.0.256:1"', f'"127.0.0.256:1" {EXAMPLE} "127.0.0.1:1"'),
        ('"127.0.0.1:0"', '"127.0.0.1:0" has a port that cannot be; write one from 1 to 65535'),
        ('"127.0.0.1:65536"', '"127.0.0.1:65536" has a port that cannot be; write one from 1 to 65535'),
        ("true", "true is not a string; write it in quotes"),
    ],
)
def test_all_else_is_refused_with_its_line(value, message):
    with pytest.raises(ConfigError) as caught:
        metrics(value)
    assert [str(problem) for problem in caught.value.problems] == [f"site.toml:2: supervisor.metrics: {message}"]


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_is_shown_is_read_back(ip, port):
    if getattr(ip, "scope_id", None):
        return
    assert parse_address(format_address((str(ip), port))) == (str(ip), port)
