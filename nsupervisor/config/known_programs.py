"""Facts about common programs: locks that a namespace changes, and options to stay in the foreground. Pure.

Some programs identify a running copy of themselves by what a namespace changes. Their lock, or the file by which their
own tools find them, has a process id or a key of shared memory in it. In a namespace of its own such a program has
numbers that mean another process outside, or none.

Some programs go to the background, daemon(7): the process that was started exits with success, and another one serves.
Sources: the manual pages of the programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Lock(NamedTuple):
    """How a program identifies itself, the namespaces in which that is valid, and what goes wrong outside of them."""

    means: str
    namespaces: tuple[str, ...]
    harm: str


_POSTGRES = Lock(
    "a process id and shared memory", ("pid", "ipc"), "a second server on the same directory would start outside"
)
_SIGNALLED = Lock("a process id in a file", ("pid",), "its own commands (reload, stop) would signal a stranger outside")

LOCKS: dict[str, Lock] = {
    "postgres": _POSTGRES,
    "postmaster": _POSTGRES,
    "nginx": _SIGNALLED,
    "apache2": _SIGNALLED,
    "httpd": _SIGNALLED,
    "squid": _SIGNALLED,
    "pgbouncer": _SIGNALLED,
    "uwsgi": _SIGNALLED,
}
"""By the last part of the program's path."""


def find_lock(program: str) -> tuple[str, Lock] | None:
    """Return the name and the lock of a known program."""
    name = program.rpartition("/")[2]
    lock = LOCKS.get(name)
    return None if lock is None else (name, lock)


class Daemon(NamedTuple):
    """How a program goes to the background, and what keeps it in the foreground."""

    remedy: str
    """The change of the command that keeps it in the foreground: "run it with …"."""
    foreground: str = ""
    """Matches the arguments, joined by blanks, of a program that would go to the background otherwise."""
    background: str = ""
    """Matches the arguments of a program that goes to the background; "" if it does so without `foreground`."""
    other_file: str = ""
    """Matches the arguments that name a configuration file which may say that it stays in the foreground."""


def _by_default(remedy: str, foreground: str, other_file: str = "") -> Daemon:
    return Daemon(f"run it with {remedy}", foreground, "", other_file)


def _on_request(*options: str) -> Daemon:
    return Daemon(f"run it without {' or '.join(options)}", background=_option(*options))


def _option(*options: str) -> str:
    """Return a pattern of any of these options, as words of their own or before "="."""
    return rf"(?<!\S)(?:{'|'.join(map(re.escape, options))})(?![^\s=])"


_APACHE = _by_default("-D FOREGROUND", r"(?<!\S)-D ?FOREGROUND\b|" + _option("-X", "-DNO_DETACH", "-k", "-t", "-v"))

DAEMONS: dict[str, Daemon] = {
    "nginx": _by_default(
        '-g "daemon off;"', r"\bdaemon\s+off\b|" + _option("-t", "-T", "-v", "-V", "-s"), _option("-c")
    ),
    "apache2": _APACHE,
    "httpd": _APACHE,
    "lighttpd": _by_default("-D", _option("-D", "-t", "-tt")),
    "sshd": _by_default("-D", _option("-D", "-d", "-t", "-T", "-i")),
    "cron": _by_default("-f", _option("-f")),
    "crond": _by_default("-n (cronie) or -f (busybox)", _option("-n", "-f")),
    "dnsmasq": _by_default(
        "--keep-in-foreground", _option("-k", "-d", "--keep-in-foreground", "--no-daemon", "--test")
    ),
    "named": _by_default("-f", _option("-f", "-g")),
    "unbound": _by_default("-d", _option("-d", "-dd", "-ddd"), _option("-c")),
    "rsyslogd": _by_default("-n", _option("-n", "-N1", "-v")),
    "syslog-ng": _by_default("--foreground", _option("-F", "--foreground", "-s", "--syntax-only")),
    "squid": _by_default("--foreground", _option("-N", "--foreground", "-k", "-z", "-v")),
    "varnishd": _by_default("-F", _option("-F", "-d", "-C")),
    "php-fpm": _by_default("--nodaemonize", _option("-F", "--nodaemonize", "-t"), _option("-y", "--fpm-config")),
    "proftpd": _by_default("--nodaemon", _option("-n", "--nodaemon")),
    "smbd": _by_default("--foreground", _option("-F", "--foreground", "-i", "--interactive")),
    "supervisord": _by_default("--nodaemon", _option("-n", "--nodaemon"), _option("-c", "--configuration")),
    "memcached": _on_request("-d", "--daemon"),
    "redis-server": Daemon("run it without --daemonize yes", background=r"(?<!\S)--daemonize\s+yes\b"),
    "valkey-server": Daemon("run it without --daemonize yes", background=r"(?<!\S)--daemonize\s+yes\b"),
    "gunicorn": _on_request("-D", "--daemon"),
    "celery": Daemon(
        "run it as celery worker, without --detach",
        background=r"(?<!\S)(?:multi|--detach)(?!\S)|(?<!\S)worker .*-D(?!\S)",
    ),
    "uwsgi": _on_request("-d", "--daemonize", "--daemonize2"),
    "haproxy": _on_request("-D"),
    "mosquitto": _on_request("-d", "--daemon"),
    "pgbouncer": _on_request("-d", "--daemon"),
    "pg_ctl": Daemon("run postgres -D DIRECTORY instead", background=r"(?<!\S)(?:start|restart)(?!\S)"),
    "pg_ctlcluster": Daemon("run postgres -D DIRECTORY instead, or add --foreground", _option("--foreground")),
}
"""By the last part of the program's path."""


def find_daemon(command: Sequence[str]) -> tuple[str, Daemon] | None:
    """Return the name of a known program that goes to the background with this command; None if it may not."""
    name, arguments = _name(command), " ".join(command[1:])
    daemon = DAEMONS.get(name)
    if daemon is None:
        return None
    if daemon.background:
        is_detached = re.search(daemon.background, arguments) is not None
    else:
        is_detached = not any(
            pattern and re.search(pattern, arguments) for pattern in (daemon.foreground, daemon.other_file)
        )
    return (name, daemon) if is_detached else None


def background_remedy(command: Sequence[str], has_left_processes: bool) -> str:
    """Return what keeps a program in the foreground that has exited with success soon after its start; or "".

    It has become a daemon if it has left processes. A known one may have left none: without an init the kernel ends the
    processes of a PID namespace with the first one.
    """
    if not has_left_processes and find_daemon(command) is None:
        return ""
    daemon = DAEMONS.get(_name(command))
    return daemon.remedy if daemon else "run it in the foreground; its manual has the option"


def _name(command: Sequence[str]) -> str:
    name = command[0].rpartition("/")[2]
    return "php-fpm" if name.startswith("php-fpm") else name
