"""The plan of a reload: the differences, and the steps that follow."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.kinds import TableOf
from nsupervisor.config.load import key_slots, parse
from nsupervisor.config.model import Config, Resources, WorkloadConfig
from nsupervisor.core.dependencies import started_along
from nsupervisor.core.instances import expand_instances
from nsupervisor.core.lifecycle import State
from nsupervisor.core.reload.differences import merge_limits, workload_differences
from nsupervisor.core.reload.plan import CurrentInstance, EnvironmentFiles, InstanceAction, Plan, make_plan
from nsupervisor.core.reload.start_changes import START_CHANGES, START_REVISION, limits_at_start

M = 1 << 20

NEEDS_A_PROCESS = {
    "command", "working_directory", "user", "dynamic_user", "supplementary_groups", "environment", "environment_file",
    "pass_environment", "umask", "nice",
    "oom_score_adjust", "io_scheduling_class", "io_scheduling_priority", "cpu_scheduling_policy",
    "cpu_scheduling_priority", "timer_slack",
    "init", "type", "watchdog_sec", "group", "may_control", "namespaces", "network", "user_namespace", "mounts",
    "security",
    "root", "volumes", "credentials", "sockets", "notify_access", "file_descriptor_store_max",
    "runtime_directory", "state_directory", "cache_directory", "logs_directory", "configuration_directory",
    "runtime_directory_mode", "state_directory_mode", "cache_directory_mode", "logs_directory_mode",
    "configuration_directory_mode",
}  # fmt: skip


def config(toml: str) -> Config:
    return parse(toml, "site.toml")


def runs(old: Config, **states: CurrentInstance | dict[str, Any]) -> list[CurrentInstance]:
    """Return every instance of a configuration, running, or as `states` has it, by its name with "_" for "@"."""
    result = []
    for name, (workload, _) in expand_instances(old).items():
        here = {
            "state": State.RUNNING,
            "should_run": True,
            "was_started": True,
            **states.get(name.replace("@", "_"), {}),
        }
        result.append(CurrentInstance(name, old.workloads[workload], old.workloads[workload].resources, **here))
    return result


STOPPED = {"state": State.STOPPED, "should_run": False}
NEVER_STARTED = {**STOPPED, "was_started": False}


def actions(result: Plan) -> dict[str, str]:
    return {step.name: step.action.value for step in result.steps}


def between(old: str, new: str, **states: dict[str, Any]) -> Plan:
    before = config(old)
    return make_plan(before, config(new), runs(before, **states))


WEB = '[workload.web]\ncommand = ["a"]\n'


def next_start(toml: str, **state: Any) -> tuple[str, ...]:
    """Return what a plan says of the next start of the workload web, of which the file has not changed."""
    (step,) = between(toml, toml, web=state).steps
    assert step.action is InstanceAction.NONE
    return step.start_changes


def test_a_plan_has_what_the_next_start_does_differently_than_an_earlier_versions() -> None:
    toml = WEB + 'type = "notify"\nnamespaces = { user = true, ipc = false }\n'
    changes = next_start(toml, start_revision=0)
    assert [sum(word in change for change in changes) for word in ("ids of its own", "READY=1", "keyring")] == [1, 1, 1]
    assert not any(word in change for change in changes for word in ("/dev/shm", "/sys", "symbolic links"))


def test_what_this_version_started_or_does_not_run_has_no_other_next_start() -> None:
    assert next_start(WEB) == ()
    assert next_start(WEB, start_revision=START_REVISION) == ()
    assert next_start(WEB, **STOPPED, start_revision=0) == ()


def test_a_program_of_an_earlier_version_has_the_limits_of_its_profile_from_its_next_start_on() -> None:
    (resources,) = (workload.resources for workload in config(WEB).workloads.values())
    assert [limits_at_start(resources, revision).pids_max for revision in (0, 2, 3)] == [None, None, 2048]
    explicit = attrs.evolve(resources, of_profile=frozenset())
    assert limits_at_start(explicit, 0).pids_max == 2048
    assert any("2,048" in change for change in next_start(WEB, start_revision=2))
    assert not any("2,048" in change for change in next_start(f"{WEB}resources.pids_max = 2048\n", start_revision=2))


def test_given_mappings_stay_as_they_are() -> None:
    mapping = "[{ container_id = 0, host_id = 0, size = 1 }]"
    toml = f"{WEB}namespaces = {{ user = true }}\n[workload.web.user_namespace]\n"
    toml += f"uid_mappings = {mapping}\ngid_mappings = {mapping}\n"
    assert not any("ids of its own" in change for change in next_start(toml, start_revision=0))


def test_the_latest_change_of_starts_has_the_revision_of_this_version() -> None:
    assert max(change.revision for change in START_CHANGES) == START_REVISION


def test_each_key_is_live_or_known_to_need_a_process() -> None:
    """A new key of a workload must be declared as live or not; one that is forgotten restarts, which does no harm."""
    slots = key_slots(WorkloadConfig)
    assert {name for name, slot in slots.items() if not slot.is_live} == NEEDS_A_PROCESS
    below = [slot for slot in slots.values() if isinstance(slot.kind, TableOf)]
    assert not any(inner.is_live for slot in below for inner in key_slots(slot.kind.cls).values())  # type: ignore[union-attr]


def test_nothing_differs_nothing_happens() -> None:
    assert actions(between(WEB, "# moved down\n\n" + WEB)) == {"web": "none"}


def test_update_restarts_only_what_changed() -> None:
    """supervisor#1154: an update restarted all processes of a group."""
    old = 'instances = 2\n[workload.db]\ncommand = ["db"]\n'
    result = between(WEB + old, WEB.replace('"a"', '"b"') + old)
    assert actions(result) == {"web@1": "restart", "web@2": "restart", "db": "none"}


