"""Kinds of configuration values: how to load each one, and its JSON Schema.

A `Scalar` converts one TOML value to its Python form, or raises ValueError whose message ends the sentence "THE VALUE
…". The composite kinds (`ListOf`, `MapOf`, `TableOf`, `TablesOf`, `PrefixedKeys`) only describe; the loader walks them,
so each element's problem has its own key path and line.

They are named tuples, not attrs classes: creating an attrs class takes half a millisecond, in each command that reads a
file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from nsupervisor.config import units
from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.image_reference import parse_reference
from nsupervisor.config.quoting import alternatives, did_you_mean, quoted
from nsupervisor.config.urls import check_url, public_url

MAX_SOCKET_PATH = 107
"""Largest length of a Unix socket's path in bytes, without the ending NUL (unix(7))."""

MAX_ID = 2**32 - 2
"""The largest user or group id; 2**32 - 1 means "no id" (credentials(7))."""

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]*"
VARIABLE_PATTERN = r"[^=\n\u0000]+"


class Scalar(NamedTuple):
    """The kind of a single value.

    `load` receives the value from tomllib. `to_text` returns it as a file would write it, a text or a table of texts,
    if that is not the plain form (`nsupervisor.config.to_toml`).
    """

    load: Callable[[Any], Any]
    schema: Mapping[str, Any]
    to_text: Callable[[Any], str | dict[str, str]] | None = None
    is_secret: bool = False
    """The value may contain a secret: messages do not quote it, and `to_text` leaves the secret out."""


class Choice:
    """One of several words. `planned` words have their own message: later versions have them."""

    def __init__(self, *words: str, planned: tuple[str, ...] = ()) -> None:
        self.words = words
        self.planned = planned

    @classmethod
    def of(cls, literal: Any) -> Choice:
        """Return the choice between the words of a `Literal` type, so that type and values are declared once."""
        return cls(*get_args(literal))

    def load(self, value: Any) -> str:
        """Return the word, if it is one of the choices; raise ValueError otherwise."""
        if isinstance(value, str):
            if value in self.words:
                return value
            if value in self.planned:
                raise ValueError(f"is not available yet in this version; write {alternatives(self.words)}")
        raise ValueError(
            f"is not one of the choices{did_you_mean(value, self.words)}; write {alternatives(self.words)}"
        )

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON Schema: an enumeration of the words."""
        return {"enum": list(self.words)}


class ListOf(NamedTuple):
    """An array of scalars, which becomes a tuple."""

    item: Scalar
    minimum: int = 0
    empty_hint: str = "write at least one"
    """The hint in the message about a list that is too short."""
    string_hint: Callable[[str], str] | None = None
    """The hint in the message about a plain string; by default the string in brackets."""


class MapOf(NamedTuple):
    """A table with free keys (checked by `key`) or a fixed set of `names`; becomes a dict.

    All values have the kind `item`, except the names in `items`, which have kinds of their own.
    """

    item: Scalar
    key: Scalar | None = None
    names: tuple[str, ...] = ()
    items: Mapping[str, Scalar] = MappingProxyType({})

    @classmethod
    def each(cls, items: Mapping[str, Scalar]) -> MapOf:
        """Create a table kind with these keys and their kinds."""
        return cls(TEXT, names=tuple(items), items=items)

    def kind_of(self, name: str) -> Scalar:
        """Return the kind of one key's value."""
        return self.items.get(name, self.item)


class TableOf(NamedTuple):
    """A table that becomes an object of a model class; `is_named`: a table of such tables, by name."""

    cls: type
    is_named: bool = False


class TablesOf(NamedTuple):
    """An array of tables, which becomes a tuple of objects of a model class."""

    cls: type


class PrefixedKeys(NamedTuple):
    """Keys of the parent's own table that start with `prefix`, collected in one dict without the prefix."""

    prefix: str
    items: Mapping[str, Scalar]


Kind = Scalar | Choice | ListOf | MapOf | TableOf | TablesOf | PrefixedKeys


