"""`nsupervisor check`: the file, and what this host can do for it."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from nsupervisor.cgroups.host import Host
from nsupervisor.cli.commands.check import check_file
from tests.cli.command import nsupervisor
from tests.needs import ROOT, needs
from tests.timing import deadline

GOOD = """\
[workload.web]
command = ["true"]
[workload.db]
command = ["true"]
"""
WRONG = """\
[workload.web]
command = ["true"]
restrat = "no"
[workload.web.resources]
memory_max = "64 bananas"
"""
UNKNOWN_USER = """\
[workload.web]
command = ["true"]
user = "nobody-of-that-name"
supplementary_groups = ["no-such-group"]
"""
NEEDS_V2 = """\
[workload.web]
command = ["true"]
[workload.web.resources]
memory_high = "64M"
"""


NEVER = """\
[[workload.db.policy]]
when = "pids.current >= 300"
action = "log"
"""


@pytest.fixture
def file(tmp_path):
    """A function that writes a configuration and returns its path."""

    def write(text):
        path = tmp_path / "site.toml"
        path.write_text(text)
        return str(path)

    return write


def test_a_good_file_is_ok(file):
    path = file(GOOD)
    done = nsupervisor("check", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}: ok, 2 workloads\n", "")


def test_all_problems_are_told_with_their_lines(file):
    path = file(WRONG)
    done = nsupervisor("check", path)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{path}:3: workload.web.restrat: ")
    assert second == f'{path}:5: workload.web.resources.memory_max: "64 bananas" is not a size; write for example "64M"'


def test_problems_as_json(file):
    path = file(WRONG)
    done = nsupervisor("check", "--json", path)
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert (report["ok"], report["path"], report["warnings"]) == (False, path, [])
    assert [(problem["line"], problem["key"]) for problem in report["problems"]] == [
        (3, "workload.web.restrat"),
        (5, "workload.web.resources.memory_max"),
    ]


def test_ok_as_json(file):
    done = nsupervisor("check", "--json", file(GOOD))
    assert done.returncode == 0
    assert json.loads(done.stdout)["workloads"] == 2


def test_users_and_groups_that_are_not_here_are_told_with_their_lines(file):
    path = file(UNKNOWN_USER)
    done = nsupervisor("check", path)
    assert done.returncode == 2
    assert f'{path}:3: workload.web.user: no user "nobody-of-that-name"' in done.stderr
    assert f'{path}:4: workload.web.supplementary_groups: no group "no-such-group"' in done.stderr
    assert nsupervisor("check", "--no-host", path).returncode == 0


@needs("hybrid")
def test_a_limit_that_this_host_cannot_enforce_is_told(file):
    """Rootless limits that are silently ignored are what people find out about in the night."""
    path = file(NEEDS_V2)
    done = nsupervisor("check", path)
    assert done.returncode == 2
    assert f"{path}:4: workload.web.resources.memory_high: needs cgroup v2; this host has memory on v1" in done.stderr
    assert nsupervisor("check", "--no-host", path).returncode == 0


@needs("hybrid")
def test_a_limit_that_is_not_required_is_a_warning(file):
    path = file(NEEDS_V2 + "required = false\n")
    done = nsupervisor("check", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 1 workload\n")
    assert "a warning only" in done.stderr
    assert [w["line"] for w in json.loads(nsupervisor("check", "--json", path).stdout)["warnings"]] == [4]


def test_a_rule_that_can_never_go_off_is_a_warning(file):
    path = file(GOOD + "[workload.db.resources]\npids_max = 256\n" + NEVER)
    done = nsupervisor("check", "--no-host", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 2 workloads\n")
    assert done.stderr == (
        f'{path}:8: workload.db.policy[0].when: "pids.current >= 300" can never be true, so this rule does nothing: '
        "pids.current is at most 256; write a smaller threshold (a warning only: it can be run like this)\n"
    )


ELSEWHERE = """\
[workload.web]
command = ["/no/such/program"]
working_directory = "/no/such/folder"
environment_file = ["-/no/such/file", "/etc/passwd/file"]
"""


def test_files_that_are_not_here_are_warnings(file):
    """It was "ok", and `run` then gave the workload up."""
    path = file(ELSEWHERE)
    done = nsupervisor("check", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 1 workload\n")
    for line, key, name in (
        (2, "command", "/no/such/program"),
        (3, "working_directory", "/no/such/folder"),
        (4, "environment_file[1]", "/etc/passwd/file"),
    ):
        assert f'{path}:{line}: workload.web.{key}: there is no "{name}" on this host; install it, or ' in done.stderr
    assert "no/such/file" not in done.stderr, "it need not be there"
    mounted = file(ELSEWHERE + '[[workload.web.mounts]]\ntype = "tmpfs"\ndestination = "/no"\n')
    assert nsupervisor("check", mounted).stderr.count("there is no") == 1, "of what is read outside"


def test_a_program_that_is_not_in_path_is_a_warning(file, tmp_path):
    """Only names with a "/" were looked for."""
    (tmp_path / "here").touch()
    missing = '[workload.web]\ncommand = ["no-such-program"]\n'
    path = file(missing)
    done = nsupervisor("check", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 1 workload\n")
    text = 'workload.web.command: there is no program "no-such-program" in PATH; install it, or write its path'
    assert f"{path}:2: {text}" in done.stderr
    there = missing.replace("no-such-program", "here") + f'environment = {{ PATH = "/bin:{tmp_path}" }}\n'
    assert "in PATH" not in nsupervisor("check", file(there)).stderr
    assert "in PATH" in nsupervisor("check", file(there.replace(str(tmp_path), "/usr/bin"))).stderr
    assert "in PATH" not in nsupervisor("check", file('[workload.web]\ncommand = ["sh"]\n')).stderr


def test_a_file_without_workloads_is_a_warning(file):
    """It was "ok, 0 workloads", and nothing else."""
    path = file("# nothing yet\n")
    done = nsupervisor("check", "--no-host", path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok, 0 workloads\n")
    assert done.stderr.startswith(f"{path}:1: there is no workload in it, so nothing would be run; write for example ")


AS_NOBODY = """
import encodings.utf_8_sig, os, pathlib, sys  # what is loaded late, from where only root may read
import nsupervisor.cli.main, nsupervisor.cli.commands.check, nsupervisor.config.lint, nsupervisor.config.files
import nsupervisor.linux.libseccomp, nsupervisor.service.preflight.requirements
os.setgroups([]); os.setgid(65534); os.setuid(65534)
nsupervisor.cli.main.main(["check", *sys.argv[1:]])
"""


def as_nobody(text, *options):
    """`check` of a file with this text, which is where everybody finds it."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        os.chmod(file.name, 0o644)
        command = [sys.executable, "-c", AS_NOBODY, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=deadline(30), cwd=ROOT)