def test_a_limit_and_a_rule_change_live_and_are_told() -> None:
    old = WEB + '[workload.web.resources]\nmemory_max = "64M"\npids_max = 8\n'
    rule = '[[workload.web.policy]]\nwhen = "memory.events oom_kill"\naction = "restart"\ncooldown = "1min"\n'
    new = old.replace("64M", "128M") + rule
    (step,) = between(old, new).steps
    assert step.action is InstanceAction.LIVE
    assert [(c.key, c.kind, c.before, c.after) for c in step.changes] == [
        ("resources.memory_max", "changed", '"64M"', '"128M"'),
        (
            "policy[0]", "added", "not set",
            '{ when = "memory.events oom_kill", action = "restart", cooldown = "1min" }',
        ),
    ]  # fmt: skip
    (step,) = between(new, new.replace("1min", "2min")).steps
    assert [(c.key, c.before, c.after) for c in step.changes] == [("policy[0].cooldown", '"1min"', '"2min"')]


def test_rules_in_another_order_are_told_as_that() -> None:
    rule = '[[workload.web.policy]]\nwhen = "memory.events oom_kill"\naction = "restart"\n'
    two = '[[workload.web.policy]]\nwhen = "pids.events max"\naction = "log"\n'
    (step,) = between(WEB + rule + two, WEB + two + rule).steps
    assert [(c.key, c.kind) for c in step.changes] == [("policy", "reordered")]


def test_values_of_variables_are_never_told() -> None:
    old = WEB + '[workload.web.environment]\nTOKEN = "hush-1"\nGONE = "hush-2"\n'
    new = WEB + '[workload.web.environment]\nTOKEN = "hush-3"\nNEW = "hush-4"\n'
    (step,) = between(old, new).steps
    assert [(c.key, c.kind) for c in step.changes] == [
        ("environment.TOKEN", "changed"),
        ("environment.GONE", "removed"),
        ("environment.NEW", "added"),
    ]
    assert step.reason == "environment needs a new process"
    assert "hush" not in repr(step.changes)


def test_reload_does_not_start_what_the_operator_stopped() -> None:
    """supervisor#214: with autostart, each reload of the file started programs that were stopped."""
    (step,) = between(WEB, WEB.replace('"a"', '"b"'), web=STOPPED).steps
    assert (step.action, step.reason) == (
        InstanceAction.LIVE,
        "is stopped, and stays so; it takes this at its next start",
    )


def test_what_has_failed_is_tried_anew_when_what_it_failed_with_changes() -> None:
    failed = {"state": State.FAILED}
    assert actions(between(WEB, WEB.replace('"a"', '"b"'), web=failed)) == {"web": "restart"}
    assert actions(between(WEB, WEB + 'restart = "no"\n', web=failed)) == {"web": "live"}


