"""Run one command in a new machine: streams, time limits, exit status."""

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO

from .common import CACHE, FAILED, TIMED_OUT, has_ended, say
from .machine import Machine, Options
from .prepare import prepare


class Session:
    """Serve a running guest: forward output, receive the exit status, enforce time limits."""

    def __init__(self, machine: Machine) -> None:
        """Serve a machine that was just started."""
        self.machine, self.options = machine, machine.options
        self.control, self.stdout, self.stderr, _ = machine.ports
        self.open = {self.control, self.stdout, self.stderr}
        self.words = b""
        self.up: float | None = None
        self.status: int | None = None

    def run(self) -> int:
        """Wait for the end of the guest; return the exit status of the script."""
        started = time.monotonic()
        end = started + self.options.boot_limit
        while self.status is None:
            self._pump(min(0.5, max(0.0, end - time.monotonic())))
            for line in self._lines():
                kind, _, rest = line.partition(" ")
                if kind == "UP":
                    self.up = time.monotonic()
                    end = self.up + self.options.time_limit
                    if self.options.verbose:
                        say(f"command started {self.up - started:.2f} s after QEMU")
                elif kind == "EXIT":
                    self.status = int(rest)
                else:
                    say(f"guest: {line}")
            if self.status is None:
                self.status = self._gone_wrong(time.monotonic() > end)
        self.machine.qemu.kill()
        self.machine.qemu.wait()
        while self.open and self._pump(1):  # output that QEMU has already written
            pass
        return self.status

    def _gone_wrong(self, late: bool) -> int | None:
        if late and self.up is not None:
            say(f"time limit of {self.options.time_limit:g} s reached, machine ended")
            return TIMED_OUT
        if late:
            say(f"the guest did not come up within {self.options.boot_limit:g} s\n{self.machine.logs()}")
            return FAILED
        if has_ended(self.machine.qemu) or self.control not in self.open:
            say(f"the machine ended without an exit status\n{self.machine.logs()}")
            return FAILED
        return None

    def _lines(self) -> list[str]:
        *lines, self.words = self.words.split(b"\n")
        return [line.decode(errors="replace") for line in lines if line]

    def _pump(self, wait: float) -> list[socket.socket]:
        readable, _, _ = select.select(list(self.open), [], [], wait)
        for port in readable:
            try:
                data = port.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                self.open.discard(port)
            elif port is self.control:
                self.words += data
            else:
                _write_all(1 if port is self.stdout else 2, data)
        return readable


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _leave(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextmanager
def _place() -> Iterator[None]:
    """Wait until fewer machines run than the host has processors, and reserve a place.

    A machine keeps one processor busy, so more of them would exceed their time limits. The kernel releases the lock of
    a place when its owner ends in any way.
    """
    places = [(CACHE / f"machine.{number}.lock").open("w") for number in range(os.cpu_count() or 1)]
    waited = False
    try:
        while not any(map(_take, places)):
            if not waited:
                say("waiting for another machine to end")
            waited = True
            time.sleep(0.2)
        yield
    finally:
        for place in places:
            place.close()


def _take(place: IO[str]) -> bool:
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(options: Options) -> int:
    """Prepare if needed, wait until this host has room for a machine, run the command; return its exit status."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave)
    kernel = prepare()
    with _place():
        machine = Machine.make(kernel, options)
        try:
            machine.start()
            status = Session(machine).run()
            if options.verbose:
                say(machine.logs())
        finally:
            machine.stop()
        sys.stdout.flush()
        return status
