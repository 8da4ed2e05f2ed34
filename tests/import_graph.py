"""The import graph of a Python package, read from its source: modules, imports, levels and cycles.

An import counts wherever it stands: at the top, in a function, or under `if TYPE_CHECKING:`. An import that only a type
checker follows still makes a reader of one module open the other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

Graph = dict[str, set[str]]
"""Each node's name → the nodes that it imports."""


def read(root: Path, package: str) -> Graph:
    """Read the imports between the modules of `package`, a folder below `root`.

    A module is named as Python names it: "nsupervisor.core.rules.rules". The `__init__.py` of a folder is left out
    unless it defines a class or a function; a name that it passes on leads to the module that defines the name.
    """
    files = {_name(root, path): path for path in sorted((root / package).rglob("*.py"))}
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    folders = {name for name, path in files.items() if path.name == "__init__.py"}
    passed_on = {name: _names_imported(trees[name], name) for name in folders}
    graph: Graph = {}
    for name, tree in trees.items():
        if name in folders and not _defines_something(tree):
            continue
        graph[name] = {
            target
            for module, imported in _imports(tree, name, name in folders)
            if (target := _resolve(module, imported, files, folders, passed_on)) and target != name
        }
    for targets in graph.values():
        targets &= graph.keys()
    return graph


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _defines_something(tree: ast.Module) -> bool:
    """Tell whether a module defines a class or function of its own, apart from a module-level `__getattr__`."""
    return any(
        isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__getattr__"
        for node in tree.body
    )


def _imports(tree: ast.Module, name: str, is_folder: bool) -> Iterable[tuple[str, str]]:
    """Yield (module, imported name) for each import; the imported name is "" for `import module`."""
    parts = name.split(".")
    base = parts if is_folder else parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*above, *(node.module.split(".") if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def _names_imported(tree: ast.Module, name: str) -> dict[str, tuple[str, str]]:
    return {imported: (module, imported) for module, imported in _imports(tree, name, True) if imported}


def _resolve(
    module: str,
    imported: str,
    files: Mapping[str, Path],
    folders: set[str],
    passed_on: Mapping[str, Mapping[str, tuple[str, str]]],
) -> str | None:
    """Find the module that an import leads to; None for one outside of the package."""
    if imported and f"{module}.{imported}" in files:
        return f"{module}.{imported}"
    if module in folders and imported in passed_on[module] and passed_on[module][imported][0] != module:
        return _resolve(*passed_on[module][imported], files, folders, passed_on)
    return module if module in files else None


def between_units(graph: Graph, package: str) -> Graph:
    """Reduce the graph to the direct children of `package`: its modules, and its folders as one unit each."""
    prefix = f"{package}."
    units: Graph = {}
    for name, targets in graph.items():
        if name.startswith(prefix):
            unit = name.removeprefix(prefix).partition(".")[0]
            found = units.setdefault(unit, set())
            found |= {target.removeprefix(prefix).partition(".")[0] for target in targets if target.startswith(prefix)}
            found.discard(unit)
    return units


def cycles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            position = stack.index(node)
            component = sorted(stack[position:])
            del stack[position:]
            if len(component) > 1:
                components.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(components)


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Return the imports to drop so that the rest points one way: those that close a cycle.

    In each cycle the node that fewest others of the cycle import is placed on top, and so on; an import from a lower
    node to a higher one is upward. Which imports are named depends on this order; whether there are any does not.
    """
    found = []
    for cycle in cycles(graph):
        rest, order = set(cycle), {}
        while rest:
            top = min(
                rest, key=lambda node: (sum(node in graph[other] for other in rest), -len(graph[node] & rest), node)
            )
            order[top] = len(order)
            rest.discard(top)
        found += [
            (node, target) for node in cycle for target in graph[node] & set(cycle) if order[target] < order[node]
        ]
    return sorted(found)


def depth(graph: Graph) -> int:
    """Return the number of levels: the longest way along imports, with each cycle on one level."""
    group = {node: min(cycle) for cycle in cycles(graph) for node in cycle}
    edges: Graph = {}
    for node, targets in graph.items():
        edges.setdefault(group.get(node, node), set()).update(group.get(target, target) for target in targets)
    known: dict[str, int] = {}

    def level(node: str) -> int:
        if node not in known:
            known[node] = 1 + max((level(target) for target in edges.get(node, set()) - {node}), default=0)
        return known[node]

    return max(map(level, edges), default=0)
