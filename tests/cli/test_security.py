"""The command `nsupervisor security`."""

import json

import pytest

from nsupervisor.cli.main import main

FILE = """
[workload.web]
command = ["true"]
[workload.db]
command = ["true"]
user = "nobody"
security.profile = "strict"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(FILE)
    return str(path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = 0
    try:
        main(["security", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_most_exposed_workload_comes_first(capsys, file):
    status, out, _ = run(capsys, "--config", file)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "web", "db"]


def test_a_name_gets_the_lines_to_add(capsys, file):
    _, out, _ = run(capsys, "--config", file, "web")
    assert out.startswith("web: ")
    assert "home directories are visible\n      security.protect_home = true\n" in out
    assert 'user = "NAME"' in out


def test_json_has_the_findings(capsys, file):
    _, out, _ = run(capsys, "--config", file, "--json", "db")
    (found,) = json.loads(out)
    assert found["name"] == "db"
    assert {"check", "part", "reason", "line"} == set(found["findings"][0])


def test_an_unknown_name_is_named(capsys, file):
    status, _, err = run(capsys, "--config", file, "none")
    assert status == 2
    assert "has no workload none; it has web, db" in err


def test_a_file_with_problems_is_refused(capsys, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text("[workload.web]\n")
    status, _, err = run(capsys, "--config", str(path))
    assert status == 2
    assert "command" in err
