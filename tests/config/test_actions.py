"""Actions of rules in the file: set and its bounds, webhook, notify, and the steps of an escalation."""

import pytest

from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.units import RelativeChange

M = 1 << 20


def rule(action: str, resources: str = ""):
    """Load the only rule of a workload, with these further keys."""
    toml = f"""
    [workload.web]
    command = ["true"]
    resources = {{ {resources} }}
    [[workload.web.policy]]
    when = "pids.events max"
    action = {action}
    """
    return parse(toml, "site.toml").workloads["web"].policy[0]


def test_set_takes_values_and_changes_and_bounds():
    loaded = rule(
        '"set"\nset = { memory_high = "+25%", pids_max = "-2", cpu_max = "50%", memory_max = "+64M" }\n'
        'limit = { memory_high = "768M", memory_max = "max" }',
        'memory_high = "64M", memory_max = "128M", pids_max = 9',
    )
    assert loaded.set_ == {
        "memory_high": RelativeChange(25.0),
        "pids_max": RelativeChange(amount=-2),
        "cpu_max": (50_000, 100_000),
        "memory_max": RelativeChange(amount=64 * M),
    }
    assert loaded.limit == {"memory_high": 768 * M, "memory_max": None}
    assert [str(loaded.set_[key]) for key in ("memory_high", "pids_max")] == ["+25%", "-2"]


def test_then_is_one_step_or_several():
    loaded = rule('"log"\nat_most = 3\nwithin = "1h"\nthen = "stop"')
    several = rule('"log"\nat_most = 3\nwithin = "1h"\nthen = ["restart", "stop"]')
    assert (loaded.then, several.then) == (("stop",), ("restart", "stop"))


def test_a_set_with_a_bound_may_go_on_without_a_count():
    loaded = rule('"set"\nset = { pids_max = "+1" }\nlimit = { pids_max = 9 }\nthen = "restart"', "pids_max = 5")
    assert (loaded.at_most, loaded.then) == (None, ("restart",))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ('"set"', '"set" does not say which; add for example set = { memory_high = "+25%" }'),
        ('"log"\nset = { pids_max = 5 }', 'is for action = "set" alone'),
        ('"set"\nset = { memory_max = "+5%" }', "+5% of what? memory_max is not set"),
        ('"set"\nset = { nice = 5 }', "is not a key here"),
        ('"set"\nset = { pids_max = "+x" }', 'is not a change; write for example "+25%"'),
        ('"set"\nset = { pids_max = "25%" }', "is a share of the host, which a rule cannot set"),
        ('"set"\nset = { pids_max = 0 }', 'for no limit, or "+25%"'),
        ('"set"\nset = { pids_max = "-100%" }', "takes everything away"),
        ('"set"\nset = { cpu_max = "+5" }', "is not a change"),
        ('"set"\nset = { cpu_weight = "idle" }', "is no number"),
        ('"set"\nset = { pids_max = 5 }\nlimit = { pids_max = 9 }', "is set to one value, which needs no bound"),
        ('"set"\nset = { pids_max = 5 }\nlimit = { cpu_max = "9%" }', "is no bound of anything"),
        ('"webhook"', '"webhook" does not say which'),
        ('"webhook"\nwebhook = "ftp://x"', "is not a URL of http or https"),
        ('"webhook"\nwebhook = "http://"', "is not a URL of http or https"),
        ('"webhook"\nwebhook = "http://a@b"', "has more in it than a host, a port and a path"),
        ('"webhook"\nwebhook = "http://a:99999/"', "is not a URL"),
        ('"notify"\nnotify = "x"', "is not an absolute path"),
        (f'"notify"\nnotify = "/{"x" * 200}"', "is longer than the path of a socket can be"),
        ('"log"\nthen = []', "is no list of steps"),
        ('"log"\nat_most = 1\nwithin = 5\nthen = "stopp"', 'did you mean "stop"?'),
        ('"log"\nthen = "stop"', "goes together with at_most and within"),
    ],
)
def test_what_is_no_action(action: str, message: str):
    with pytest.raises(ConfigError) as caught:
        rule(action)
    assert message in str(caught.value)
    assert all("; " in str(problem) for problem in caught.value.problems), "each says what to write instead"
