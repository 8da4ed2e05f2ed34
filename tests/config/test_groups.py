"""Groups and the host's policy in the configuration."""

import pytest

from nsupervisor.config.changes import apply_changes, parse_changes
from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.model import Config, Resources

A = "[workload.a]\ncommand = ['a']\n"
RULE = """
[[group.batch.policy]]
when = "memory.current > 1M"
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "site.toml")
    return [str(problem) for problem in caught.value.problems]


def config() -> Config:
    return parse(
        """
        [group.outer]
        memory_max = "1G"
        [group.batch]
        group = "outer"
        description = "at night"
        pids_max = "50%"
        [[group.batch.policy]]
        when = "memory.pressure full avg10 > 40%"
        action = "kill"
        victim = "largest-memory"
        [[host.policy]]
        when = "host.meminfo MemAvailable < 5% and host.memory.pressure full avg10 > 20%"
        action = "stop"
        victim = "lowest-priority"
        cooldown = 0
        [workload.report]
        command = ["report"]
        group = "batch"
        priority = -5
        managed_oom_preference = "avoid"
        [workload.web]
        command = ["web"]
        """,
        "site.toml",
    )


def test_groups_are_read_with_their_limits_and_rules() -> None:
    parsed = config()
    report = parsed.workloads["report"]
    assert [group.name for group in parsed.enclosing_groups(report)] == ["outer", "batch"]
    assert parsed.enclosing_groups(parsed.workloads["web"]) == ()
    assert parsed.groups["outer"].resources == Resources(memory_max=1 << 30)
    (rule,) = parsed.groups["batch"].policy
    assert (rule.name, rule.line, rule.cooldown, rule.victim) == ("group.batch.policy[0]", 8, 15.0, "largest-memory")
    (rule,) = parsed.host.policy
    assert (rule.name, rule.cooldown, rule.verify_sec) == ("host.policy[0]", 0.0, 5.0)
    assert [(atom.file, atom.is_percent) for atom in rule.when.atoms] == [
        ("host.meminfo", True),
        ("host.memory.pressure", False),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (A + "group = 'bach'\n[group.batch]\n", '3: workload.a.group: there is no group "bach"; did you mean "batch"?'),
        (
            "[group.a]\ngroup = 'b'\n",
            '2: group.a.group: there is no group "b"; write [group.b] with its limits, or remove it',
        ),
        ("[group.a]\ngroup = 'a'\n", "2: group.a.group: closes a cycle of groups: a → a; remove one of these"),
        (
            "[group.a]\ngroup = 'b'\n[group.b]\ngroup = 'a'\n",
            "4: group.b.group: closes a cycle of groups: a → b → a; remove one of these",
        ),
        (
            f"[group.batch]\n{RULE}action = 'kill'\n",
            '5: group.batch.policy[0].action: "kill" does not choose a member; add',
        ),
        (
            f"[group.batch]\n{RULE}action = 'log'\nvictim = 'newest'\n",
            '6: group.batch.policy[0].victim: "log" is done to none of them;',
        ),
        (f"[group.batch]\n{RULE}action = 'thaw'\nvictim = 'newest'\n", "is not one of the choices"),
        (f"[group.batch]\n{RULE}action = 'kill'\nvictim = 'largest'\n", 'did you mean "largest-memory"?'),
        (
            f"[group.batch]\n{RULE}action = 'signal'\nvictim = 'newest'\n",
            '"signal" does not say which; add for example signal = "SIGHUP"',
        ),
        (
            "[group.batch]\nmemory_high = '2G'\nmemory_max = '1G'\n",
            "2: group.batch.memory_high: 2G is above memory_max (1G)",
        ),
        (
            "[group.batch]\n[[group.batch.policy]]\nwhen = 'memory.current > 50%'\naction = 'log'\n",
            "set memory_max under [group.batch], or compare with a size",
        ),
        (
            "[[host.policy]]\nwhen = 'memory.current > 50%'\naction = 'log'\n",
            "is in per cent of memory_max, which is not set; compare with a size",
        ),
        (
            "[[host.policy]]\nwhen = 'host.meminfo MemTotal < 5%'\naction = 'log'\n",
            'names an unknown value "MemTotal" of host.meminfo',
        ),
        ("[group.batch]\nresources = 1\n", "2: group.batch.resources: is not a key of [group.batch]"),
        ("[group.'a.b']\n", "is not a name"),
        (
            f"{A}[[workload.a.policy]]\nwhen = 'memory.current > 1M'\naction = 'kill'\nvictim = 'newest'\n",
            "6: workload.a.policy[0].victim: is not a key of",
        ),
        (A + "managed_oom_preference = 'avoided'\n", 'did you mean "avoid"?'),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(text: str, message: str) -> None:
    assert any(message in problem for problem in problems(text)), problems(text)


def test_a_groups_limits_change_at_run_time_by_the_same_checks() -> None:
    batch = config().groups["batch"]
    assert apply_changes(batch, batch.resources, parse_changes({"memory_max": "64M"})).memory_max == 64 << 20
    with pytest.raises(ConfigError, match="memory_high: 2G is above memory_max"):
        apply_changes(batch, batch.resources, parse_changes({"memory_high": "2G", "memory_max": "1G"}))