def test_what_an_earlier_supervisor_started_is_compared_with_what_it_was_started_with() -> None:
    changed = WEB.replace('"a"', '"b"')
    assert actions(between(WEB, WEB, web={"matches_new_file": False})) == {"web": "restart"}
    assert actions(between(WEB, changed, web={"matches_new_file": False})) == {"web": "restart"}
    assert actions(between(WEB, changed, web={"matches_new_file": True})) == {"web": "live"}
    assert actions(between(WEB, WEB, web={"matches_new_file": False, **STOPPED})) == {"web": "none"}


FILED = WEB + 'environment_file = ["/etc/web"]\n'


def test_what_an_environment_file_says_now_needs_a_new_process() -> None:
    """The file was compared by its name alone, so a reload after a change of its contents did nothing."""
    other = {"environment_files": EnvironmentFiles(have_changed=True)}
    (step,) = between(FILED, FILED, web=other).steps
    assert (step.action, step.reason) == (InstanceAction.RESTART, "contents of environment_file need a new process")
    assert [(c.key, c.kind, c.before, c.after, c.is_live) for c in step.changes] == [
        ("environment_file", "contents", None, None, False)
    ]
    assert actions(between(FILED, FILED, web={**other, "state": State.FAILED})) == {"web": "restart"}
    (step,) = between(FILED, FILED.replace("/etc/web", "/etc/www"), web=other).steps
    assert [(c.key, c.kind) for c in step.changes] == [("environment_file", "changed")]
    (step,) = between(FILED, FILED.replace('"a"', '"b"'), web=other).steps
    assert step.reason == "command, contents of environment_file need a new process"


@pytest.mark.parametrize("rests", [STOPPED, {"state": State.EXITED}, {"state": State.STOPPED, "is_waiting": True}])
def test_what_rests_takes_the_environment_files_as_they_are_at_its_start(rests: dict[str, Any]) -> None:
    (step,) = between(FILED, FILED, web={**rests, "environment_files": EnvironmentFiles(have_changed=True)}).steps
    assert (step.action, step.changes) == (InstanceAction.NONE, ())


def test_an_environment_file_that_cannot_be_read_ends_nothing() -> None:
    (step,) = between(
        FILED, FILED, web={"environment_files": EnvironmentFiles(problem="/etc/web: cannot be read")}
    ).steps
    assert step.action is InstanceAction.NONE
    assert (
        step.reason
        == "it keeps the environment that it has, as environment_file cannot be read now: /etc/web: cannot be read"
    )


def test_a_oneshot_that_is_done_is_not_done_again() -> None:
    assert actions(between(WEB, WEB.replace('"a"', '"b"'), web={"state": State.EXITED})) == {"web": "live"}


def test_one_that_waits_for_others_takes_it_when_it_starts() -> None:
    waits = {"state": State.STOPPED, "is_waiting": True, "was_started": False}
    db = '[workload.db]\ncommand = ["db"]\n'
    assert actions(between(WEB + db, WEB.replace('"a"', '"b"') + db, web=waits))["web"] == "live"
    assert actions(between(WEB + db, WEB + 'after = ["db"]\n' + db, web=waits))["web"] == "restart"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (2, 4, {"web@1": "none", "web@2": "none", "web@3": "start", "web@4": "start"}),
        (4, 2, {"web@1": "none", "web@2": "none", "web@3": "stop", "web@4": "stop"}),
        (1, 2, {"web@1": "start", "web@2": "start", "web": "stop"}),
        (2, 1, {"web": "start", "web@1": "stop", "web@2": "stop"}),
    ],
)
def test_instances(before: int, after: int, expected: dict[str, str]) -> None:
    assert actions(between(f"{WEB}instances = {before}", f"{WEB}instances = {after}")) == expected


def test_more_instances_of_what_is_stopped_are_not_started() -> None:
    result = between(f"{WEB}instances = 2", f"{WEB}instances = 3", web_1=STOPPED, web_2=STOPPED)
    assert result.steps[-1].reason == "instances 2 → 3; not started, as web is stopped"
    assert actions(result) == {"web@1": "none", "web@2": "none", "web@3": "none"}


def test_a_name_with_and_without_a_number_is_explained() -> None:
    steps = {step.name: step.reason for step in between(WEB, f"{WEB}instances = 2").steps}
    assert steps["web"] == "instances 1 → 2: they are called web@1 to web@2"
    steps = {step.name: step.reason for step in between(f"{WEB}instances = 2", WEB).steps}
    assert steps["web@2"] == "instances 2 → 1: a single instance is called web"


