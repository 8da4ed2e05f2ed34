"""No command loads what it does not need: the event loop or the web server would cost more than all the rest."""

import json
import os
import site
import subprocess
import sys

import pytest

from nsupervisor.api.routes import VERBS
from nsupervisor.cli.main import COMMANDS
from tests.needs import ROOT
from tests.timing import deadline

HEAVY = {"trio", "structlog", "h11", "rich", "http.client", "asyncio", "ssl", "orjson"}
"""What may be had with `run` only."""

# Without site, whose .pth files load modules for an editable installation.
CODE = f"""
import sys
sys.path[:0] = {[str(ROOT), *site.getsitepackages()]!r}
import atexit, json
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from nsupervisor.cli.main import main
sys.argv[0] = "nsupervisor"
main()
"""


def modules(*arguments, socket="/nonexistent") -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        timeout=deadline(30),
        cwd=ROOT,
        env={**os.environ, "NSUPERVISOR_SOCKET": str(socket)},
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture
def arguments(tmp_path):
    """Arguments with which each command does its work."""
    config = tmp_path / "site.toml"
    config.write_text('[workload.web]\ncommand = ["true"]\n[workload.web.resources]\npids_max = 9\n')
    names = {verb: ["web"] for verb in VERBS} | {"set": ["web", "pids_max=9"]}
    names |= {
        "why": ["web"],
        "logs": ["-n", "1", str(config)],
        "stats": ["--interval", "10ms"],
        "top": ["--interval", "10ms"],
    }
    nothing: dict[str, list[str]] = {
        command: [] for command in ("doctor", "status", "graph", "events", "timers", "version", "schema", "upgrade")
    }
    files = {"plan": [str(config)], "reload": [str(config)], "scale": ["web=2"]}
    trace = ROOT / "configs" / "traces" / "fork-bomb"
    files |= {"record": ["-"], "simulate": [f"{trace}.toml", f"{trace}.jsonl"]}
    files["image"] = ["ls", "--config", str(config)]
    files["security"] = ["--config", str(config)]
    return {"check": [str(config)], **files, "shell": ["true"], "exec": ["db", "true"], **nothing, **names}


def test_every_command_but_run_is_guarded(arguments):
    assert set(arguments) == set(COMMANDS) - {"run"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_commands_load_no_event_loop(command, arguments, supervisor):
    assert modules(command, *arguments[command], socket=supervisor) & HEAVY == set()


@pytest.mark.parametrize("what", ["config", "log", "api"])
def test_schemas_load_no_event_loop(what):
    assert modules("schema", what) & HEAVY == set()


def test_help_loads_no_event_loop_and_no_attrs():
    assert modules("--help") & (HEAVY | {"attr", "attrs"}) == set()


@pytest.mark.parametrize("command", ["status", "why", "events", "stats", "top"])
def test_asking_a_supervisor_loads_neither_attrs_nor_the_configuration(command, arguments, supervisor):
    loaded = modules(command, *arguments[command], socket=supervisor)
    assert loaded & {"attr", "attrs", "dataclasses", "nsupervisor.config", "nsupervisor.cgroups", "email"} == set()


OF_THE_HOST = (
    "devices",
    "directories",
    "errors",
    "files",
    "filesystem",
    "host",
    "mounts",
    "parsing",
    "totals",
    "values",
)
CONFIGURATION = ("config", "wire_names")
OURS = {
    "check": (
        *CONFIGURATION,
        *(f"cgroups.{name}" for name in OF_THE_HOST),
        *(
            f"service.{name}"
            for name in (
                "preflight",
                "capacity",
                "platform.isolation",
                "instance.directories",
                "instance.root",
                "instance.seccomp_filters",
                "instance.spawn_spec",
                "instance.users",
                "privileges",
            )
        ),
        "core.instances",
        "core.isolation",
        "core.landlock",
        "core.name_files",
        "core.sandbox",
        "core.seccomp",
        "core.security",
        "api.http",  # the limits, of which the capacity takes account
        "linux.libseccomp",
        "linux.namespaces",
        "linux.privileges",
        "linux.trusted_paths",
        "service.platform.images",
        "service.platform.isolation",
        "service.platform.roots",
        "service.state.assigned_ids",
        "service.state.dynamic_users",
        "service.state.uid_ranges",
    ),
    "doctor": (
        *(f"cgroups.{name}" for name in OF_THE_HOST),
        "linux",
        "core.cni",
        "core.name_files",
        "service.platform.cni_files",
    ),
    "plan": (
        *CONFIGURATION,
        "core.reload.plan",
        "core.reload.differences",
        "core.reload.start_changes",
        "core.instances",
        "core.dependencies",
        "core.states",
    ),
    "schema": CONFIGURATION,
    "security": (*CONFIGURATION, "core.exposure", "core.isolation", "core.security"),
    "simulate": (*CONFIGURATION, "core"),
    "shell": ("capability_names", "keeper", "linux"),
}
"""What a command may have of ours, besides the command line's own and the client; all that is in a folder."""
SLOW = {"pathlib", "urllib", "ipaddress", "dataclasses", "email", "tempfile", "subprocess"}


@pytest.mark.parametrize("command", OURS)
def test_commands_that_work_alone_load_what_they_need_and_no_more(command, arguments):
    """Each module costs from half a millisecond up, one with attrs classes ten of them."""
    loaded = modules(command, *arguments[command])
    allowed = ("cli", "terminal", "api.client", "capability_names", "mount_data", "wire_names", *OURS[command])
    parts = {name.removeprefix("nsupervisor.") for name in loaded if name.startswith("nsupervisor.")}
    extra = {name for name in parts if not any(f"{name}.".startswith(f"{one}.") for one in allowed)}
    packages = {".".join(parts[:n]) for parts in (name.split(".") for name in allowed) for n in range(1, len(parts))}
    packages |= set(allowed)
    assert extra - packages == set()
    assert loaded & SLOW == set()


@pytest.mark.parametrize("command", ["doctor", "shell"])
def test_who_reads_no_configuration_does_without_attrs(command, arguments):
    assert modules(command, *arguments[command]) & {"attr", "attrs", "nsupervisor.config"} == set()


def test_the_client_is_standard_library_only():
    code = "import nsupervisor.api.client, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=deadline(30),
    )
    assert done.returncode == 0, done.stderr
    packages = {name.split(".")[0] for name in done.stdout.split()}
    assert packages - set(sys.stdlib_module_names) - {"nsupervisor", "__main__"} == set()


RARE = {
    *("http.client", "email", "calendar", "asyncio", "rich"),
    *(f"nsupervisor.service.{name}" for name in ("timers.timers", "instance.probes", "instance.probe_command")),
    *(f"nsupervisor.service.{name}" for name in ("instance.exec_session", "platform.probe_client")),
    *("nsupervisor.service.activation.paths", "nsupervisor.service.platform.path_watcher"),
    *("nsupervisor.service.platform.image_store", "nsupervisor.images.errors", "nsupervisor.images.store"),
    *(f"nsupervisor.core.timers.{name}" for name in ("timer", "schedule", "occurrences")),
}
"""The modules that the service loads for a timer, a probe or a webhook, or when a client executes a command.
"""


def test_the_service_loads_rare_features_when_they_are_used(arguments, tmp_path):
    (config,) = arguments["check"]
    loaded = modules("run", "--trial", config)
    assert "nsupervisor.service.run" in loaded
    assert loaded & RARE == set()
