"""`plan`, `reload` and SIGHUP on the running service: only what differs changes, and the last wish wins."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.needs import needs
from tests.system.service import NSUPERVISOR, Service, service
from tests.timing import deadline

# Limits that change while a program runs are tested in the virtual machine by test_set.py.
pytestmark = [pytest.mark.system, pytest.mark.host_only, needs("root", "cgroup")]

M = 1 << 20

WEB = """
[workload.web]
command = ["sleep", "1000"]
"""
DB = """
[workload.db]
command = ["sleep", "1000"]
"""
SLOW = """
[workload.slow]
command = ["sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.05; done']
timeout_stop_sec = "infinity"
"""
"""Does not stop by itself: what waits for it waits until the test kills it."""


def write(it: Service, toml: str, name: str = "nsupervisor.toml") -> Path:
    """The service's file with other workloads, under the same [supervisor]."""
    config = it.directory / "nsupervisor.toml"
    head = config.read_text().partition("\n\n")[0]
    file = it.directory / name
    file.write_text(f"{head}\n\n{toml}")
    return file


async def reload(it: Service, toml: str, status: int = 0) -> list[dict[str, Any]]:
    """Write and reload; what it told."""
    write(it, toml)
    return [json.loads(line) for line in (await it.cli("reload", "--json", status=status)).splitlines()]


def done(told: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {one["name"]: (one["do"], one["state"]) for one in told if one["event"] == "done"}


@needs("memory", "pids")
async def test_limits_and_rules_change_and_the_process_stays(tmp_path):
    limits = WEB + '[workload.web.resources]\nmemory_max = "64M"\npids_max = 20\n'
    rule = '[[workload.web.policy]]\nwhen = "pids.current >= {}"\naction = "log"\n'
    async with service(tmp_path, limits + rule.format(1)) as it:
        pid = await it.pid("web")
        await it.record(event="action", workload="web", action="log")
        await it.cli("set", "web", "pids_max=10")
        told = await reload(it, limits.replace("64M", "32M") + rule.format("50%") + rule.format(1))
        assert [step["do"] for step in told[0]["steps"]] == ["live"]
        assert "limits set at run time stay" in told[0]["steps"][0]["why"]
        found = await it.status("web")
        assert (found["pid"], found["memory_max"], found["pids_max"]) == (pid, 32 * M, 10)
        changed = await it.record(event="action", workload="web", action="reload")
        assert [change["key"] for change in changed["changes"]] == ["resources.memory_max", "policy[0]"]
        await it.cli("set", "web", "pids_max=2")
        new = await it.record(event="action", workload="web", action="log", nth=2)
        assert new["cause"]["rule"] == "policy[0]"  # the other one has fired, and still knows it


async def test_only_what_changed_restarts_in_order_and_what_has_gone_leaves_nothing(tmp_path):
    """supervisor#1154: update restarts all. circus#1109: and not in their order."""
    old = DB + WEB + 'requires = ["db"]\n[workload.other]\ncommand = ["sleep", "1000"]\n[workload.old]\n'
    old += 'command = ["sleep", "1000"]\nrequires = ["web"]\n'
    new = DB.replace("1000", "999") + WEB.replace("1000", "999") + 'requires = ["db"]\ndescription = "x"\n'
    new += (
        '[workload.other]\ncommand = ["sleep", "1000"]\n[workload.fresh]\ncommand = ["sleep", "1"]\nautostart = false\n'
    )
    async with service(tmp_path, old) as it:
        other, gone = await it.pid("other"), (await it.status("old"))["cgroup"]
        await it.pid("old")
        told = await reload(it, new)
        assert done(told) == {"db": ("restart", "running"), "web": ("restart", "running"), "old": ("stop", "stopped")}
        assert told[-1] == {"event": "end", "ok": True}
        order = [
            (record["workload"], record["event"])
            for record in it.records
            if (record["event"] == "exited" or record.get("generation") == 2)
            and record["event"] in ("exited", "started")
        ]
        assert order == [
            ("old", "exited"), ("web", "exited"), ("db", "exited"), ("db", "started"), ("web", "started"),
        ]  # fmt: skip
        assert (await it.status("other"))["pid"] == other
        assert not os.path.exists(gone)
        names = [one["name"] for one in json.loads(await it.cli("status", "--json"))]
        assert names == ["db", "web", "other", "fresh"]
        assert (await it.status("fresh"))["state"] == "stopped"
        again = json.loads(await it.cli("plan", "--json", str(it.directory / "nsupervisor.toml")))
        assert {step["do"] for step in again["steps"]} == {"none"}


async def test_reload_does_not_start_what_the_operator_stopped(tmp_path):
    """supervisor#214: when autostart is true, each reload starts the program."""
    async with service(tmp_path, DB + WEB) as it:
        await it.pid("web")
        await it.cli("stop", "web")
        told = await reload(it, DB + WEB.replace("1000", "999") + 'requires = ["db"]\n')
        assert done(told) == {}
        assert (await it.status("web"))["state"] == "stopped"
        await it.cli("start", "web")
        assert Path(f"/proc/{await it.pid('web', 2)}/cmdline").read_bytes() == b"sleep\x00999\x00"


async def test_a_file_with_mistakes_changes_nothing_and_all_are_told(tmp_path):
    """supervisor#720: nobody knew what reread, reload and update do to what runs, and when."""
    async with service(tmp_path, WEB) as it:
        pid = await it.pid("web")
        wrong = write(it, WEB.replace("sleep", "true") + 'restart = "maybe"\nuser = "nobody-of-that-name"\nnice = 99\n')
        for command in (["reload"], ["plan", str(wrong)], ["reload", "--dry-run", str(wrong)]):
            result = await it.cli_result(*command)
            assert result.returncode == 2
            assert [line.split(": ")[1] for line in result.stderr.decode().splitlines()] == [
                "workload.web.restart",
                "workload.web.nice",
            ]
        write(it, WEB.replace("sleep", "true") + 'user = "nobody-of-that-name"\n')
        it.process.send_signal(signal.SIGHUP)
        refused = await it.record(event="reload refused", nth=3)
        assert "nobody-of-that-name" in refused["message"]
        renamed = write(it, WEB, "renamed.toml")
        renamed.write_text(renamed.read_text().replace('name = "', 'name = "another-'))
        result = await it.cli_result("reload", str(renamed))
        assert (result.returncode, result.stderr.split(b": ")[1]) == (2, b"supervisor.name")
        assert (await it.status("web"))["pid"] == pid
        assert (await it.status("web"))["generation"] == 1


@needs("pids", "cpuset")
async def test_what_the_kernel_refuses_takes_everything_back(tmp_path):
    toml = WEB + "[workload.web.resources]\npids_max = 20\n" + DB
    toml += 'group = "narrow"\n[group.narrow]\ncpuset_cpus = "0"\n'
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        cgroup = (await it.status("web"))["cgroup"]
        new = toml.replace("20", "30") + '[workload.db.resources]\ncpuset_cpus = "1"\n[workload.new]\ncommand = ["x"]\n'
        write(it, new)
        result = await it.cli_result("reload")
        assert result.returncode == 2, result
        assert b"cannot set cpuset.cpus of db to 1: not all of these CPUs" in result.stderr
        assert (await it.status("web"))["pids_max"] == 20
        assert not Path(cgroup).with_name("new").exists()
        assert [one["name"] for one in json.loads(await it.cli("status", "--json"))] == ["web", "db"]


@pytest.mark.fault("H10")
@needs("memory", "cpuset")
async def test_a_refused_reload_gives_a_member_its_share_of_the_groups_old_limit_again(tmp_path):
    toml = WEB + 'group = "wide"\n[workload.web.resources]\nmemory_max = "50%"\n[group.wide]\nmemory_max = "100M"\n'
    toml += DB + 'group = "narrow"\n[group.narrow]\ncpuset_cpus = "0"\n'
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        assert (await it.status("web"))["memory_max"] == 50 * M
        write(it, toml.replace("100M", "200M") + '[workload.db.resources]\ncpuset_cpus = "1"\n')
        result = await it.cli_result("reload")
        assert (result.returncode, b"cannot set cpuset.cpus of db" in result.stderr) == (2, True), result
        assert (await it.status("web"))["memory_max"] == 50 * M


async def test_sighup_reads_the_file_again_and_instances_come_and_go(tmp_path):
    async with service(tmp_path, WEB + "instances = 2\n") as it:
        first = await it.pid("web@1")
        write(it, WEB + "instances = 3\n")
        it.process.send_signal(signal.SIGHUP)
        await it.pid("web@3")
        await it.record(event="reloaded")
        told = await reload(it, WEB + "instances = 2\n")
        assert done(told) == {"web@3": ("stop", "stopped")}
        assert (await it.status("web@1"))["pid"] == first
        told = await reload(it, WEB)
        assert done(told) == {"web": ("start", "running"), "web@1": ("stop", "stopped"), "web@2": ("stop", "stopped")}


async def test_a_slow_stop_holds_up_nobody_else_and_the_last_wish_wins(tmp_path):
    """circus#814: one lock for all commands. process-compose#530: a restart while it stops."""
    async with service(tmp_path, SLOW + WEB + DB) as it:
        slow = await it.pid("slow")
        await it.record(event="output", workload="slow", message="up")
        changed = SLOW.replace("echo up", "echo new") + WEB.replace("1000", "999") + DB
        write(it, changed)
        client = await trio.lowlevel.open_process(
            [*NSUPERVISOR, "reload"],
            stdout=subprocess.PIPE,
            env={**os.environ, "NSUPERVISOR_SOCKET": str(tmp_path / "run" / "api.sock")},
        )
        # Others are restarted, commanded and reloaded while it stops.
        await it.pid("web", 2)
        assert await it.cli("restart", "db") == "db: running\n"
        # Ctrl-C of the client: the service finishes what it has begun.
        client.send_signal(signal.SIGINT)
        with trio.fail_after(deadline(10)):
            assert await client.wait() == 130
        # A second reload while the first goes on: the later file counts.
        write(it, SLOW.replace("echo up", "echo newest") + WEB.replace("1000", "999") + DB)
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="reload", nth=2)
        os.kill(slow, signal.SIGKILL)
        await it.record(event="output", workload="slow", message="newest")
        assert (await it.status("slow"))["generation"] == 2
        # The operator's stop overrules a restart that has begun.
        second = await it.pid("slow", 2)
        write(it, SLOW + WEB.replace("1000", "999") + DB)
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="state", workload="slow", to="stopping", nth=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.cli, "stop", "slow")
            await it.record(event="action", workload="slow", action="stop")
            os.kill(second, signal.SIGKILL)
        assert (await it.status("slow"))["state"] == "stopped"
        await it.record(event="reloaded", nth=3)