LIMITED = (
    GOOD
    + '[workload.db.resources]\nmemory_max = "64M"\n[[workload.db.policy]]\nwhen = "pids.current > 9"\naction = "log"\n'
)


@needs("root")
def test_who_could_not_run_it_is_told_so_and_the_file_is_right_all_the_same():
    """On hybrid hosts a right file was refused for users other than root, who check it in a CI; elsewhere it was "ok",
    though `run` could then make no cgroup."""
    done = as_nobody(LIMITED)
    assert done.returncode == 0
    assert done.stdout.endswith(": ok, 2 workloads\n")
    hints = [line for line in done.stderr.splitlines() if "could not be run from here" in line]
    first, second = hints
    assert "not writable for user 65534" in first
    assert "runtime_directory" in second
    assert all("a warning only" in line for line in done.stderr.splitlines())
    assert "memory_max" not in done.stderr, "that no cgroup can be made is told once"
    assert as_nobody(LIMITED, "--no-host").stderr == ""


@needs("root", "hybrid")
def test_who_could_not_run_it_is_told_what_nobody_can():
    done = as_nobody(NEEDS_V2)
    assert done.returncode == 2
    assert ":4: workload.web.resources.memory_high: needs cgroup v2; this host has" in done.stderr


def test_a_host_that_cannot_be_understood_is_a_problem(file, monkeypatch):
    from nsupervisor.cgroups.errors import CgroupError

    def fail():
        raise CgroupError("the own cgroup /x has been removed; restart the supervisor")

    monkeypatch.setattr(Host, "discover", fail)
    problems, warnings, count = check_file(file(GOOD), check_host=True)
    assert ["the own cgroup /x has been removed" in str(problem) for problem in problems] == [True]
    assert (warnings, count) == ([], 2)


