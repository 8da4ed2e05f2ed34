"""The conditions of policy rules: "memory.events oom_kill", "pids.current >= 90%", "cpu.stat nr_throttled rate > 50/s".

Pure. A condition is made of atoms, joined by `and`, `or`, `not` and parentheses. The files and keys are the kernel's
(Documentation/admin-guide/cgroup-v2.rst, Documentation/accounting/psi.rst). The message of each ValueError ends the
sentence "THE CONDITION …".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, cast

from attrs import frozen

from nsupervisor.config.shown import did_you_mean, shown
from nsupervisor.config.units import parse_size


@frozen
class Atom:
    """One comparison with one value of one file.

    A `counter` ("memory.events oom_kill") is true for a moment: when it went up, or with `by` above 1 ("increases by
    10"), when it went up by so much since that was true last. A `level` ("pids.current >= 90%") and a `rate` ("cpu.stat
    nr_throttled rate > 50/s") are true for as long as the comparison holds. `key` of a PSI file is "some avg10".
    `percent` is true only where the threshold is in per cent of the workload's own limit (pids.current,
    memory.current); the % of a pressure is the file's own unit. A rate's threshold is per second.
    """

    text: str
    file: str
    key: str | None
    kind: Literal["counter", "level", "rate"]
    op: Literal[">", ">=", "<", "<="] | None = None
    threshold: float | None = None
    percent: bool = False
    by: int = 1


Tree = int | tuple[str, "Tree"] | tuple[str, "Tree", "Tree"]
"""The number of an atom, ("not", tree), or ("and" | "or", tree, tree)."""


@frozen
class Condition:
    """What a rule waits for; `parse_condition` makes it from `when`."""

    text: str
    atoms: tuple[Atom, ...]
    tree: Tree = 0

    @property
    def momentary(self) -> bool:
        """It can be true for a moment only, because a counter has a part in it."""
        return any(atom.kind == "counter" for atom in self.atoms)

    def holds(self, truths: Sequence[bool | None]) -> bool:
        """Whether it is true when its atoms are; None stands for an atom that nothing is known of yet."""
        return _value(self.tree, truths) is True


def _value(tree: Tree, truths: Sequence[bool | None]) -> bool | None:
    """Kleene's three-valued logic: "unknown or true" is true, "not unknown" is unknown."""
    if isinstance(tree, int):
        return truths[tree]
    word, *parts = tree
    values = [_value(part, truths) for part in parts]
    if word == "not":
        return None if values[0] is None else not values[0]
    decisive = word == "or"
    if decisive in values:
        return decisive
    return None if None in values else not decisive


COUNTERS = {
    "memory.events": ("low", "high", "max", "oom", "oom_kill", "oom_group_kill"),
    "pids.events": ("max",),
    "cpu.stat": ("nr_throttled",),
}
_MEMORY_STAT = (
    "anon file kernel kernel_stack pagetables sec_pagetables percpu sock vmalloc shmem zswap zswapped file_mapped "
    "file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon active_anon inactive_file "
    "active_file unevictable slab_reclaimable slab_unreclaimable slab"
)
_PRESSURE = tuple(f"{kind} avg{window}" for kind in ("some", "full") for window in (10, 60, 300))
SIZES: dict[str, tuple[str, ...]] = {
    "memory.current": (),
    "memory.stat": tuple(_MEMORY_STAT.split()),
}
NUMBERS: dict[str, tuple[str, ...]] = {"pids.current": ()}
PRESSURES = {"cpu.pressure": _PRESSURE, "io.pressure": _PRESSURE, "memory.pressure": _PRESSURE}
LEVELS = SIZES | NUMBERS | PRESSURES
LIMITS = {"pids.current": "pids_max", "memory.current": "memory_max"}
"""The files that a percentage has a meaning for, and the key that it is a percentage of."""

_COMPARISON = re.compile(r"(>=|<=|>|<)\s*(\S.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?", re.ASCII)


_WORDS = re.compile(r"[()]|\b(?:and|or|not)\b|[^()\s]+")
_DEEPEST = 20


def parse_condition(text: str) -> Condition:
    """The condition that `text` says; ValueError with what is wrong and what to write instead."""
    if len(text) > 400:
        raise ValueError("is too long for a condition; write several rules")
    reader = _Reader(_WORDS.findall(text))
    tree = reader.either()
    if reader.words:
        raise ValueError(f'goes on after its end with {shown(" ".join(reader.words))}; write "and" or "or" between')
    return Condition(" ".join(text.split()), tuple(reader.atoms), tree)


