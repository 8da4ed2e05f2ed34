"""The sandboxes that the attempts run in: workloads of nsupervisor, and the defaults of other programs."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from nsupervisor.cgroups import directories
from tests.deployment.conftest import show_interpreter
from tests.escape.targets import ATTEMPTS, Targets, prepared
from tests.needs import ROOT, cgroup_directories, missing
from tests.timing import deadline

PYTHON = "/usr/bin/python3"
NSUPERVISOR = [sys.executable, "-m", "nsupervisor"]
TIMEOUT_S = 180.0

Results = dict[str, dict[str, object]]
"""Name of an attempt → its line of output, {"name", "allowed", "detail"}."""
Commands = Mapping[str, list[str]]
"""Party → its command."""

DEFAULT = 'security = { profile = "default" }'
WORKLOADS = {
    "default": DEFAULT,
    "nobody": f'user = "nobody"\n{DEFAULT}',
    "user namespace": f"namespaces = {{ user = true }}\n{DEFAULT}",
    "strict": 'security = { profile = "strict" }',
}
"""Party → the keys of its workload, of a service that runs as root."""
BASELINES = {"none": 'security = { profile = "none" }'}
"""The same without a security profile: it shows which attempts can succeed at all."""


LANDLOCK = """
[workload.landlock.security]
profile = "default"
landlock.read = ["/"]
landlock.execute = ["/usr"]
landlock.write = ["/dev/null"]
landlock.connect_tcp = []
landlock.bind_tcp = []
landlock.scope = ["abstract-unix-socket", "signal"]
"""
OPTIONAL = {"landlock": LANDLOCK}
"""The same, for machines that have what they need, see `NEEDS`."""
SESSIONS = {"exec": DEFAULT, "exec --debug": f"autostart = false\n{DEFAULT}"}
"""Commands that an operator executes in a workload with these keys: it runs `sleep`, or with `--debug` nothing."""

ROOTLESS_USER = 64321
"""Without a name and a home."""
ROOTLESS = {"rootless": f"namespaces = {{ user = true }}\n{DEFAULT}"}
"""The same for a service without root, which has a delegated cgroup."""
NEEDS = {"landlock": ("landlock:6",), "own root, CNI": ("program:iptables", "program:host-local")}
"""Party → what it needs of the machine beyond the others."""


def command(targets: Targets, **values: object) -> list[str]:
    """Return the command that makes the attempts: all, or those that the targets name."""
    return [PYTHON, "-I", "-B", str(targets.program), json.dumps({**targets.values, **values})]


def listed() -> list[dict[str, str]]:
    """Return the name, group, description and shares of each attempt."""
    shown = subprocess.run([sys.executable, "-I", "-B", ATTEMPTS, "--list"], capture_output=True, check=True)
    return [json.loads(line) for line in shown.stdout.splitlines()]


def parsed(lines: Iterator[str] | list[str]) -> Results:
    """Return the results in the lines of one program; ValueError if it has not come to its end."""
    results: Results = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        found = json.loads(line)
        if "end" in found:
            return results
        results[found["name"]] = found
    raise ValueError(f"the program has ended early, after {list(results)[-1:]}")


def run(arguments: list[str], targets: Targets, **options: object) -> Results:
    """Run a sandbox's command with the attempts' program in it."""
    done = subprocess.run(
        arguments,
        env=targets.environment,
        pass_fds=(targets.leaked,),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline(TIMEOUT_S),
        **options,  # type: ignore[call-overload]
    )
    try:
        return parsed(done.stdout.splitlines())
    except ValueError as error:
        raise ValueError(f"{arguments[0]}: {error}; {done.stderr[-2000:]}") from None


def possible(parties: Mapping[str, str]) -> dict[str, str]:
    """Return the parties that this machine has everything for."""
    return {name: keys for name, keys in parties.items() if not any(map(missing, NEEDS.get(name, ())))}


def configuration(targets: Targets, workloads: dict[str, str], directory: Path, commands: Commands) -> str:
    """Return the text of a configuration with one workload per party; the service's files are in `directory`."""
    argv = command(targets, runtime=f"{directory}/run")
    lines = [
        "[supervisor]",
        f'name = "escape-{os.getpid()}"',
        f'runtime_directory = "{directory}/run"',
        f'state_directory = "{directory}/state"',
    ]
    for name, keys in workloads.items():
        lines += [
            f'[workload."{identifier(name)}"]',
            f"command = {json.dumps(commands.get(name, argv))}",
            'restart = "no"',
            keys,
        ]
    return "\n".join(lines) + "\n"


def identifier(party: str) -> str:
    """Return the name of a party's workload."""
    return party.replace(" --", "-").replace(" ", "-").replace(",", "")


