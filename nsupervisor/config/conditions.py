"""Conditions of policy rules: "memory.events oom_kill", "pids.current >= 90%", "cpu.stat nr_throttled rate > 50/s".

Pure. A condition consists of atoms, joined by `and`, `or`, `not` and parentheses. `nsupervisor.config.condition_terms`
lists the files and keys. The message of each ValueError ends the sentence "THE CONDITION …".

    FILE COUNTER                             the counter increased
    FILE COUNTER increases by N              the counter increased by N
    FILE COUNTER rate OP N/s                 its rate of increase; N may be a size, or a time or a share of one CPU
    FILE [VALUE] OP N                        a level; N may be a size, or per cent of its limit
    FILE.pressure some|full stall > T/W      processes were stalled for T within W: the kernel's own trigger
    uptime OP TIME                           how long the program has run
    exit code|signal OP N                    the program exited with that code or signal; OP may be == or != here
    exit oom_killed|core_dumped              the program exited in that way
    probe readiness|liveness == pass|fail    the verdict of a probe; OP may be !=
    probe readiness|liveness took avg OP TIME    how long its latest results took
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

from attrs import frozen

from nsupervisor.config.condition_terms import (
    BYTE_KEYS,
    COUNTERS,
    DURATION_FILES,
    EXIT,
    EXIT_KEYS,
    LEVELS,
    LIMIT_KEYS,
    MAX_WINDOW_S,
    MICROSECOND_KEYS,
    MIN_WINDOW_S,
    PRESSURE_FILES,
    PROBE,
    PROBE_KINDS,
    SIZE_FILES,
    TOOK,
)
from nsupervisor.config.quoting import did_you_mean, quoted
from nsupervisor.config.units import parse_duration, parse_signal, parse_size

Operator = Literal[">", ">=", "<", "<=", "==", "!="]


@frozen
class Atom:
    """One comparison with one value of one file.

    A `counter` ("memory.events oom_kill") is true for a moment: when it increased, or with `increase` above 1
    ("increases by 10"), when it increased by that much since it was last true. A `level` ("pids.current >= 90%") and a
    `rate` ("cpu.stat nr_throttled rate > 50/s") are true for as long as the comparison holds. `key` of a PSI file is
    "some avg10". `is_percent` is true only if the threshold is in per cent of the workload's own limit (pids.current,
    memory.current), or of a total of the host (host.meminfo); the % of a pressure is the file's own unit. A rate's
    threshold is per second.

    A `stall` ("memory.pressure some stall > 100ms/1s") is true for a moment, when the kernel's trigger fires; its
    key is as the kernel writes it ("some 100000 1000000"), threshold and `window` are microseconds. A `fact` ("exit
    code == 3") is true for the moment of the exit.
    """

    text: str
    file: str
    key: str | None
    kind: Literal["counter", "level", "rate", "stall", "fact"]
    op: Operator | None = None
    threshold: float | None = None
    is_percent: bool = False
    increase: int = 1
    window: int = 0

    @property
    def is_momentary(self) -> bool:
        """Whether the atom is true for a moment only."""
        return self.kind in ("counter", "stall", "fact")

    def is_present_in(self, values: Mapping[str, float]) -> bool:
        """Check whether a file with these values has the value that the atom compares."""
        if self.kind == "stall":
            return f"{(self.key or '').partition(' ')[0]} total" in values
        return self.value_in(values) is not None

    def value_in(self, values: Mapping[str, float]) -> float | None:
        """Return the value that the atom compares, from the file's values; None if they lack it."""
        if self.file != "io.stat":
            return values.get(self.key or "")
        return sum(value for name, value in values.items() if name.endswith(f" {self.key}"))  # over all devices


Tree = int | tuple[str, "Tree"] | tuple[str, "Tree", "Tree"]
"""An index into the atoms, ("not", tree), or ("and" | "or", tree, tree)."""


@frozen
class Condition:
    """The condition of a rule; `parse_condition` makes it from `when`."""

    text: str
    atoms: tuple[Atom, ...]
    tree: Tree = 0

    @property
    def is_momentary(self) -> bool:
        """Whether it is true for a moment only, because it has a counter, a stall or an exit."""
        return any(atom.is_momentary for atom in self.atoms)

    def evaluate(self, truths: Sequence[bool | None]) -> bool:
        """Evaluate the condition from the truth of its atoms; None stands for an unknown atom."""
        return _evaluate(self.tree, truths) is True


def _evaluate(tree: Tree, truths: Sequence[bool | None]) -> bool | None:
    """Evaluate in Kleene's three-valued logic: "unknown or true" is true, "not unknown" is unknown."""
    if isinstance(tree, int):
        return truths[tree]
    operator, *parts = tree
    operands = [_evaluate(part, truths) for part in parts]
    if operator == "not":
        return None if operands[0] is None else not operands[0]
    decisive = operator == "or"
    if decisive in operands:
        return decisive
    return None if None in operands else not decisive


_COMPARISON = re.compile(r"(>=|<=|>|<)\s*(\S.*)", re.DOTALL)
_FACT = re.compile(r"(>=|<=|==|!=|>|<)\s*([A-Za-z0-9+-]+)")
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?", re.ASCII)


_WORDS = re.compile(r"[()]|\b(?:and|or|not)\b|[^()\s]+")
_MAX_DEPTH = 20


def parse_condition(text: str) -> Condition:
    """Parse a condition; ValueError says what is wrong and what to write instead."""
    if len(text) > 400:
        raise ValueError("is too long for a condition; write several rules")
    reader = _Parser(_WORDS.findall(text))
    tree = reader.parse_or()
    if reader.words:
        raise ValueError(f'goes on after its end with {quoted(" ".join(reader.words))}; write "and" or "or" between')
    return Condition(" ".join(text.split()), tuple(reader.atoms), tree)


class _Parser:
    """Parser of a list of words: "or" binds less than "and", and that less than "not"."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.atoms: list[Atom] = []
        self.depth = 0

    def parse_or(self) -> Tree:
        tree = self.parse_and()
        while self._accept("or"):
            tree = ("or", tree, self.parse_and())
        return tree

    def parse_and(self) -> Tree:
        tree = self.parse_operand()
        while self._accept("and"):
            tree = ("and", tree, self.parse_operand())
        return tree

    def parse_operand(self) -> Tree:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("is nested too deeply; write several rules")
        try:
            if self._accept("not"):
                return ("not", self.parse_operand())
            if self._accept("("):
                tree = self.parse_or()
                if not self._accept(")"):
                    raise ValueError('has a "(" without its ")"; write both')
                return tree
            atom_words = []
            while self.words and self.words[0] not in ("and", "or", "not", "(", ")"):
                atom_words.append(self.words.pop(0))
            self.atoms.append(parse_atom(" ".join(atom_words)))
            return len(self.atoms) - 1
        finally:
            self.depth -= 1

    def _accept(self, word: str) -> bool:
        if not self.words or self.words[0] != word:
            return False
        self.words.pop(0)
        return True


_INCREASES = re.compile(r"(?P<rest>.*\S)\s+increases\s+by\s+(?P<by>\S+)", re.DOTALL)
_RATE = re.compile(r"(?P<rest>[^<>=]*\S)\s+rate\s*(?P<op>>=|<=|>|<)\s*(?P<limit>\S.*)", re.DOTALL)
_STALL = re.compile(
    r"(?P<file>\S+)\s+(?P<kind>some|full)\s+stall\s*>\s*(?P<stall>[^/]*\S)\s*/\s*(?P<window>\S.*)", re.DOTALL
)


def parse_atom(text: str) -> Atom:
    """Parse one comparison; raises ValueError as `parse_condition` does."""
    normalized = " ".join(text.split())
    if match := _INCREASES.fullmatch(text):
        atom = _parse_plain(match["rest"])
        if atom.kind != "counter" or not re.fullmatch(r"[1-9][0-9]{0,14}", match["by"]):
            raise ValueError(
                f'says {quoted(text)}; write a counter and a number, for example "pids.events max increases by 10"'
            )
        return Atom(normalized, atom.file, atom.key, "counter", increase=int(match["by"]))
    if match := _RATE.fullmatch(text):
        atom = _parse_plain(match["rest"])
        limit = _parse_rate(atom.key or "", match["limit"]) if atom.kind == "counter" else None
        if limit is None:
            raise ValueError(
                f'says {quoted(text)}; write a counter and a rate, for example "cpu.stat nr_throttled rate > 50/s"'
            )
        return Atom(normalized, atom.file, atom.key, "rate", cast(Operator, match["op"]), limit)
    if re.search(r"\sstall\b", text):
        return _parse_stall(normalized)
    if text.split()[:1] == [EXIT]:
        return _parse_fact(normalized)
    if text.split()[:1] == [PROBE]:
        return _parse_probe(normalized)
    return _parse_plain(text)


def _parse_rate(key: str, text: str) -> float | None:
    """Parse a rate per second in the counter's own unit; None if the text is not a rate.

    Accepts "50/s", "50M/s" of bytes, and "800ms/s" or "80%" of a time.
    """
    if key in MICROSECOND_KEYS and text.endswith("%"):
        share = text.removesuffix("%").rstrip()
        return float(share) * 10_000 if _NUMBER.fullmatch(share) else None
    number, slash, unit = (part.strip() for part in text.rpartition("/"))
    if not slash or unit not in ("s", "sec"):
        return None
    if _NUMBER.fullmatch(number):
        return float(number)
    try:
        if key in MICROSECOND_KEYS:
            return parse_duration(number) * 1e6
        return parse_size(number) if key in BYTE_KEYS else None
    except ValueError:
        return None


def _parse_stall(text: str) -> Atom:
    example = 'write for example "memory.pressure some stall > 100ms/1s"'
    match = _STALL.fullmatch(text)
    if match is None or match["file"] not in PRESSURE_FILES:
        raise ValueError(f"says {quoted(text)}, which is no stall; {example}")
    try:
        stall, window = parse_duration(match["stall"]), parse_duration(match["window"])
    except ValueError:
        raise ValueError(f"says {quoted(text)}, where a time is wrong; {example}") from None
    if not MIN_WINDOW_S <= window <= MAX_WINDOW_S:
        raise ValueError(f"has a window that the kernel does not take; {example}, with one of 500ms to 10s")
    if not 1e-6 <= stall <= window:
        raise ValueError(f"has a stall of nothing, or longer than its window; {example}")
    stall_us, window_us = round(stall * 1e6), round(window * 1e6)
    key = f"{match['kind']} {stall_us} {window_us}"
    return Atom(text, match["file"], key, "stall", ">", float(stall_us), window=window_us)


def _parse_fact(text: str) -> Atom:
    example = 'write for example "exit code == 3", "exit signal == SIGSEGV" or "exit oom_killed"'
    key, _, comparison = text.removeprefix(EXIT).strip().partition(" ")
    if match := re.match(r"(\w+)\s*([<>=!].*)", text.removeprefix(EXIT).strip(), re.DOTALL):
        key, comparison = match[1], match[2]
    if key not in EXIT_KEYS:
        raise ValueError(f"does not say what of an exit{did_you_mean(key, EXIT_KEYS)}; {example}")
    if key not in ("code", "signal"):
        if comparison:
            raise ValueError(f'compares what is a yes or no; write "exit {key}" or "not exit {key}"')
        return Atom(text, EXIT, key, "fact", "==", 1.0)
    match = _FACT.fullmatch(comparison.strip())
    if match is None:
        raise ValueError(f"does not compare the exit's {key} with anything; {example}")
    if key == "signal":
        try:
            number = parse_signal(int(match[2]) if match[2].isdecimal() and len(match[2]) < 4 else match[2])
        except ValueError:
            raise ValueError(f"compares with {quoted(match[2])}, which is not a signal; {example}") from None
    else:
        if not re.fullmatch("[0-9]{1,3}", match[2]) or int(match[2]) > 255:
            raise ValueError(f"compares with {quoted(match[2])}, which is no exit code from 0 to 255; {example}")
        number = int(match[2])
    return Atom(text, EXIT, key, "fact", cast(Operator, match[1]), float(number))


_PROBE_VERDICT = re.compile(r"probe (\w+) ?(==|!=) ?(pass|fail)")
_PROBE_TIME = re.compile(r"probe (\w+) took avg ?(>=|<=|>|<) ?([^<>=!]+)")


def _parse_probe(text: str) -> Atom:
    """Parse a comparison with the results of a probe: 1 is the verdict that it passes; a time is in seconds."""
    example = 'write for example "probe readiness == fail" or "probe liveness took avg > 200ms"'
    match = _PROBE_VERDICT.fullmatch(text) or _PROBE_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"says {quoted(text)}, which is no comparison with the results of a probe; {example}")
    kind, operator, value = match.groups()
    if kind not in PROBE_KINDS:
        raise ValueError(f"names {quoted(kind)}{did_you_mean(kind, PROBE_KINDS)}, not readiness or liveness; {example}")
    if operator in ("==", "!="):
        is_pass = (operator == "==") == (value == "pass")
        return Atom(text, PROBE, kind, "level", ">=" if is_pass else "<", 1.0)
    try:
        seconds = parse_duration(value)
    except ValueError:
        raise ValueError(f"compares with {quoted(value)}, not a time; {example}") from None
    return Atom(text, PROBE, f"{kind} {TOOK}", "level", cast(Operator, operator), seconds)


def _parse_plain(text: str) -> Atom:
    operator = re.search(r"[<>=!]", text)
    words = (text[: operator.start()] if operator else text).split()
    comparison = text[operator.start() :].strip() if operator else ""
    if not words:
        raise ValueError('names no file; write for example "memory.events oom_kill" or "pids.current >= 90%"')
    file, key = words[0], " ".join(words[1:]) or None
    if file in COUNTERS and (file not in LEVELS or key in COUNTERS[file]):
        return _parse_counter(text, file, key, comparison)
    if file in LEVELS:
        return _parse_level(text, file, key, comparison)
    known = sorted({*COUNTERS, *LEVELS, EXIT, PROBE})  # memory.stat is in both
    raise ValueError(
        f"names an unknown file {quoted(file)}{did_you_mean(file, known)}; write one of {', '.join(known)}"
    )


def _parse_counter(text: str, file: str, key: str | None, comparison: str) -> Atom:
    keys = COUNTERS[file]
    example = f'"{file} {keys[0] if file != "memory.events" else "oom_kill"}"'
    if key is None:
        raise ValueError(f"does not say which counter of {file}; write for example {example}")
    if key not in keys:
        raise ValueError(
            f"names an unknown counter {quoted(key)} of {file}{did_you_mean(key, keys)}; write one of {', '.join(keys)}"
        )
    if comparison:
        raise ValueError(
            f'compares a counter, which only ever goes up; write "{file} {key}", which fires each time it does'
        )
    return Atom(" ".join(text.split()), file, key, "counter")


def _parse_level(text: str, file: str, key: str | None, comparison: str) -> Atom:
    keys = LEVELS[file]
    examples = {
        "pids.current": ">= 90%",
        "memory.current": "> 90%",
        "memory.stat": "> 64M",
        "uptime": "> 7d",
        "host.meminfo": "< 5%",
    }
    example_key = f" {'anon' if 'anon' in keys else keys[0]}" if keys else ""
    example = f'"{file}{example_key} {examples.get(file, "> 25%")}"'
    if keys and key is None:
        raise ValueError(f"does not say which value of {file}; write for example {example}")
    if keys and key not in keys:
        raise ValueError(
            f"names an unknown value {quoted(key)} of {file}{did_you_mean(key, (*keys, *COUNTERS.get(file, ())))}; "
            f"write one of {', '.join(keys)}"
        )
    if not keys and key is not None:
        raise ValueError(f"names a value {quoted(key)}, but {file} holds a single one; write for example {example}")
    if not comparison:
        raise ValueError(f"does not say at which level; write for example {example}")
    match = _COMPARISON.fullmatch(comparison)
    if match is None or match[2][0] in "<>=!":
        raise ValueError(f"has no comparison with >, >=, < or <=; write for example {example}")
    threshold, percent = _parse_threshold(file, match[2], example)
    return Atom(" ".join(text.split()), file, key, "level", cast(Operator, match[1]), threshold, percent)


def _parse_threshold(file: str, text: str, example: str) -> tuple[float, bool]:
    """Parse a threshold; return it, and whether it is in per cent of a limit or of a total of the host."""
    number = text.removesuffix("%").rstrip()
    percent = text.endswith("%")
    has_total = file in LIMIT_KEYS or file == "host.meminfo"
    if percent and not (has_total or file in PRESSURE_FILES):
        raise ValueError(f"compares {file} with a percentage, but it has no limit; write for example {example}")
    if percent or file in PRESSURE_FILES:
        if not _NUMBER.fullmatch(number) or float(number) > 100:
            raise ValueError(f"compares with {quoted(text)}, not a percentage up to 100%; write for example {example}")
        return float(number), percent and has_total
    if file in DURATION_FILES:
        try:
            return parse_duration(text), False
        except ValueError:
            raise ValueError(f"compares with {quoted(text)}, not a time; write for example {example}") from None
    if file in SIZE_FILES:
        try:
            size = parse_size(text)
        except ValueError:
            size = None
        if size is None:
            raise ValueError(f"compares with {quoted(text)}, which is not a size; write for example {example}")
        return float(size), False
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"compares with {quoted(text)}, which is not a number; write for example {example}")
    return float(number), False
