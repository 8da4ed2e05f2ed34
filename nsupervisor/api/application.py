"""The API as an application of `nsupervisor.api.http`: requests in, calls of `Control`, JSON out."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any

import trio

from nsupervisor.api.control import Control, ExecRefused, ExecTerms, UnknownName, is_glob
from nsupervisor.api.exec_frames import PROTOCOL
from nsupervisor.api.http.messages import HTTPError, Request, Response, Stream, Switch, json_response
from nsupervisor.api.http.routing import Endpoint, Handler, Router
from nsupervisor.api.permissions import Restricted, refused_operation
from nsupervisor.api.routes import ROUTES, VERBS
from nsupervisor.config.changes import parse_changes
from nsupervisor.config.files import IncludedFile
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.units import parse_signal
from nsupervisor.linux.peers import Peer

MIN_TRACE_INTERVAL_S = 0.01
"""The minimum of seconds between two samples of a trace."""
MAX_DURATION_S = 3600.0
"""The maximum of seconds between two samples of a trace, and for an upgrade to start."""
TRACE_SECONDS_LIMIT = 366 * 86400.0
"""The maximum duration of a trace in seconds."""
TRACE_BYTES_LIMIT = float(1 << 50)
"""The maximum size of a trace in bytes."""
LINES_LIMIT = 1e9
"""The maximum number of lines in a request for the latest output; the size of what is kept is limited, too."""
TRACES_LIMIT = 8
"""The maximum number of traces at a time: each takes a share of the event loop, and each sample of it delays others."""
NAMES_LIMIT = 10_000
"""The maximum number of names and globs in a command."""
NAME_LENGTH_LIMIT = 1000
"""The maximum number of characters of a name or glob."""
GLOBS_LIMIT = 100
"""The maximum number of globs in a request. A glob is compiled and compared with all names; a name is looked up."""
GLOBS_LENGTH_LIMIT = 10_000
"""The maximum number of characters of all globs in a request together: a longer one takes longer to compile."""
NAMES_AT_ONCE = 500
"""The number of names that are looked up before other tasks run."""
DEFAULT_SIGNAL = "SIGTERM"
JSON_LINES = "application/jsonl"
_PARAMETERS = {"signal": ("signal",), "set": ("resources", "persist")}


def app(control: Control) -> Router:
    """Create the application that serves `control`; its routes are those of `nsupervisor.api.routes`."""
    unrestricted = _Handlers(control)

    def handler(name: str) -> Handler:
        async def answer(request: Request) -> Response | Stream | Switch:
            peer = request.peer
            handlers = _Handlers(Restricted(control, peer.workload)) if peer and peer.workload else unrestricted
            method: Handler = getattr(handlers, name)
            return await method(request)

        return answer

    return _Application(
        Endpoint(route.method, route.path, handler(route.name), route.body_limit, route.name) for route in ROUTES
    )


class _Application(Router):
    """A router of the API's routes. An unknown name becomes status 404."""

    def body_limit(self, method: str, path: str, peer: Peer | None) -> int:
        """Return the limit of the route. Raises HTTPError 403 if a workload may not use it, 404 and 405."""
        limit = super().body_limit(method, path, peer)
        matched = self._find(method, path)
        if peer and peer.workload and matched and (reason := refused_operation(peer.workload, matched[0].name)):
            raise HTTPError(403, reason)
        return limit

    async def __call__(self, request: Request) -> Response | Stream | Switch:
        """Answer a request. Raises HTTPError."""
        try:
            return await super().__call__(request)
        except UnknownName as error:
            raise HTTPError(404, str(error)) from None
        except ExecRefused as refused:
            raise HTTPError(refused.status, str(refused)) from None


