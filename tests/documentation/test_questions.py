"""Questions of users: the answer is on the README or on a page that it links to, and it is true."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from nsupervisor.config import model
from nsupervisor.config.environment import parse_environment
from nsupervisor.keeper.native.build import MACHINES
from tests.documentation.typing import TYPED, free_port
from tests.needs import ROOT, needs
from tests.pages import blocks
from tests.system.service import service

README = (ROOT / "README.md").read_text()
SLEEPS = 'command = ["sleep", "1000"]\n'


def section(page: str, heading: str) -> str:
    """Return the text below a heading of a page that the README links to."""
    assert page == "README.md" or f"]({page})" in README, f"{page} is more than one hop away"
    lines: list[str] | None = None
    is_code = False
    for line in (ROOT / page).read_text().splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:  # in code it is a comment
            if lines is not None:
                break
            lines = [] if line.lstrip("#").strip() == heading else None
        elif lines is not None:
            lines.append(line)
    assert lines is not None, f"{page} has no section {heading!r}"
    return "".join(lines)


def is_typed(page: str, heading: str) -> bool:
    """Return whether a test types a command of the section."""
    return any((block.page, block.line) in TYPED for block in blocks(page) if block.heading == heading)


ANSWERS = [
    ("G1", "docs/howto.md", "Run two copies on two ports", "NSUPERVISOR_INSTANCE"),
    ("G2", "docs/howto.md", "Use a port below 1024 without root", "ambient_capabilities"),
    ("G4", "docs/howto.md", "Run something every night", "on_calendar"),
    ("G4", "docs/howto.md", "Split the configuration into files", "include"),
    ("G5", "docs/howto.md", "Keep a program stopped", "it starts again"),
    ("G6", "docs/operating.md", "Start it without systemd", "setsid"),
    ("G9", "docs/howto.md", "See the last output", "nsupervisor logs"),
    ("G9", "README.md", "First program", "nsupervisor logs"),
    ("G10", "docs/howto.md", "Be notified", '"level":"warning"'),
    ("G14", "docs/howto.md", "Try a restart", "SIGTERM"),
    ("G14", "README.md", "First program", "SIGTERM is one"),
    ("G15", "docs/howto.md", "Find out why a program restarted", "UTC"),
    ("G15", "docs/operating.md", "At 3 am", "nsupervisor why"),
]
"""(row, page, heading, words of the answer)."""


@pytest.mark.fault("G1", "G2", "G4", "G5", "G6", "G9", "G10", "G14", "G15")
@pytest.mark.parametrize(("row", "page", "heading", "words"), ANSWERS)
def test_the_answer_is_one_hop_away_and_its_commands_are_typed(row: str, page: str, heading: str, words: str) -> None:
    assert words in section(page, heading), row
    assert is_typed(page, heading), row


@pytest.mark.fault("G6")
def test_the_unit_runs_the_version_that_the_link_names() -> None:
    unit = (ROOT / "configs" / "nsupervisor.service").read_text()
    link = re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    assert link
    assert f" {link[1]}\n" in section("docs/operating.md", "Install")
    upgrade = section("docs/operating.md", "Upgrade")
    assert f"`{link[1]}` leads to" in upgrade
    assert upgrade.index("nsupervisor upgrade\n") < upgrade.index(f" {link[1]}\n"), "the link is changed last"


@pytest.mark.fault("G7")
def test_the_requirements_are_what_is_tested_and_declared() -> None:
    text = section("docs/operating.md", "Requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or later" in section("README.md", "Install")
    assert [name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name] == [
        "3.11",
        "3.12",
        "3.13",
    ]
    assert "Python 3.11, 3.12 and 3.13" in section("README.md", "Install")
    assert "| Python | 3.11; most tests also with 3.12.1 and 3.13.0 |" in text
    assert MACHINES == ("x86_64", "aarch64")
    assert "on x86-64 or aarch64" in section("README.md", "Install")
    kernel = re.search(r"linux-image-(6\.\d+)-cloud", (ROOT / "scripts/_vm/prepare.py").read_text())
    assert kernel
    assert f"Linux {kernel[1]} (Debian's, pure cgroup v2" in text


@pytest.mark.fault("G8")
def test_uninstalling_and_backing_up_cover_every_place() -> None:
    supervisor = model.SupervisorConfig()
    places = {supervisor.runtime_directory, supervisor.log_directory, "/var/lib/nsupervisor", "/etc/nsupervisor.toml"}
    uninstall = section("docs/operating.md", "Uninstall")
    assert {place for place in places if place not in uninstall} == set()
    backup = section("docs/operating.md", "Back up")
    assert "/etc/nsupervisor.toml" in backup
    assert "/var/lib/nsupervisor" in backup


@pytest.mark.fault("G11")
def test_an_environment_file_is_read_as_the_page_says() -> None:
    text = section("docs/howto.md", "Pass variables and secrets")
    (example,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    variables = parse_environment(example, "shop.env")
    assert variables == {"GREETING": "hello  world", "PASSWORD": 'a$b"c', "PLAIN": "two words"}
    assert f"`GREETING` is `{variables['GREETING']}` and `PASSWORD` is `{variables['PASSWORD']}`" in text
    assert "`export NAME=VALUE` is refused" in text


@pytest.mark.fault("G16")
def test_the_readme_names_the_two_processes() -> None:
    assert "the **keeper**" in README
    assert "docs/understand.md#what-you-see-in-ps" in README
    assert "zygote" in section("docs/understand.md", "What you see in ps")


@pytest.mark.fault("G4")
@pytest.mark.host_only
@needs("root", "cgroup")
async def test_the_probes_of_the_page_restart_a_program_that_does_not_answer(tmp_path: Path) -> None:
    (toml,) = [block.text for block in blocks("docs/howto.md") if "liveness = { http_get" in block.text]
    for old, new in {"8080": str(free_port(34_000, 35_000)), 'period_sec = "10s"': 'period_sec = "200ms"'}.items():
        assert old in toml
        toml = toml.replace(old, new)
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="api", to="ready", patience=20)
        await it.cli("signal", "-s", "STOP", "api")
        action = await it.record(event="action", action="restart", workload="api", patience=20)
        assert action["cause"]["reason"] == "liveness probe failed 3 times: no answer within 1 s"
        await it.record(event="state", workload="api", generation=2, to="ready", patience=20)


@pytest.mark.fault("G4")
@pytest.mark.host_only
@needs("root", "cgroup")
async def test_the_command_of_the_page_restarts_a_program_that_fails_it(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (toml,) = [block.text for block in blocks("docs/howto.md") if "exec = [" in block.text and "liveness" in block.text]
    for old, new in {
        "/srv": str(place),
        "liveness = {": 'liveness = { period_sec = "200ms", timeout_sec = "9s",',
    }.items():
        assert old in toml
        toml = toml.replace(old, new)
    async with service(tmp_path, toml) as it:
        await it.record(event="state", workload="db", to="running")
        place.rmdir()
        action = await it.record(event="action", action="restart", workload="db", patience=20)
        assert action["cause"]["reason"] == "liveness probe failed 3 times: exit code 1"


RULES = """
[workload.file]
command = ["sh", "-c", "dd if=/dev/zero of={directory}/file bs=1M count=40 2>/dev/null; exec sleep 1000"]
[[workload.file.policy]]
when = "memory.current > 20M"
for = "0.1s"
action = "log"
[[workload.file.policy]]
when = "memory.stat anon > 20M"
for = "0.1s"
action = "log"

