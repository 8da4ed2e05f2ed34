"""Find words of a command that only a shell would interpret; without one they reach the program as they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nsupervisor.config.quoting import quoted

_OPERATORS = frozenset(("&&", "||", "|", "|&", ";", "&", ">", ">>", "<", "2>", "2>>", "&>", "2>&1", "1>&2", ">&2"))
_REDIRECTION = re.compile(r"[0-9]?(>>?|<)/?[\w.~/-]+")
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_SUPERVISORD = re.compile(r"%\(\w+\)[sd]")
_SUBSTITUTION = re.compile(r"\$\(.+\)|`.+`")
_HOME = re.compile(r"~[\w.-]*(/.*)?")
_GLOB = re.compile(r"[\w./~-]*[*?][\w./*?~-]*")

_INTERPRETERS = re.compile(
    r"(ba|da|z|k|c|tc|fi|a)?sh|busybox|env|perl|ruby|node|php|lua|python[0-9.]*|awk|[gm]awk|sed|jq|psql|mysql"
)
"""Programs whose arguments may contain a language of their own, in which these characters have a meaning."""
_PATTERN_READERS = re.compile(r"find|[ef]?grep|rg|rsync|tar|zip|unzip|git|inotifywait|watchexec|watchmedo")
"""Programs that interpret "*" and "?" themselves."""


def find_shell_syntax(command: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (position, what it is) for each word of a command that a shell would have interpreted."""
    names = [word.rpartition("/")[2] for word in command]
    if any(_INTERPRETERS.fullmatch(name) for name in names[:1]):
        return
    # A wrapper may run a shell: what comes behind that is for the shell.
    end = next((i for i, name in enumerate(names) if re.fullmatch("(ba|da|z|k)?sh", name)), len(command))
    reads_patterns = bool(_PATTERN_READERS.fullmatch(names[0])) if names else False
    for position, word in enumerate(command[:end]):
        if kind := _syntax_in(word, reads_patterns, is_program=position == 0):
            yield position, kind


def _syntax_in(word: str, reads_patterns: bool, is_program: bool) -> str:
    if word in _OPERATORS or (_REDIRECTION.fullmatch(word) and not is_program):
        return quoted(word)
    if (match := _SUPERVISORD.search(word)) or (match := _VARIABLE.search(word)):
        return quoted(match[0])
    if match := _SUBSTITUTION.search(word):
        return quoted(match[0])
    if _HOME.fullmatch(word):
        return quoted("~")
    if not reads_patterns and _GLOB.fullmatch(word):
        return f"the pattern {quoted(word)}"
    return ""