async def test_what_goes_and_is_wanted_again_before_it_has_gone_comes_back(tmp_path):
    async with service(tmp_path, SLOW + WEB) as it:
        slow = await it.pid("slow")
        await it.record(event="output", workload="slow", message="up")
        write(it, WEB)
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="state", workload="slow", to="stopping")
        refused = await it.cli_result("start", "slow")
        assert refused.returncode == 1
        assert b"does not have it any more" in refused.stderr
        write(it, SLOW + WEB)
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="reload", nth=2)
        os.kill(slow, signal.SIGKILL)
        again = await it.pid("slow", 2)
        await it.record(event="reloaded", nth=2)
        assert (await it.status("slow"))["state"] == "running"
        await it.record(event="output", workload="slow", message="up", nth=2)
        write(it, WEB)
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="state", workload="slow", to="stopping", nth=2)
        os.kill(again, signal.SIGKILL)
        await it.record(event="reloaded", nth=3)
        assert [one["name"] for one in json.loads(await it.cli("status", "--json"))] == ["web"]


async def test_restart_starts_what_it_requires(tmp_path):
    """It restarted the workload alone, beside a requirement that was down."""
    toml = DB.replace('"sleep", "1000"', '"sh", "-c", "read line < $0", "FIFO"') + 'restart = "no"\n'
    toml = toml.replace("FIFO", str(tmp_path / "fifo")) + WEB + 'requires = ["db"]\n'
    os.mkfifo(tmp_path / "fifo")
    async with service(tmp_path, toml) as it:
        await it.pid("web")
        (tmp_path / "fifo").write_text("end\n")
        await it.record(event="state", workload="db", to="exited")
        assert await it.cli("restart", "web") == "web: running\n"
        assert (await it.status("db"))["generation"] == 2
        assert (await it.status("web"))["generation"] == 2
        await it.cli("stop", "db")
        assert (await it.status("web"))["state"] == "stopped"
        assert await it.cli("restart", "web") == "web: running\n"
        assert (await it.status("db"))["generation"] == 3


