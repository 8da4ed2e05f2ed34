"""Type the commands of the pages into a shell, next to a service with the configuration of the page."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.needs import ROOT
from tests.pages import ANY, Block, blocks, is_shown, outputs_of, script_of, shown, type_in, without_numbers
from tests.timing import deadline

WEB = '[workload.web]\ncommand = ["sleep", "1000"]\n'


@attrs.frozen
class Session:
    """Commands of pages that are typed into one shell, next to one service."""

    parts: tuple[tuple[str, str], ...]
    """(page, heading of the section); an empty heading for the whole page."""
    toml: str | None = None
    """The configuration of the service; None: the blocks of the first page without a comment."""
    starts_itself: bool = False
    """Whether the commands start the service themselves."""
    until: str = ""
    """A command that succeeds when the programs have got as far as the page shows."""

    @property
    def typed(self) -> list[Block]:
        """The blocks that are typed, in their order."""
        return [
            block
            for page, heading in self.parts
            for block in blocks(page)
            if block.language == "console" and block.heading == (heading or block.heading)
            if not block.comment.startswith("not run")
        ]


SESSIONS = {
    "README": Session(
        (
            ("README.md", ""),
            ("docs/operating.md", "At 3 am"),
            ("docs/metrics.md", ""),
            ("docs/resources.md", ""),
            ("docs/simulate.md", ""),
        ),
        until="nsupervisor status report | grep -q 'state *exited'",
    ),
    "howto": Session((("docs/howto.md", ""),), until="nsupervisor status sum | grep -q 'state *exited'"),
    "cli": Session((("docs/cli.md", ""),), until="nsupervisor status import | grep -q 'state *failed'"),
    "background": Session((("docs/operating.md", "Start it without systemd"),), toml=WEB, starts_itself=True),
}
TYPED = {(block.page, block.line) for session in SESSIONS.values() for block in session.typed}
"""The blocks that are typed, by page and line."""


def free_port(lowest: int, highest: int, following: int = 0) -> int:
    """Return a port of the loopback in a range that is free, like the `following` ones after it."""
    for port in range(lowest + os.getpid() % (highest - lowest), highest):
        try:
            for number in range(port, port + following + 1):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    return free_port(lowest, highest, following)


def own_places(directory: Path) -> dict[str, str]:
    """Return what is replaced on a page, in configuration and commands: ports and paths of the host."""
    copies = free_port(20_000, 30_000, 2)
    return {
        "{8500+instance}": f"{{{copies}+instance}}",
        ":8501/": f":{copies + 1}/",
        ":8502/": f":{copies + 2}/",
        '"8080"': f'"{(server := free_port(30_000, 31_000))}"',
        ":8080/": f":{server}/",
        "18099": str(free_port(33_000, 34_000)),
        ":9631": f":{free_port(31_000, 32_000)}",
        '"80", "--bind"': f'"{(low := free_port(600, 900))}", "--bind"',
        ".1:80/": f".1:{low}/",
        "/var/log/nsupervisor.json": f"{directory}/log.json",
        "/run/exits.json": f"{directory}/exits.json",
        "/run/nsupervisor/": f"{directory}/run/",
        "configs/traces": str(ROOT / "configs" / "traces"),
        "sudo ": "",
        ".venv/bin/nsupervisor": "nsupervisor",
    }


def configuration(session: Session, directory: Path) -> str:
    """Return the configuration with a `[supervisor]` table of its own at the end: lines keep their numbers."""
    toml, has_log = session.toml, False
    if toml is None:
        path, _ = session.parts[0]
        parts = [block.text for block in blocks(path) if block.language == "toml" and not block.comment]
        has_log = any("log_output" in part for part in parts)
        toml = "\n".join(re.sub(r"^\[supervisor\]\n(?:[^\[\n].*\n)*", "", part, flags=re.MULTILINE) for part in parts)
    log = f'log_output = "{directory}/log.json"\n' if has_log else ""
    return f"""{toml}
[supervisor]
name = "documentation-{os.getpid()}"
runtime_directory = "{directory}/run"
state_directory = "{directory}/state"
log_directory = "{directory}/logs"
metrics = "127.0.0.1:9631"
{log}"""


@contextmanager
def service(directory: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run the service of `site.toml`; stop it in order at the end."""
    command = [sys.executable, "-m", "nsupervisor", "run", "site.toml"]
    with open(directory / "service.out", "wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(deadline(30))
        finally:
            process.kill()
            process.wait()


def pause_after(command: str) -> str:
    """Return a command that waits until what was killed is up again; a reader takes longer to type the next one."""
    if not (kill := re.search(r"nsupervisor kill (\w+)", command)):
        return ""
    is_up = f"nsupervisor status {kill[1]} | grep -qE 'state +(running|ready)'"
    return f"for _ in $(seq 20); do {is_up} && break; sleep 0.1; done"


def type_session(session: Session, directory: Path) -> None:
    """Type the commands of a session; each must show what its page shows."""
    places = own_places(directory)

    def placed(text: str) -> str:
        for old, new in places.items():
            text = text.replace(old, new)
        return text

    for folder in ("run", "logs"):
        (directory / folder).mkdir()
    (directory / "site.toml").write_text(placed(configuration(session, directory)))
    environment = {"NSUPERVISOR_SOCKET": f"{directory}/run/api.sock"}
    typed = [
        (block, placed(command), expected)
        for block in session.typed
        for command, expected in block.typed
        if session.starts_itself or not re.search(r"nsupervisor run ", command)
    ]
    # `$?` of a command is that of the one before it.
    steps = [
        f"(exit ${{last:-0}})\n{command}\nlast=$?; echo status $last\n{pause_after(command)}" for _, command, _ in typed
    ]
    script = script_of(steps)
    if session.starts_itself:
        output = type_in(script, directory, environment, timeout=60)
    else:
        up = " && ".join([f"[ -S {directory}/run/api.sock ]", *filter(None, [session.until])])
        with service(directory, {**os.environ, **environment}):
            output = type_in(f"until {up}; do sleep 0.3; done\n{script}", directory, environment, timeout=90)
    outputs = outputs_of(output)
    problems = []
    for (block, command, expected), actual in zip(typed, outputs, strict=False):
        seen, _, status = actual.rstrip("\n").rpartition("status ")
        # A command whose output is not compared has to succeed.
        lines = [ANY] if block.comment.startswith("typed only") else expected
        if block.comment.startswith("numbers differ"):
            lines, seen = [without_numbers(line) for line in lines], without_numbers(seen)
        if status != "0" and lines == [ANY]:
            problems.append(f"{block}: $ {command}\n{seen}\nended with status {status}")
        elif not is_shown(lines, seen):
            problems.append(f"{block}: $ {command}\n{seen}\nbut the page says:\n{shown(lines)}")
    assert not problems, "\n\n".join(problems)
    service_output = directory / "service.out"
    assert len(outputs) == len(typed), output + (service_output.read_text() if service_output.exists() else "")