class _Handlers:
    """The request handlers: one method per route, named after it."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self._traces = 0

    async def info(self, request: Request) -> Response:
        return json_response(self.control.info())

    async def status(self, request: Request) -> Response:
        names = await self._named_instances(request)
        return _select_named(self.control.status(), names)

    async def groups(self, request: Request) -> Response:
        names: set[str] = set()
        for pattern in _check_patterns(request.values("name")):
            names |= set(self._match_groups(pattern))
            await trio.lowlevel.checkpoint()
        groups = self.control.group_status()
        return json_response([group for group in groups if not names or group["name"] in names])

    async def timers(self, request: Request) -> Response:
        names = await self._named_instances(request)
        timers = self.control.timer_status()
        if names is not None:
            workloads = {name.partition("@")[0] for name in names}
            timers = [timer for timer in timers if timer["name"] in workloads]
        return json_response(timers)

    def _match_groups(self, pattern: str) -> list[str]:
        if not (matches := self.control.matching_groups(pattern)):
            known = [group["name"] for group in self.control.group_status()]
            raise UnknownName(pattern, next(iter(difflib.get_close_matches(pattern, known, 1)), None))
        return matches

    async def stats(self, request: Request) -> Response:
        names = await self._named_instances(request)
        return _select_named(self.control.stats(), names)

    async def _named_instances(self, request: Request) -> set[str] | None:
        """Return the instances that the request names; None, which means all, if it names none."""
        patterns = request.values("name")
        return set(await self._resolve(patterns)) if patterns else None

    async def _resolve(self, patterns: Sequence[str]) -> list[str]:
        """Call `Control.resolve` in parts, so that many patterns do not keep other tasks waiting.

        An instance may have been removed by the time this returns. Raises HTTPError 400 and UnknownName.
        """
        names: dict[str, None] = {}
        for number, part in enumerate(_parts(_check_patterns(patterns))):
            if number:
                await trio.lowlevel.checkpoint()
            names |= dict.fromkeys(self.control.resolve(part))
        return list(names)

    async def history(self, request: Request) -> Response:
        names = await self._resolve([request.parameters["name"]])
        return json_response([self.control.history(name) for name in names])

    async def events(self, request: Request) -> Stream:
        follow = _query_flag(request, "follow")
        events = request.values("event") or None
        names = await self._named_instances(request)
        if names is not None:  # include the records about a group itself
            patterns = request.values("name")
            names |= {group for pattern in patterns for group in self.control.matching_groups(pattern)}
        return Stream(self.control.events(names, events, follow, _query_flag(request, "mark")), JSON_LINES)

    async def logs(self, request: Request) -> Stream:
        follow = _query_flag(request, "follow")
        lines = _query_number(request, "lines", inf, LINES_LIMIT)
        names = await self._named_instances(request)
        return Stream(self.control.logs(names, None if lines == inf else int(lines), follow), JSON_LINES)

    async def trace(self, request: Request) -> Stream:
        interval = _query_number(request, "interval", 0.25, MAX_DURATION_S)
        if 0 < interval < MIN_TRACE_INTERVAL_S:
            raise HTTPError(400, f"interval is {interval}; it can be 0, or {MIN_TRACE_INTERVAL_S} and more")
        seconds = _query_number(request, "seconds", inf, TRACE_SECONDS_LIMIT)
        max_bytes = _query_number(request, "bytes", inf, TRACE_BYTES_LIMIT)
        names = await self._named_instances(request)
        recording = self.control.trace(names, interval or None, seconds, max_bytes)
        if self._traces >= TRACES_LIMIT:
            message = f"{TRACES_LIMIT} traces are being recorded already, which is the limit; end one of them"
            raise HTTPError(503, message)
        return Stream(self._counted(recording), JSON_LINES)

    @contextmanager
    def _counted(self, recording: AbstractContextManager[AsyncIterator[bytes]]) -> Iterator[AsyncIterator[bytes]]:
        self._traces += 1
        try:
            with recording as lines:
                yield lines
        finally:
            self._traces -= 1

    async def metrics(self, request: Request) -> Response:
        return await metrics_response(self.control, request)

    async def plan(self, request: Request) -> Response:
        try:
            return json_response(await self.control.plan(*_parse_source(request)))
        except ConfigError as error:
            return _problems_response(error)

    async def reload(self, request: Request) -> Response | Stream:
        try:
            return Stream(await self.control.reload(*_parse_source(request), peer=request.peer), JSON_LINES)
        except ConfigError as error:
            return _problems_response(error)

    async def scale(self, request: Request) -> Response | Stream:
        try:
            return Stream(await self.control.scale(_parse_scale(request), peer=request.peer), JSON_LINES)
        except ConfigError as error:
            return _problems_response(error)

    async def upgrade(self, request: Request) -> Response:
        ok, message = await self.control.upgrade(**_parse_upgrade(request))
        return json_response({"ok": ok, "message": message})

    async def exec(self, request: Request) -> Switch:
        upgrade = request.headers.get("upgrade", "").lower()
        if upgrade != PROTOCOL or "upgrade" not in request.headers.get("connection", "").lower():
            message = f'the request has no "Connection: upgrade" and "Upgrade: {PROTOCOL}"; use: nsupervisor exec'
            raise HTTPError(426, message, {"upgrade": PROTOCOL})
        terms = _parse_exec(request)
        names = await self._resolve([request.parameters["name"]])
        if len(names) != 1:
            shown = ", ".join(names[:5])
            raise HTTPError(400, f"{request.parameters['name']} is {len(names)} instances; name one: {shown}")
        return self.control.exec(names[0], terms, request.peer)

    async def command(self, request: Request) -> Response:
        verb = request.parameters["verb"]
        if verb not in VERBS:
            raise HTTPError(404, f'nothing is called "{verb}"; there are: {", ".join(VERBS)}')
        patterns, parameters = _parse_command(verb, request)
        # A group has its own limits; all other verbs apply to its members.
        groups = {p: matches for p in patterns if verb == "set" and (matches := self.control.matching_groups(p))}
        members = await self._resolve([pattern for pattern in patterns if pattern not in groups])
        self.control.check_command(verb, members, parameters)
        results: dict[str, dict[str, Any] | None] = {}
        for name in dict.fromkeys(name for matches in groups.values() for name in matches):
            results[name] = await self.control.set_group(name, peer=request.peer, **parameters)
        results |= dict.fromkeys(members)

        async def execute(name: str) -> None:
            results[name] = await self.control.command(verb, name, peer=request.peer, **parameters)

        async with trio.open_nursery() as nursery:  # a command that takes long must not delay the others
            for name in members:
                nursery.start_soon(execute, name)
        return json_response(list(results.values()))


def _select_named(instances: list[dict[str, Any]], names: Collection[str] | None) -> Response:
    return json_response([instance for instance in instances if names is None or instance["name"] in names])


def _check_patterns(patterns: Sequence[str]) -> Sequence[str]:
    """Return names and globs within the limits. Raises HTTPError 400."""
    if len(patterns) > NAMES_LIMIT or any(len(pattern) > NAME_LENGTH_LIMIT for pattern in patterns):
        message = f"there are more than {NAMES_LIMIT:,} names, or one is longer than {NAME_LENGTH_LIMIT:,} characters"
        raise HTTPError(400, f'{message}; use a pattern such as "web*"')
    globs = [pattern for pattern in patterns if is_glob(pattern)]
    if len(globs) > GLOBS_LIMIT or sum(map(len, globs)) > GLOBS_LENGTH_LIMIT:
        message = f"there are more than {GLOBS_LIMIT} globs, or they have more than {GLOBS_LENGTH_LIMIT:,} characters"
        raise HTTPError(400, f"{message} together; use fewer globs, or names, or several requests")
    return patterns


def _parts(patterns: Sequence[str]) -> Iterator[list[str]]:
    """Split patterns into parts that take about the same time, in their order: one glob, or many names."""
    part: list[str] = []
    for pattern in patterns:
        if part and (is_glob(pattern) or is_glob(part[-1]) or len(part) == NAMES_AT_ONCE):
            yield part
            part = []
        part.append(pattern)
    if part:
        yield part


def _query_flag(request: Request, key: str) -> bool:
    """Return a flag of the query, by default False. Raises HTTPError 400 if it is neither 0 nor 1."""
    flag = request.value(key, "0")
    if flag not in ("0", "1"):
        raise HTTPError(400, f'{key} is "{flag}"; it can be 0 or 1')
    return flag == "1"


def _query_number(request: Request, key: str, default: float, maximum: float) -> float:
    """Return a number from 0 to `maximum` in the query. Raises HTTPError 400 if it is not one."""
    text = request.value(key, "")
    if not text and key not in request.query:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= maximum:
        raise HTTPError(400, f'{key} is "{text}"; it can be a number from 0 to {maximum:,.0f}')
    return number


async def metrics_response(control: Control, request: Request) -> Response:
    """Return the metrics as the response to GET /metrics."""
    text, content_type = await control.metrics(request.headers.get("accept", ""))
    return Response(text, media_type=content_type)


def _parse_upgrade(request: Request) -> dict[str, Any]:
    """Return the version and the timeout in a request's body. Raises HTTPError 400 if it is wrong."""
    try:
        body = request.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and body.keys() == {"python", "package", "timeout"}:
        paths, timeout = [body["python"], body["package"]], body["timeout"]
        are_paths = all(isinstance(path, str) and path and "\0" not in path for path in paths)
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if are_paths and is_number and 0 < timeout <= MAX_DURATION_S:
            return {"python": paths[0], "package": paths[1], "timeout_s": float(timeout)}
    example = '{"python": "/usr/bin/python3", "package": "/opt/nsupervisor", "timeout": 30}'
    raise HTTPError(400, f"the body says no version; send for example {example}")


