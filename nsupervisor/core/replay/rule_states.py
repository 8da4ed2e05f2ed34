"""Restore the recorded states of rules, start rules from a new baseline, and list the inputs that a trace lacks."""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from nsupervisor.config.condition_terms import EXIT
from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule
from nsupervisor.core.replay.trace import Line, rules_without_position
from nsupervisor.core.rules.rules import AtomState, Engine, RuleState
from nsupervisor.core.serialize import from_json


def restore_rule_states(
    engine: Engine, tried_config: Line, recorded_config: Line, recorded_states: Iterable[Any]
) -> Engine:
    """Restore the recorded state of each rule that is in both configurations."""
    unmatched = [
        (rule, from_json(RuleState, recorded_state))
        for rule, recorded_state in zip(rules_without_position(recorded_config), recorded_states, strict=True)
    ]
    states = list(engine.states)
    for i, rule in enumerate(rules_without_position(tried_config)):
        for pair in unmatched:
            if pair[0] == rule and len(pair[1].atoms) == len(states[i].atoms):
                states[i] = pair[1]
                unmatched.remove(pair)
                break
    return attrs.evolve(engine, states=tuple(states))


def rebased(engine: Engine) -> tuple[Engine, list[str]]:
    """Start rules from a new baseline, for another program; return the engine, and the files to read as the baseline.

    Cooldowns and escalations continue.
    """
    states = (
        attrs.evolve(state, atoms=(AtomState(),) * len(state.atoms), holding_since=None, has_fired=False)
        for state in engine.states
    )
    counters = {atom.file for rule in engine.rules for atom in rule.when.atoms if atom.kind in ("counter", "stall")}
    return attrs.evolve(engine, states=tuple(states)), sorted(counters)


def missing_inputs(rule: Rule, recorded_config: Line, *files: Mapping[str, Mapping[str, float]]) -> str:
    """Return the inputs of `rule` that the trace lacks, or "".

    A stall watched by a recorded rule but never reported did not occur.
    """
    recorded_stalls = {
        (stall_atom.file, stall_atom.key)
        for recorded_rule in recorded_config["rules"]
        for stall_atom in parse_condition(recorded_rule["when"]).atoms
        if stall_atom.kind == "stall"
    }
    missing = [
        f"{atom.file} {atom.key or ''}".rstrip()
        for atom in rule.when.atoms
        if atom.file != EXIT
        and (atom.file, atom.key) not in recorded_stalls
        and all(atom.value_in(values.get(atom.file, {})) is None for values in files)
    ]
    return " and ".join(dict.fromkeys(missing))