async def test_values_of_variables_are_in_no_plan_and_no_record(tmp_path):
    secret = WEB + '[workload.web.environment]\nTOKEN = "hush-one"\n'
    async with service(tmp_path, secret) as it:
        await it.pid("web")
        file = write(it, secret.replace("one", "two"))
        plan = await it.cli("plan", str(file))
        assert "environment.TOKEN: changed" in plan
        told = await it.cli("reload", "--json")
        assert "hush" not in plan + told
        await it.pid("web", 2)
        assert "hush" not in json.dumps(it.records)


async def test_a_changed_environment_file_is_seen_and_its_values_stay_secret(tmp_path):
    """Its contents were not compared with what runs; a reload did nothing, and the next restart by chance took them."""
    variables = tmp_path / "variables"
    variables.write_text("TOKEN=hush-1\n")
    toml = f"{WEB}environment_file = ['{variables}']\n" + DB

    async def planned(it: Service) -> dict[str, dict[str, Any]]:
        told = await it.cli("plan", "--json", str(it.directory / "nsupervisor.toml"))
        assert "hush" not in told
        return {step["name"]: step for step in json.loads(told)["steps"]}

    async with service(tmp_path, toml, status=-signal.SIGKILL) as it:
        await it.pid("web")
        await it.pid("db")
        assert (await planned(it))["web"]["do"] == "none"
        variables.write_text("# another comment\nTOKEN='hush-1'\n")
        assert (await planned(it))["web"]["do"] == "none"
        variables.write_text("TOKEN=hush-2\n")
        step = (await planned(it))["web"]
        assert (step["do"], step["why"]) == ("restart", "contents of environment_file need a new process")
        assert "environment_file: the contents differ" in await it.cli("plan", str(it.directory / "nsupervisor.toml"))
        assert done(await reload(it, toml)) == {"web": ("restart", "running")}
        assert b"TOKEN=hush-2" in Path(f"/proc/{await it.pid('web', 2)}/environ").read_bytes()
        assert (await planned(it))["web"]["do"] == "none"
        variables.unlink()
        step = (await planned(it))["web"]
        assert (step["do"], "cannot be read now" in step["why"]) == ("none", True)
        variables.write_text("TOKEN=hush-3\n")
        key = tmp_path / "run/key"
        assert key.stat().st_mode & 0o777 == 0o600
        state = (tmp_path / "run/state.json").read_text()
        assert "hush" not in state
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, toml) as it:
        await it.record(event="taken over")
        assert {name: step["do"] for name, step in (await planned(it)).items()} == {"web": "restart", "db": "none"}
        assert done(await reload(it, toml)) == {"web": ("restart", "running")}
        assert "hush" not in json.dumps(it.records)
    assert not key.exists()