def _parse_body(request: Request, example: str) -> Any:
    """Return the JSON value in a request's body. Raises HTTPError 400 with the example if it is none."""
    try:
        return request.json()
    except ValueError as error:
        raise HTTPError(400, f"the body cannot be read as JSON: {error}; {example}") from None


def _parse_command(verb: str, request: Request) -> tuple[list[str], dict[str, Any]]:
    """Return the names and the parameters in a request's body. Raises HTTPError 400 if it is wrong."""
    example = 'send for example {"names": ["web"]}'
    body = _parse_body(request, example)
    names = body.get("names") if isinstance(body, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise HTTPError(400, f'"names" is not a list of names; {example}')
    allowed = ["names", *_PARAMETERS.get(verb, ())]
    if unknown := [key for key in body if key not in allowed]:
        raise HTTPError(400, f'"{unknown[0]}" means nothing here; there is: {", ".join(allowed)}')
    _check_patterns(names)
    if verb == "signal":
        return names, {"signal": _parse_signal(body)}
    if verb == "set":
        changes, is_persistent = _parse_resources(body), body.get("persist", False)
        if not isinstance(is_persistent, bool):
            raise HTTPError(400, '"persist" is neither true nor false')
        if is_persistent and (instance := next((name for name in names if "@" in name), None)):
            raise HTTPError(400, f'"{instance}": all instances share the file; persist with the name before the @')
        return names, {"changes": changes, **({"persist": body["resources"]} if is_persistent else {})}
    return names, {}


def _parse_exec(request: Request) -> ExecTerms:
    """Return the command in a request's body. Raises HTTPError 400 if it is wrong."""
    example = 'send for example {"argv": ["ls"]}'
    body = _parse_body(request, example)
    if not isinstance(body, dict):
        raise HTTPError(400, f"the body is not an object; {example}")
    for key, value in body.items():
        if key not in _EXEC_CHECKS:
            raise HTTPError(400, f'"{key}" means nothing here; there is: {", ".join(_EXEC_CHECKS)}')
        is_right, wanted = _EXEC_CHECKS[key]
        if not is_right(value):
            raise HTTPError(400, f'"{key}" is not {wanted}')
    if "argv" not in body:
        raise HTTPError(400, f'"argv" is missing; {example}')
    terminal = body.get("terminal")
    return ExecTerms(
        tuple(body["argv"]),
        body.get("input", False),
        None if terminal is None else (terminal[0], terminal[1]),
        body.get("user"),
        body.get("environment", {}),
        body.get("directory"),
        body.get("debug", False),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


_EXEC_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "argv": (
        lambda value: isinstance(value, list) and bool(value) and bool(value[0]) and all(map(_is_text, value)),
        "a list of texts without NUL, of which the first is not empty",
    ),
    "input": (lambda value: isinstance(value, bool), "true or false"),
    "debug": (lambda value: isinstance(value, bool), "true or false"),
    "terminal": (
        lambda value: (
            value is None
            or (isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 <= n <= 0xFFFF for n in value))
        ),
        "a list of two numbers, the rows and columns of a terminal",
    ),
    "user": (lambda value: value is None or (_is_text(value) and bool(value)), "a user"),
    "environment": (
        lambda value: (
            isinstance(value, dict)
            and all(name and "=" not in name and _is_text(name) and _is_text(text) for name, text in value.items())
        ),
        "an object of texts by the names of variables",
    ),
    "directory": (
        lambda value: value is None or (_is_text(value) and value.startswith("/")),
        "the absolute path of a directory",
    ),
}


