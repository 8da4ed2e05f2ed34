"""`plan` and `reload` as processes, against the real API of a service in memory."""

import json

import pytest

from tests.cli.command import nsupervisor

SITE = """
[workload.web]
command = ["web"]
[workload.later]
command = ["later"]
autostart = false
"""


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def test_a_plan_for_people(supervisor, site):
    done = nsupervisor("plan", str(site), socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "web    start    new",
        "later  none     new, and not started: autostart = false",
        "1 to start, 1 unchanged",
    ]


def test_a_plan_for_programs(supervisor, site):
    found = json.loads(nsupervisor("plan", "--json", str(site), socket=supervisor).stdout)
    assert found["config"] == str(site)
    assert found["steps"][0] == {"name": "web", "do": "start", "why": "new", "changes": [], "next_start": []}


def test_without_a_service_it_is_compared_with_nothing_and_that_is_said(tmp_path, site):
    done = nsupervisor("plan", str(site), socket=tmp_path / "nobody")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 to start, 1 unchanged"
    assert "no supervisor answers" in done.stderr
    assert "what its start would do" in done.stderr


@pytest.mark.parametrize(
    ("command", "there"), [(["plan"], True), (["plan"], False), (["reload"], True), (["reload", "--dry-run"], True)]
)
def test_a_file_with_mistakes_is_2_with_all_of_them(supervisor, tmp_path, site, command, there):
    site.write_text(SITE + 'restart = "maybe"\nnice = 99\n')
    socket = supervisor if there else tmp_path / "nobody"
    done = nsupervisor(*command, str(site), socket=socket)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        [f"{site}:7", "workload.later.restart"],
        [f"{site}:8", "workload.later.nice"],
    ]
    told = json.loads(nsupervisor(*command, "--json", str(site), socket=socket).stdout)
    assert (told["ok"], [problem["line"] for problem in told["problems"]]) == (False, [7, 8])


def test_a_file_that_is_not_there_is_2(supervisor):
    done = nsupervisor("reload", "/nonexistent.toml", socket=supervisor)
    assert (done.returncode, done.stderr) == (2, "/nonexistent.toml: there is no such file; check the path\n")


def test_a_reload_tells_what_is_done_as_it_is_done(supervisor, site):
    done = nsupervisor("reload", str(site), socket=supervisor)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == ["1 to start, 1 unchanged", "web: start: running", "later: none: running"]
    lines = nsupervisor("reload", "--json", str(site), socket=supervisor).stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["plan", "done", "done", "end"]


def test_without_a_file_the_one_in_force_is_read(supervisor):
    done = nsupervisor("reload", socket=supervisor)
    assert done.stdout.splitlines()[-1] == "db: start: running"


def test_what_does_not_come_up_is_1_and_told(supervisor, site):
    site.write_text(SITE.replace("workload.web", "workload.bad"))
    done = nsupervisor("reload", str(site), socket=supervisor)
    assert done.returncode == 1
    assert done.stderr == "bad: start: failed, exit code 3; more with: nsupervisor why bad\n"


def test_reload_without_a_service_is_3(tmp_path, site):
    assert nsupervisor("reload", str(site), socket=tmp_path / "nobody").returncode == 3
