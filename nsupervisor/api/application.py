"""The API as an ASGI application: requests in, calls of `Control`, JSON out."""

from __future__ import annotations

import difflib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from math import inf
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nsupervisor.api.control import Control, UnknownName
from nsupervisor.api.routes import ROUTES, VERBS
from nsupervisor.config.changes import parse_changes
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.units import parse_signal

SHORTEST = 0.01
"""Seconds between two samples of a trace, at least."""
DEFAULT_SIGNAL = "SIGTERM"
JSON_LINES = "application/jsonl"
_PARAMETERS = {"signal": ("signal",), "set": ("resources", "persist")}


def app(control: Control) -> Starlette:
    """The application that answers for `control`; its routes are those of `nsupervisor.api.routes`."""
    handlers = _Handlers(control)
    application = Starlette(
        routes=[
            Route(_with_slashes(route.path), getattr(handlers, route.name), methods=[route.method], name=route.name)
            for route in ROUTES
        ],
        exception_handlers={HTTPException: _refused, UnknownName: _unknown, Exception: _broken},
    )
    application.router.redirect_slashes = False  # clients of ours do not follow
    return application


class _Handlers:
    """One method per route."""

    def __init__(self, control: Control) -> None:
        self.control = control

    async def info(self, request: Request) -> JSONResponse:
        return JSONResponse(self.control.info())

    async def status(self, request: Request) -> JSONResponse:
        return self._chosen(request, self.control.status())

    async def groups(self, request: Request) -> JSONResponse:
        names = {name for pattern in request.query_params.getlist("name") for name in self._groups(pattern)}
        found = self.control.group_status()
        return JSONResponse([one for one in found if not names or one["name"] in names])

    def _groups(self, pattern: str) -> list[str]:
        if not (found := self.control.matching_groups(pattern)):
            known = [one["name"] for one in self.control.group_status()]
            raise UnknownName(pattern, next(iter(difflib.get_close_matches(pattern, known, 1)), None))
        return found

    async def stats(self, request: Request) -> JSONResponse:
        return self._chosen(request, self.control.stats())

    def _chosen(self, request: Request, found: list[dict[str, Any]]) -> JSONResponse:
        names = self._names(request)
        return JSONResponse([one for one in found if names is None or one["name"] in names])

    def _names(self, request: Request) -> set[str] | None:
        """The instances that the request names; None where it names none, which means all."""
        patterns = request.query_params.getlist("name")
        return set(self.control.resolve(patterns)) if patterns else None

    async def history(self, request: Request) -> JSONResponse:
        names = self.control.resolve([request.path_params["name"]])
        return JSONResponse([self.control.history(name) for name in names])

    async def events(self, request: Request) -> Response:
        follow = request.query_params.get("follow", "0")
        if follow not in ("0", "1"):
            raise HTTPException(400, f'follow is "{follow}"; it can be 0 or 1')
        events = request.query_params.getlist("event") or None
        names = self._names(request)
        if names is not None:  # what is said about a group itself, too
            patterns = request.query_params.getlist("name")
            names |= {group for one in patterns for group in self.control.matching_groups(one)}
        return _Lines(self.control.events(names, events, follow == "1"))

    async def trace(self, request: Request) -> Response:
        interval = _number(request, "interval", 0.25)
        if 0 < interval < SHORTEST:
            raise HTTPException(400, f"interval is {interval}; it can be 0, or {SHORTEST} and more")
        seconds, most = _number(request, "seconds", inf), _number(request, "bytes", inf)
        return _Lines(self.control.trace(self._names(request), interval or None, seconds, most))

    async def metrics(self, request: Request) -> Response:
        return await metrics_response(self.control, request)

    async def plan(self, request: Request) -> Response:
        try:
            return JSONResponse(await self.control.plan(*_source(await request.body())))
        except ConfigError as error:
            return _problems(error)

    async def reload(self, request: Request) -> Response:
        try:
            return _Lines(await self.control.reload(*_source(await request.body())))
        except ConfigError as error:
            return _problems(error)

    async def upgrade(self, request: Request) -> JSONResponse:
        ok, message = await self.control.upgrade(**_upgrade(await request.body()))
        return JSONResponse({"ok": ok, "message": message})

    async def command(self, request: Request) -> JSONResponse:
        verb = request.path_params["verb"]
        if verb not in VERBS:
            raise HTTPException(404, f'nothing is called "{verb}"; there are: {", ".join(VERBS)}')
        patterns, parameters = _command(verb, await request.body())
        # A group has limits of its own; everything else is done to its members.
        groups = {p: found for p in patterns if verb == "set" and (found := self.control.matching_groups(p))}
        members = self.control.resolve([pattern for pattern in patterns if pattern not in groups])
        results: dict[str, dict[str, Any] | None] = {}
        for name in dict.fromkeys(name for found in groups.values() for name in found):
            results[name] = await self.control.set_group(name, **parameters)
        results |= dict.fromkeys(members)

        async def do(name: str) -> None:
            results[name] = await self.control.command(verb, name, **parameters)

        async with trio.open_nursery() as nursery:  # one that takes long must not hold up the others
            for name in members:
                nursery.start_soon(do, name)
        return JSONResponse(list(results.values()))


