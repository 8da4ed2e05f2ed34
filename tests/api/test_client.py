"""The client against sockets that misbehave."""

import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.api import client as module
from nsupervisor.api.client import Client, ClientError, NoSupervisorError, NotPermittedError, WrongRequestError, _quote
from tests.needs import needs
from tests.timing import deadline


@pytest.fixture
def answering(tmp_path):
    """A function that makes a socket which answers one request with given bytes, and returns a client of it."""
    threads, sockets = [], []

    def make(answer: bytes | None):
        path = str(tmp_path / "api.sock")
        listening = socket.socket(socket.AF_UNIX)
        sockets.append(listening)
        listening.bind(path)
        listening.listen()

        def run():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return Client(path)

    yield make
    for thread in threads:
        thread.join(deadline(10))
    for one in sockets:
        one.close()


def ok(body: bytes, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 \r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def test_nobody_there(tmp_path):
    with pytest.raises(NoSupervisorError, match="start one with: nsupervisor run CONFIG") as caught:
        Client(str(tmp_path / "nope.sock")).info()
    assert caught.value.exit_status == 3


def test_a_full_queue_is_waited_for(tmp_path, monkeypatch):
    """A connect to it failed at once with "Resource temporarily unavailable", although the supervisor was only busy."""
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(tmp_path / "api.sock"))
        busy.listen(0)
        first.connect(str(tmp_path / "api.sock"))
        with pytest.raises(NoSupervisorError, match="has not answered"):
            Client(str(tmp_path / "api.sock")).info()


def test_a_workload_without_may_control_was_asked_to_start_a_supervisor(tmp_path, monkeypatch):
    monkeypatch.setenv("NSUPERVISOR_WORKLOAD", "web@2")
    client = Client(str(tmp_path / "api.sock"))
    with pytest.raises(NoSupervisorError, match=r"^this is workload web@2, which may not use the supervisor .*may_con"):
        client.info()
    monkeypatch.setenv("NSUPERVISOR_SOCKET", client.socket_path)  # it has may_control: the supervisor does not run
    with pytest.raises(NoSupervisorError, match=r"^no supervisor answers on"):
        client.info()


def test_a_stale_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    with pytest.raises(NoSupervisorError, match="no supervisor answers on"):
        Client(str(tmp_path / "api.sock")).info()


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/passwd/x", "/", "x" * 200])
def test_what_cannot_be_a_socket(path):
    with pytest.raises(NoSupervisorError, match="--socket PATH"):
        Client(path).info()


@needs("root")
def test_not_permitted(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "api.sock"))
        os.chmod(tmp_path / "api.sock", 0o600)
        for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            directory.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(NotPermittedError, match="user 65534 may not use") as caught:
                Client(str(tmp_path / "api.sock")).info()
        finally:
            os.seteuid(0)
    assert caught.value.exit_status == 4


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ok(b"<html>"), b"HTTP/1.1 abc \r\n\r\n{}"])
def test_something_else_answers(answering, answer):
    with pytest.raises(NoSupervisorError, match="is not a supervisor"):
        answering(answer).info()


@pytest.mark.parametrize(
    "answer", [b"", b"HT", b"HTTP/1.1 2", b"HTTP/1.1 200 \r\n", ok(b'{"a":', 100), ok(b"{}", 3), None]
)
def test_the_supervisor_ends_before_it_has_answered(answering, answer):
    with pytest.raises(NoSupervisorError, match="ended before it had answered"):
        answering(answer).info()


def test_a_refusal_that_is_not_json(answering):
    with pytest.raises(ClientError, match="HTTP status 503") as caught:
        answering(b"HTTP/1.1 503 \r\n\r\nbusy").info()
    assert caught.value.exit_status == 1


def test_forbidden(answering):
    with pytest.raises(NotPermittedError, match="only for admins"):
        answering(b'HTTP/1.1 403 \r\n\r\n{"error": "only for admins"}').info()


def test_a_supervisor_that_is_stopped_does_not_hang_its_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "api.sock"))
        stopped.listen()
        with pytest.raises(NoSupervisorError, match="has not answered"):
            Client(str(tmp_path / "api.sock")).info()


def test_an_answer_in_many_pieces(tmp_path):
    ours, theirs = socket.socketpair()
    body = b'{"reason": "' + b"x" * 1_000_000 + b'"}'

    class Connected(Client):
        def _exchange(self, request, timeout):
            theirs.sendall(request)
            while chunk := theirs.recv(100):
                yield chunk

    def answer():
        with ours:
            ours.recv(65536)
            ours.sendall(ok(body))

    thread = threading.Thread(target=answer)
    thread.start()
    assert len(Connected("").info()["reason"]) == 1_000_000
    thread.join()
    theirs.close()


LINES = b"HTTP/1.1 200 \r\ncontent-type: application/jsonl\r\n\r\n"


def test_records_come_one_by_one(answering):
    records = answering(LINES + b'{"event":"a"}\n{"event":"\xc3\xa4"}\n').events()
    assert [record["event"] for record in records] == ["a", "ä"]


def test_no_records(answering):
    assert list(answering(LINES).events(follow=True)) == []


def test_records_that_end_in_the_middle(answering):
    records = answering(LINES + b'{"event":"a"}\n{"eve').events(follow=True)
    assert next(records) == {"event": "a"}
    with pytest.raises(NoSupervisorError, match="ended before it had answered"):
        next(records)


@pytest.mark.parametrize("answer", [LINES + b"not JSON\n", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 204 \r\n\r\n"])
def test_records_from_a_stranger(answering, answer):
    with pytest.raises(ClientError):
        next(answering(answer).events())


def test_records_that_are_refused(answering):
    body = b'{"error": "no workload matches x"}'
    with pytest.raises(WrongRequestError, match="no workload matches x"):
        next(answering(ok(body).replace(b"200", b"404")).events(["x"]))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_names_survive_the_query(text):
    from urllib.parse import parse_qsl

    assert parse_qsl(f"name={_quote(text)}", keep_blank_values=True) == [("name", text)]
