"""The text of a scrape, made of readings as every kind of host has them, read by others' parsers."""

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from nsupervisor.metrics.counters import EXIT_KINDS, RESTART_CAUSES
from nsupervisor.metrics.exposition import _render
from nsupervisor.metrics.families import FAMILIES, STATES
from nsupervisor.metrics.measures import Histogram
from nsupervisor.metrics.snapshot import GroupSnapshot, InstanceSnapshot, ServiceSnapshot
from nsupervisor.service.platform.traffic import KEYS as TRAFFIC_KEYS
from nsupervisor.service.platform.traffic import NO_TRAFFIC

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WEB = InstanceSnapshot(
    labels={"workload": "web", "workload_instance": "2"},
    state="running",
    is_ready=True,
    generation=3,
    uptime=12.5,
    exits={**dict.fromkeys(EXIT_KINDS, 0), "oom": 2},
    restarts={**dict.fromkeys(RESTART_CAUSES, 0), "oom": 2},
    actions={("policy[0]", "restart"): 2},
    probes={("liveness", True): 5, ("liveness", False): 2},
    probe_verdicts={"liveness": True},
    probe_seconds={"liveness": 0.25},
    hook_seconds={"exec_start_pre": 1.5},
    hook_failures={"exec_start_pre": 0, "exec_stop": 3},
    output={"stdout": (100, 7), "stderr": (0, 0)},
    dropped_lines={"stdout": 0, "stderr": 5},
    limited_bytes={"stdout": 77, "stderr": 0},
    blocked_sec={"stdout": 0.0, "stderr": 12.5},
    traffic=dict(zip(TRAFFIC_KEYS, (1000, 200, 10, 2), strict=True)),
    files={
        "memory.current": {"": 4096},
        "memory.max": {"": math.inf},
        "memory.events": {"oom_kill": 2, "max": 9},
        "memory.pressure": {"some avg10": 1.5, "some total": 2_500_000, "full total": 1_000_000},
        "cpu.stat": {"usage_usec": 1_500_000, "nr_periods": 10, "nr_throttled": 4, "throttled_usec": 250_000},
        "pids.current": {"": 3},
        "pids.max": {"": 20},
        "io.stat": {"8:0 rbytes": 4096, "8:0 wbytes": 8192, "8:0 rios": 1, "254:1 rbytes": 1},
    },
)
BARE = attrs.evolve(
    WEB,
    labels={"workload": "bare"},
    state="stopped",
    is_ready=False,
    uptime=None,
    probes={},
    probe_verdicts={},
    probe_seconds={},
    hook_seconds={},
    hook_failures={},
    traffic=NO_TRAFFIC,
    files={},
)


def service(**changes):
    loop = Histogram((0.001, 1.0))
    loop.observe(0.5)
    values = {"loop_lag": loop, "reaction": Histogram((1.0,)), "keeper_round_trip": {"spawn": loop, "signal": loop}}
    return ServiceSnapshot(
        **{**values, "dropped": 4, "is_journal_failing": True, "keeper_pid": 1, "connection_errors": {}, **changes}
    )


def scrape(*instances, accept=OPENMETRICS, groups=(), **changes):
    """Samples by name and labels."""
    text, content_type = _render(instances, service(**changes), accept, groups)
    read = read_openmetrics if accept else read_text
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain; version=0.0.4")
    return {(s.name, frozenset(s.labels.items())): s.value for family in read(text.decode()) for s in family.samples}


def of(samples, name, **labels):
    return samples.get((f"nsupervisor_{name}", frozenset(labels.items())))


