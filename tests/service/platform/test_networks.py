"""Attachments: what plugins are asked, in which order, and what is undone after a failure or a crash.

The plugins are the test's. Each appends a line to a log. It fails while a file `fail-TYPE-COMMAND` is there, and
answers ADD with a result that has its name.
"""

import json
import os
from pathlib import Path

import pytest
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.config.model import NetworksConfig, Resources
from nsupervisor.core.cni import NetworkError
from nsupervisor.linux import joining, traffic_control
from nsupervisor.service.platform import cni_plugins, networks
from nsupervisor.service.platform.networks import Networks
from nsupervisor.service.platform.plugin_cgroup import PluginCgroup
from tests.needs import needs
from tests.timing import deadline

pytestmark = needs("root", "netns")

PLUGIN = """#!/bin/sh
body=$(cat)
name=${0##*/}
here=${0%/*}
network=$(readlink "$CNI_NETNS")
case $body in *prevResult*) previous=1;; *) previous=0;; esac
case $body in *8080*) ports=1;; *) ports=0;; esac
echo "$CNI_COMMAND $name $CNI_CONTAINERID $CNI_IFNAME $previous $ports $network" >>"$here/log"
if [ -e "$here/fail-$name-$CNI_COMMAND" ]; then echo '{"code": 100, "msg": "it is broken"}'; exit 1; fi
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "by": "'$name'"}'
"""


