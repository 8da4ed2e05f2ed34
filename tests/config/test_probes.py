"""The tables of probes: what is refused, and why."""

import sys

import pytest

from nsupervisor.config.load import ConfigError, parse
from tests.needs import needs


def problems(*lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse("\n".join(("[workload.web]", 'command = ["true"]', *lines)), "site.toml")
    return str(caught.value)


@needs("module:re2")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["readiness = { log = 'a(' }"], "is not a regular expression of RE2: missing ): a("),
        (["readiness = { log = '(a)\\1' }"], "is not a regular expression of RE2: invalid escape sequence"),
        (["readiness = { log = '' }"], "is not a pattern of 1 to 1024 printable characters"),
        (["readiness = { log = 'ready', tcp_socket = { port = 1 } }"], "has several of http_get, tcp_socket, exec"),
        (["readiness = {}"], "has none of http_get, tcp_socket, exec"),
        (["startup = {}"], "has none of http_get, tcp_socket and exec; write one of them"),
        (["liveness = { log = 'ready' }"], "log"),
        (
            ["readiness = { log = 'ready', period_sec = 5 }"],
            "is for probes that are sent again and again, and log waits",
        ),
        (
            ["readiness = { log = 'ready' }", "startup = { tcp_socket = { port = 1 } }"],
            "and readiness.log both say when it has started; remove one of them",
        ),
        (["readiness = { fd = 2 }"], "readiness.fd"),
        (
            ["policy = [{ when = 'probe liveness == fail', action = 'restart' }]"],
            "is about a probe that it does not have; add the table liveness",
        ),
        (["readiness = { fd = 3, log = 'ready' }"], "has several of http_get, tcp_socket, exec, log and fd"),
        (["readiness = { fd = 3, timeout_sec = 5 }"], "is for probes that are sent again and again, and fd waits"),
        (
            ["readiness = { fd = 3 }", 'sockets = [{ listen_stream = "127.0.0.1:80" }]'],
            "may be the number of one of its sockets or stored descriptors; write 4 or more",
        ),
        (['type = "notify"', "readiness = { log = 'ready' }"], 'and type = "notify" both say when it is ready'),
        (['type = "oneshot"', "readiness = { log = 'ready' }"], "is for programs that keep running"),
    ],
)
def test_what_is_refused(lines: list[str], message: str) -> None:
    assert message in problems(*lines)


def test_without_the_library_a_pattern_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    assert 'needs the Python package google-re2; install it (pip install "nsupervisor[re2]")' in problems(
        "readiness = { log = 'ready' }"
    )
