"""The metric families: a table for the workloads, and a function for the service itself.

Pure, except that the values about this process and the keeper are read from /proc when they are collected. Times are in
seconds and sizes in bytes, as Prometheus recommends. A value that this host does not have yields no sample.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import attrs
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.samples import Sample

from nsupervisor import __version__
from nsupervisor.api.http.errors import ERROR_KINDS, TCP, UNIX
from nsupervisor.core.lifecycle import State
from nsupervisor.metrics.measures import Histogram
from nsupervisor.metrics.snapshot import GroupSnapshot, InstanceSnapshot, ServiceSnapshot, TimerSnapshot

STATES = tuple(state.value for state in State)
SECONDS_PER_US = 1e-6

Values = Iterable[tuple[Mapping[str, str], float]]
"""Pairs of labels, in addition to those that name the workload, and the value."""


@attrs.frozen
class Family:
    """A metric family of workloads.

    name: without the prefix "nsupervisor_workload_" and, for a counter, the suffix "_total". shared: groups have it,
    too, with the prefix "nsupervisor_group_".
    """

    name: str
    type: str
    help: str
    values: Callable[[Any], Values]
    shared: bool = False


class Collector:
    """A Prometheus collector for the metrics of a snapshot."""

    def __init__(
        self,
        instances: Sequence[InstanceSnapshot],
        service: ServiceSnapshot,
        groups: Sequence[GroupSnapshot] = (),
        timers: Sequence[TimerSnapshot] = (),
    ) -> None:
        self._instances = instances
        self._groups = groups
        self._service = service
        self._timers = timers

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        for family in FAMILIES:
            metric = Metric(f"nsupervisor_workload_{family.name}", family.help, family.type)
            # An iterator: each sample is created when it is written. A list has forty thousand objects for a thousand
            # workloads. It would trigger a full garbage collection, during which no task runs (60 ms or more).
            metric.samples = _samples("workload", family, self._instances)  # type: ignore[assignment]
            yield metric
        members = Family("members", "gauge", "Instances in it.", lambda group: [({}, group.members)])
        for family in (members, *(family for family in FAMILIES if family.shared)) if self._groups else ():
            metric = Metric(f"nsupervisor_group_{family.name}", f"Of a group: {family.help}", family.type)
            metric.samples = list(_samples("group", family, self._groups))
            yield metric
        if self._timers:
            yield from _timer_families(self._timers)
        yield from _service_families(self._service)


def _samples(kind: str, family: Family, instances: Iterable[InstanceSnapshot | GroupSnapshot]) -> Iterator[Sample]:
    name = f"nsupervisor_{kind}_{family.name}" + ("_total" if family.type == "counter" else "")
    for instance in instances:
        for labels, value in family.values(instance):
            yield Sample(name, {**instance.labels, **labels}, value)


def _timer_families(timers: Sequence[TimerSnapshot]) -> Iterator[Metric]:
    gauges: tuple[tuple[str, str, Callable[[TimerSnapshot], float | None]], ...] = (
        ("next_run_timestamp_seconds", "When it is due next.", lambda timer: timer.next_at),
        ("last_run_timestamp_seconds", "When it last began a run.", lambda timer: timer.last_run_at),
        ("last_success_timestamp_seconds", "When a run last ended with success.", lambda timer: timer.last_success_at),
        ("lag_seconds", "How late the last run began.", lambda timer: timer.lag),
    )
    for name, help_, value in gauges:
        metric = Metric(f"nsupervisor_timer_{name}", f"Of a timer: {help_}", "gauge")
        for timer in timers:
            if (number := value(timer)) is not None:
                metric.add_sample(metric.name, {"workload": timer.workload}, number)
        yield metric
    due = Metric("nsupervisor_timer_due", "Of a timer: How often it was due, by what became of it.", "counter")
    for timer in timers:
        for outcome, count in timer.outcomes.items():
            due.add_sample("nsupervisor_timer_due_total", {"workload": timer.workload, "outcome": outcome}, count)
    yield due


def _service_families(service: ServiceSnapshot) -> Iterator[Metric]:
    build = Metric("nsupervisor_build", "The supervisor's version, and that of its Python.", "info")
    build.add_sample("nsupervisor_build_info", {"version": __version__, "python": platform.python_version()}, 1)
    yield build
    yield _histogram(
        "event_loop_lag",
        "Duration of a tick of the event loop; events that arrive during it wait for the next.",
        {(): service.loop_lag},
    )
    yield _histogram(
        "rule_reaction",
        "Time from reading the cgroup file that made a rule fire until the rule's action began.",
        {(): service.reaction},
    )
    yield _histogram(
        "keeper_round_trip",
        "Time from a request to the keeper until its reply.",
        {(("request", request),): histogram for request, histogram in service.keeper_round_trip.items()},
    )
    dropped = Metric("nsupervisor_journal_dropped_records", "Journal records dropped for lack of room.", "counter")
    dropped.add_sample("nsupervisor_journal_dropped_records_total", {}, service.dropped)
    yield dropped
    connections = Metric(
        "nsupervisor_api_connection_errors", "Errors of connections to the API, by listener and kind.", "counter"
    )
    for listener in (UNIX, TCP):
        for kind in ERROR_KINDS:
            connections.add_sample(
                "nsupervisor_api_connection_errors_total",
                {"listener": listener, "kind": kind},
                service.connection_errors.get((listener, kind), 0),
            )
    yield connections
    failing = Metric("nsupervisor_journal_failing", "1 while the journal's output cannot be written.", "gauge")
    failing.add_sample("nsupervisor_journal_failing", {}, service.is_journal_failing)
    yield failing
    yield from ProcessCollector(registry=None).collect()
    yield from ProcessCollector("nsupervisor_keeper", pid=lambda: service.keeper_pid, registry=None).collect()


def _histogram(name: str, text: str, histograms: Mapping[tuple[tuple[str, str], ...], Histogram]) -> Metric:
    names = [label for labels in histograms for label, _ in labels][:1]
    family = HistogramMetricFamily(f"nsupervisor_{name}_seconds", text, labels=names)
    for labels, histogram in histograms.items():
        total, buckets = 0, []
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += count
            buckets.append((repr(bound) if isfinite(bound) else "+Inf", total))
        family.add_metric([value for _, value in labels], buckets, histogram.sum)
    return family


# ---------------------------------------------------------------------------------------------------------------------
# Workloads


def _state_values(instance: InstanceSnapshot) -> Values:
    return [({"state": state}, state == instance.state) for state in STATES]


def _file_value(file: str, key: str = "", scale: float = 1) -> Callable[[InstanceSnapshot], Values]:
    """Return a function that reads one key of a file; no value if the key is missing or "max"."""

    def values(instance: InstanceSnapshot) -> Values:
        value = instance.files.get(file, {}).get(key)
        return [] if value is None or not isfinite(value) else [({}, value * scale)]

    return values


def _labelled(
    label: str, counts: Callable[[InstanceSnapshot], Mapping[str, float]]
) -> Callable[[InstanceSnapshot], Values]:
    """Return a function that yields the values of a mapping, each with its key as the value of a label."""
    return lambda instance: [({label: key}, value) for key, value in counts(instance).items()]


def _action_values(instance: InstanceSnapshot) -> Values:
    return [({"rule": rule, "action": action}, n) for (rule, action), n in instance.actions.items()]


def _probe_values(instance: InstanceSnapshot) -> Values:
    results = {True: "success", False: "failure"}
    return [({"probe": probe, "result": results[success]}, n) for (probe, success), n in instance.probes.items()]


def _uptime_values(instance: InstanceSnapshot) -> Values:
    return [] if instance.uptime is None else [({}, instance.uptime)]


def _pressure_values(instance: InstanceSnapshot) -> Values:
    for resource in ("cpu", "memory", "io"):
        for key, value in instance.files.get(f"{resource}.pressure", {}).items():
            kind, _, field = key.partition(" ")
            if field == "total":
                yield {"resource": resource, "kind": kind}, value * SECONDS_PER_US


def _io_values(key: str) -> Callable[[InstanceSnapshot], Values]:
    """Return a function that reads one key of io.stat for each device ("8:0")."""

    def values(instance: InstanceSnapshot) -> Values:
        for name, value in instance.files.get("io.stat", {}).items():
            device, _, field = name.partition(" ")
            if field == key:
                yield {"device": device}, value

    return values


def _traffic_value(key: str) -> Callable[[InstanceSnapshot], Values]:
    """Return a function that yields one value of the network; none for the host's network."""

    def values(instance: InstanceSnapshot) -> Values:
        value = instance.traffic.get(key)
        return [] if value is None else [({}, value)]

    return values


