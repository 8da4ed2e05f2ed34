"""Requests generated from `nsupervisor schema api`, to both listeners of a real service: no 5xx, and each answer is as
the description says. schemathesis makes the requests, both valid ones and ones that break the description.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from tests.chaos.service import BrokenError, Run, Site, running, site
from tests.metrics.scraping import free_port
from tests.needs import ROOT, needs
from tests.timing import deadline

TOML = """
[workload.a]
command = ["sleep", "100000"]
timeout_stop_sec = "1s"
[workload.b]
command = ["sh", "-c", "while :; do echo line; sleep 1; done"]
instances = 2
timeout_stop_sec = "1s"
"""
EXAMPLES = 25
"""Requests for each operation and mode."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DESCRIPTION = json.loads(
    subprocess.run(
        [sys.executable, "-m", "nsupervisor", "schema", "api"], cwd=ROOT, capture_output=True, check=True
    ).stdout
)
OPERATIONS = {
    operation.label: operation
    for found in schemathesis.openapi.from_dict(DESCRIPTION).get_all_operations()
    if (operation := found.ok())
}
NAMES = ("a", "b@1", "b", "*", "b@?", "nonexistent", "[", "a/b")
NUMBERS = ("0", "0.01", "0.009", "-1", "1e308", "1e309", "inf", "nan", "9" * 400, "1_0", "٣", "")
NOTHING_TO_BREAK = ("GET /v1/info", "GET /v1/history/{name}", "GET /metrics")
"""Operations without parameters, or with a text that may be anything."""
TIMEOUT = 30.0
"""Seconds for an answer."""


class _UnixConnection(HTTPConnection):
    path = ""

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout)
        connection.connect(self.path)
        return connection


class UnixAdapter(HTTPAdapter):
    """Sends each request of a `requests.Session` over a Unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__()

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None) -> HTTPConnectionPool:
        pool = HTTPConnectionPool("localhost")
        pool.ConnectionCls = type("Connection", (_UnixConnection,), {"path": self.path})
        return pool


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Run, str]]:
    """A run, and the URL of its metrics."""
    port = free_port()
    with site(TOML) as place:
        with_metrics(place, port)
        with running(place) as run:
            yield run, f"http://127.0.0.1:{port}"
            if run.process.poll() is not None:
                raise BrokenError(f"the supervisor ended: {run.process.returncode}\n{run.stderr.read_text()}")
            assert run.stop() == 0
            assert run.stderr.read_text() == ""


def with_metrics(place: Site, port: int) -> None:
    """Add the listener on TCP to the configuration."""
    text = place.config.read_text()
    place.config.write_text(text.replace("[supervisor]\n", f'[supervisor]\nmetrics = "127.0.0.1:{port}"\n'))


@st.composite
def cases(draw: st.DrawFn, label: str) -> schemathesis.Case:
    """A request of the operation, valid or not; every other one with names that the service has, where it takes names.

    Without what makes an answer endless: a trace ends at once, and no reader follows the events.
    """
    case = draw(st.one_of([OPERATIONS[label].as_strategy(generation_mode=mode) for mode in modes(label)]))
    name = draw(st.sampled_from(NAMES)) if draw(st.booleans()) else ""
    if name and isinstance(case.body, dict) and "names" in case.body:
        case.body["names"] = [name]
    if name and "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = name
    if label == "GET /v1/trace":
        for key in ("interval", "bytes"):
            if key in case.query and draw(st.booleans()):
                case.query[key] = draw(st.sampled_from(NUMBERS))
        case.query["seconds"] = "0"
    if label == "GET /v1/events" and "follow" in case.query:
        case.query["follow"] = draw(st.sampled_from(("0", "2", "", "11")))
    if name and "GET" in label and "name" in (case.query or {}):
        case.query["name"] = [name]
    return case


def modes(label: str) -> list[GenerationMode]:
    """Valid requests, and others where the operation has a parameter or a body that can be wrong."""
    return [GenerationMode.POSITIVE] if label in NOTHING_TO_BREAK else list(GenerationMode)


def send(case: schemathesis.Case, url: str, path: str | None) -> requests.Response:
    """The answer of the service at `url`, or on the Unix socket `path`."""
    with requests.Session() as session:
        session.trust_env = False
        if path:
            session.mount("http://", UnixAdapter(path))
        return session.request(**case.as_transport_kwargs(base_url=url), timeout=deadline(TIMEOUT))


def attempts(label: str) -> Callable[[Callable[[schemathesis.Case], None]], Callable[[], None]]:
    """Run a function with `EXAMPLES` requests of an operation, the same in each run."""

    def decorate(function: Callable[[schemathesis.Case], None]) -> Callable[[], None]:
        bound = settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return bound(given(cases(label))(function))

    return decorate


@pytest.mark.slow
@needs("root", "cgroup")
@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_on_the_unix_socket_are_as_described(service: tuple[Run, str], label: str) -> None:
    run, _ = service

    @attempts(label)
    def check(case: schemathesis.Case) -> None:
        case.validate_response(send(case, "http://localhost", str(run.site.runtime / "api.sock")), checks=CHECKS)

    check()
    assert run.process.poll() is None


@pytest.mark.slow
@needs("root", "cgroup")
@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_on_tcp_are_metrics_or_refusals(service: tuple[Run, str], label: str) -> None:
    run, url = service

    @attempts(label)
    def check(case: schemathesis.Case) -> None:
        answer = send(case, url, None)
        if label == "GET /metrics":
            case.validate_response(answer, checks=CHECKS)
        else:
            assert answer.status_code in (400, 404, 405)
            assert answer.text

    check()
    assert run.process.poll() is None
