"""Find assignments to attributes of objects that a module does not own, in the syntax tree of its source.

A piece of state has one owner: the methods of its object change it, and other code calls them. So a module may assign
an attribute (or augment or delete it) only on `self` and `cls`, and on a local that it has just made: bound, in the
same function, to a call of a class, of a class method, or of `cls`. `setattr` and `delattr` count as assignments.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CONSTRUCTORS = ("evolve", "copy", "__new__")
"""Functions that return a new object, whatever they belong to."""


class ForeignAssignment(NamedTuple):
    """An assignment to an attribute of another object: the line, and the target as in the source."""

    line: int
    target: str


def foreign_assignments(tree: ast.Module) -> list[ForeignAssignment]:
    """Return all such assignments of a module, in the order of its lines."""
    found: list[ForeignAssignment] = []
    for scope in _scopes(tree):
        made = {"self", "cls", *_made_locals(scope)}
        for node in _own_nodes(scope):
            found += [
                ForeignAssignment(target.lineno, ast.unparse(target))
                for target in _targets(node)
                if not (isinstance(target.value, ast.Name) and target.value.id in made)
            ]
    return sorted(found)


def read_foreign_assignments(path: Path) -> list[ForeignAssignment]:
    """Return those of a file."""
    return foreign_assignments(ast.parse(path.read_text()))


_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def _scopes(tree: ast.Module) -> Iterator[_Scope]:
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


def _own_nodes(scope: _Scope) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, without those of functions in it."""
    waiting: list[ast.AST] = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _made_locals(scope: _Scope) -> set[str]:
    """Return the names that are bound in this scope to new objects, and to nothing else."""
    bound: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for node in _own_nodes(scope):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                bound[name] += 1
            case ast.arg(arg=name):
                bound[name] += 1
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                made[name] += _is_construction(value)
    return {name for name, count in made.items() if count and count == bound[name]}


def _is_construction(value: ast.expr) -> bool:
    """Return whether an expression makes a new object: `Class(…)`, `Class.make(…)`, `cls(…)`, `attrs.evolve(…)`."""
    match value:
        case ast.Call(func=ast.Name(id=name)):
            return name == "cls" or name.lstrip("_")[:1].isupper()
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
            return name in _CONSTRUCTORS or name[:1].isupper() or owner.lstrip("_")[:1].isupper()
    return False


def _targets(node: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes that a statement assigns or deletes; `setattr` and `delattr` as the attribute they name."""
    match node:
        case ast.Attribute(ctx=ast.Store() | ast.Del()):
            yield node
        case (
            ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, name, *_])
            | ast.Call(
                func=ast.Attribute(value=ast.Name(id="object"), attr="__setattr__" | "__delattr__"),
                args=[owner, name, *_],
            )
        ):
            text = name.value if isinstance(name, ast.Constant) else "…"
            yield ast.copy_location(ast.Attribute(owner, str(text), ast.Store()), node)
