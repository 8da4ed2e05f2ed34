"""The command as a whole: help, schema, version, run, shell."""

import importlib.metadata
import json
import os
import subprocess
import sys
import types

import jsonschema
import pytest

import nsupervisor as package
from nsupervisor.api.routes import openapi
from nsupervisor.cli.main import COMMANDS, main
from tests.cli.command import nsupervisor
from tests.needs import ROOT, needs


def test_help_lists_every_command():
    done = nsupervisor("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_is_not_cut(command):
    done = nsupervisor(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: nsupervisor {command} ")
    assert "..." not in nsupervisor("--help").stdout.partition("Commands:")[2]


def test_version():
    assert nsupervisor("version").stdout.startswith(f"nsupervisor {package.__version__} (Python ")
    assert nsupervisor("--version").stdout == f"nsupervisor {package.__version__}\n"
    assert json.loads(nsupervisor("version", "--json").stdout)["version"] == package.__version__
    assert package.__version__ == importlib.metadata.version("nsupervisor")


@pytest.mark.parametrize("arguments", [["config"], ["log"], []])
def test_schemas_are_json_schemas(arguments):
    schema = json.loads(nsupervisor("schema", *arguments).stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_api_s_description():
    assert json.loads(nsupervisor("schema", "api").stdout) == openapi()


@pytest.mark.parametrize("status", [0, 1, 4])
def test_run_ends_with_the_service_s_status(monkeypatch, status):
    service = types.ModuleType("nsupervisor.service.run")
    asked = []
    service.main = lambda path, _closed: asked.append(path) or status
    monkeypatch.setitem(sys.modules, "nsupervisor.service.run", service)
    with pytest.raises(SystemExit) as caught:
        main(["run", "site.toml"])
    assert (caught.value.code, asked) == (status, [os.path.abspath("site.toml")])


def test_a_bug_is_not_hidden_behind_a_message(monkeypatch):
    service = types.ModuleType("nsupervisor.service.run")

    def fail(path, closed):
        raise FileNotFoundError(2, "No such file or directory", "/x")

    service.main = fail
    monkeypatch.setitem(sys.modules, "nsupervisor.service.run", service)
    with pytest.raises(FileNotFoundError):
        main(["run", "site.toml"])


@pytest.mark.parametrize(("command", "status"), [(["true"], 0), (["false"], 1), (["sh", "-c", "exit 7"], 7)])
def test_shell_ends_with_the_command_s_status(command, status):
    assert nsupervisor("shell", *command).returncode == status


def test_options_after_the_command_are_the_command_s():
    assert nsupervisor("shell", "echo", "--json", "-x").stdout == "--json -x\n"
    assert nsupervisor("shell", "--", "echo", "--", "-h").stdout == "-- -h\n"


@needs("root")
def test_shell_makes_the_namespaces_that_are_asked_for():
    done = nsupervisor(
        "shell",
        "--pid",
        "--net",
        "--hostname",
        "island",
        "--",
        "sh",
        "-c",
        "hostname; echo $$; cut -s -d: -f1 /proc/net/dev",
    )
    name, pid, *interfaces = done.stdout.splitlines()
    assert name == "island"
    assert int(pid) < 10
    assert [interface.strip() for interface in interfaces] == ["lo"]


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_without_standard_streams_nothing_breaks_and_no_file_takes_their_place(closed):
    """With `>&-` the interpreter has no sys.stdout, and the next file to be opened becomes number 1."""
    code = (
        "import os, sys; from nsupervisor.cli.main import main\n"
        "try: main(['version'])\n"
        "finally: print(os.open('/', os.O_RDONLY) > 2, os.readlink('/proc/self/fd/1'), file=sys.stderr)"
    )
    script = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable, code], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "True /dev/null\n")
