"""A configuration is checked against its host before anything starts: everything at once, in the order of the lines."""

from pathlib import Path

import pytest

from nsupervisor.cgroups import Host
from nsupervisor.config.model import Config
from nsupervisor.service.preflight.requirements import CheckedText, check_text, record_fields
from nsupervisor.service.preflight.security import PROFILE_REASON
from tests.simulation import seam
from tests.simulation.machine import ROOT_PRIVILEGES, Machine

WEB = '[workload.web]\ncommand = ["/bin/sh"]\n'


def host() -> Host:
    """Return a host with the controllers memory, pids and cpu."""
    return seam.host(seam.Life(Machine(1)))


def check(*lines: str, runs_here: bool = True) -> CheckedText:
    return check_text("\n".join(lines), "site.toml", host(), runs_here=runs_here, privileges=lambda: ROOT_PRIVILEGES)


def problems(*lines: str, runs_here: bool = True) -> list[str]:
    return [str(problem) for problem in check(*lines, runs_here=runs_here).problems]


def warnings(*lines: str) -> list[str]:
    return [str(problem) for problem, _ in check(*lines, runs_here=False).warnings]


def test_what_this_host_has_is_no_problem() -> None:
    text = (WEB, "resources = { memory_max = '64M', pids_max = 5 }", "[group.batch]", "pids_max = 9")
    assert check(*text)[1:3] == ([], [])


def test_a_limit_that_this_host_lacks_is_a_problem_of_its_line() -> None:
    (problem,) = problems(WEB, "resources = { io_weight = 5 }")
    assert problem.startswith("site.toml:4: workload.web.resources.io_weight: ")


def test_a_limit_that_is_not_required_is_a_warning() -> None:
    checked = check(WEB, "resources = { io_weight = 5, required = false }")
    assert checked.problems == []
    assert [reason for _, reason in checked.warnings] == ["required = false"]


def test_a_limit_of_the_profile_is_left_out_and_reported_if_the_host_has_it_not() -> None:
    without = host()
    del without.controllers["pids"]
    text = f'{WEB}[workload.strict]\nsecurity = {{ profile = "strict" }}\ncommand = ["/bin/sh"]\n'
    checked = check_text(text, "site.toml", without, privileges=lambda: ROOT_PRIVILEGES)
    assert checked.problems == []
    (warning,) = [(str(problem), why) for problem, why in checked.warnings if "pids_max" in str(problem)]
    assert warning[0].startswith("site.toml: security: pids_max has no effect: ")
    assert warning[1] == PROFILE_REASON
    assert [workload.resources.pids_max for workload in checked.config.workloads.values()] == [None, None]
    asked = check_text(f"{WEB}resources.pids_max = 9", "site.toml", without, privileges=lambda: ROOT_PRIVILEGES)
    assert [problem.line for problem in asked.problems] == [3]


def test_a_rule_that_this_host_cannot_evaluate_is_a_problem() -> None:
    rule = "when = 'io.stat rbytes > 5'\naction = 'log'"
    found = problems(
        WEB, "[[workload.web.policy]]", rule, "[group.batch]", "[[group.batch.policy]]", rule, "[[host.policy]]", rule
    )
    assert [problem.split(": ")[1] for problem in found] == [
        "workload.web.policy[0].when",
        "group.batch.policy[0].when",
        "host.policy[0].when",
    ]


def test_all_problems_come_at_once_in_the_order_of_the_lines() -> None:
    found = problems(WEB, "resources = { io_weight = 5 }", "user = 'no-such-user'")
    assert [problem.split(":")[1] for problem in found] == ["4", "5"]


def test_an_unknown_user_or_group_is_a_problem() -> None:
    found = problems(WEB, "user = 'no-such-user'", "supplementary_groups = ['no-such-group']")
    assert ["no-such-user" in found[0], "no-such-group" in found[1]] == [True, True]


def test_a_log_in_a_directory_of_others_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    found = problems(WEB, f"log = {{ stdout = 'file', path = '{tmp_path}/open/web.log' }}")
    assert "workload.web.log.path: no log can be written there: " in found[0]
    found = problems("[supervisor]", f"log_output = '{tmp_path}/open/log'", f"log_directory = '{tmp_path}/open'", WEB)
    assert [problem.split(": ")[1] for problem in found] == ["supervisor.log_output"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("working_directory = '/no/such/directory'", 'there is no "/no/such/directory" on this host'),
        ("environment_file = ['/no/such/file']", 'there is no "/no/such/file" on this host'),
        ("environment_file = ['-/no/such/file']", ""),
    ],
)
def test_a_file_that_is_missing_is_a_warning_of_check(key: str, words: str) -> None:
    assert words in "".join(warnings(WEB, key))
    assert bool(words) == ("no such" in "".join(warnings(WEB, key)).replace("/", " "))
    assert problems(WEB, key) == []


def test_a_program_that_is_not_in_the_path_is_a_warning_of_check(tmp_path: Path) -> None:
    text = "[workload.web]\ncommand = ['frobnicate']"
    assert 'there is no program "frobnicate" in PATH' in "".join(warnings(text))
    (tmp_path / "frobnicate").write_text("")
    assert "frobnicate" not in "".join(warnings(text, f"environment = {{ PATH = '{tmp_path}' }}"))


def test_a_mistake_in_an_environment_file_is_a_problem_of_check(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\nno assignment\n")
    (problem,) = problems(WEB, f"environment_file = ['{tmp_path}/env']", runs_here=False)
    assert f"{tmp_path}/env:2" in problem


def test_a_record_names_the_owner_of_a_problem() -> None:
    ((problem, _),) = check(WEB, "resources = { io_weight = 5, required = false }").warnings
    assert record_fields(problem) == {"workload": "web"}


def test_without_a_host_the_text_alone_is_checked() -> None:
    assert check_text(WEB + "resources = { io_weight = 5 }", "site.toml", None)[1:3] == ([], [])


@pytest.mark.parametrize(
    ("more", "loaded"), [("", True), ("resources.pids_max = -1\n", False), ('user = "none-such"\n', False)]
)
def test_no_image_is_loaded_for_a_configuration_that_is_refused_anyway(more: str, loaded: bool) -> None:
    calls: list[bool] = []

    def resolve(config: Config, loads: bool = False) -> tuple[Config, dict[str, str]]:
        calls.append(loads)
        return config, {} if loads else {"image": "it is not loaded"}

    text = f'{WEB}{more}\n[workload.image]\nroot.image = "oci:/srv/image"\n'
    checked = check_text(text, "f", host(), privileges=lambda: ROOT_PRIVILEGES, resolve=resolve, loads=True)
    assert (calls, bool(checked.problems)) == ([False, True] if loaded else [False], not loaded)
    assert check_text(text, "f", host(), privileges=lambda: ROOT_PRIVILEGES, resolve=resolve).warnings
    assert calls[-1] is False, "only a start and a reload load images"
