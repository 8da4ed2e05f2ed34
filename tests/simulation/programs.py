"""Simulated programs. Their behaviour is in their command: `["program", "ready=0.1", "term=3@0.5"]`.

exit=CODE@SECONDS       ends by itself after this time
term=CODE@SECONDS       ends with this code, so long after SIGTERM
deaf                    ignores all signals that can be ignored
status=NUMBER           sends so many STATUS= messages at its start
ready=SECONDS           sends READY=1 after this time
watchdog=SECONDS        sends WATCHDOG=1 at this interval, from the start
main=0@SECONDS          forks a process, names it with MAINPID=, and ends so long after that
forks=NUMBER@SECONDS    forks so many processes, which outlive it
daemon=PATH@SECONDS     forks a daemon and ends; the daemon writes its pid to this file so long after that
accepts=SECONDS         accepts what waits in its sockets after this time
lines=NUMBER            writes "count 1", "count 2", …
reload=SECONDS          sends RELOADING=1 after SIGHUP, and READY=1 after this time
port=NUMBER@SECONDS     answers probes at this port, from this time on
sick=SECONDS@SECONDS    from the first time on, and for the second, its answers are errors, in generations 1, 3, …
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from tests.simulation.machine import NOT_FATAL, Behaviour, Process


class Program(Behaviour):
    """A program that behaves as its command says."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        words = [word.partition("=") for word in argv[1:]]
        self._options = {name: value for name, _, value in words}
        self.environment = environment

    def _pair(self, name: str) -> tuple[int, float] | None:
        if name not in self._options:
            return None
        number, _, seconds = self._options[name].partition("@")
        return int(number), float(seconds or 0)

    def on_start(self, process: Process) -> None:
        """Begin: the program has been executed."""
        for number in range(int(self._options.get("status", 0))):
            self.notify(process, f"STATUS={number}")
        if (forks := self._pair("forks")) is not None:
            process.after(forks[1], lambda: self._fork(process, forks[0]))
        if "daemon" in self._options and process.is_leader:
            process.after(0.05, lambda: self._become_daemon(process))
        if (main := self._pair("main")) is not None and process.is_leader:
            process.after(0.1, lambda: self._hand_over(process, main[1]))
        if "ready" in self._options:
            process.after(float(self._options["ready"]), lambda: self.notify(process, "READY=1"))
        if "watchdog" in self._options:
            self._keep_alive(process, float(self._options["watchdog"]))
        if (exit_ := self._pair("exit")) is not None:
            process.after(exit_[1], lambda: process.end(exit_[0] << 8))
        if (port := self._pair("port")) is not None:
            process.after(port[1], lambda: self._listen(process, port[0]))
        if "sick" in self._options and int(process.id.rpartition("#")[2]) % 2:
            begins, _, lasts = self._options["sick"].partition("@")
            process.after(float(begins), lambda: self._set_sick(process, True))
            process.after(float(begins) + float(lasts), lambda: self._set_sick(process, False))
        if "accepts" in self._options:
            process.after(float(self._options["accepts"]), lambda: _accept(process))
        if "prints" in self._options:
            line, _, seconds = self._options["prints"].partition("@")
            process.after(float(seconds), lambda: process.machine.write_output(process, line.encode() + b"\n"))
        for number in range(int(self._options.get("lines", 0))):
            process.machine.write_output(process, b"count %d\n" % (number + 1))

    def handles(self, signum: int) -> bool:
        """Return whether the program catches or ignores a signal."""
        reloads = signum == signal.SIGHUP and "reload" in self._options
        return "deaf" in self._options or reloads or (signum == signal.SIGTERM and "term" in self._options)

    def on_signal(self, process: Process, signum: int) -> None:
        """Handle a signal that is not SIGKILL."""
        if signum in NOT_FATAL or "deaf" in self._options:
            return
        if signum == signal.SIGHUP and "reload" in self._options:
            now_usec = int(process.machine.now * 1e6)
            self.notify(process, f"RELOADING=1\nMONOTONIC_USEC={now_usec}")
            process.after(float(self._options["reload"]), lambda: self.notify(process, "READY=1"))
            return
        term = self._pair("term")
        if signum == signal.SIGTERM and term is not None:
            if term[1]:
                process.after(term[1], lambda: process.end(term[0] << 8))
            else:
                process.end(term[0] << 8)
        else:
            process.end(signum)

    def notify(self, process: Process, text: str) -> None:
        """Send a message to the supervisor, sd_notify(3)."""
        path = self.environment.get("NOTIFY_SOCKET")
        if path is not None:
            process.machine.send_datagram(path, text.encode(), process.pid)

    def _keep_alive(self, process: Process, interval: float) -> None:
        def send() -> None:
            self.notify(process, "WATCHDOG=1")
            process.after(interval, send)

        process.after(0.0, send)

    @staticmethod
    def _listen(process: Process, port: int) -> None:
        process.port = port

    @staticmethod
    def _set_sick(process: Process, is_sick: bool) -> None:
        process.is_sick = is_sick

    def _become_daemon(self, process: Process) -> None:
        path, _, seconds = self._options["daemon"].partition("@")
        daemon = process.machine.fork(process)
        if daemon is not None:
            daemon.after(float(seconds or 0), lambda: process.machine.pid_files.update({path: daemon.pid}))
        process.end(0)

    def _hand_over(self, process: Process, seconds: float) -> None:
        successor = process.machine.fork(process)
        if successor is not None:
            self.notify(process, f"MAINPID={successor.pid}\nREADY=1")
        process.after(seconds, lambda: process.end(0))

    @staticmethod
    def _fork(process: Process, count: int) -> None:
        for _ in range(count):
            process.machine.fork(process)


def make_program(spec: Mapping[str, Any]) -> Program:
    """Return how the program of a specification behaves."""
    return Program(spec["argv"], spec["env"])


def _accept(process: Process) -> None:
    for listener in process.listeners:
        listener.accept()