class _Reader:
    """Reads words from left to right: "or" binds less than "and", and that less than "not"."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.atoms: list[Atom] = []
        self.depth = 0

    def either(self) -> Tree:
        tree = self.both()
        while self._take("or"):
            tree = ("or", tree, self.both())
        return tree

    def both(self) -> Tree:
        tree = self.one()
        while self._take("and"):
            tree = ("and", tree, self.one())
        return tree

    def one(self) -> Tree:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("is nested too deeply; write several rules")
        try:
            if self._take("not"):
                return ("not", self.one())
            if self._take("("):
                tree = self.either()
                if not self._take(")"):
                    raise ValueError('has a "(" without its ")"; write both')
                return tree
            words = []
            while self.words and self.words[0] not in ("and", "or", "not", "(", ")"):
                words.append(self.words.pop(0))
            self.atoms.append(parse_atom(" ".join(words)))
            return len(self.atoms) - 1
        finally:
            self.depth -= 1

    def _take(self, word: str) -> bool:
        if not self.words or self.words[0] != word:
            return False
        self.words.pop(0)
        return True


_INCREASES = re.compile(r"(?P<rest>.*\S)\s+increases\s+by\s+(?P<by>\S+)", re.DOTALL)
_RATE = re.compile(
    r"(?P<rest>[^<>=]*\S)\s+rate\s*(?P<op>>=|<=|>|<)\s*(?P<number>\S+?)\s*(?P<unit>/\s*s(ec)?)?", re.DOTALL
)


def parse_atom(text: str) -> Atom:
    """One comparison; ValueError as for `parse_condition`."""
    if match := _INCREASES.fullmatch(text):
        atom = _plain(match["rest"])
        if atom.kind != "counter" or not re.fullmatch(r"[1-9][0-9]{0,14}", match["by"]):
            raise ValueError(
                f'says {shown(text)}; write a counter and a number, for example "pids.events max increases by 10"'
            )
        return Atom(" ".join(text.split()), atom.file, atom.key, "counter", by=int(match["by"]))
    if match := _RATE.fullmatch(text):
        atom = _plain(match["rest"])
        if atom.kind != "counter" or not _NUMBER.fullmatch(match["number"]) or not match["unit"]:
            raise ValueError(
                f'says {shown(text)}; write a counter and a rate, for example "cpu.stat nr_throttled rate > 50/s"'
            )
        operator = cast('Literal[">", ">=", "<", "<="]', match["op"])
        return Atom(" ".join(text.split()), atom.file, atom.key, "rate", operator, float(match["number"]))
    return _plain(text)


def _plain(text: str) -> Atom:
    operator = re.search(r"[<>=!]", text)
    words = (text[: operator.start()] if operator else text).split()
    comparison = text[operator.start() :].strip() if operator else ""
    if not words:
        raise ValueError('names no file; write for example "memory.events oom_kill" or "pids.current >= 90%"')
    file, key = words[0], " ".join(words[1:]) or None
    if file in COUNTERS:
        return _counter(text, file, key, comparison)
    if file in LEVELS:
        return _level(text, file, key, comparison)
    known = sorted(COUNTERS | LEVELS)
    raise ValueError(f"names an unknown file {shown(file)}{did_you_mean(file, known)}; write one of {', '.join(known)}")


def _counter(text: str, file: str, key: str | None, comparison: str) -> Atom:
    keys = COUNTERS[file]
    example = f'"{file} {keys[0] if file != "memory.events" else "oom_kill"}"'
    if key is None:
        raise ValueError(f"does not say which counter of {file}; write for example {example}")
    if key not in keys:
        raise ValueError(
            f"names an unknown counter {shown(key)} of {file}{did_you_mean(key, keys)}; write one of {', '.join(keys)}"
        )
    if comparison:
        raise ValueError(
            f'compares a counter, which only ever goes up; write "{file} {key}", which fires each time it does'
        )
    return Atom(" ".join(text.split()), file, key, "counter")


def _level(text: str, file: str, key: str | None, comparison: str) -> Atom:
    keys = LEVELS[file]
    examples = {"pids.current": ">= 90%", "memory.current": "> 90%", "memory.stat": "> 64M"}
    example_key = f" {'anon' if 'anon' in keys else keys[0]}" if keys else ""
    example = f'"{file}{example_key} {examples.get(file, "> 25%")}"'
    if keys and key is None:
        raise ValueError(f"does not say which value of {file}; write for example {example}")
    if keys and key not in keys:
        raise ValueError(
            f"names an unknown value {shown(key)} of {file}{did_you_mean(key, keys)}; write one of {', '.join(keys)}"
        )
    if not keys and key is not None:
        raise ValueError(f"names a value {shown(key)}, but {file} holds a single one; write for example {example}")
    if not comparison:
        raise ValueError(f"does not say at which level; write for example {example}")
    match = _COMPARISON.fullmatch(comparison)
    if match is None or match[2][0] in "<>=!":
        raise ValueError(f"has no comparison with >, >=, < or <=; write for example {example}")
    threshold, percent = _threshold(file, match[2], example)
    operator = cast('Literal[">", ">=", "<", "<="]', match[1])
    return Atom(" ".join(text.split()), file, key, "level", operator, threshold, percent)


def _threshold(file: str, text: str, example: str) -> tuple[float, bool]:
    """(number, whether it is in per cent of the workload's own limit)."""
    number = text.removesuffix("%").rstrip()
    percent = text.endswith("%")
    if percent and not (file in LIMITS or file in PRESSURES):
        raise ValueError(f"compares {file} with a percentage, but it has no limit; write for example {example}")
    if percent or file in PRESSURES:
        if not _NUMBER.fullmatch(number) or float(number) > 100:
            raise ValueError(f"compares with {shown(text)}, not a percentage up to 100%; write for example {example}")
        return float(number), percent and file in LIMITS
    if file in SIZES:
        try:
            size = parse_size(text)
        except ValueError:
            size = None
        if size is None:
            raise ValueError(f"compares with {shown(text)}, which is not a size; write for example {example}")
        return float(size), False
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"compares with {shown(text)}, which is not a number; write for example {example}")
    return float(number), False