[workload.own]
command = ["python3", "-c", "import time; x = b'x' * 40_000_000; time.sleep(1000)"]
[[workload.own.policy]]
when = "memory.stat anon > 20M"
for = "0.1s"
action = "log"
"""


def open_files(pid: int) -> int:
    """Return the number of open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


FAMILY = f"""
[workload.db]
{SLEEPS}
[workload.web]
{SLEEPS}requires = ["db"]
[workload.spare]
{SLEEPS}autostart = false
[workload.many]
{SLEEPS}instances = 14
"""


@pytest.mark.fault("G3", "G5", "G12", "G14", "G18")
@pytest.mark.host_only
@needs("root", "cgroup", "memory")
async def test_what_the_pages_say_about_a_running_service_is_true(tmp_path: Path) -> None:
    """All in one service; a second one shows what is remembered after an orderly stop."""
    toml = FAMILY + RULES.format(directory=tmp_path)
    async with service(tmp_path, toml) as it:
        web, db = await it.pid("web"), await it.pid("db")
        # Dependencies: a crash and a restart of db do not concern web, a stop does.
        await it.cli("kill", "db")
        await it.record(event="started", workload="db", generation=2)
        await it.cli("restart", "db")
        assert (await it.status("web"))["pid"] == web
        assert (await it.status("db"))["pid"] != db
        assert "after web" in await it.cli("stop", "db")
        assert (await it.status("web"))["reason"] == "stopped with db"
        await it.cli("start", "db")
        assert (await it.status("web"))["state"] == "stopped"
        await it.cli("start", "web")
        # SIGTERM is a success, SIGKILL is a failure.
        await it.cli("signal", "-s", "TERM", "web")
        await it.record(event="state", workload="web", to="exited")
        await it.cli("start", "web")
        await it.cli("signal", "-s", "KILL", "web")
        await it.record(event="state", workload="web", to="backoff")
        # Files count as memory.current, and not as anon.
        await it.record(event="action", action="log", workload="own")
        fired = await it.record(event="action", action="log", workload="file")
        assert fired["cause"]["when"] == "memory.current > 20M"
        assert not any(r.get("workload") == "file" and "anon" in json.dumps(r.get("cause", "")) for r in it.records)
        # Open files of a program: what is closed when a reload removes it.
        started = await it.record(event="supervisor started")
        before = open_files(started["pid"]), open_files(started["keeper_pid"])
        config = tmp_path / "nsupervisor.toml"
        config.write_text(config.read_text().replace("instances = 14", "instances = 2"))
        await it.cli("reload")

        def per_program() -> tuple[int, int]:
            """Round: a standby or a connection has some, too."""
            after = open_files(started["pid"]), open_files(started["keeper_pid"])
            return round((before[0] - after[0]) / 12), round((before[1] - after[1]) / 12)

        await it.until(lambda: per_program() == (4, 3))
        assert (await it.status("spare"))["state"] == "stopped"
        await it.cli("stop", "web")
    async with service(tmp_path, FAMILY.replace("instances = 14", "instances = 1")) as it:
        await it.record(event="started", workload="web")
        assert (await it.status("spare"))["state"] == "stopped"
        assert (await it.status("web"))["state"] == "running"
    assert "four open files in the supervisor and three in the keeper" in (ROOT / "docs/performance.md").read_text()