class Key(NamedTuple):
    """The declaration of a TOML key in an attribute's metadata."""

    kind: Kind
    doc: str
    toml: str | None = None
    """The name of the key, if it differs from the attribute's."""
    is_live: bool = False
    """A running workload can take a change of it, or of anything in it; otherwise it needs a new process."""
    is_secret: bool = False
    """Its contents are never shown."""


def key(kind: Kind, doc: str, *, toml: str | None = None, live: bool = False, secret: bool = False) -> dict[str, Key]:
    """Return the metadata that declares an attrs field as a TOML key."""
    return {"key": Key(kind, doc, toml, live, secret)}


def whole_text_pattern(pattern: str) -> str:
    """Make a JSON Schema pattern match the whole text.

    Python's "$", unlike JSON Schema's, also matches before a last newline.
    """
    return f"^(?:{pattern})$(?!\\n)"


def is_integer(value: Any) -> bool:
    """Check for an integer; TOML's booleans are Python integers too, and do not count here."""
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        hint = "write it in quotes" if isinstance(value, int | float) else "write a string"
        raise ValueError(f"is not a string; {hint}")
    if "\0" in value:
        raise ValueError("has a NUL byte in it, which the kernel takes for its end; leave it out")
    return value


def matching(pattern: str, message: str, max_length: int | None = None) -> Scalar:
    """Create a kind for texts that a pattern of ASCII characters matches wholly.

    `message` ends the sentence "THE TEXT …". `max_length`: in characters.
    """

    def load(value: Any) -> str:
        text = _text(value)
        if not re.fullmatch(pattern, text, re.ASCII) or (max_length is not None and len(text) > max_length):
            raise ValueError(message)
        return text

    schema: dict[str, Any] = {"type": "string", "pattern": whole_text_pattern(pattern)}
    return Scalar(load, schema if max_length is None else {**schema, "maxLength": max_length})


def _word(value: Any) -> str:
    text = _text(value)
    if not text.strip() or text != text.strip():
        raise ValueError("is empty or has blanks around it; write the bare word")
    return text