def test_a_missing_file(tmp_path):
    done = nsupervisor("check", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "there is no such file" in done.stderr


def test_a_pipe_is_read_once(file):
    done = nsupervisor("check", "/dev/stdin", stdin=GOOD)
    assert done.returncode == 0
    assert done.stdout.endswith(": ok, 2 workloads\n")


def test_run_refuses_what_check_refuses(file):
    path = file(WRONG)
    done = nsupervisor("run", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == nsupervisor("check", path).stderr


EVERYTHING_WRONG = """\
[workload.a]
command = ["true"]
restart = "sometimes"
[workload.b]
command = ["true"]
user = "nobody-of-that-name"
[workload.c]
command = ["true"]
[workload.d]
command = ["cat", "*.log"]
"""


@pytest.mark.fault("D20")
@pytest.mark.parametrize("command", ["check", "run"])
def test_mistakes_of_the_file_and_of_the_host_came_one_after_the_other(file, command):
    done = nsupervisor(command, file(EVERYTHING_WRONG))
    assert done.returncode == 2
    problems = [line for line in done.stderr.splitlines() if "a warning only" not in line]
    assert [line.split(": ")[0].rpartition(":")[2] + ": " + line.split(": ")[1] for line in problems] == [
        "3: workload.a.restart",
        "6: workload.b.user",
    ]


@pytest.mark.fault("D20", "D21")
def test_warnings_are_shown_next_to_problems(file):
    done = nsupervisor("check", file(EVERYTHING_WRONG))
    assert 'workload.d.command[1]: no shell reads this: the pattern "*.log"' in done.stderr


COUNTS_NOT = """\
[workload.web]
command = ["true"]
[[workload.web.policy]]
when = "memory.stat pgscan"
action = "log"
[[workload.web.policy]]
when = "memory.stat slab > 1M or memory.stat anon > 1M"
action = "log"
[group.g]
[[group.g.policy]]
when = "memory.events high"
action = "log"
[workload.quiet]
command = ["true"]
resources = { required = false }
[[workload.quiet.policy]]
when = "memory.stat pgscan"
action = "log"
"""


@pytest.mark.fault("F3")
@needs("root", "hybrid", "memory")
@pytest.mark.parametrize("command", ["check", "run"])
def test_conditions_that_this_host_cannot_evaluate_passed_check(file, tmp_path, command):
    runtime = tmp_path / "run"
    done = nsupervisor(command, file(COUNTS_NOT + f'[supervisor]\nruntime_directory = "{runtime}"\n'))
    assert done.returncode == 2
    problems = [line.split(": ") for line in done.stderr.splitlines() if "a warning only" not in line]
    assert [(place.rpartition(":")[2], key, what.partition(";")[0]) for place, key, what in problems] == [
        ("4", "workload.web.policy[0].when", "this host does not count pgscan in memory.stat"),
        ("7", "workload.web.policy[1].when", "this host does not count slab in memory.stat"),
        ("11", "group.g.policy[0].when", "this host does not count high in memory.events"),
    ]
    assert not runtime.exists()


@pytest.mark.fault("F3")
@needs("cgroup_v2", "memory")
def test_conditions_on_cgroup_v2_are_all_evaluated(file):
    done = nsupervisor("check", file(COUNTS_NOT))
    assert "does not count" not in done.stderr


TOO_MUCH = """\
[workload.web]
command = ["true"]
nice = -5
[workload.web.security]
limit_nofile = "65535"
[workload.mapped]
command = ["true"]
[workload.mapped.namespaces]
user = true
[workload.mapped.security]
limit_nofile = 4096
"""


def unprivileged(*command):
    drop = ("setpriv", "--bounding-set=-sys_resource,-sys_nice", "--inh-caps=-all")
    return ("prlimit", "--nofile=1024:1024", *drop, *command)


@pytest.mark.fault("C9")
@needs("root", "program:setpriv", "program:prlimit")
@pytest.mark.parametrize("command", ["check", "run"])
def test_limits_above_the_hard_limit_failed_at_each_start(file, command):
    path = file(TOO_MUCH)
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "nsupervisor", command, path), capture_output=True, text=True, cwd=ROOT
    )
    lines = [line for line in done.stderr.splitlines() if "CAP_SYS_" in line]
    problems = [line.partition("; ")[0].removeprefix(f"{path}:") for line in lines]
    own = os.getpriority(os.PRIO_PROCESS, 0)  # of the tests, which may run with nice themselves
    resource = "above the hard limit of 1024 needs CAP_SYS_RESOURCE, which"
    assert problems == [
        f"3: workload.web.nice: below {own} needs CAP_SYS_NICE, which root does not have here",
        f"5: workload.web.security.limit_nofile: {resource} root does not have here",
        f"11: workload.mapped.security.limit_nofile: {resource} a program in a user namespace does not have here",
    ]
    assert all(("a warning only" in line) == (command == "check") for line in lines)
    assert done.returncode == (0 if command == "check" else 2)


ENVIRONMENT = "A=1\nexport B=SECRET\n"


@pytest.mark.fault("G11")
def test_a_mistake_in_an_environment_file_passed_check(file, tmp_path):
    (tmp_path / "env").write_text(ENVIRONMENT)
    path = file(f'[workload.web]\ncommand = ["true"]\nenvironment_file = ["{tmp_path}/env"]\n')
    done = nsupervisor("check", path)
    assert done.returncode == 2
    assert f"{path}:3: workload.web.environment_file[0]: {tmp_path}/env:2: begins with" in done.stderr
    assert "SECRET" not in done.stderr
