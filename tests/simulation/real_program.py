"""The program of a scenario on the kernel: it behaves as its words say, as `tests.simulation.programs` does.

The first argument is the directory of the FIFO from which it reads instructions, see `tests.simulation.scenarios`.
"""

import os
import signal
import sys


def fork(count: int) -> None:
    """Fork processes that wait for a signal."""
    for _ in range(count):
        try:
            if os.fork() == 0:
                while True:
                    signal.pause()
        except BlockingIOError:
            continue


def notify(text: str) -> None:
    """Send a message to the supervisor, sd_notify(3)."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def read_line(fifo: int) -> str:
    """Read one instruction, and no more: the next may be for the next generation."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fifo, 1)
    return line.decode()


def main() -> None:
    """Behave as the words say, and obey instructions."""
    options = {key: value for key, _, value in (word.partition("=") for word in sys.argv[2:])}
    if "deaf" in options:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
    if "term" in options:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(int(options["term"])))
    for number in range(int(options["lines"])):
        os.write(1, b"count %d\n" % (number + 1))
    if "exit" in options:
        os._exit(int(options["exit"].partition("@")[0]))
    fifo = os.open(os.path.join(sys.argv[1], options["name"]), os.O_RDWR | os.O_CLOEXEC)
    kept = []
    while True:
        verb, _, number = read_line(fifo).strip().partition(" ")
        match verb:
            case "exit":
                os._exit(int(number))
            case "fork":
                fork(int(number))
            case "allocate":
                kept.append(b"x" * (int(number) << 20))
            case "ready":
                notify("READY=1")


if __name__ == "__main__":
    main()
