"""The table of the API's routes and objects. Both the application and its OpenAPI description are built from it.

Standard library only, as the command line prints the description, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nsupervisor import __version__
from nsupervisor.api.http.limits import BODY_LIMIT, LARGE_BODY_LIMIT

VERBS: Mapping[str, str] = {
    "start": "start it, after all that it requires or wants",
    "stop": "stop it, after all that require it, and wait until none of its processes is left",
    "restart": "stop it and start it again",
    "kill": "send SIGKILL to all its processes; its restart policy then decides",
    "signal": "send its program a signal",
    "reload": "have its program read its own configuration again, and wait until it has if it reports that",
    "freeze": "suspend its processes (cgroup.freeze)",
    "thaw": "let its processes continue",
    "set": "change its (or a group's) limits, until the supervisor ends (persist: for good); all of them, or none",
}
"""The commands on a workload, each with its meaning."""

STATES = ("stopped", "starting", "running", "ready", "stopping", "backoff", "exited", "failed", "frozen")


class Route(NamedTuple):
    """One operation of the API.

    name: the name of its handler. answers: the component schema by status code; a 1-tuple is a list of that schema, a
    media type is text of that type. body_limit: bytes; GET has no body. Every operation may also have the responses in
    `COMMON_RESPONSES`.
    """

    name: str
    method: str
    path: str
    summary: str
    query: Mapping[str, str] = {}
    body: str | None = None
    responses: Mapping[int, tuple[str] | str] = {}
    body_limit: int = BODY_LIMIT


ROUTES = (
    Route("info", "GET", "/v1/info", "About the supervisor itself.", responses={200: "Info"}),
    Route(
        "status",
        "GET",
        "/v1/status",
        "The workloads' instances, in the configuration's order.",
        query={"name": "A name or glob: only these. May be given several times."},
        responses={200: ("Status",), 404: "Error"},
    ),
    Route(
        "groups",
        "GET",
        "/v1/groups",
        "The groups of workloads, each after the groups that enclose it.",
        query={"name": "A name (group/batch) or glob: only these. May be given several times."},
        responses={200: ("Group",), 404: "Error"},
    ),
    Route(
        "timers",
        "GET",
        "/v1/timers",
        "The timers of workloads, in the configuration's order.",
        query={"name": "A name or glob: only those of these workloads. May be given several times."},
        responses={200: ("Timer",), 404: "Error"},
    ),
    Route(
        "events",
        "GET",
        "/v1/events",
        "The service's own stored records, oldest first: one object per line, as in `nsupervisor schema log`.",
        query={
            "name": "A name or glob: only records about these. May be given several times.",
            "event": 'Only records with this "event". May be given several times.',
            "follow": "1: continue with new records as they come, until the service ends. A reader that is too slow "
            'gets a record "dropped" in place of the records that it missed.',
            "mark": '1: with the line {"event":"new"} after the stored records, before new ones.',
        },
        responses={200: "application/jsonl", 400: "Error", 404: "Error"},
    ),
    Route(
        "logs",
        "GET",
        "/v1/logs",
        "The latest output of instances without a log file, one instance after the other, oldest first: one object per "
        "line, as in `nsupervisor schema log`.",
        query={
            "name": "A name or glob: only these. May be given several times.",
            "lines": "At most this number of lines of each instance up to now. Default: all that are kept (log.tail).",
            "follow": '1: then the line {"event":"new"}, and new output as it comes, until the service ends. A reader '
            'that is too slow gets a record "dropped" in place of the lines that it missed.',
        },
        responses={200: "application/jsonl", 400: "Error", 404: "Error"},
    ),
    Route(
        "trace",
        "GET",
        "/v1/trace",
        "A trace of instances from now on, as it comes: one object per line (docs/internals.md), for "
        "`nsupervisor simulate`.",
        query={
            "name": "A name or glob: only these. May be given several times.",
            "interval": "Seconds between two samples of all files that rules can refer to; 0: only what the present "
            "rules read. Default 0.25.",
            "seconds": "End after this time. Default: when the service ends, or the client disconnects.",
            "bytes": "End after about this many bytes. Default: no limit.",
        },
        responses={200: "application/jsonl", 400: "Error", 404: "Error"},
    ),
    Route(
        "history",
        "GET",
        "/v1/history/{name}",
        "Instances, each with the stored records about it.",
        responses={200: ("History",), 404: "Error"},
    ),
    Route(
        "stats",
        "GET",
        "/v1/stats",
        "What the instances have used so far: counters; the difference of two responses gives rates.",
        query={"name": "A name or glob: only these. May be given several times."},
        responses={200: ("Stats",), 404: "Error"},
    ),
    Route(
        "command",
        "POST",
        "/v1/workloads/{verb}",
        "Execute a command on all named instances at once, and answer when it is done.",
        body="Command",
        responses={200: ("Result",), 400: "Error", 404: "Error"},
    ),
    Route(
        "exec",
        "POST",
        "/v1/exec/{name}",
        "Execute a command in one running instance: in its namespaces and its cgroup, confined as its program. The "
        "request has the fields `Connection: upgrade` and `Upgrade: nsupervisor-exec`. Then the connection carries "
        "frames: a byte for the kind, four bytes for the length (big-endian), the content. From the client: 0 standard "
        "input, empty at its end; 3 the size of the terminal, rows and columns in two bytes each; 4 a signal, its "
        "number in a byte. From the service: 1 standard output; 2 standard error; 5 the last frame, a JSON object with "
        "`code`, `signal` (null or a name) and `failure` (why it was not executed, or is lost). The command ends with "
        "the connection.",
        body="Exec",
        responses={101: "application/octet-stream", 400: "Error", 404: "Error", 409: "Error", 426: "Error"},
    ),
    Route(
        "plan",
        "POST",
        "/v1/plan",
        "What a reload of a configuration file would do to each instance; nothing changes.",
        body="Source",
        responses={200: "Plan", 400: "Problems"},
        body_limit=LARGE_BODY_LIMIT,
    ),
    Route(
        "reload",
        "POST",
        "/v1/reload",
        "Load another configuration file, or the one in force again. A file with any problem changes nothing. One "
        'object per line: {"event": "plan", …} with the object Plan in it, a {"event": "done", "name", "do", "ok", '
        '"state", "message"} for each instance that started, restarted or stopped, and {"event": "end", "ok"}. A '
        "reload that has begun completes even if the client disconnects.",
        body="Source",
        responses={200: "application/jsonl", 400: "Problems"},
        body_limit=LARGE_BODY_LIMIT,
    ),
    Route(
        "scale",
        "POST",
        "/v1/scale",
        "Run other numbers of instances, until the configuration has other ones. The answer is that of a reload.",
        body="Scale",
        responses={200: "application/jsonl", 400: "Problems"},
    ),
    Route(
        "upgrade",
        "POST",
        "/v1/upgrade",
        "Upgrade to another version, in place. The answer comes just before the service executes the new version, or "
        "when the upgrade has failed.",
        body="Upgrade",
        responses={200: "Upgraded", 400: "Error"},
    ),
    Route(
        "metrics",
        "GET",
        "/metrics",
        "The metrics, in Prometheus' text format, or in OpenMetrics if the Accept header prefers that.",
        responses={200: "text/plain"},
    ),
)


def _object_schema(
    description: str, /, optional: tuple[str, ...] = (), closed: bool = False, **properties: Any
) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        **({"additionalProperties": False} if closed else {}),
    }


def _value_schema(type_: str, description: str, **more: Any) -> dict[str, Any]:
    """Return the schema of a value. `type_` is "integer", or "integer?" for one that may be null."""
    return {"type": [type_[:-1], "null"] if type_.endswith("?") else type_, "description": description, **more}


SCHEMAS: dict[str, dict[str, Any]] = {
    "Info": _object_schema(
        "The supervisor. More keys may come. For a workload with may_control, some are null.",
        version=_value_schema("string", "The supervisor's version."),
        pid=_value_schema("integer?", "Its process."),
        keeper_pid=_value_schema("integer?", "The process that is the parent of all workloads."),
        name=_value_schema("string", "supervisor.name of the configuration."),
        config=_value_schema("string?", "Path of the configuration."),
        runtime_directory=_value_schema("string?", "The directory of the sockets."),
        started_at=_value_schema("number", "Seconds since 1970-01-01 UTC."),
        uptime_sec=_value_schema("number", "Seconds since it started.", minimum=0),
        cgroup=_value_schema("string?", "The cgroup (version 2) that holds the workloads'."),
        mode=_value_schema(
            "string",
            "The host's cgroup hierarchies; none: workloads are process trees.",
            enum=["unified", "hybrid", "none"],
        ),
        missing=_value_schema("object", "The features of isolation that are not used, by name: why, in words."),
    ),
    "Status": _object_schema(
        "One instance of a workload. What is not known, or does not apply, is null. More keys may come.",
        name=_value_schema("string", '"web", or "web@2" if a workload has several instances.'),
        instance={
            "description": '2 for web@2, "eu" for web@eu; null for a single instance without a number.',
            "type": ["integer", "string", "null"],
        },
        description=_value_schema("string", "Its description, for people; or empty."),
        command=_value_schema(
            "array", "The program and its arguments, as in the configuration in force.", items={"type": "string"}
        ),
        root=_value_schema("string", "The path of its root file system; empty: it has that of the host."),
        state=_value_schema("string", "The state of its lifecycle.", enum=list(STATES)),
        phase=_value_schema("string", 'What is done with it in this state, "reloading" for example; or empty.'),
        reason=_value_schema("string", "Why it is in this state, in words."),
        pid=_value_schema("integer?", "The program's process, as the host numbers it."),
        generation=_value_schema("integer", "How many times it has been started.", minimum=0),
        restarts=_value_schema("integer", "How many of these starts the restart policy or a rule made.", minimum=0),
        uptime_sec=_value_schema("number?", "Seconds since this generation started.", minimum=0),
        next_start_sec=_value_schema(
            "number?", "Seconds until the next start; null: it is not in back-off.", minimum=0
        ),
        ready=_value_schema(
            "boolean", "Whether those that require it may start: it runs, is ready, or is a oneshot that succeeded."
        ),
        edges=_value_schema(
            "array",
            "Its relations to other workloads: the key, the name, and the condition of a start.",
            items={
                "type": "object",
                "properties": {"key": {"type": "string"}, "name": {"type": "string"}, "condition": {"type": "string"}},
            },
        ),
        status_text=_value_schema("string", "What the program has last reported with STATUS=, sd_notify(3); or empty."),
        error_text=_value_schema(
            "string", "The error that the program has last reported with ERRNO= or BUSERROR=, sd_notify(3); or empty."
        ),
        probes={
            "description": "What is known, by probe (startup, readiness, liveness); without those that have not run.",
            "type": "object",
            "additionalProperties": _object_schema(
                "One probe of the present generation.",
                passes=_value_schema("boolean?", "Its verdict; null: it is still open."),
                in_a_row=_value_schema("integer", "How many results in a row were like the latest.", minimum=0),
                success=_value_schema("boolean?", "The latest result; null: it is unknown."),
                detail=_value_schema("string", "What it found, in words."),
                took_sec=_value_schema("number", "Seconds that it took.", minimum=0),
            ),
        },
        sockets=_value_schema(
            "array",
            "The sockets that the service listens on for it.",
            items=_object_schema(
                "One socket.",
                type=_value_schema("string", "stream, datagram or sequential_packet."),
                address=_value_schema("string", "The address, as in the configuration."),
                is_open=_value_schema("boolean", "Whether the service listens on it."),
                is_watched=_value_schema("boolean", "Whether the next connection, or datagram, starts the workload."),
                problem=_value_schema("string", "Why not, in words; or empty."),
            ),
        ),
        stored_descriptors=_value_schema(
            "array",
            "The names of the descriptors that its program has stored, in the order of the next LISTEN_FDNAMES.",
            items={"type": "string"},
        ),
        stored_descriptors_max=_value_schema("integer", "How many it may store; 0: none.", minimum=0),
        output_blocked_sec=_value_schema(
            "number?", "Seconds for which its output cannot be written already; null: it can.", minimum=0
        ),
        output_blocked_by=_value_schema("string", "Why, in words; or empty."),
        cgroup=_value_schema("string?", "Its cgroup (version 2); null without cgroups."),
        memory_current=_value_schema("integer?", "Bytes."),
        memory_max=_value_schema("integer?", "Bytes; null: no limit."),
        pids_current=_value_schema("integer?", "Processes and threads."),
        pids_max=_value_schema("integer?", "null: no limit."),
        cpu_usage_usec=_value_schema("integer?", "Processor time so far, microseconds."),
        network_receive_bytes=_value_schema(
            "integer?", "Bytes over the devices of its own network namespace; null: it uses the host's, or is down."
        ),
        network_transmit_bytes=_value_schema("integer?", "As network_receive_bytes."),
        network_receive_packets=_value_schema("integer?", "Packets; as network_receive_bytes."),
        network_transmit_packets=_value_schema("integer?", "As network_receive_packets."),
        last_exit={
            "description": "How the last generation ended.",
            "anyOf": [
                {"type": "null"},
                _object_schema(
                    "Exactly one of code, signal, failure and unknown is set.",
                    optional=("core_dumped", "failure", "skipped", "unknown"),
                    code=_value_schema("integer?", "Exit status, 0-255."),
                    signal=_value_schema("string?", 'The signal that ended it, "SIGKILL".'),
                    oom_killed=_value_schema("boolean", "The kernel's OOM killer ended it."),
                    core_dumped=_value_schema("boolean", "It left a core dump."),
                    failure=_value_schema("string", "Why it could not be started."),
                    unknown=_value_schema(
                        "boolean", "The exit status is unknown: it was not supervised when it ended."
                    ),
                ),
            ],
        },
        last_event=_value_schema("object?", "The last record about it: timestamp, event, and the event's fields."),
    ),
    "Stats": _object_schema(
        "The limits and the usage of one instance. null: this host does not count it.",
        at=_value_schema("number", "When the counters were read: seconds of a monotonic clock."),
        name=_value_schema("string", '"web", or "web@2".'),
        state=_value_schema("string", "The state of its lifecycle.", enum=list(STATES)),
        generation=_value_schema("integer", "How many times it has been started.", minimum=0),
        memory_current=_value_schema("integer?", "Bytes."),
        memory_max=_value_schema("integer?", "Bytes; null: no limit."),
        pids_current=_value_schema("integer?", "Processes and threads."),
        pids_max=_value_schema("integer?", "null: no limit."),
        cpu_usage_usec=_value_schema("integer?", "Processor time so far, microseconds."),
        cpu_max_percent=_value_schema("number?", "Limit, per cent of one processor; null: no limit."),
        periods=_value_schema("integer?", "Periods of its limit of processor time in which it wanted to run."),
        throttled_periods=_value_schema("integer?", "Those in which the limit stopped it."),
        throttled_usec=_value_schema(
            "integer?", "How long the limit stopped it, summed over all processors, microseconds."
        ),
        io_read_bytes=_value_schema("integer?", "From block devices."),
        io_write_bytes=_value_schema("integer?", "To block devices."),
        network_receive_bytes=_value_schema(
            "integer?", "Bytes over the devices of its own network namespace; null: it uses the host's, or is down."
        ),
        network_transmit_bytes=_value_schema("integer?", "As network_receive_bytes."),
        network_receive_packets=_value_schema("integer?", "Packets; as network_receive_bytes."),
        network_transmit_packets=_value_schema("integer?", "As network_receive_packets."),
        cpu_stalled_usec=_value_schema("integer?", "Time in which a task of it waited for a processor, microseconds."),
        memory_stalled_usec=_value_schema("integer?", "Time in which a task of it waited for memory, microseconds."),
        io_stalled_usec=_value_schema(
            "integer?", "Time in which a task of it waited for input or output, microseconds."
        ),
    ),
    "Command": _object_schema(
        "The instances or groups of a command, and its parameters.",
        optional=("signal", "resources", "persist"),
        closed=True,
        names=_value_schema("array", "Names and globs.", items={"type": "string", "minLength": 1}, minItems=1),
        signal={
            "description": 'For the verb "signal" only: "SIGHUP", "HUP", "SIGRTMIN+3" or a number. Default SIGTERM.',
            "type": ["string", "integer"],
        },
        resources={
            "description": 'For the verb "set" only, and needed there: keys of resources, and values as in the '
            'configuration: {"memory_max": "1G", "pids_max": 64}. "max" is no limit.',
            "type": "object",
            "minProperties": 1,
        },
        persist={
            "description": 'For the verb "set" only: also write it into the configuration file, for all instances.',
            "type": "boolean",
        },
    ),
    "Exec": _object_schema(
        "A command to execute in an instance.",
        optional=("input", "terminal", "user", "environment", "directory", "debug"),
        closed=True,
        argv=_value_schema("array", "The command and its arguments.", items={"type": "string"}, minItems=1),
        input=_value_schema("boolean", "Whether the client sends standard input; otherwise it is empty."),
        terminal=_value_schema(
            "array?",
            "Run it on a terminal with these rows and columns.",
            items={"type": "integer", "minimum": 0, "maximum": 65535},
            minItems=2,
            maxItems=2,
        ),
        user=_value_schema("string?", "Another user, as the key `user` of the configuration names it."),
        environment=_value_schema("object", "Further variables.", additionalProperties={"type": "string"}),
        directory=_value_schema("string?", "Another working directory: an absolute path."),
        debug=_value_schema("boolean", "In the sandbox of an instance that does not run, in place of its program."),
    ),
    "Group": _object_schema(
        "A group of workloads. What is not known, or does not apply, is null. More keys may come.",
        name=_value_schema("string", '"group/batch".'),
        text=_value_schema("string", "Its description, for people."),
        group=_value_schema("string?", "The group that contains it."),
        members=_value_schema(
            "array", "The instances in it, and in the groups that it contains.", items={"type": "string"}
        ),
        cgroup=_value_schema("string?", "Its cgroup (version 2); null without cgroups."),
        memory_current=_value_schema("integer?", "Bytes, of all members."),
        memory_max=_value_schema("integer?", "Bytes; null: no limit."),
        pids_current=_value_schema("integer?", "Processes and threads."),
        pids_max=_value_schema("integer?", "null: no limit."),
        cpu_usage_usec=_value_schema("integer?", "Processor time so far, microseconds."),
        memory_pressure_avg10=_value_schema(
            "number?", "Per cent of the last 10 s in which all of them waited for memory."
        ),
    ),
    "Timer": _object_schema(
        "The timer of a workload. Times are seconds since 1970-01-01 UTC. More keys may come.",
        name=_value_schema("string", "The workload."),
        action=_value_schema("string", "What it does.", enum=["start", "restart"]),
        times=_value_schema("array", "Its times, as in the configuration.", items={"type": "string"}),
        armed=_value_schema("boolean", "Whether it runs; a stop of the workload disarms it, a start arms it."),
        suspended=_value_schema("boolean", "Whether the configuration suspends it: each run is skipped."),
        next_at=_value_schema("number?", "When it is due next; null: it is not."),
        left_sec=_value_schema("number?", "Seconds until then.", minimum=0),
        last_at=_value_schema("number?", "When it last began a run; null: not since the service began."),
        passed_sec=_value_schema("number?", "Seconds since then.", minimum=0),
        last_success_at=_value_schema("number?", "When a run last ended successfully."),
        running=_value_schema("boolean", "Whether an instance of the workload runs, or waits to start."),
        last_exit=_value_schema("string", "How the last run ended, in words; or empty."),
        latest=_value_schema("string", "Why it ran or was skipped when it was last due; or why it is not armed."),
        runs=_value_schema("integer", "How many runs it has begun.", minimum=0),
        skipped=_value_schema("integer", "How many it has skipped.", minimum=0),
        missed=_value_schema("integer", "How often it noticed too late that it was due.", minimum=0),
    ),
    "Upgrade": _object_schema(
        "The other version.",
        closed=True,
        python=_value_schema("string", "The Python that runs it: a path."),
        package=_value_schema("string", "The folder that contains the package nsupervisor."),
        timeout=_value_schema("number", "Seconds for it to start.", exclusiveMinimum=0),
    ),
    "Upgraded": _object_schema(
        "The result of an upgrade.",
        ok=_value_schema("boolean", "The other version has passed its trial, and the keeper executes it."),
        message=_value_schema("string", "The other version, or why the upgrade failed."),
    ),
    "Result": _object_schema(
        "The result of a command on one instance or group.",
        name=_value_schema("string", "The instance, or the group whose limits were set."),
        ok=_value_schema("boolean", "Whether it was done."),
        state=_value_schema("string?", "The state afterwards; null for a group.", enum=[*STATES, None]),
        message=_value_schema("string", "Why it was not done, or more about it; may be empty."),
    ),
    "Scale": _object_schema(
        "Numbers of instances.",
        closed=True,
        instances={
            "description": 'By workload: how many to run, {"web": 6}.',
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 10_000},
            "minProperties": 1,
        },
    ),
    "Source": _object_schema(
        "A configuration file.",
        optional=("path", "text", "files"),
        closed=True,
        path=_value_schema(
            "string", "Its absolute path; the service reads it if there is no text. Default: that in force."
        ),
        text=_value_schema("string", "Its contents."),
        files=_value_schema(
            "array",
            "The files that the text includes, in the order of their includes. Default: the service reads them.",
            items=_object_schema(
                "An included file.",
                closed=True,
                include=_value_schema(
                    "string", "The element of `include` that names it, behind the directory of the file that has it."
                ),
                path=_value_schema("string", "Its absolute path."),
                text=_value_schema("string", "Its contents."),
            ),
        ),
    ),
    "Plan": _object_schema(
        "What a reload does.",
        config=_value_schema("string", "Path of the configuration."),
        service=_value_schema(
            "array",
            "What differs in [supervisor]; a key that is not live takes effect when the service starts again.",
            items={"$ref": "#/components/schemas/Change"},
        ),
        groups=_value_schema(
            "array",
            "What differs in groups and in [host]; all of it is live.",
            items={"$ref": "#/components/schemas/Change"},
        ),
        steps=_value_schema(
            "array",
            "All instances: those of the file in its order, then those that are removed.",
            items=_object_schema(
                "One instance.",
                name=_value_schema("string", '"web", or "web@2".'),
                do=_value_schema("string", "What is done to it.", enum=["none", "live", "restart", "start", "stop"]),
                why=_value_schema("string", "The reason; may be empty."),
                changes=_value_schema("array", "What differs.", items={"$ref": "#/components/schemas/Change"}),
                next_start=_value_schema(
                    "array",
                    "What its next start does differently, as an earlier version started what runs.",
                    items={"type": "string"},
                ),
            ),
        ),
    ),
    "Change": _object_schema(
        "A key that differs.",
        key=_value_schema("string", '"resources.memory_max".'),
        how=_value_schema(
            "string", "The kind of change.", enum=["added", "removed", "changed", "reordered", "contents"]
        ),
        before=_value_schema("string?", "The value in the file in force, shortened; null: never shown (environment)."),
        after=_value_schema("string?", "The value in the new file."),
        live=_value_schema("boolean", "Whether it applies to the running process; otherwise it needs a new process."),
    ),
    "Problems": _object_schema(
        "An error in the request or the file; nothing was done.",
        optional=("problems",),
        error=_value_schema("string", "What is wrong, and what to do instead; one line for each problem."),
        problems=_value_schema(
            "array",
            "The problems of a file.",
            items=_object_schema(
                "One problem.",
                line=_value_schema("integer?", "The line of the file."),
                key=_value_schema("string", "The key's path; may be empty."),
                message=_value_schema("string", "What is wrong, and what to write instead."),
                text=_value_schema("string", "The whole message, with the file's name."),
            ),
        ),
    ),
    "Error": _object_schema(
        "An error; nothing was done.", error=_value_schema("string", "What is wrong, and what to do instead.")
    ),
}


def _history_schema() -> dict[str, Any]:
    """Return the schema of a History: the properties of a Status, and more."""
    status = SCHEMAS["Status"]
    own = _object_schema(
        "An object `Status`, and the records that explain it.",
        optional=("timer", "paths"),
        config=_value_schema("string", "Path of the configuration."),
        restart=_value_schema("string", "The workload's restart setting."),
        since=_value_schema("number", "When the supervisor started: seconds since 1970-01-01 UTC."),
        timer={
            "description": "The timer of the workload; null: it has none.",
            "anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/Timer"}],
        },
        paths=_value_schema(
            "array",
            "The files and directories that start it, or have it restarted or reloaded.",
            items=_object_schema(
                "One path.",
                condition=_value_schema("string", "The key: path_exists, path_changed, …"),
                path=_value_schema("string", "The path, or the pattern, as in the configuration."),
                action=_value_schema("string", "start, restart or reload."),
                is_watched=_value_schema("boolean", "Whether it is watched."),
                is_pending=_value_schema("boolean", "Whether it is to act as soon as it can."),
                is_suspended=_value_schema("boolean", "Whether it has acted too often, and waits for a start."),
                problem=_value_schema("string", "Why it does not act, in words; or empty."),
            ),
        ),
        log=_object_schema(
            "The files on the supervisor's host that contain its output.",
            file=_value_schema("string?", "Its own log file, that of stdout if it has two; null: it has none."),
            files=_value_schema(
                "object", "Its own log files by stream: stdout, stderr.", additionalProperties={"type": "string"}
            ),
            format=_value_schema("string", "The format of these files: json (records), or raw."),
            streams=_value_schema("array", "The streams in them: stdout, stderr.", items={"type": "string"}),
            tail=_value_schema(
                "boolean", "Whether the service keeps the latest output that is in neither file, for /v1/logs."
            ),
            stream=_value_schema(
                "string?", "The file of the supervisor's own stream; null: it is not a file of records."
            ),
        ),
        forgotten=_value_schema("integer", "How many older records have been discarded.", minimum=0),
        records=_value_schema(
            "array", "Oldest first; `nsupervisor schema log` describes them.", items={"type": "object"}
        ),
    )
    properties = status["properties"] | own["properties"]
    return {**own, "properties": properties, "required": [*status["required"], *own["required"]]}


SCHEMAS["History"] = _history_schema()


def openapi() -> dict[str, Any]:
    """Return the API as an OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nsupervisor",
            "version": __version__,
            "description": "HTTP on the Unix socket <runtime_directory>/api.sock. "
            "A process that may open the socket may do everything.",
        },
        "servers": [{"url": "http://localhost", "description": "The host name means nothing on a Unix socket."}],
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "query",
            "description": text,
            "schema": {"type": "array", "items": {"type": "string"}},
        }
        for name, text in route.query.items()
    ]
    if "{verb}" in route.path:
        meaning = "; ".join(f"{verb}: {text}" for verb, text in VERBS.items())
        schema = {"type": "string", "enum": list(VERBS)}
        parameters.append({"name": "verb", "in": "path", "required": True, "description": meaning, "schema": schema})
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    if parameters:
        operation["parameters"] = parameters
    if "{name}" in route.path:
        schema = {"type": "string"}
        parameters.append(
            {"name": "name", "in": "path", "required": True, "description": "A name or glob.", "schema": schema}
        )
    if route.body:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    operation["responses"] = {
        str(status): {"description": _STATUS_DESCRIPTIONS[status], "content": _content(answer)}
        for status, answer in sorted({**COMMON_RESPONSES, **route.responses}.items())
    }
    return operation