class Site:
    """A directory with plugins and networks, and the services that use it one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        for name in ("one", "two", "three"):
            plugin = directory / name
            plugin.write_text(PLUGIN)
            plugin.chmod(0o755)
        plugins = [{"type": "one"}, {"type": "two", "capabilities": {"portMappings": True}}, {"type": "three"}]
        network = {"cniVersion": "1.0.0", "name": "blue", "plugins": plugins}
        (directory / "blue.conflist").write_text(json.dumps(network))

    def service(self, cgroup: PluginCgroup | None = None) -> Networks:
        settings = NetworksConfig(config_directory=str(self.directory))
        warn = lambda name, text: self.warnings.append(text)  # noqa: E731
        return Networks(str(self.directory / "state"), "test", warn, settings, plugin_cgroup=cgroup)

    def log(self) -> list[str]:
        """The commands and names of the plugins so far."""
        return [" ".join(line.split()[:2]) for line in self.lines()]

    def lines(self) -> list[str]:
        log = self.directory / "log"
        return log.read_text().splitlines() if log.exists() else []

    def records(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "state/networks/test").glob("*.json"))


ADDED = ["ADD one", "ADD two", "ADD three"]
REMOVED = ["DEL three", "DEL two", "DEL one"]
PORTS = [("", 8080, 80, "tcp")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("CNI_PATH", str(tmp_path))
    return Site(tmp_path)


async def test_what_is_set_up_is_undone_in_the_reverse_order(site: Site) -> None:
    service = site.service()
    fd = await service.attach("web@2", "blue", PORTS)
    assert not joining.is_own(fd, "network")
    assert service.addresses("web@2") == ["10.0.0.2"]
    assert site.records() == ["web@2.json"]
    await service.release("web@2")
    assert site.log() == ADDED + REMOVED
    assert (site.records(), site.warnings, service.addresses("web@2")) == ([], [], [])
    fields = [line.split() for line in site.lines()]
    (container,) = {line[2] for line in fields}
    assert container.startswith("test-web.2-")
    assert [line[4] for line in fields] == ["0", "1", "1", "1", "1", "1"], "the result of the one before"
    assert [line[5] for line in fields] == ["0", "1", "0", "0", "1", "0"], "ports are for the one with the capability"
    assert len({line[6] for line in fields}) == 1
    assert fields[0][6].startswith("net:["), "the plugins see the namespace"
    service.close()


async def test_a_bandwidth_is_for_the_plugin_that_limits_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    service = site.service()
    with pytest.raises(NetworkError, match='none of its plugins has the capability "bandwidth"; add the plugin'):
        await service.attach("web", "blue", [], 1 << 20)
    plugins = [{"type": "one"}, {"type": "two", "capabilities": {"bandwidth": True}}]
    text = json.dumps({"cniVersion": "1.0.0", "name": "blue", "plugins": plugins})
    (site.directory / "blue.conflist").write_text(text)
    monkeypatch.setattr(traffic_control, "find_missing_limiter", lambda: "the queueing discipline tbf")
    with pytest.raises(NetworkError, match="this kernel lacks the queueing discipline tbf, which limits bandwidth"):
        await service.attach("web", "blue", [], 1 << 20)
    assert site.log() == []
    monkeypatch.setattr(traffic_control, "find_missing_limiter", lambda: None)
    (site.directory / "two").write_text(PLUGIN.replace("*8080*", "*ingressRate*8388608*"))
    await service.attach("web", "blue", [], 1 << 20)
    assert [line.split()[5] for line in site.lines()] == ["0", "1"]
    await service.release("web")
    service.close()


async def test_a_plugin_runs_in_the_cgroup_of_plugins(site: Site) -> None:
    """It writes 0 to each of its files before it is executed, and the cgroup is emptied after the last plugin."""
    files = [site.directory / "cgroup.procs", site.directory / "tasks"]
    (site.directory / "one").write_text(
        PLUGIN.replace("body=", f"cat {files[0]} {files[1]} >{site.directory}/entered; body=")
    )
    calls: list[str] = []

    class Place:
        shown_path = path = str(site.directory)
        join_files = (str(files[1]),)

        def pids(self) -> list[int]:
            return [1]

        def kill(self) -> None:
            calls.append("kill")

    def make(name: str, limits: Resources) -> Cgroup:
        calls.append(f"{name} {limits.memory_max} {limits.pids_max}")
        return Place()  # type: ignore[return-value]

    service = site.service(PluginCgroup(make, lambda name, text: site.warnings.append(text)))
    await service.attach("web", "blue", [])
    assert (site.directory / "entered").read_text() == "0\n0\n"
    assert calls == [f"plugins {512 << 20} 512", "kill", "kill", "kill"]
    await service.release("web")
    assert site.log() == ADDED + REMOVED
    (site.directory / "cgroup.procs").unlink()
    (site.directory / "cgroup.procs").mkdir()
    with pytest.raises(NetworkError, match=r"cgroup\.procs"):
        await service.attach("web", "blue", [])
    assert site.log() == ADDED + REMOVED, "nothing runs outside"
    service.close()


async def test_without_a_cgroup_plugins_run_and_it_is_reported(site: Site) -> None:
    def refuse(name: str, limits: Resources) -> Cgroup:
        raise CgroupError("there is no memory controller")

    service = site.service(PluginCgroup(refuse, lambda name, text: site.warnings.append(text)))
    await service.attach("web", "blue", [])
    await service.release("web")
    assert site.log() == ADDED + REMOVED
    assert site.warnings == ["plugins of networks run without limits: there is no memory controller"]
    service.close()


async def test_without_a_network_nothing_is_made(site: Site) -> None:
    service = site.service()
    await service.begin(lambda name: -1)
    await service.release("web")
    assert not (site.directory / "state").exists()
    service.close()


async def test_a_failure_in_the_middle_is_undone(site: Site) -> None:
    (site.directory / "fail-two-ADD").touch()
    service = site.service()
    with pytest.raises(NetworkError, match="network blue: plugin two: it is broken"):
        await service.attach("web", "blue", [])
    assert site.log() == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert site.records() == []
    service.close()


async def undone(site: Site) -> None:
    """Wait until no record is left."""
    with trio.fail_after(deadline(20)):
        while site.records():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_what_cannot_be_undone_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FIRST_RETRY_S", 0.01)
    service = site.service()
    await service.attach("web", "blue", [])
    broken = site.directory / "fail-two-DEL"
    broken.touch()
    await service.release("web")
    assert site.log() == ADDED + REMOVED, "the others undo their part"
    assert site.records() == ["web.json"]
    assert site.warnings == ["its network cannot be undone now: plugin two: it is broken; it is tried again"]
    with pytest.raises(NetworkError, match="the network of its last program is still set up"):
        await service.attach("web", "blue", [])
    broken.unlink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await undone(site)
        nursery.cancel_scope.cancel()
    assert site.log()[-3:] == REMOVED
    assert len(site.warnings) == 1
    service.close()


@pytest.mark.parametrize("plugin", ["one", "two", "three"])
async def test_the_next_service_undoes_what_a_killed_one_began(
    site: Site, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service dies as a plugin of it has been started: no later code of it runs."""
    run = cni_plugins.run_plugin

    class KilledError(BaseException):
        pass

    async def die(command: str, name: str, *arguments: object) -> bytes:
        output = await run(command, name, *arguments)
        if name == plugin:
            raise KilledError
        return output

    first = site.service()
    with monkeypatch.context() as patch:
        patch.setattr(cni_plugins, "run_plugin", die)
        with pytest.raises(KilledError):
            await first.attach("web", "blue", PORTS)
    first.close()
    begun = len(site.log())
    second = site.service()
    await second.begin(lambda name: -1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.run)
        await undone(site)
        nursery.cancel_scope.cancel()
    assert site.log()[begun:] == REMOVED[3 - begun :]
    assert {line.split()[2] for line in site.lines()} == {site.lines()[0].split()[2]}, "the same attachment"
    second.close()