def _with_slashes(path: str) -> str:
    """A name may have one in it: "group/batch"."""
    return path.replace("{name}", "{name:path}")


def _number(request: Request, key: str, default: float) -> float:
    """A number in the query, not below 0. HTTPException 400 where it is none."""
    text = request.query_params.get(key)
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise HTTPException(400, f'{key} is "{text}"; it can be a number from 0')
    return number


async def metrics_response(control: Control, request: Request) -> Response:
    """The answer to GET /metrics."""
    text, content_type = await control.metrics(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


class _Lines(Response):
    """JSON lines while they come, until there are no more, or until the client goes away.

    Not starlette's StreamingResponse: that takes the "disconnect" which the server tells while it sends the end for the
    client's, and cancels the server in the middle of closing the connection.
    """

    def __init__(self, source: AbstractContextManager[AsyncIterator[bytes]]) -> None:
        super().__init__(media_type=JSON_LINES)
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def leave_with_the_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        with self._source as lines:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave_with_the_client)
                async for some in lines:
                    await send({"type": "http.response.body", "body": some, "more_body": True})
                nursery.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _upgrade(body: bytes) -> dict[str, Any]:
    """HTTPException 400 where it is wrong."""
    try:
        asked = json.loads(body)
        found = {"python": str(asked["python"]), "package": str(asked["package"]), "patience": float(asked["timeout"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        example = '{"python": "/usr/bin/python3", "package": "/opt/nsupervisor", "timeout": 30}'
        text = f"the body says no version; send for example {example}"
        raise HTTPException(400, text) from None
    return found


def _command(verb: str, body: bytes) -> tuple[list[str], dict[str, Any]]:
    """The names and the parameters in a request's body. HTTPException 400 where it is wrong."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, 'the body is not JSON; send for example {"names": ["web"]}') from None
    names = asked.get("names") if isinstance(asked, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise HTTPException(400, '"names" is not a list of names; send for example {"names": ["web"]}')
    allowed = ["names", *_PARAMETERS.get(verb, ())]
    if unknown := [key for key in asked if key not in allowed]:
        raise HTTPException(400, f'"{unknown[0]}" means nothing here; there is: {", ".join(allowed)}')
    if verb == "signal":
        return names, {"signal": _signal(asked)}
    if verb == "set":
        changes, keep = _changes(asked), asked.get("persist", False)
        if not isinstance(keep, bool):
            raise HTTPException(400, '"persist" is neither true nor false')
        if keep and (one := next((name for name in names if "@" in name), None)):
            raise HTTPException(400, f'"{one}": all instances share the file; persist with the name before the @')
        return names, {"changes": changes, **({"persist": asked["resources"]} if keep else {})}
    return names, {}


def _source(body: bytes) -> tuple[str | None, str | None]:
    """The name and the text of a file in a request's body. HTTPException 400 where it is wrong."""
    example = 'send for example {"path": "/etc/nsupervisor.toml"}, or {} for the file in force'
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is not JSON; {example}") from None
    if not isinstance(asked, dict) or not all(isinstance(one, str) and one for one in asked.values()):
        raise HTTPException(400, f"the body is no object of texts; {example}")
    if unknown := [key for key in asked if key not in ("path", "text")]:
        raise HTTPException(400, f'"{unknown[0]}" means nothing here; there is: path, text')
    if "text" in asked and "path" not in asked:
        raise HTTPException(400, f"a text needs a path, which messages about it name; {example}")
    return asked.get("path"), asked.get("text")


def _problems(error: ConfigError) -> JSONResponse:
    problems = [
        {"line": problem.line or None, "key": problem.key, "message": problem.message, "text": str(problem)}
        for problem in error.problems
    ]
    return JSONResponse({"error": str(error), "problems": problems}, 400)


def _changes(asked: dict[str, Any]) -> dict[str, Any]:
    resources = asked.get("resources")
    if not isinstance(resources, dict) or not resources:
        raise HTTPException(400, '"resources" says nothing to set; send for example {"memory_max": "1G"}')
    try:
        return parse_changes(resources)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from None


def _signal(asked: dict[str, Any]) -> int:
    signal = asked.get("signal", DEFAULT_SIGNAL)
    if isinstance(signal, bool) or not isinstance(signal, str | int):
        raise HTTPException(400, '"signal" is neither a name nor a number; send for example "SIGHUP"')
    try:
        return parse_signal(signal)
    except ValueError as error:
        raise HTTPException(400, f'signal "{signal}" {error}') from None


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 405 or detail == "Not Found":  # starlette's own, which do not say what there is
        there = ", ".join(f"{route.method} {route.path}" for route in ROUTES)
        detail = f"there is no {request.method} {request.url.path}; there are: {there}"
    return JSONResponse({"error": detail}, error.status_code, headers=dict(error.headers or {}))


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    return _error(404, str(error))


async def _broken(request: Request, error: Exception) -> JSONResponse:
    """A bug of ours. The server logs the traceback, this tells who asked."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return _error(500, f"the supervisor failed over this request ({type(error).__name__}: {error}); see its output")
