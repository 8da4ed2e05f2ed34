"""Whom rules tell: a real web server, and real sockets."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule
from nsupervisor.service.instance import hooks
from nsupervisor.service.instance.hooks import post_record, run_notification, send_record
from tests.timing import deadline

RECORD = {"event": "action", "action": "webhook", "workload": "web", "cause": {"rule": "policy[0]", "when": "ü"}}


class Server(ThreadingHTTPServer):
    """Keeps what it is sent; answers what the path says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.go_on = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        if self.path == "/slow":
            self.server.go_on.wait(deadline(10))
        self.send_response({"/broken": 500, "/moved": 302}.get(self.path.partition("?")[0], 204))
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        thread = threading.Thread(target=it.serve_forever)
        thread.start()
        yield it
        it.go_on.set()
        it.shutdown()
        thread.join()


async def test_a_webhook_gets_the_record(server: Server) -> None:
    assert await post_record(server.url("/x?key=1"), RECORD) == ""
    ((path, headers, body),) = server.seen
    assert (path, json.loads(body)) == ("/x?key=1", RECORD)
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("nsupervisor/")


@pytest.mark.parametrize(
    ("path", "problem"), [("/broken", "answered 500 Internal Server Error"), ("/moved", "answered 302 Found")]
)
async def test_an_answer_that_is_no_success_is_told(server: Server, path: str, problem: str) -> None:
    assert await post_record(server.url(path), RECORD) == f"{server.url('/…')} {problem}"
    assert len(server.seen) == 1, "redirections are not followed"


async def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        assert await post_record(url, RECORD) == f"{url}: Connection refused"


async def test_https_is_spoken_with_a_certificate_that_is_checked(server: Server) -> None:
    problem = await post_record(server.url("/").replace("http:", "https:"), RECORD)
    assert "SSL" in problem
    assert server.seen == []


async def test_a_slow_server_has_its_time_limit_and_holds_up_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "WEBHOOK_TIMEOUT_S", 0.2)
    async with trio.open_nursery() as nursery:
        problems: list[str] = []

        async def slow() -> None:
            problems.append(await post_record(server.url("/slow"), RECORD))

        nursery.start_soon(slow)
        with trio.fail_after(deadline(5)):
            assert await post_record(server.url("/x"), RECORD) == ""
    assert problems == [f"{server.url('/…')}: no answer within 0.2 s"]


@pytest.mark.fault("A13")
async def test_a_url_comes_from_a_file_which_is_read_each_time(server: Server, tmp_path) -> None:
    path = tmp_path / "url"
    when = parse_condition("pids.events max")
    rule = Rule(when=when, action="webhook", webhook_file=str(path))
    assert await run_notification("webhook", rule, RECORD) == f"cannot read {path}: No such file or directory"
    path.write_text("ftp://SECRET/")
    problem = await run_notification("webhook", rule, RECORD)
    assert problem == (
        f'what {path} contains is not a URL of http or https; write for example "http://127.0.0.1:9000/hook"'
    )
    path.write_text(server.url("/hook?token=SECRET") + "\n")
    assert await run_notification("webhook", rule, RECORD) == ""
    assert [seen[0] for seen in server.seen] == ["/hook?token=SECRET"]


@pytest.mark.fault("A13")
async def test_a_failure_showed_the_secret_in_the_address(server: Server) -> None:
    assert (
        await post_record(server.url("/broken?token=SECRET"), RECORD)
        == f"{server.url('/…')} answered 500 Internal Server Error"
    )


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_socket_gets_the_record_as_a_line(tmp_path, kind) -> None:
    path = str(tmp_path / "it.sock")
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        assert send_record(path, RECORD) == ""
        if kind == socket.SOCK_STREAM:
            listener, _ = listener.accept()
        with listener:
            line = listener.recv(65536)
    assert line.endswith(b"\n")
    assert json.loads(line) == RECORD


def test_a_socket_that_is_not_there_or_not_read_is_told(tmp_path) -> None:
    path = str(tmp_path / "it.sock")
    assert send_record(path, RECORD) == f"{path}: there is no such socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        problems = {send_record(path, RECORD) for _ in range(2000)}
        assert problems == {"", f"{path}: its reader is behind, and missed this"}
    assert send_record(path, RECORD) == f"{path}: no process listens there"
