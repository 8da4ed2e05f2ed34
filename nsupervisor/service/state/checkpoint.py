"""Convert the state of rules and limits for checkpoints, and back; see `nsupervisor.service.state.file`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

from nsupervisor.config.model import Resources
from nsupervisor.config.units import Percent
from nsupervisor.core.rules.rules import AtomState, Engine
from nsupervisor.core.rules.rules import RuleState as RuleMemory
from nsupervisor.core.serialize import from_json, to_json_sparse
from nsupervisor.service.state.file import SavedRule
from nsupervisor.wire_names import by_wire_name, wire_names


def saved_rules(engine: Engine) -> tuple[SavedRule, ...]:
    """Return the state of each rule, for `restore_rules`."""
    pairs = zip(engine.rules, engine.states, strict=True)
    return tuple(SavedRule(rule.name, rule.when.text, memory) for rule, memory in pairs)


def restore_rules(engine: Engine, saved: tuple[SavedRule, ...]) -> Engine:
    """Restore the saved state of each rule whose name and condition are still the same."""
    return attrs.evolve(engine, states=_rule_states(engine, saved)) if saved else engine


def _rule_states(engine: Engine, saved: tuple[SavedRule, ...]) -> tuple[RuleMemory, ...]:
    known = {(rule.name, rule.when): rule.state for rule in saved}
    states = []
    for rule, fresh in zip(engine.rules, engine.states, strict=True):
        memory = known.get((rule.name, rule.when.text), fresh)
        # A report of a pressure trigger cannot be read afterwards.
        pairs = zip(rule.when.atoms, memory.atoms, strict=False)
        atoms = tuple(AtomState() if atom.kind == "stall" else state for atom, state in pairs)
        states.append(attrs.evolve(memory, atoms=atoms) if len(atoms) == len(fresh.atoms) else fresh)
    return tuple(states)


def limits_in_force(configured: Resources, changed_limits: Mapping[str, Any]) -> Resources:
    """Return the limits in force: the configured ones, with saved changes of `nsupervisor set` (`changed_limits`)."""
    try:
        after = from_json(Resources, dict(changed_limits), ignore_unknown=True)
    except ValueError:  # written by another version
        return configured
    changed = [attribute.name for name, attribute in wire_names(Resources).items() if name in changed_limits]
    return attrs.evolve(configured, **{name: getattr(after, name) for name in changed}) if changed else configured


def limits_digest(resources: Resources) -> str:
    """Return a short digest of limits, or "" if they depend on other limits, so that equality proves nothing."""
    given = to_json_sparse(resources)
    if any(isinstance(value, Percent) for value in by_wire_name(resources).values()):
        return ""
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()


def limit_overrides(configured: Resources, present: Resources) -> Mapping[str, Any]:
    """Return the limits in force that differ from the configured ones, as plain JSON with `Resources` wire names."""
    if configured is present:
        return {}
    before = by_wire_name(configured)
    return {name: to_json_sparse(now) for name, now in by_wire_name(present).items() if before[name] != now}