def _name(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch(NAME_PATTERN, text, re.ASCII):
        raise ValueError('is not a name; write letters, digits, "_" and "-", and begin with a letter or digit')
    if len(text) > 128:
        raise ValueError("is too long; write a name of at most 128 characters")
    return text


_V1_FILES = ("tasks", "notify_on_release", "release_agent")
"""Files that cgroup v1 has next to the workloads' cgroups (cgroups(7)); no directory can have such a name."""


def _workload_name(value: Any) -> str:
    if isinstance(value, str) and "@" in value:
        raise ValueError('has an "@" in its name, which is for instances; write instances = 2 for NAME@1 and NAME@2')
    name = _name(value)
    if name in _V1_FILES:
        raise ValueError("is a name that cgroup v1 keeps for a file of its own; write another name")
    return name


def _overlay(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("is not true or false; write true for a layer in memory, or the name of one that is kept")
    return _name(value)


def _image(value: Any) -> str:
    return str(parse_reference(_text(value)))


def _relative_path(value: Any) -> str:
    text = _text(value)
    if not text or set(text.split("/")) & {"", ".", ".."} or ":" in text or "\n" in text:
        raise ValueError('is not a relative path; write one without "..", ":" and line ends, for example "site/data"')
    if len(text.encode()) > 1024:
        raise ValueError("is longer than 1024 bytes; write a shorter one")
    return text


def _path(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError('is not an absolute path; write it from the root, for example "/srv/site"')
    if len(text.encode()) > 4095:
        raise ValueError("is longer than a path can be (4095 bytes); write a shorter one")
    return text


def _log_output(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, dict):
        command = value.get("command")
        if set(value) != {"command"} or not isinstance(command, list) or not command:
            raise ValueError(
                'is no collector; write for example { command = ["vector", "--config", "/etc/vector.yaml"] }'
            )
        return tuple(_text(word) for word in command)
    if value in ("stdout", "journald") or (isinstance(value, str) and value.startswith(("/", "syslog:/"))):
        return _text(value)
    raise ValueError(
        'is not a place to log to; write "stdout", an absolute path, "journald", "syslog:/dev/log", '
        'or { command = ["…"] }'
    )


def _address(value: Any) -> tuple[str, int]:
    return units.parse_address(f":{value}" if is_integer(value) else _text(value))


def _optional_path(value: Any) -> str:
    text = _text(value)
    _path(text.removeprefix("-"))
    return text


def _negatable(load: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a reader of a value that may begin with "!"."""

    def read(value: Any) -> str:
        text = _text(value)
        load(text.removeprefix("!"))
        return text

    return read


def _variable_condition(value: Any) -> str:
    name, _, _ = _text(value).partition("=")
    return _variable(name)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not a truth value; write true or false, without quotes")
    return value


_NOT_JOINED = {
    "mount": "its mounts would be those of the other program, and what is mounted for this one would show there",
    "pid": "the other program's init would kill this program at its end, and see no exit of it",
    "cgroup": "its root would be the other program's cgroup, in which this program is not",
    "user": "this program would have the privileges of the other one over its files and processes",
    "time": "a process enters one only by making another process",
}
"""Why a namespace of this kind cannot be joined."""


def _namespace_of(kind: str) -> Scalar:
    """Create the kind for a namespace that can be new or the supervisor's, but not that of others."""

    def load(value: Any) -> bool:
        if isinstance(value, str) and value.startswith(("workload:", "path:")):
            raise ValueError(
                f"joins a namespace that cannot be joined: {_NOT_JOINED[kind]}; write true (a new one) or false (the "
                "supervisor's); network, ipc and uts can be joined"
            )
        return _boolean(value)

    return Scalar(load, {"type": "boolean"})


JOIN_WORKLOAD, JOIN_PATH, CNI = "workload:", "path:", "cni:"
"""Prefixes of the names of namespaces to join, the last one for a network that plugins set up."""


def _network(value: Any) -> bool | str:
    if value == "pasta":
        raise ValueError(
            "is not available yet in this version; write true (loopback only), a namespace to join, or as root "
            '"cni:NAME"'
        )
    if isinstance(value, str) and value.startswith(CNI):
        return CNI + _joined_part(_name, value.removeprefix(CNI), "cni:default")
    return _joinable_namespace(value)


def _joinable_namespace(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value.startswith(JOIN_WORKLOAD):
            return JOIN_WORKLOAD + _joined_part(_name, value.removeprefix(JOIN_WORKLOAD), "workload:web")
        if value.startswith(JOIN_PATH):
            return JOIN_PATH + _joined_part(_path, value.removeprefix(JOIN_PATH), "path:/run/netns/blue")
    raise ValueError(
        'is not a namespace; write true (a new one), false (the supervisor\'s), "workload:NAME" (that of another '
        'workload), or "path:/run/netns/NAME" (that behind a file)'
    )


def _joined_part(load: Callable[[Any], str], text: str, example: str) -> str:
    try:
        return load(text)
    except ValueError:
        raise ValueError(f"does not name a namespace to join; write for example {quoted(example)}") from None


_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
"""One part of a host name: RFC 1123, 2.1."""
HOSTNAME_PATTERN = rf"{_LABEL}(\.{_LABEL})*"
MAX_HOSTNAME = 64
"""Largest length of a host name: HOST_NAME_MAX of Linux, gethostname(2)."""


def _hostname(value: Any) -> str:
    text = _text(value)
    if len(text) > MAX_HOSTNAME or not re.fullmatch(HOSTNAME_PATTERN, text, re.ASCII):
        raise ValueError(
            f'is not a host name; write at most {MAX_HOSTNAME} letters, digits and "-", in parts separated by ".", '
            "each with a letter or digit at both ends"
        )
    return text


_BANDWIDTH_PATTERN = r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)B/s"
MIN_BANDWIDTH, MAX_BANDWIDTH = 1 << 10, 1 << 40


def _bandwidth(value: Any) -> int:
    """Load bytes a second; the units are those of sizes, powers of 1024."""
    match = re.fullmatch(_BANDWIDTH_PATTERN, value, re.ASCII) if isinstance(value, str) and len(value) < 40 else None
    if match is None:
        raise ValueError('is not a bandwidth; write for example "10MB/s" or "512KB/s", in bytes')
    # First: what it says of a size that is too large is not true of a bandwidth.
    if not MIN_BANDWIDTH <= float(match[1]) * 1024 ** " KMGT".index(match[2] or " ") <= MAX_BANDWIDTH:
        raise ValueError('is out of range; write "1KB/s" to "1TB/s", or remove it for no limit')
    number = units.parse_size(f"{match[1]}{match[2]}")
    assert number is not None  # it has digits
    return number


def _rate(value: int) -> str:
    return f"{units.format_size(value)}B/s"


def _ip_address(value: Any) -> str:
    text = _text(value)
    try:
        import socket  # imported here because few files have an address, and it slows down every start

        if not re.fullmatch(r"[0-9A-Fa-f:.]+", text, re.ASCII):
            raise ValueError
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise ValueError('is not an IP address; write for example "10.0.0.5" or "fd00::5"') from None
    return text


def _filesystem(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text, re.ASCII):
        raise ValueError('is not a kind of mount; write "bind", "tmpfs", "proc" or another file system')
    return text


def _mount_option(value: Any) -> str:
    text = _word(value)
    if "," in text:
        raise ValueError("has a comma in it; write one option a string")
    return text


def _user(value: Any) -> str:
    text = _word(value)
    user, colon, group = text.partition(":")
    parts = [user, group] if colon else [user]
    if "" in parts or ":" in group or "/" in text or not text.isprintable() or parts != [p.strip() for p in parts]:
        raise ValueError('is no user; write "NAME", "UID", "NAME:GROUP" or "UID:GID"')
    for part in parts:
        if part.isdecimal() and (len(part) > 10 or int(part) > MAX_ID):
            raise ValueError(f"has an id above {MAX_ID}; write a smaller one")
    return text


def _variable(value: Any) -> str:
    text = _text(value)
    if not text or "=" in text or "\n" in text:
        raise ValueError('is no name for a variable; write one that is not empty, without "=" and line ends')
    return text


def _octal(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,5}", value) and int(value, 8) <= 0o777:
        return int(value, 8)
    raise ValueError('is not an octal number up to 0777 in quotes; write for example "0022"')


MAX_INSTANCE_NAME = 32
"""Longest text that names an instance: it is a part of the names of a cgroup and a host."""


def _instances(value: Any) -> int | tuple[str, ...]:
    if is_integer(value):
        return int(_INSTANCE_COUNT.load(value))
    if not isinstance(value, list) or not value:
        raise ValueError('is neither a number nor a list of names; write for example 4, or ["eu", "us"]')
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name, re.ASCII):
            raise ValueError(f'has {quoted(name)}, which is no name; write letters, digits, "_" and "-"')
        if len(name) > MAX_INSTANCE_NAME:
            raise ValueError(f"has {quoted(name)}; write names of at most {MAX_INSTANCE_NAME} characters")
    if len(set(value)) < len(value):
        raise ValueError("has a name twice; write each once")
    return tuple(value)


def _variable_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if is_integer(value) or isinstance(value, float) else _text(value)


def _exit_status(value: Any) -> int | str:
    if is_integer(value) and 0 <= value <= 255:
        return int(value)
    if isinstance(value, str):
        try:
            return units.format_signal(units.parse_signal(value))
        except ValueError:
            pass
    raise ValueError('is neither an exit code nor a signal; write a number from 0 to 255, or for example "SIGTERM"')


EXIT_ON_PATTERN = rf"{NAME_PATTERN} (exited|failed)"


def _exit_on(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(EXIT_ON_PATTERN, value) and value != "all failed":
        return value
    raise ValueError('is not an end of workloads; write "NAME failed", "NAME exited" or "all exited"')


def _signal(value: Any) -> int:
    if not (isinstance(value, str) or is_integer(value)):
        raise ValueError('is not a signal; write for example "SIGTERM"')
    return units.parse_signal(value)


def integer(minimum: int, maximum: int, example: int) -> Scalar:
    """Create a kind for numbers from `minimum` to `maximum`."""

    def load(value: Any) -> int:
        if not is_integer(value):
            raise ValueError(f"is not a whole number; write for example {example}")
        if not minimum <= value <= maximum:
            raise ValueError(f"is out of range; write a number from {minimum} to {maximum}")
        return int(value)

    return Scalar(load, {"type": "integer", "minimum": minimum, "maximum": maximum})


def size(*, minimum: int, unlimited: bool, percent: bool = False) -> Scalar:
    """Create a kind for sizes in bytes, as a number or text.

    limit: accept "max" and "infinity", which become None. percent: accept a share of the host's memory ("25%").
    """

    def load(value: Any) -> int | units.Percent | None:
        if isinstance(value, str):
            if percent and (share := units.parse_percent(value)) is not None:
                return share
            result = units.parse_size(value)
        elif is_integer(value):
            result = value
        else:
            raise ValueError('is not a size; write for example "64M"')
        if result is None:
            if unlimited:
                return None
            if percent:
                raise ValueError('has no end; write a size, or "100%" for all memory')
            raise ValueError('is no limit, which this key needs; write for example "16K"')
        if result > units.MAX_SIZE:
            raise ValueError('is larger than any memory; write "max" for no limit')
        if result < minimum:
            instead = 'a size, or "max" for no limit' if unlimited and result == 0 else f"at least {minimum}"
            raise ValueError(f"is too small; write {instead}")
        return int(result)

    words = ("|infinity|max" if unlimited else "") + (PERCENT_PATTERN if percent else "")
    text = {"type": "string", "pattern": whole_text_pattern(units.SIZE_PATTERN + words)}
    return Scalar(load, {"anyOf": [{"type": "integer", "minimum": minimum}, text]}, units.format_size)


def duration(*, signed: bool = False, infinite: bool = False) -> Scalar:
    """Create a kind for durations in seconds as a float, from a number or text.

    infinite: accept "infinity" (math.inf). signed: accept values below 0.
    """

    def load(value: Any) -> float:
        sign = 1
        if isinstance(value, str):
            if infinite and value == "infinity":
                return math.inf
            if signed and value.startswith("-"):
                sign, value = -1, value[1:]
            return sign * units.parse_duration(value)
        if not (is_integer(value) or isinstance(value, float)) or value != value:
            raise ValueError('is not a duration; write for example "250ms", "10s" or "1min 30s"')
        if abs(value) > units.MAX_SECONDS:
            hint = ', or "infinity" for no limit' if infinite else ""
            raise ValueError(f"is longer than a hundred years; write a shorter time{hint}")
        if value < 0 and not signed:
            raise ValueError("is below zero; write a time from 0 up")
        return float(value)

    number: dict[str, Any] = {"type": "number"} if signed else {"type": "number", "minimum": 0}
    return Scalar(load, {"anyOf": [number, {"type": "string"}]}, _duration_text)


def _duration_text(seconds: float) -> str:
    if math.isinf(seconds):
        return "infinity"
    return f"-{units.format_duration(-seconds)}" if seconds < 0 else units.format_duration(seconds)


def _age(value: Any) -> float:
    seconds: float = duration().load(value)
    if seconds < 1:
        raise ValueError('is too short for a file to live; write for example "1d"')
    return seconds


def _timeout(value: Any) -> float:
    seconds: float = duration(infinite=True).load(value)
    if seconds == 0:
        raise ValueError('is no time to wait; write "infinity" to wait without a limit, or a time such as "10s"')
    return seconds


def _condition(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('is not a condition; write for example "memory.events oom_kill" or "pids.current >= 90%"')
    return parse_condition(value)


def _rlimit(sizes: bool) -> Scalar:
    """Create a kind for (soft, hard) limits from a number, "NUMBER", "SOFT:HARD" or "infinity" (-1).

    The format is that of the Limit…= options of systemd.exec(5).
    """
    example = '"64M", "64M:128M"' if sizes else '1024, "1024:4096"'

    def parse_part(text: str) -> int:
        if text in ("infinity", "unlimited"):
            return -1
        if not sizes and not re.fullmatch("[0-9]{1,19}", text):
            raise ValueError
        number = units.parse_size(text)
        if number is None:
            raise ValueError
        return number

    def load(value: Any) -> tuple[int, int]:
        try:
            if is_integer(value) and 0 <= value <= units.MAX_SIZE:
                return value, value
            if not isinstance(value, str):
                raise ValueError
            soft_text, _, hard_text = value.partition(":")
            soft = parse_part(soft_text)
            hard = parse_part(hard_text) if ":" in value else soft
        except ValueError:
            raise ValueError(f'is not a resource limit; write for example {example} or "infinity"') from None
        if hard != -1 and (soft == -1 or soft > hard):
            raise ValueError('has a soft limit above the hard one; write "SOFT:HARD" with the smaller one first')
        return soft, hard

    def text(limit: tuple[int, int]) -> str:
        return ":".join("infinity" if part == -1 else str(part) for part in limit)

    return Scalar(load, {"type": ["integer", "string"], "minimum": 0}, text)


def shell_words(text: str) -> str:
    """Format a command line as a list: 'sleep 10' → '["sleep", "10"]'."""
    import shlex  # imported here because only an error needs it, and it slows down every start

    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    return f"[{', '.join(quoted(word) for word in words)}]"


_STRING = {"type": "string"}
PERCENT_PATTERN = r"|[0-9]+(\.[0-9]+)?\s*%"

TEXT = Scalar(_text, _STRING)
WORD = Scalar(_word, _STRING)
NAME = Scalar(_name, {"type": "string", "pattern": whole_text_pattern(NAME_PATTERN), "maxLength": 128})
WORKLOAD_NAME = Scalar(
    _workload_name,
    {"type": "string", "pattern": whole_text_pattern(NAME_PATTERN), "maxLength": 128, "not": {"enum": list(_V1_FILES)}},
)
PATH = Scalar(_path, {"type": "string", "pattern": "^/"})
CREDENTIAL = matching(
    "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
    'cannot be the name of a credential; write letters, digits, ".", "-" and "_"',
)
RELATIVE_PATH = Scalar(_relative_path, {"type": "string", "pattern": "^[^/:]"})
OPTIONAL_PATH = Scalar(_optional_path, {"type": "string", "pattern": "^-?/"})
LOG_OUTPUT = Scalar(
    _log_output,
    {
        "anyOf": [
            {"type": "string", "pattern": "^(stdout$|journald$|/|syslog:/)"},
            {
                "type": "object",
                "properties": {"command": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
                "required": ["command"],
                "additionalProperties": False,
            },
        ]
    },
)
ADDRESS = Scalar(
    _address, {"type": "string", "pattern": whole_text_pattern(units.ADDRESS_PATTERN)}, units.format_address
)
OVERLAY = Scalar(
    _overlay, {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": whole_text_pattern(NAME_PATTERN)}]}
)
IMAGE = Scalar(_image, {"type": "string", "pattern": "^(oci|oci-archive|docker-archive):/[^:]+(:.+)?$"})
PATH_CONDITION = Scalar(_negatable(_path), {"type": "string", "pattern": "^!?/"})
HOST_CONDITION = Scalar(_negatable(_word), {"type": "string", "pattern": whole_text_pattern(r"!?\S(.*\S)?")})
ENVIRONMENT_CONDITION = Scalar(_negatable(_variable_condition), {"type": "string", "pattern": "^!?[^=!]"})
BOOLEAN = Scalar(_boolean, {"type": "boolean"})
_JOINABLE_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "boolean"},
    {"type": "string", "pattern": whole_text_pattern(f"{JOIN_WORKLOAD}{NAME_PATTERN}")},
    {"type": "string", "pattern": f"^{JOIN_PATH}/"},
)
JOINABLE_NAMESPACE = Scalar(_joinable_namespace, {"anyOf": list(_JOINABLE_SCHEMAS)})
NETWORK = Scalar(
    _network,
    {"anyOf": [*_JOINABLE_SCHEMAS, {"type": "string", "pattern": whole_text_pattern(f"{CNI}{NAME_PATTERN}")}]},
)
MOUNT_NAMESPACE, PID_NAMESPACE, CGROUP_NAMESPACE, USER_NAMESPACE, TIME_NAMESPACE = map(_namespace_of, _NOT_JOINED)
HOSTNAME = Scalar(
    _hostname, {"type": "string", "pattern": whole_text_pattern(HOSTNAME_PATTERN), "maxLength": MAX_HOSTNAME}
)
BANDWIDTH = Scalar(
    _bandwidth, {"type": "string", "pattern": whole_text_pattern(_BANDWIDTH_PATTERN)}, lambda value: _rate(value)
)
IP_ADDRESS = Scalar(_ip_address, {"type": "string", "pattern": "^[0-9A-Fa-f:.]+$"})
_DOMAIN_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOSTS_NAME = matching(
    rf"{_DOMAIN_LABEL}(\.{_DOMAIN_LABEL})*",
    'is not a name of a host; write letters, digits, "-" and "_", in parts separated by "."',
    max_length=253,
)
SEARCH_DOMAIN = matching(
    rf"\.|{_DOMAIN_LABEL}(\.{_DOMAIN_LABEL})*\.?",
    'is not a domain; write for example "example.org", or "." for none',
    max_length=253,
)
RESOLVER_OPTION = matching(
    "[a-z0-9-]{1,32}(:[0-9]{1,5})?", 'is not an option of resolv.conf; write for example "ndots:2" or "rotate"'
)
FILESYSTEM = Scalar(_filesystem, _STRING)
MOUNT_OPTION = Scalar(_mount_option, _STRING)
USER = Scalar(_user, _STRING)
VARIABLE = Scalar(_variable, {"type": "string", "pattern": whole_text_pattern(VARIABLE_PATTERN)})
PASSED_VARIABLE = matching(
    "[A-Za-z_*][A-Za-z0-9_*]*",
    'is no name of a variable; write for example "LANG", or "APP_*" for all that begin so',
)
OCTAL = Scalar(_octal, {"type": "string", "pattern": whole_text_pattern("(0o)?[0-7]{1,5}")}, "{:04o}".format)
NICE = integer(-20, 19, 10)
PRIORITY = integer(-(10**9), 10**9, 10)
_INSTANCE_COUNT = integer(1, 10_000, 4)
INSTANCES = Scalar(
    _instances,
    {
        "anyOf": [
            dict(_INSTANCE_COUNT.schema),
            {
                "type": "array",
                "items": {
                    "type": "string",
                    "pattern": whole_text_pattern(NAME_PATTERN),
                    "maxLength": MAX_INSTANCE_NAME,
                },
                "minItems": 1,
                "uniqueItems": True,
            },
        ]
    },
)
VARIABLE_NAME = matching("[A-Za-z0-9_]+", 'is not a name; write at most 128 letters, digits and "_"', max_length=128)
VARIABLE_VALUE = Scalar(_variable_value, {"type": ["string", "number", "boolean"]})
POSITIVE = integer(1, 2**31 - 1, 5)
ID = integer(0, MAX_ID, 100_000)
ID_COUNT = integer(1, MAX_ID + 1, 65_536)
EXIT_STATUS = Scalar(_exit_status, {"type": ["integer", "string"], "minimum": 0, "maximum": 255})
EXIT_ON = Scalar(_exit_on, {"type": "string", "pattern": whole_text_pattern(EXIT_ON_PATTERN)})
SIGNAL = Scalar(_signal, {"type": ["integer", "string"], "minimum": 1, "maximum": 64}, units.format_signal)
LIMIT = size(minimum=1, unlimited=True)
LINE_SIZE = size(minimum=4, unlimited=False)
TAIL_SIZE = size(minimum=0, unlimited=False)
FILE_SIZE = size(minimum=4096, unlimited=False)
BYTE_RATE = size(minimum=1024, unlimited=False)
DURATION = duration()
TIMEOUT = Scalar(_timeout, {**duration(infinite=True).schema, "not": {"const": 0}}, _duration_text)
AGE = Scalar(_age, duration().schema)
OFFSET = duration(signed=True)
CONDITION = Scalar(_condition, _STRING, attrgetter("text"))
COMMAND = ListOf(TEXT, 1, 'write the program and its arguments, for example ["sleep", "60"]', shell_words)


MAX_HOOK_COMMANDS = 16


def _hook_command(value: list[Any]) -> tuple[str, ...]:
    words = tuple(_text(word) for word in value)
    if not words or words[0] in ("", "-"):
        raise ValueError("has a command without a program; write the program and its arguments")
    if words[0][0] in "+!@:|":
        raise ValueError(
            f'has a command with the unknown prefix "{words[0][0]}"; there is "-", which ignores a failure'
        )
    return words


def _hook_commands(value: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list):
        raise ValueError('is no command; write for example ["nginx", "-t"], or a list of such commands')
    commands = value if value and all(isinstance(item, list) for item in value) else [value]
    if len(commands) > MAX_HOOK_COMMANDS:
        raise ValueError(f"has more than {MAX_HOOK_COMMANDS} commands; write a script")
    return tuple(map(_hook_command, commands))


_HOOK_COMMAND_SCHEMA = {"type": "array", "items": _STRING, "minItems": 1}
HOOK_COMMANDS = Scalar(
    _hook_commands,
    {
        "anyOf": [
            _HOOK_COMMAND_SCHEMA,
            {"type": "array", "items": _HOOK_COMMAND_SCHEMA, "minItems": 1, "maxItems": MAX_HOOK_COMMANDS},
        ]
    },
)
"""A command, or several that run one after the other; the value is a tuple of commands with their prefixes."""


RLIMITS = {
    **{name: _rlimit(sizes=True) for name in ("as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack")},
    **{name: _rlimit(sizes=False) for name in ("cpu", "nice", "nofile", "nproc", "rtprio", "rttime", "sigpending")},
}
"""All limits of setrlimit(2) but "locks", which Linux has ignored since 2.4."""


def _url(value: Any) -> str:
    return check_url(str(WORD.load(value)))


def _socket(value: Any) -> str:
    text = str(PATH.load(value))
    if len(text.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"is longer than the path of a socket can be; write one of at most {MAX_SOCKET_PATH} bytes")
    return text


def _steps_kind(action: Choice) -> Scalar:
    """Build a kind for one action or a sequence of actions; its value becomes a tuple."""

    def load(value: Any) -> tuple[str, ...]:
        if isinstance(value, list):
            if not 1 <= len(value) <= 8:
                raise ValueError('is no list of steps; write for example ["restart", "stop"]')
            return tuple(action.load(item) for item in value)
        return (action.load(value),)

    action_schema = dict(action.schema)
    return Scalar(
        load, {"anyOf": [action_schema, {"type": "array", "items": action_schema, "minItems": 1, "maxItems": 8}]}
    )


URL = Scalar(_url, {"type": "string", "pattern": "^https?://[^@# ]+$"}, public_url, is_secret=True)
SOCKET = Scalar(_socket, {"type": "string", "pattern": "^/"})
ActionName = Literal["log", "notify", "webhook", "exec", "set", "signal", "thaw", "freeze", "restart", "kill", "stop"]
"""Actions of rules, the mildest first: of two rules with opposite actions, the later one here prevails."""
ACTION = Choice.of(ActionName)
STEPS = _steps_kind(ACTION)
GROUP_ACTION = Choice(*(word for word in ACTION.words if word not in ("set", "thaw")))
GROUP_STEPS = _steps_kind(GROUP_ACTION)
