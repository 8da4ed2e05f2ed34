"""The API as an application of `nsupervisor.api.http`: requests in, calls of `Control`, JSON out."""

from __future__ import annotations

import difflib
from math import inf
from typing import Any

import trio

from nsupervisor.api.control import Control, UnknownName
from nsupervisor.api.http.messages import HTTPError, Request, Response, Stream, json_response
from nsupervisor.api.http.routing import Endpoint, Handler, Router
from nsupervisor.api.permissions import Restricted
from nsupervisor.api.routes import ROUTES, VERBS
from nsupervisor.config.changes import parse_changes
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.units import parse_signal

SHORTEST = 0.01
"""Seconds between two samples of a trace, at least."""
LONGEST = 3600.0
"""Seconds between two samples of a trace, and for an upgrade to come up, at most."""
TRACE_SECONDS_LIMIT = 366 * 86400.0
"""Seconds that a trace may be asked to take."""
TRACE_BYTES_LIMIT = float(1 << 50)
"""Bytes that a trace may be asked to have."""
NAMES_LIMIT = 10_000
"""Names and globs in a command."""
NAME_LIMIT = 1000
"""Characters of one of them."""
DEFAULT_SIGNAL = "SIGTERM"
JSON_LINES = "application/jsonl"
_PARAMETERS = {"signal": ("signal",), "set": ("resources", "persist")}


def app(control: Control) -> Router:
    """The application that answers for `control`; its routes are those of `nsupervisor.api.routes`."""
    everything = _Handlers(control)

    def handler(name: str) -> Handler:
        async def answer(request: Request) -> Response | Stream:
            peer = request.peer
            handlers = _Handlers(Restricted(control, peer.workload)) if peer and peer.workload else everything
            method: Handler = getattr(handlers, name)
            return await method(request)

        return answer

    return _Application(Endpoint(route.method, route.path, handler(route.name), route.body_limit) for route in ROUTES)


class _Application(Router):
    """The routes; an unknown name is an error of the request."""

    async def __call__(self, request: Request) -> Response | Stream:
        """Answer a request. Raises HTTPError."""
        try:
            return await super().__call__(request)
        except UnknownName as error:
            raise HTTPError(404, str(error)) from None


class _Handlers:
    """One method per route."""

    def __init__(self, control: Control) -> None:
        self.control = control

    async def info(self, request: Request) -> Response:
        return json_response(self.control.info())

    async def status(self, request: Request) -> Response:
        return self._chosen(request, self.control.status())

    async def groups(self, request: Request) -> Response:
        names = {name for pattern in request.values("name") for name in self._groups(pattern)}
        found = self.control.group_status()
        return json_response([one for one in found if not names or one["name"] in names])

    def _groups(self, pattern: str) -> list[str]:
        if not (found := self.control.matching_groups(pattern)):
            known = [one["name"] for one in self.control.group_status()]
            raise UnknownName(pattern, next(iter(difflib.get_close_matches(pattern, known, 1)), None))
        return found

    async def stats(self, request: Request) -> Response:
        return self._chosen(request, self.control.stats())

    def _chosen(self, request: Request, found: list[dict[str, Any]]) -> Response:
        names = self._names(request)
        return json_response([one for one in found if names is None or one["name"] in names])

    def _names(self, request: Request) -> set[str] | None:
        """The instances that the request names; None where it names none, which means all."""
        patterns = request.values("name")
        return set(self.control.resolve(patterns)) if patterns else None

    async def history(self, request: Request) -> Response:
        names = self.control.resolve([request.parameters["name"]])
        return json_response([self.control.history(name) for name in names])

    async def events(self, request: Request) -> Stream:
        follow = request.value("follow", "0")
        if follow not in ("0", "1"):
            raise HTTPError(400, f'follow is "{follow}"; it can be 0 or 1')
        events = request.values("event") or None
        names = self._names(request)
        if names is not None:  # what is said about a group itself, too
            patterns = request.values("name")
            names |= {group for one in patterns for group in self.control.matching_groups(one)}
        return Stream(self.control.events(names, events, follow == "1"), JSON_LINES)

    async def trace(self, request: Request) -> Stream:
        interval = _number(request, "interval", 0.25, LONGEST)
        if 0 < interval < SHORTEST:
            raise HTTPError(400, f"interval is {interval}; it can be 0, or {SHORTEST} and more")
        seconds = _number(request, "seconds", inf, TRACE_SECONDS_LIMIT)
        most = _number(request, "bytes", inf, TRACE_BYTES_LIMIT)
        return Stream(self.control.trace(self._names(request), interval or None, seconds, most), JSON_LINES)

    async def metrics(self, request: Request) -> Response:
        return await metrics_response(self.control, request)

    async def plan(self, request: Request) -> Response:
        try:
            return json_response(await self.control.plan(*_source(request)))
        except ConfigError as error:
            return _problems(error)

    async def reload(self, request: Request) -> Response | Stream:
        try:
            return Stream(await self.control.reload(*_source(request)), JSON_LINES)
        except ConfigError as error:
            return _problems(error)

    async def upgrade(self, request: Request) -> Response:
        ok, message = await self.control.upgrade(**_upgrade(request))
        return json_response({"ok": ok, "message": message})

    async def command(self, request: Request) -> Response:
        verb = request.parameters["verb"]
        if verb not in VERBS:
            raise HTTPError(404, f'nothing is called "{verb}"; there are: {", ".join(VERBS)}')
        patterns, parameters = _command(verb, request)
        # A group has limits of its own; everything else is done to its members.
        groups = {p: found for p in patterns if verb == "set" and (found := self.control.matching_groups(p))}
        members = self.control.resolve([pattern for pattern in patterns if pattern not in groups])
        self.control.check_command(verb, members, parameters)
        results: dict[str, dict[str, Any] | None] = {}
        for name in dict.fromkeys(name for found in groups.values() for name in found):
            results[name] = await self.control.set_group(name, **parameters)
        results |= dict.fromkeys(members)

        async def do(name: str) -> None:
            results[name] = await self.control.command(verb, name, **parameters)

        async with trio.open_nursery() as nursery:  # one that takes long must not hold up the others
            for name in members:
                nursery.start_soon(do, name)
        return json_response(list(results.values()))


