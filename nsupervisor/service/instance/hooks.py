"""Notifications of rules outside the service: a program (`exec`), a web server (`webhook`), a socket (`notify`).

Each receives the record of the action as JSON, once, within a time limit. A failure is returned in words, for a
warning; nothing waits for a notification.
"""

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import trio

from nsupervisor import __version__
from nsupervisor.config.model import Rule
from nsupervisor.config.urls import check_url, public_url
from nsupervisor.json_codec import encode, encode_line
from nsupervisor.linux.children import expect_child
from nsupervisor.linux.trusted_paths import open_for_reading
from nsupervisor.logs import call_in_thread

COMMAND_TIMEOUT_S = 30.0
"""Seconds that a program may run before it is killed."""
WEBHOOK_TIMEOUT_S = 10.0
"""Seconds that a web server may take per read or write."""
MAX_URL_LENGTH = 8192
"""Characters that are read of a file with a URL."""
MAX_REQUESTS, MAX_REQUESTS_WAITING = 8, 256
"""Concurrent requests, and requests that may wait. A server that does not answer must not cost more."""


async def run_notification(action: str, rule: Rule, record: Mapping[str, Any]) -> str:
    """Run the notification of a rule's action, if it has one; return what went wrong, or ""."""
    match action:
        case "exec":
            return await run_hook(rule.exec_, record)
        case "webhook":
            return await post_record(rule.webhook or partial(read_url, rule.webhook_file or ""), record)
        case "notify":
            return send_record(rule.notify or "", record)
    return ""


async def run_hook(command: Sequence[str], record: Mapping[str, Any]) -> str:
    """Run `command` as the supervisor's user, in "/", with `record` on standard input as one line of JSON.

    Returns what went wrong, or "" if it exited with 0. Its output is discarded.
    """
    try:
        with trio.fail_after(COMMAND_TIMEOUT_S), expect_child() as child:
            result = await trio.run_process(
                list(command),
                stdin=encode_line(record),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": os.environ.get("LANG", "C.UTF-8")},
                task_status=child,
            )
    except trio.TooSlowError:
        return f"{command[0]} took more than {COMMAND_TIMEOUT_S:g} s and was killed"
    except OSError as error:
        return f"cannot execute {command[0]}: {error.strerror}"
    return "" if result.returncode == 0 else f"{command[0]} ended with exit status {result.returncode}"


@cache
def _request_limiter() -> trio.CapacityLimiter:
    return trio.CapacityLimiter(MAX_REQUESTS)  # separate threads: these may all be stuck in slow servers


def read_url(path: str) -> str:
    """Return the URL in a file. Raises ValueError, which says what is wrong with the file but not what is in it."""
    try:
        with open(path, encoding="ascii", errors="replace", opener=open_for_reading) as file:
            return check_url(file.read(MAX_URL_LENGTH).strip())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"what {path} contains {error}") from None


async def post_record(url: str | Callable[[], str], record: Mapping[str, Any]) -> str:
    """POST `record` to `url` as JSON; return what went wrong, or "" if the answer was 2xx.

    `url` may be a function that reads it, and raises ValueError. This runs in a thread, since files, name look-ups and
    certificate checks block. Redirections are not followed: the configuration decides where records go. The result
    has the host of the URL and not its path, which may be a secret.
    """
    if _request_limiter().statistics().tasks_waiting >= MAX_REQUESTS_WAITING:
        return f"not notified, because {MAX_REQUESTS_WAITING} earlier requests still wait for an answer"
    try:
        with trio.fail_after(WEBHOOK_TIMEOUT_S * 2):  # the limit of http.client is per read and write
            return await call_in_thread(_post, url, encode(record), abandon_on_cancel=True, limiter=_request_limiter())
    except trio.TooSlowError:
        return f"{public_url(url) if isinstance(url, str) else 'webhook'}: no answer within {WEBHOOK_TIMEOUT_S * 2:g} s"


def _post(source: str | Callable[[], str], body: bytes) -> str:
    import http.client  # imported here because few configurations have webhooks: it loads the package email
    import ssl

    try:
        url = source if isinstance(source, str) else source()
    except ValueError as error:
        return str(error)
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=WEBHOOK_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WEBHOOK_TIMEOUT_S)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Content-Type": "application/json", "User-Agent": f"nsupervisor/{__version__}"}
    place = public_url(url)
    try:
        connection.request("POST", target, body, headers)
        response = connection.getresponse()
        return "" if 200 <= response.status < 300 else f"{place} answered {response.status} {response.reason}"
    except TimeoutError:
        return f"{place}: no answer within {WEBHOOK_TIMEOUT_S:g} s"
    except (OSError, http.client.HTTPException) as error:
        return f"{place}: {getattr(error, 'strerror', None) or error or type(error).__name__}"
    finally:
        connection.close()


def send_record(path: str, record: Mapping[str, Any]) -> str:
    """Send `record` to the Unix socket at `path`: as a datagram, or as one line to a stream socket.

    Returns what went wrong, or "" if the kernel has taken it. Never waits: a reader that is behind misses the record.
    """
    line = encode_line(record)
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as peer:
                try:
                    peer.connect(path)
                    peer.sendall(line)
                    return ""
                except OSError as error:
                    if error.errno != errno.EPROTOTYPE:
                        raise
    except BlockingIOError:
        return f"{path}: its reader is behind, and missed this"
    except OSError as error:
        reasons = {errno.ENOENT: "there is no such socket", errno.ECONNREFUSED: "no process listens there"}
        return f"{path}: {reasons.get(error.errno or 0, error.strerror)}"
    return f"{path}: neither a datagram nor a stream socket"