def test_what_is_new_brings_what_it_requires_but_not_what_was_stopped() -> None:
    db = '[workload.db]\ncommand = ["db"]\nautostart = false\n'
    new = db + WEB + 'requires = ["db"]\n'
    assert actions(between(db, new, db=NEVER_STARTED)) == {"db": "start", "web": "start"}
    assert actions(between(db, new, db=STOPPED)) == {"db": "none", "web": "start"}
    assert actions(between("", new)) == {"db": "start", "web": "start"}


def test_limits_of_groups_and_rules_of_the_host_are_told() -> None:
    old = WEB + 'group = "batch"\n[group.batch]\nmemory_max = "64M"\n'
    new = old.replace("64M", "32M") + '[[host.policy]]\nwhen = "host.meminfo MemAvailable < 1G"\naction = "log"\n'
    result = between(old, new)
    limit, rule = result.group_changes
    assert (limit.key, limit.before, limit.after) == ("group.batch.memory_max", '"64M"', '"32M"')
    assert (rule.key, rule.kind) == ("host.policy[0]", "added")
    assert all(change.is_live for change in result.group_changes)
    assert actions(result) == {"web": "none"}


def test_another_group_needs_a_new_process() -> None:
    old = WEB + 'group = "a"\n[group.a]\n[group.b]\n'
    assert actions(between(old, old.replace('group = "a"', 'group = "b"'))) == {"web": "restart"}


def test_the_service_cannot_become_another() -> None:
    old = f'[supervisor]\nname = "a"\n{WEB}'
    result = between(old, old.replace('"a"', '"b"', 1) + "")
    assert [change.key for change in result.refused_changes] == ["name"]


def test_limits_set_at_run_time_stay_unless_the_file_changes_them() -> None:
    old = Resources(memory_max=64 * M, pids_max=8)
    now = Resources(memory_max=32 * M, pids_max=4, cpu_weight=50, misc_max={"x": 1})
    new = Resources(memory_max=128 * M, pids_max=8, misc_max={"y": 2})
    assert merge_limits(old, new, now) == Resources(
        memory_max=128 * M, pids_max=4, cpu_weight=50, misc_max={"x": 1, "y": 2}
    )


def test_limits_set_at_run_time_go_when_they_do_not_fit_any_more() -> None:
    old = WEB + '[workload.web.resources]\nmemory_max = "64M"\n'
    before = config(old)
    (instance,) = runs(before)
    instance = attrs.evolve(instance, resources=attrs.evolve(instance.resources, memory_high=48 * M))
    new = config(old.replace("64M", "32M"))
    (step,) = make_plan(before, new, [instance]).steps
    assert step.resources == new.workloads["web"].resources
    assert "given up" in step.reason


# ---- any configurations

COMMANDS = st.sampled_from([("a",), ("b",)])


@st.composite
def configs(draw: st.DrawFn) -> Config:
    names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4))
    workloads = {}
    for number, name in enumerate(names):
        earlier = st.lists(st.sampled_from(names[:number]), unique=True) if number else st.just([])
        workloads[name] = WorkloadConfig(
            name=name,
            command=draw(COMMANDS),
            description=draw(st.sampled_from(["", "x"])),
            autostart=draw(st.booleans()),
            instances=draw(st.integers(1, 3)),
            requires=tuple(draw(earlier)),
            wants=tuple(draw(earlier)),
            environment=draw(st.dictionaries(st.just("V"), st.sampled_from("12"))),
            resources=Resources(pids_max=draw(st.sampled_from([None, 5, 9]))),
        )
    return Config("x", workloads=workloads)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Config, list[CurrentInstance]]:
    old = draw(configs())
    states = st.sampled_from(
        [
            {"state": State.RUNNING, "should_run": True, "was_started": True},
            {"state": State.READY, "should_run": True, "was_started": True},
            {"state": State.BACKOFF, "should_run": True, "was_started": True},
            {"state": State.FAILED, "should_run": True, "was_started": True},
            {"state": State.EXITED, "should_run": True, "was_started": True},
            {"state": State.STOPPING, "should_run": True, "was_started": True},
            {"state": State.STOPPED, "should_run": True, "is_waiting": True},
            {"state": State.STOPPED, "was_started": True},
            {"state": State.STOPPED},
        ]
    )
    return old, runs(old, **{name.replace("@", "_"): draw(states) for name in expand_instances(old)})


