"""Route a request to its handler by method and path."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable

import attrs

from nsupervisor.api.http.limits import BODY_LIMIT
from nsupervisor.api.http.messages import HTTPError, Request, Response, Stream, Switch
from nsupervisor.linux.peers import Peer

Handler = Callable[[Request], Awaitable[Response | Stream | Switch]]


@attrs.frozen
class Endpoint:
    """A handler for one method and path.

    `path` may have parts in braces: "{verb}" matches one segment, "{name}" one or more, as the name of a group has a
    slash ("group/batch").
    """

    method: str
    path: str
    handler: Handler
    body_limit: int = BODY_LIMIT
    name: str = ""
    pattern: re.Pattern[str] = attrs.field(init=False)

    @pattern.default
    def _pattern(self) -> re.Pattern[str]:
        pieces = re.split(r"\{(\w+)\}", self.path)
        groups = ("(?P<{0}>.+)" if part == "name" else "(?P<{0}>[^/]+)" for part in pieces[1::2])
        joined = re.escape(pieces[0])
        for part, group, literal in zip(pieces[1::2], groups, pieces[2::2], strict=True):
            joined += group.format(part) + re.escape(literal)
        return re.compile(joined, re.DOTALL)


class Router:
    """An application that passes each request to the handler of its method and path.

    A handler for GET also answers HEAD. GET and HEAD have no body, whatever the limit of the endpoint is.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)

    def body_limit(self, method: str, path: str, peer: Peer | None) -> int:
        """Return the maximum number of bytes in the body of such a request. Raises HTTPError 404, 405."""
        matched = self._find(method, path)
        if matched is None:
            raise self._not_found(method, path)
        return 0 if matched[0].method == "GET" else matched[0].body_limit

    async def __call__(self, request: Request) -> Response | Stream | Switch:
        """Answer a request. Raises HTTPError: 404, 405, and what the handler raises."""
        matched = self._find(request.method, request.path)
        if matched is not None:
            endpoint, match = matched
            return await endpoint.handler(attrs.evolve(request, parameters=match.groupdict()))
        raise self._not_found(request.method, request.path)

    def _not_found(self, method: str, path: str) -> HTTPError:
        methods = {endpoint.method for endpoint in self.endpoints if endpoint.pattern.fullmatch(path)}
        if "GET" in methods:
            methods.add("HEAD")
        routes = ", ".join(f"{endpoint.method} {endpoint.path}" for endpoint in self.endpoints)
        return HTTPError(
            405 if methods else 404,
            f"there is no {method} {path}; there are: {routes}",
            {"allow": ", ".join(sorted(methods))} if methods else None,
        )

    def _find(self, method: str, path: str) -> tuple[Endpoint, re.Match[str]] | None:
        method = "GET" if method == "HEAD" else method
        for endpoint in self.endpoints:
            if endpoint.method == method and (match := endpoint.pattern.fullmatch(path)):
                return endpoint, match
        return None
