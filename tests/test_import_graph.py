"""The reader of the import graph finds every import, and names the ones that close a cycle."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests import import_graph

GRAPHS = st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef")), max_size=6)


def _package(root: Path, files: dict[str, str]) -> import_graph.Graph:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return import_graph.read(root, "p")


def test_imports_count_wherever_they_stand(tmp_path: Path) -> None:
    graph = _package(
        tmp_path,
        {
            "p/__init__.py": '"""Nothing."""\n',
            "p/a.py": "from p import b\nif TYPE_CHECKING:\n    from p.c import C\n\ndef late():\n    import p.d\n",
            "p/b.py": "import os\n",
            "p/c.py": "class C: ...\n",
            "p/d.py": "",
        },
    )
    assert graph == {"p.a": {"p.b", "p.c", "p.d"}, "p.b": set(), "p.c": set(), "p.d": set()}


def test_a_name_that_a_folder_passes_on_leads_to_where_it_is_defined(tmp_path: Path) -> None:
    graph = _package(
        tmp_path,
        {
            "p/__init__.py": "",
            "p/q/__init__.py": "from p.q.deep import Thing\n",
            "p/q/deep.py": "from ..a import x\nclass Thing: ...\n",
            "p/a.py": "from p.q import Thing\n",
        },
    )
    assert graph == {"p.a": {"p.q.deep"}, "p.q.deep": {"p.a"}}
    assert import_graph.cycles(graph) == [["p.a", "p.q.deep"]]
    assert import_graph.between_units(graph, "p") == {"a": {"q"}, "q": {"a"}}
    assert len(import_graph.upward(graph)) == 1


@given(GRAPHS)
def test_a_graph_without_its_upward_imports_has_no_cycle(graph: import_graph.Graph) -> None:
    upward = import_graph.upward(graph)
    left = {node: {t for t in targets if (node, t) not in upward} for node, targets in graph.items()}
    assert import_graph.cycles(left) == []
    assert bool(upward) == bool(import_graph.cycles(graph))


def test_levels_count_the_longest_way() -> None:
    assert import_graph.depth({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    assert import_graph.depth({"a": {"b"}, "b": {"a", "c"}, "c": set()}) == 2
    assert import_graph.depth({}) == 0