def applied(result: Plan, running: list[CurrentInstance]) -> list[CurrentInstance]:
    known = {instance.name: instance for instance in running}
    after = []
    for step in result.steps:
        if step.workload is None:
            continue
        assert step.resources is not None
        instance = known.get(step.name) or CurrentInstance(step.name, step.workload, step.resources)
        instance = attrs.evolve(instance, workload=step.workload, resources=step.resources)
        if step.action in (InstanceAction.START, InstanceAction.RESTART):
            instance = attrs.evolve(instance, state=State.RUNNING, should_run=True, was_started=True, is_waiting=False)
        after.append(instance)
    return after


@given(hosts())
def test_plan_of_the_same_is_all_none(host: tuple[Config, list[CurrentInstance]]) -> None:
    old, running = host
    assert {step.action for step in make_plan(old, old, running).steps} <= {InstanceAction.NONE}


@given(hosts(), configs())
def test_doing_the_plan_leads_to_the_file(host: tuple[Config, list[CurrentInstance]], new: Config) -> None:
    old, running = host
    after = applied(make_plan(old, new, running), running)
    assert {instance.name for instance in after} == set(expand_instances(new))
    for instance in after:
        workload = new.workloads[expand_instances(new)[instance.name][0]]
        assert instance.workload == workload
        assert instance.resources == workload.resources
    again = make_plan(new, new, after)
    assert {step.action for step in again.steps} <= {InstanceAction.NONE}


@given(hosts(), configs())
def test_nothing_that_does_not_differ_loses_its_process(
    host: tuple[Config, list[CurrentInstance]], new: Config
) -> None:
    old, running = host
    steps = {step.name: step for step in make_plan(old, new, running).steps}
    for instance in running:
        step = steps[instance.name]
        if step.action is InstanceAction.RESTART and not instance.is_waiting:
            assert any(not change.is_live for change in step.changes)
        if (
            step.workload is not None
            and not workload_differences(instance.workload, step.workload)
            and instance.should_run
        ):
            assert step.action is InstanceAction.NONE
        assert (step.action is InstanceAction.STOP) == (instance.name not in expand_instances(new))


@given(hosts(), configs())
def test_what_somebody_stopped_never_starts(host: tuple[Config, list[CurrentInstance]], new: Config) -> None:
    old, running = host
    steps = {step.name: step for step in make_plan(old, new, running).steps}
    for instance in running:
        if instance.was_started and not instance.should_run:
            assert steps[instance.name].action not in (InstanceAction.START, InstanceAction.RESTART)


@given(configs())
def test_from_nothing_is_what_the_service_starts_with(new: Config) -> None:
    started = {step.name for step in make_plan(None, new, []).steps if step.action is InstanceAction.START}
    wanted = [name for name, workload in new.workloads.items() if workload.autostart]
    for name in wanted:
        wanted += started_along(new.workloads[name])
    assert started == {name for name, (workload, _) in expand_instances(new).items() if workload in wanted}


DB = '[workload.db]\ncommand = ["db"]\nautostart = false\n'


@pytest.mark.fault("F11")
@pytest.mark.parametrize("key", ["requires", "wants"])
def test_a_new_requirement_of_a_running_workload_was_neither_started_nor_refused(key: str) -> None:
    result = between(WEB + DB, f'{WEB}{key} = ["db"]\n{DB}', db=NEVER_STARTED)
    assert actions(result) == {"web": "live", "db": "start"}
    assert result.steps[1].reason == "web needs it"
    same = f'{WEB}{key} = ["db"]\n{DB}'
    assert actions(between(same, same, db=NEVER_STARTED)) == {"web": "none", "db": "none"}, "only a new one"
    assert actions(between(WEB + DB, same, web=STOPPED, db=NEVER_STARTED)) == {"web": "live", "db": "none"}


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    ("state", "reason"),
    [(STOPPED, "is stopped, and stays so"), ({"state": State.FAILED}, "is failed")],
)
def test_the_plan_says_why_a_new_requirement_is_not_started(state: dict[str, Any], reason: str) -> None:
    result = between(WEB + DB, f'{WEB}requires = ["db"]\n{DB}', db=state)
    assert actions(result) == {"web": "live", "db": "none"}
    assert result.steps[1].reason == f"{reason}; web requires it now, and runs on without it: nsupervisor start db"