COMMON_RESPONSES: Mapping[int, str] = dict.fromkeys((400, 403, 405, 408, 413, 421, 431, 500, 501, 503, 505), "Error")
"""The responses that any request may have, in addition to those of its route."""
_STATUS_DESCRIPTIONS = {
    101: "The connection carries frames from now on.",
    200: "Done.",
    400: "The request is wrong.",
    403: "The client may not do this, or may not connect.",
    404: "There is no such name, or no such verb.",
    405: "The path has other methods, which the field Allow names.",
    408: "The request was not complete in time.",
    409: "The state of the instance does not allow this.",
    413: "The body is larger than allowed.",
    421: "On TCP: the field Host names another host.",
    426: "The request does not ask to switch the protocol.",
    431: "The head is larger than allowed.",
    500: "The supervisor failed; its log says where.",
    501: "The body has a transfer coding other than chunked.",
    503: "There are too many connections, traces or commands, or too much is being sent or received.",
    505: "This is not HTTP/1.1 or HTTP/1.0.",
}


def _content(schema_name: tuple[str] | str) -> dict[str, Any]:
    if "/" in schema_name:
        return {str(schema_name): {"schema": {"type": "string"}}}
    if isinstance(schema_name, tuple):
        schema: dict[str, Any] = {"type": "array", "items": {"$ref": f"#/components/schemas/{schema_name[0]}"}}
    else:
        schema = {"$ref": f"#/components/schemas/{schema_name}"}
    return {"application/json": {"schema": schema}}
