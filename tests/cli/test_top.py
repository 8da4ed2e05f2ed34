"""`nsupervisor top` on a terminal: tmux is one that can be read, resized and typed into."""

import re
import shlex
import subprocess
import sys
import time

import pytest

from tests.needs import ROOT, needs
from tests.timing import deadline

pytestmark = needs("program:tmux")


class Terminal:
    """A tmux server of its own with one window, in which a command runs."""

    def __init__(self, socket, command, columns=120, lines=12):
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), command)

    def tmux(self, *arguments):
        return subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=deadline(20)
        ).stdout

    def until(self, holds):
        """Wait until ``holds(lines)`` of what the terminal shows; returns the lines."""
        end = time.monotonic() + deadline(20)
        while not holds(lines := [line.rstrip() for line in self.tmux("capture-pane", "-p").splitlines()]):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.02)  # a terminal has no event to wait for
        return lines


@pytest.fixture
def terminal(tmp_path, supervisor):
    """A function that runs `top` in a terminal of a size, in a shell that says how it ended."""
    opened = []

    def run(*arguments, columns=120, lines=12):
        command = [sys.executable, "-m", "nsupervisor", "top", "--interval", "50ms", *arguments]
        settings = f"cd {shlex.quote(str(ROOT))}; NSUPERVISOR_SOCKET={shlex.quote(str(supervisor))}"
        line = f'{settings} {shlex.join(command)}; echo "ended with $?"; stty -a | grep -o -- "-\\?icanon"; exec cat'
        opened.append(Terminal(tmp_path / "tmux", line, columns, lines))
        return opened[-1]

    yield run
    for one in opened:
        one.tmux("kill-server")


def names(lines):
    """The first words of the table's rows."""
    return [line.split()[0] for line in lines[3:] if line]


def ended(status):
    """The screen as it was before, with the shell's last words, and a terminal that reads lines again."""
    return lambda lines: [line for line in lines if line] == [f"ended with {status}", "icanon"]


def test_it_shows_use_with_limits_and_sparklines_and_q_ends_it(terminal):
    it = terminal()
    lines = it.until(lambda lines: any("█" in line or "▅" in line for line in lines))
    assert "4 instances, by CPU" in lines[0]
    assert lines[2].split()[:5] == ["NAME", "STATE", "CPU%", "MEMORY", "PIDS"]
    assert sorted(names(lines)) == ["batch", "db", "web@1", "web@2"]
    assert any("25.0/50" in line and "12.3M/64M" in line for line in lines)
    it.tmux("send-keys", "q")
    it.until(ended(0))


def test_keys_sort(terminal):
    it = terminal()
    it.until(lambda lines: "by CPU" in lines[0])
    for key, words, order in (
        ("n", "by name", ["batch", "db", "web@1", "web@2"]),
        ("m", "by memory", ["web@1", "web@2", "db", "batch"]),
        ("p", "by processes", ["web@1", "web@2", "db", "batch"]),
        ("i", "by I/O", ["web@1", "web@2", "db", "batch"]),
        ("t", "by network", ["db", "web@1", "web@2", "batch"]),
        ("w", "by pressure", ["web@1", "web@2", "db", "batch"]),
        ("c", "by CPU", ["web@1", "web@2", "db", "batch"]),
        ("s", "by state", ["batch", "web@2", "db", "web@1"]),
        ("n", "by name", ["batch", "db", "web@1", "web@2"]),
        ("r", "by name, reversed", ["web@2", "web@1", "db", "batch"]),
    ):
        it.tmux("send-keys", key)
        it.until(lambda lines, words=words, order=order: words in lines[0] and names(lines) == order)
    it.tmux("send-keys", "Up", "x", "q")
    it.until(ended(0))


def test_more_rows_than_lines_can_be_scrolled(terminal):
    it = terminal("--sort", "name", lines=7)
    shown = it.until(lambda lines: names(lines) == ["batch", "db", "web@1"])
    assert re.fullmatch(r"..:..:..  1-3 of 4 instances, by name: 1 failed, 2 running, 1 ready", shown[0])
    for key, rows, order in (
        ("Down", "2-4", ["db", "web@1", "web@2"]),
        ("Down", "2-4", ["db", "web@1", "web@2"]),
        ("Up", "1-3", ["batch", "db", "web@1"]),
        ("NPage", "2-4", ["db", "web@1", "web@2"]),
        ("PPage", "1-3", ["batch", "db", "web@1"]),
        ("End", "2-4", ["db", "web@1", "web@2"]),
        ("Home", "1-3", ["batch", "db", "web@1"]),
    ):
        it.tmux("send-keys", key)
        it.until(lambda lines, rows=rows, order=order: f"  {rows} of 4" in lines[0] and names(lines) == order)
    it.tmux("send-keys", "Down")
    it.until(lambda lines: "  2-4 of 4" in lines[0])
    it.tmux("resize-window", "-y", "12")
    it.until(lambda lines: "  4 instances" in lines[0] and len(names(lines)) == 4)
    it.tmux("send-keys", "q")
    it.until(ended(0))


def test_the_first_order_can_be_said(terminal):
    it = terminal("--sort", "network")
    lines = it.until(lambda lines: "by network" in lines[0] and names(lines))
    assert names(lines)[0] == "db"
    it.tmux("send-keys", "q")
    it.until(ended(0))


def test_states_are_coloured(terminal):
    it = terminal()
    it.until(lambda lines: "by CPU" in lines[0])
    shown = it.tmux("capture-pane", "-p", "-e")
    assert "\x1b[32mready" in shown
    assert "\x1b[31mfailed" in shown


def test_columns_go_when_the_terminal_is_narrow(terminal):
    it = terminal("web", columns=60)
    lines = it.until(lambda lines: len(names(lines)) == 2)
    assert "WAIT" not in lines[2]
    assert "MEMORY" in lines[2]
    it.tmux("resize-window", "-x", "150")
    it.until(lambda lines: "CPU-WAIT%" in lines[2])


def test_ctrl_c_ends_it_and_leaves_the_terminal_in_order(terminal):
    it = terminal()
    it.until(lambda lines: "by CPU" in lines[0])
    it.tmux("send-keys", "C-c")
    it.until(ended(130))


def test_it_ends_with_the_service(terminal, supervisor):
    it = terminal()
    it.until(lambda lines: "by CPU" in lines[0])
    supervisor.unlink()
    lines = it.until(lambda lines: "ended with 3" in lines)
    assert "no supervisor answers on" in "".join(lines)