def _parse_source(request: Request) -> tuple[str | None, str | None, list[IncludedFile] | None]:
    """Return the path and the text of a file in a request's body, and of those that it includes.

    Raises HTTPError 400 if the body is wrong.
    """
    example = 'send for example {"path": "/etc/nsupervisor.toml"}, or {} for the file in force'
    body = _parse_body(request, example) if request.body else {}
    files = body.pop("files", None) if isinstance(body, dict) else None
    if not isinstance(body, dict) or not all(isinstance(value, str) and value for value in body.values()):
        raise HTTPError(400, f"the body is not an object of texts; {example}")
    if unknown := [key for key in body if key not in ("path", "text")]:
        raise HTTPError(400, f'"{unknown[0]}" means nothing here; there is: path, text, files')
    if files is not None and "text" not in body:
        raise HTTPError(400, f"files are those that a text includes, which is missing; {example}")
    if "text" in body and "path" not in body:
        raise HTTPError(400, f"a text needs a path, which messages about it name; {example}")
    return body.get("path"), body.get("text"), None if files is None else _parse_files(files)


def _parse_scale(request: Request) -> dict[str, int]:
    """Return the numbers of instances in a request's body. Raises HTTPError 400 if it is wrong."""
    example = 'send for example {"instances": {"web": 6}}'
    body = _parse_body(request, example)
    counts = body.get("instances") if isinstance(body, dict) and body.keys() == {"instances"} else None
    if not isinstance(counts, dict) or not counts or not all(type(count) is int for count in counts.values()):
        raise HTTPError(400, f"the body has no numbers of instances; {example}")
    return counts