def test_groups_have_what_their_members_use_together():
    samples = scrape(WEB, groups=[GroupSnapshot({"group": "batch"}, 3, WEB.files)])
    assert of(samples, "group_members", group="batch") == 3
    assert of(samples, "group_memory_current_bytes", group="batch") == 4096
    assert of(samples, "group_memory_events_total", group="batch", event="oom_kill") == 2
    assert of(samples, "group_pressure_seconds_total", group="batch", resource="memory", kind="some") == 2.5
    assert of(samples, "group_pids_max", group="batch") == 20
    assert not [name for name, _ in scrape(WEB) if "_group_" in name]


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_numbers_are_in_seconds_and_bytes(accept):
    samples = scrape(WEB, accept=accept)
    web = WEB.labels
    for expected, name, labels in [
        (4096, "memory_current_bytes", {}),
        (2, "memory_events_total", {"event": "oom_kill"}),
        (1.5, "cpu_usage_seconds_total", {}),
        (10, "cpu_periods_total", {}),
        (4, "cpu_throttled_periods_total", {}),
        (0.25, "cpu_throttled_seconds_total", {}),
        (3, "pids_current", {}),
        (20, "pids_max", {}),
        (2.5, "pressure_seconds_total", {"resource": "memory", "kind": "some"}),
        (1, "pressure_seconds_total", {"resource": "memory", "kind": "full"}),
        (4096, "io_read_bytes_total", {"device": "8:0"}),
        (8192, "io_written_bytes_total", {"device": "8:0"}),
        (1000, "network_receive_bytes_total", {}),
        (200, "network_transmit_bytes_total", {}),
        (10, "network_receive_packets_total", {}),
        (2, "network_transmit_packets_total", {}),
        (1, "io_read_bytes_total", {"device": "254:1"}),
        (100, "output_bytes_total", {"stream": "stdout"}),
        (7, "output_lines_total", {"stream": "stdout"}),
        (5, "output_dropped_lines_total", {"stream": "stderr"}),
        (77, "output_rate_limited_bytes_total", {"stream": "stdout"}),
        (12.5, "output_blocked_seconds", {"stream": "stderr"}),
        (2, "restarts_total", {"cause": "oom"}),
        (0, "restarts_total", {"cause": "rule"}),
        (2, "exits_total", {"kind": "oom"}),
        (2, "probes_total", {"probe": "liveness", "result": "failure"}),
        (1.5, "hook_seconds", {"hook": "exec_start_pre"}),
        (0, "hook_failures_total", {"hook": "exec_start_pre"}),
        (3, "hook_failures_total", {"hook": "exec_stop"}),
        (1, "probe_passes", {"probe": "liveness"}),
        (0.25, "probe_duration_seconds", {"probe": "liveness"}),
        (2, "rule_actions_total", {"rule": "policy[0]", "action": "restart"}),
        (1, "ready", {}),
        (3, "generation", {}),
        (12.5, "uptime_seconds", {}),
    ]:
        assert of(samples, f"workload_{name}", **web, **labels) == expected, name


def test_what_has_no_limit_and_what_the_host_does_not_have_gives_no_sample():
    samples = scrape(WEB, BARE)
    assert of(samples, "workload_memory_max_bytes", **WEB.labels) is None
    bare = {name for name, labels in samples if ("workload", "bare") in labels}
    assert bare == {
        f"nsupervisor_workload_{name}"
        for name in ("state", "ready", "generation", "restarts_total", "exits_total", "rule_actions_total")
    } | {
        f"nsupervisor_workload_output_{name}"
        for name in ("bytes_total", "lines_total", "dropped_lines_total", "rate_limited_bytes_total")
    } | {"nsupervisor_workload_output_blocked_seconds"}


@pytest.mark.parametrize("state", STATES)
def test_exactly_one_state_is_1(state):
    samples = scrape(attrs.evolve(WEB, state=state))
    values = {one: of(samples, "workload_state", **WEB.labels, state=one) for one in STATES}
    assert values == {one: float(one == state) for one in STATES}


def test_the_services_own_numbers():
    samples = scrape()
    assert of(samples, "event_loop_lag_seconds_bucket", le="0.001") == 0
    assert of(samples, "event_loop_lag_seconds_bucket", le="+Inf") == of(samples, "event_loop_lag_seconds_count") == 1
    assert of(samples, "event_loop_lag_seconds_sum") == 0.5
    assert of(samples, "keeper_round_trip_seconds_count", request="signal") == 1
    assert of(samples, "journal_dropped_records_total") == 4
    assert of(samples, "journal_failing") == 1
    assert samples["process_resident_memory_bytes", frozenset()] > 1e6
    assert samples["process_open_fds", frozenset()] > 0


def test_a_keeper_that_has_gone_or_was_asked_nothing_does_no_harm():
    samples = scrape(keeper_pid=2**22 + 1, keeper_round_trip={})
    assert of(samples, "keeper_process_open_fds") is None
    assert of(samples, "keeper_round_trip_seconds_count") is None


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1))
def test_labels_may_be_any_text(text):
    samples = scrape(attrs.evolve(WEB, actions={(text, "log"): 1}))
    assert of(samples, "workload_rule_actions_total", **WEB.labels, rule=text, action="log") == 1


def test_names_keep_to_the_conventions():
    for family in FAMILIES:
        assert not family.name.endswith("_total"), "the format adds it"
        assert not family.help.startswith("nsupervisor")
        assert family.help.endswith(".")
        assert family.type in ("counter", "gauge")
