"""Limits of the HTTP server: sizes in bytes, times in seconds. Standard library only."""

from __future__ import annotations

HEAD_LIMIT = 32 << 10
"""Bytes of a request line and its header fields; more is answered with 431."""
BODY_LIMIT = 1 << 20
"""Bytes of a request body; more is answered with 413."""
LARGE_BODY_LIMIT = 32 << 20
"""Bytes of a request body that may contain a configuration file."""
SMALL_CHUNK = 256
"""Bytes. A piece of a chunked body below this size costs more to parse than it carries."""
SMALL_CHUNKS_LIMIT = 10_000
"""The number of pieces below `SMALL_CHUNK` that a body may have; more is answered with 413."""
BUFFERED_LIMIT = 64 << 20
"""Bytes of request bodies and complete responses that all connections of one listener may hold at a time; a request
that would exceed the limit is answered with 503. Pieces up to `PIECE_SIZE` do not count."""
PIECE_SIZE = 64 << 10
"""Bytes read or written at a time."""
PARSED_AT_ONCE = 128
"""Pieces of a body that are parsed before other tasks run."""

HEAD_TIMEOUT_S = 5.0
"""Time from the first byte of a request, or from the start of a connection, to the end of the head."""
BODY_TIMEOUT_S = 30.0
"""Time from the end of the head to the end of the body."""
IDLE_TIMEOUT_S = 75.0
"""Time between a response and the next request; the connection is then closed."""
WRITE_TIMEOUT_S = 30.0
"""Time for the client to read `PIECE_SIZE` bytes of a complete response."""
STREAM_WRITE_TIMEOUT_S = 600.0
"""Time for the client to read `PIECE_SIZE` bytes of a stream: a follower may be suspended in a terminal."""
LINGER_TIMEOUT_S = 1.0
"""Time during which input is read and discarded after an early response: if a socket with unread input is closed, the
client may get a reset in place of the response, RFC 9112 section 9.6."""
LINGER_LIMIT = 1 << 20
"""Bytes of such input that are discarded at most."""

IDENTITY_CONNECTIONS = 512
"""Connections of one identity on a Unix socket: a workload or a uid."""
UNIX_CONNECTIONS = 1024
"""Connections on the Unix socket, if the service may open enough files (`nsupervisor.service.preflight.capacity`)."""
TCP_CONNECTIONS = 512
"""Connections on a TCP listener, if the service may open enough files."""
REFUSALS_AT_ONCE = 16
"""Refused connections that are closed only when the peer has read why, or after `LINGER_TIMEOUT_S`; others are closed
as soon as the response is in the socket's buffer."""
ACCEPTED_AT_ONCE = 16
"""Connections that are accepted before other tasks run, so that a client that connects in a loop, and is refused, does
not fill the queue of the socket."""
ACCEPT_PAUSE_S = 0.1
"""Pause between two attempts to accept a connection after an error, for instance because no descriptor is free."""
LOG_INTERVAL_S = 60.0
"""Minimum time between two records about the same kind of connection error on the same listener."""