async def test_log_level_changes_and_what_cannot_is_said(tmp_path):
    async with service(tmp_path, WEB) as it:
        await it.pid("web")
        file = write(it, WEB)
        file.write_text(
            file.read_text().replace("[supervisor]\n", '[supervisor]\nlog_level = "warning"\nlog_format = "console"\n')
        )
        assert "supervisor.log_format" in (await it.cli("reload"))
        said = await it.record(event="reload", level="warning")
        assert "log_format counts when the service starts the next time" in said["message"]
        found = json.loads(await it.cli("plan", "--json", str(file)))
        assert [change["key"] for change in found["service"]] == ["log_format"]
        write(it, WEB)
        it.process.send_signal(signal.SIGHUP)
        file.write_text(file.read_text().replace('log_level = "warning"\nlog_format = "console"\n', ""))
        await it.cli("reload")
        await it.record(event="reloaded")


@needs("memory")
async def test_limits_of_a_group_change_live_and_another_group_is_another_cgroup(tmp_path):
    toml = WEB + 'group = "batch"\n[group.batch]\nmemory_max = "64M"\n[group.other]\nmemory_max = "64M"\n' + DB
    async with service(tmp_path, toml) as it:
        pid = await it.pid("web")
        rule = '[[group.batch.policy]]\nwhen = "memory.current >= 1"\naction = "log"\n'
        told = await reload(it, toml.replace("64M", "32M", 1) + rule)
        assert [change["key"] for change in told[0]["groups"]] == ["group.batch.memory_max", "group.batch.policy[0]"]
        found = await it.status("web")
        assert found["pid"] == pid
        group = Path(found["cgroup"]).parent
        assert group.name.startswith("batch") or "batch" in str(group)
        await it.record(event="action", group="group/batch", action="log")
        told = await reload(it, toml.replace('group = "batch"', 'group = "other"').replace("64M", "32M", 1) + rule)
        assert done(told) == {"web": ("restart", "running")}
        moved = Path((await it.status("web"))["cgroup"])
        assert moved.parent != group
        assert moved.exists()
        told = await reload(it, WEB.strip() + '\ngroup = "third"\n[group.third]\npids_max = 50\n' + DB)
        assert done(told) == {"web": ("restart", "running")}, (told, it.records[-6:])
        assert Path((await it.status("web"))["cgroup"]).parent.name == "group.third"
        await it.until(lambda: not group.exists() and not moved.parent.exists())