def _number(request: Request, key: str, default: float, most: float) -> float:
    """A number in the query from 0 to `most`. HTTPError 400 if it is none."""
    text = request.value(key, "")
    if not text and key not in request.query:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise HTTPError(400, f'{key} is "{text}"; it can be a number from 0 to {most:,.0f}')
    return number


async def metrics_response(control: Control, request: Request) -> Response:
    """The answer to GET /metrics."""
    text, content_type = await control.metrics(request.headers.get("accept", ""))
    return Response(text, media_type=content_type)


def _upgrade(request: Request) -> dict[str, Any]:
    """HTTPError 400 if it is wrong."""
    try:
        asked = request.json()
    except ValueError:
        asked = None
    if isinstance(asked, dict) and asked.keys() == {"python", "package", "timeout"}:
        paths, timeout = [asked["python"], asked["package"]], asked["timeout"]
        are_paths = all(isinstance(path, str) and path and "\0" not in path for path in paths)
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if are_paths and is_number and 0 < timeout <= LONGEST:
            return {"python": paths[0], "package": paths[1], "patience": float(timeout)}
    example = '{"python": "/usr/bin/python3", "package": "/opt/nsupervisor", "timeout": 30}'
    raise HTTPError(400, f"the body says no version; send for example {example}")


def _command(verb: str, request: Request) -> tuple[list[str], dict[str, Any]]:
    """The names and the parameters in a request's body. HTTPError 400 if it is wrong."""
    try:
        asked = request.json()
    except ValueError:
        raise HTTPError(400, 'the body is not JSON; send for example {"names": ["web"]}') from None
    names = asked.get("names") if isinstance(asked, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise HTTPError(400, '"names" is not a list of names; send for example {"names": ["web"]}')
    allowed = ["names", *_PARAMETERS.get(verb, ())]
    if unknown := [key for key in asked if key not in allowed]:
        raise HTTPError(400, f'"{unknown[0]}" means nothing here; there is: {", ".join(allowed)}')
    if len(names) > NAMES_LIMIT or any(len(name) > NAME_LIMIT for name in names):
        message = f"there are more than {NAMES_LIMIT:,} names, or one is longer than {NAME_LIMIT:,} characters"
        raise HTTPError(400, f'{message}; use a pattern such as "web*"')
    if verb == "signal":
        return names, {"signal": _signal(asked)}
    if verb == "set":
        changes, keep = _changes(asked), asked.get("persist", False)
        if not isinstance(keep, bool):
            raise HTTPError(400, '"persist" is neither true nor false')
        if keep and (one := next((name for name in names if "@" in name), None)):
            raise HTTPError(400, f'"{one}": all instances share the file; persist with the name before the @')
        return names, {"changes": changes, **({"persist": asked["resources"]} if keep else {})}
    return names, {}


def _source(request: Request) -> tuple[str | None, str | None]:
    """The name and the text of a file in a request's body. HTTPError 400 if it is wrong."""
    example = 'send for example {"path": "/etc/nsupervisor.toml"}, or {} for the file in force'
    try:
        asked = request.json() if request.body else {}
    except ValueError:
        raise HTTPError(400, f"the body is not JSON; {example}") from None
    if not isinstance(asked, dict) or not all(isinstance(one, str) and one for one in asked.values()):
        raise HTTPError(400, f"the body is no object of texts; {example}")
    if unknown := [key for key in asked if key not in ("path", "text")]:
        raise HTTPError(400, f'"{unknown[0]}" means nothing here; there is: path, text')
    if "text" in asked and "path" not in asked:
        raise HTTPError(400, f"a text needs a path, which messages about it name; {example}")
    return asked.get("path"), asked.get("text")


def _problems(error: ConfigError) -> Response:
    problems = [
        {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
        for problem in error.problems
    ]
    return json_response({"error": str(error), "problems": problems}, 400)


def _changes(asked: dict[str, Any]) -> dict[str, Any]:
    resources = asked.get("resources")
    if not isinstance(resources, dict) or not resources:
        raise HTTPError(400, '"resources" says nothing to set; send for example {"memory_max": "1G"}')
    try:
        return parse_changes(resources)
    except ConfigError as error:
        raise HTTPError(400, str(error)) from None


def _signal(asked: dict[str, Any]) -> int:
    signal = asked.get("signal", DEFAULT_SIGNAL)
    if isinstance(signal, bool) or not isinstance(signal, str | int):
        raise HTTPError(400, '"signal" is neither a name nor a number; send for example "SIGHUP"')
    try:
        return parse_signal(signal)
    except ValueError as error:
        raise HTTPError(400, f'signal "{signal}" {error}') from None