def _parse_files(files: Any) -> list[IncludedFile]:
    keys = ("include", "path", "text")
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and file.keys() == set(keys) and all(isinstance(file[key], str) for key in keys)
        for file in files
    ):
        example = 'send for example [{"include": "/etc/conf.d/*.toml", "path": "/etc/conf.d/a.toml", "text": ""}]'
        raise HTTPError(400, f'"files" is not a list of objects with the texts {", ".join(keys)}; {example}')
    return [IncludedFile(*(file[key] for key in keys)) for file in files]


def _problems_response(error: ConfigError) -> Response:
    problems = [
        {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
        for problem in error.problems
    ]
    return json_response({"error": str(error), "problems": problems}, 400)


def _parse_resources(body: dict[str, Any]) -> dict[str, Any]:
    resources = body.get("resources")
    if not isinstance(resources, dict) or not resources:
        raise HTTPError(400, '"resources" says nothing to set; send for example {"memory_max": "1G"}')
    try:
        return parse_changes(resources)
    except ConfigError as error:
        raise HTTPError(400, str(error)) from None


def _parse_signal(body: dict[str, Any]) -> int:
    signal = body.get("signal", DEFAULT_SIGNAL)
    if isinstance(signal, bool) or not isinstance(signal, str | int):
        raise HTTPError(400, '"signal" is neither a name nor a number; send for example "SIGHUP"')
    try:
        return parse_signal(signal)
    except ValueError as error:
        raise HTTPError(400, f'signal "{signal}" {error}') from None