FAMILIES = (
    Family("state", "gauge", "1 for the state that the workload is in, 0 for all others.", _state_values),
    Family("ready", "gauge", "1 while it is up: ready, if it reports that.", lambda i: [({}, i.is_ready)]),
    Family("generation", "gauge", "How many times it has been started.", lambda i: [({}, i.generation)]),
    Family("uptime_seconds", "gauge", "How long this generation has lived.", _uptime_values),
    Family(
        "restarts",
        "counter",
        "Starts that the supervisor decided on, by cause.",
        _labelled("cause", lambda i: i.restarts),
    ),
    Family("exits", "counter", "Exits of generations, by kind.", _labelled("kind", lambda i: i.exits)),
    Family("rule_actions", "counter", "How many times a rule of its policy has fired.", _action_values),
    Family("probes", "counter", "Results of its probes.", _probe_values),
    Family("probe_passes", "gauge", "1 while a probe passes.", _labelled("probe", lambda i: i.probe_verdicts)),
    Family(
        "probe_duration_seconds",
        "gauge",
        "How long the latest probe took.",
        _labelled("probe", lambda i: i.probe_seconds),
    ),
    Family(
        "hook_seconds",
        "gauge",
        "How long the latest command of a hook took.",
        _labelled("hook", lambda i: i.hook_seconds),
    ),
    Family(
        "hook_failures",
        "counter",
        "Commands of a hook that have failed.",
        _labelled("hook", lambda i: i.hook_failures),
    ),
    Family(
        "memory_current_bytes", "gauge", "Memory in use (memory.current).", _file_value("memory.current"), shared=True
    ),
    Family(
        "memory_max_bytes",
        "gauge",
        "Memory limit (memory.max); none: no limit.",
        _file_value("memory.max"),
        shared=True,
    ),
    Family(
        "memory_events",
        "counter",
        "What happened to its memory (memory.events): oom_kill, max, high and so on.",
        _labelled("event", lambda i: i.files.get("memory.events", {})),
        shared=True,
    ),
    Family(
        "cpu_usage_seconds",
        "counter",
        "Processor time used.",
        _file_value("cpu.stat", "usage_usec", SECONDS_PER_US),
        shared=True,
    ),
    Family(
        "cpu_periods", "counter", "Periods of cpu.max in which it wanted to run.", _file_value("cpu.stat", "nr_periods")
    ),
    Family(
        "cpu_throttled_periods", "counter", "Periods that cpu.max throttled.", _file_value("cpu.stat", "nr_throttled")
    ),
    Family(
        "cpu_throttled_seconds",
        "counter",
        "How long cpu.max throttled it, summed over CPUs.",
        _file_value("cpu.stat", "throttled_usec", SECONDS_PER_US),
    ),
    Family("pids_current", "gauge", "Processes and threads (pids.current).", _file_value("pids.current"), shared=True),
    Family("pids_max", "gauge", "Process limit (pids.max); none: no limit.", _file_value("pids.max"), shared=True),
    Family("io_read_bytes", "counter", "Bytes read, by device (io.stat).", _io_values("rbytes")),
    Family("io_written_bytes", "counter", "Bytes written, by device (io.stat).", _io_values("wbytes")),
    Family(
        "network_receive_bytes",
        "counter",
        "Bytes received over the devices of its own network.",
        _traffic_value("network_receive_bytes"),
    ),
    Family(
        "network_transmit_bytes",
        "counter",
        "Bytes sent over the devices of its own network.",
        _traffic_value("network_transmit_bytes"),
    ),
    Family(
        "network_receive_packets",
        "counter",
        "Packets received over the devices of its own network.",
        _traffic_value("network_receive_packets"),
    ),
    Family(
        "network_transmit_packets",
        "counter",
        "Packets sent over the devices of its own network.",
        _traffic_value("network_transmit_packets"),
    ),
    Family(
        "pressure_seconds",
        "counter",
        "How long some, or all (full), of its tasks waited for a resource (*.pressure, total).",
        _pressure_values,
        shared=True,
    ),
    Family(
        "output_bytes",
        "counter",
        "Bytes that it wrote to its standard output and error.",
        _labelled("stream", lambda i: {stream: volume[0] for stream, volume in i.output.items()}),
    ),
    Family(
        "output_lines",
        "counter",
        "Lines that it wrote to its standard output and error.",
        _labelled("stream", lambda i: {stream: volume[1] for stream, volume in i.output.items()}),
    ),
    Family(
        "output_dropped_lines",
        "counter",
        "Lines that were dropped instead of written.",
        _labelled("stream", lambda i: i.dropped_lines),
    ),
    Family(
        "output_rate_limited_bytes",
        "counter",
        "Bytes that log.rate_limit dropped.",
        _labelled("stream", lambda i: i.limited_bytes),
    ),
    Family(
        "output_blocked_seconds",
        "gauge",
        "For how long its output cannot be written already; 0 if it can.",
        _labelled("stream", lambda i: i.blocked_sec),
    ),
)