async def test_a_program_that_runs_on_keeps_its_network(site: Site) -> None:
    first = site.service()
    held = os.dup(await first.attach("web", "blue", []))
    first.close()
    second = site.service()
    await second.begin(lambda name: held)
    assert site.log() == ADDED
    assert second.addresses("web") == ["10.0.0.2"]
    await second.release("web")
    assert site.log() == ADDED + REMOVED
    assert site.lines()[-1].split()[-1].startswith("net:["), "DEL is given the namespace"
    second.close()


async def test_a_damaged_record_is_reported(site: Site) -> None:
    directory = site.directory / "state/networks/test"
    directory.mkdir(parents=True)
    (directory / "web.json").write_text("{}")
    service = site.service()
    await service.begin(lambda name: -1)
    assert "the record of its network is damaged" in site.warnings[0]
    service.close()


async def test_a_plugin_of_a_killed_service_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would set up something after the next service has undone it."""
    first = site.service()
    await first.attach("web", "blue", [])
    lock = os.dup(first._lock_fd)  # as a plugin has it
    first.close()
    second = site.service()
    monkeypatch.setattr(networks, "LOCK_TIMEOUT_S", 0.2)
    await second.begin(lambda name: -1)
    with pytest.raises(NetworkError, match="another process has"):
        await second.attach("web", "blue", [])
    assert site.log() == ADDED
    os.close(lock)
    await second.attach("web", "blue", [])
    assert site.log() == ADDED + REMOVED + ADDED
    await second.release("web")
    second.close()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("#!/bin/sh\nyes\n", "wrote more than 1 MiB and was killed"),
        ("#!/bin/sh\necho no JSON\n", "plugin one: its answer is not JSON"),
        ("#!/bin/sh\nsleep 1000 & echo $! >%s; wait\n", "took more than 0.5 s and was killed"),
        ("#!/bin/sh\nsleep 1000 & echo $! >%s\n", "took more than 0.5 s and was killed"),  # its child has its output
        ("no program", "cannot execute"),
    ],
)
async def test_a_plugin_is_limited(site: Site, monkeypatch: pytest.MonkeyPatch, script: str, text: str) -> None:
    monkeypatch.setattr(cni_plugins, "PLUGIN_TIMEOUT_S", 0.5 if "sleep" in script else 30.0)
    pid_file = site.directory / "pid"
    (site.directory / "one").write_text(script.replace("%s", str(pid_file)))
    service = site.service()
    with pytest.raises(NetworkError, match=text):
        await service.attach("web", "blue", [])
    if pid_file.exists() and (pid := pid_file.read_text().strip()):
        with trio.fail_after(deadline(20)):  # it is killed, and reaped by process 1
            while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110
                await trio.sleep(0.01)
    service.close()


async def test_ports_need_a_plugin_that_publishes_them(site: Site) -> None:
    network = {"cniVersion": "1.0.0", "name": "red", "plugins": [{"type": "one"}]}
    (site.directory / "red.conflist").write_text(json.dumps(network))
    service = site.service()
    with pytest.raises(NetworkError, match='none of its plugins has the capability "portMappings"'):
        await service.attach("web", "red", PORTS)
    with pytest.raises(NetworkError, match=r"there is no .*/green.conflist"):
        await service.attach("web", "green", PORTS)
    service.close()