async def test_included_files_are_read_by_run_plan_reload_and_sighup(tmp_path):
    parts = tmp_path / "conf.d"
    parts.mkdir()
    (parts / "db.toml").write_text(DB)
    async with service(tmp_path, '[defaults.workload]\nrestart = "no"\n' + WEB) as it:
        config = it.directory / "nsupervisor.toml"
        config.write_text(f'include = ["{parts}/*.toml"]\n' + config.read_text())
        before = await it.pid("web")
        assert done([json.loads(line) for line in (await it.cli("reload", "--json")).splitlines()]) == {
            "db": ("start", "running")
        }
        (parts / "db.toml").write_text(DB + "nice = 99\n")
        refused = await it.cli_result("reload", str(config))
        assert refused.returncode == 2
        assert f"{parts}/db.toml:4: workload.db.nice: 99 is out of range" in refused.stderr.decode()
        (parts / "db.toml").write_text(DB + "nice = 1\n")
        plan = json.loads(await it.cli("plan", "--json", str(config)))
        assert {step["name"]: step["do"] for step in plan["steps"]} == {"web": "none", "db": "restart"}
        it.process.send_signal(signal.SIGHUP)
        await it.record(event="reloaded", nth=2)
        assert (await it.status("web"))["pid"] == before
        # The next service reads the included files at its start.
        (parts / "db.toml").write_text(DB + "nice = 2\n")
        refused_change = json.loads(await it.cli("plan", "--json", str(config)))
        assert refused_change["steps"][1]["why"] == "nice needs a new process"


async def test_instances_have_names_and_values_of_the_environment(tmp_path):
    text = """
[workload.web]
expand = true
command = ["sh", "-c", "echo i={instance} n=$NSUPERVISOR_INSTANCE v={env.HOME}; exec sleep 1000"]
instances = ["eu", "us"]
"""
    async with service(tmp_path, text) as it:
        home = os.environ["HOME"]
        for name in ("eu", "us"):
            await it.record(
                event="output", workload=f"web@{name}", instance=name, message=f"i={name} n={name} v={home}"
            )
        reported = done(await reload(it, text.replace('"us"]', '"asia"]')))
        assert reported == {"web@us": ("stop", "stopped"), "web@asia": ("start", "running")}
        assert (await it.status("web@asia"))["instance"] == "asia"


async def test_another_number_of_instances_outlives_the_service(tmp_path):
    text = """
[workload.web]
expand = true
command = ["sleep", "100{instance}"]
instances = 2
"""
    async with service(tmp_path, text, status=-signal.SIGKILL) as it:
        told = [json.loads(line) for line in (await it.cli("scale", "--json", "web=3")).splitlines()]
        assert done(told) == {"web@3": ("start", "running")}
        assert (await it.status("web@3"))["command"] == ["sleep", "1003"]
        pid = (await it.status("web@3"))["pid"]
        assert (await it.cli_result("scale", "web")).returncode == 2
        wrong = await it.cli_result("scale", "wob=3")
        assert (wrong.returncode, b'did you mean "web"?' in wrong.stderr) == (2, True)
        it.process.kill()
        await it.process.wait()
    async with service(tmp_path, text) as it:
        assert (await it.status("web@3"))["pid"] == pid
        await it.cli("scale", "web=2")
        assert len(json.loads(await it.cli("status", "--json"))) == 2