@contextmanager
def serving(start: list[str], targets: Targets) -> Iterator[Iterator[dict[str, object]]]:
    """Run a service; yield its records as they come. Raises ValueError if it does not end well."""
    errors = targets.directory / "service.stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            start,
            env=targets.environment,
            pass_fds=(targets.leaked,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout
    alarm = signal.signal(signal.SIGALRM, _late)
    signal.alarm(int(deadline(TIMEOUT_S)))
    try:
        yield (json.loads(line) for line in process.stdout)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        process.terminate()
        process.communicate()
        if process.returncode:
            raise ValueError(f"the service has ended with {process.returncode}: {errors.read_text()}")


def _late(*_: object) -> None:
    raise TimeoutError("the attempts take too long")


def workload_results(
    targets: Targets,
    workloads: dict[str, str],
    start: list[str] | None = None,
    directory: Path | None = None,
    outside: bool = False,
    commands: Commands = MappingProxyType({}),
    sessions: Mapping[str, str] = MappingProxyType({}),
    further: str = "",
) -> dict[str, Results]:
    """Run the attempts in workloads of one service, at the same time; return the results by party.

    start, directory: the command of the service without its file, and the place of its files, if it is not to run as
    the present user. outside: make them also without a sandbox, afterwards, as the party "unconfined". commands: other
    commands of the attempts, by party. sessions: parties whose attempts are executed in a workload, afterwards.
    further: the rest of the configuration.
    """
    directory = directory or targets.directory
    file = directory / "nsupervisor.toml"
    (directory / "run").mkdir(exist_ok=True)
    sleeping = {name: ["sleep", "1000"] for name in sessions}
    text = configuration(targets, {**workloads, **sessions}, directory, {**commands, **sleeping})
    file.write_text(text + further)
    lines: dict[str, list[str]] = {identifier(name): [] for name in workloads}
    waiting = set(lines)
    said: list[str] = []
    with serving([*(start or [*NSUPERVISOR, "run"]), str(file)], targets) as records:
        for record in records:
            name = str(record.get("workload"))
            if name not in lines:
                pass
            elif record.get("event") == "output":
                lines[name].append(str(record["message"]))
                if '"end"' in str(record["message"]):
                    waiting.discard(name)
            elif record.get("event") == "state" and record.get("to") in ("failed", "exited") and name in waiting:
                raise ValueError(f"{name} has ended early: {said[-5:]} {lines[name][-5:]}")
            said.append(str(record))
            if not waiting:
                break
        else:
            raise ValueError(f"the service has ended early: {said[-5:]}")
        others = session_results(targets, sessions, directory)
        if outside:
            others["unconfined"] = run(command(targets), targets)
    return {name: parsed(lines[identifier(name)]) for name in workloads} | others


def session_results(targets: Targets, sessions: Mapping[str, str], directory: Path) -> dict[str, Results]:
    """Run the attempts by `nsupervisor exec`, or `exec --debug`, as the name of each party says."""
    socket = f"--socket={directory}/run/api.sock"
    argv = command(targets, runtime=f"{directory}/run")
    return {
        name: run([*NSUPERVISOR, *name.split(), socket, identifier(name), "--", *argv], targets, cwd=ROOT)
        for name in sessions
    }


def rootless_results(
    targets: Targets, workloads: dict[str, str] = ROOTLESS, commands: Commands = MappingProxyType({})
) -> dict[str, Results]:
    """Run the attempts in workloads of a service without root, which has cgroups of its own."""
    directory = targets.directory / "rootless"
    (directory / "run").mkdir(parents=True)
    for path in (directory, directory / "run"):
        os.chown(path, ROOTLESS_USER, ROOTLESS_USER)
    mounted = cgroup_directories()
    delegated = [mounted[name] / targets.directory.name for name in ("", "memory", "pids") if name in mounted]
    script = show_interpreter()
    try:
        for cgroup in delegated:
            cgroup.mkdir()
            for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
                if (cgroup / name).exists():
                    os.chown(cgroup / name, ROOTLESS_USER, ROOTLESS_USER)
            script += f"echo $$ >{cgroup}/cgroup.procs\n"
        user = f"--reuid {ROOTLESS_USER} --regid {ROOTLESS_USER} --clear-groups"
        script += f'cd {directory}\nexec setpriv {user} env PYTHONPATH={ROOT} "$@"'
        start = ["unshare", "--mount", "sh", "-euc", script, "sh", *NSUPERVISOR, "run"]
        return workload_results(targets, workloads, start, directory, commands=commands)
    finally:
        for cgroup in delegated:
            directories.remove(str(cgroup))


@contextmanager
def new_targets() -> Iterator[Targets]:
    """Make targets in a new directory that every user may enter, and that no profile hides."""
    with tempfile.TemporaryDirectory(prefix="escape-", dir="/var/lib") as path:
        Path(path).chmod(0o755)
        with prepared(Path(path)) as targets:
            yield targets
