"""What holds for the repository as a whole: sizes, directions of imports, links, and that what tests need is known."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nsupervisor.config.load import key_slots
from nsupervisor.config.model import WorkloadConfig
from tests import import_graph
from tests.needs import ROOT, needs

PACKAGE = ROOT / "nsupervisor"

# Folder (or file) → what it may import of ours besides itself. "service" may import all but the command line.
ARROWS = {
    "core": {"config"},
    "config": set(),
    "linux": set(),
    "images": {"config", "linux"},
    "cgroups": {"config", "linux"},
    "keeper": {"linux"},
    "logs": {"linux", "terminal"},
    "terminal": set(),
    "api": {"config", "linux"},
    "metrics": {"core", "config", "cgroups", "api"},
    "service": {"core", "config", "linux", "cgroups", "images", "keeper", "logs", "api", "metrics", "terminal"},
}

# These start fast, or run between fork and exec: nothing but the standard library.
STANDARD_LIBRARY_ONLY = [
    *sorted(
        set((PACKAGE / "keeper").rglob("*.py"))
        - {
            PACKAGE / "keeper" / name
            for name in ("client.py", "connection.py", "entry.py", "messages.py", "reconnecting.py")
        }
    ),
    *sorted((PACKAGE / "linux").glob("*.py")),
    *sorted((PACKAGE / "terminal").glob("*.py")),
    PACKAGE / "api" / "client.py",
    PACKAGE / "service" / "recovery" / "upgrade_guard.py",
]


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository; of the folder, where this is not a clone."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it is run, also late ones; not those for type checkers alone."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from nsupervisor.config import kinds` names a module, too; one name too many does no harm here.
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_point_one_way(folder: str) -> None:
    allowed = ARROWS[folder] | {folder}
    wrong = {}
    for path in (PACKAGE / folder).rglob("*.py"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("nsupervisor.")}
        if extra := {name for name in ours if (PACKAGE / name).is_dir()} - allowed:
            wrong[str(path.relative_to(ROOT))] = extra
    assert wrong == {}


@pytest.mark.parametrize("path", STANDARD_LIBRARY_ONLY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_standard_library_is_imported(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) - {"nsupervisor", "__future__"} == set()


# In the packages of the running service: why a module uses the standard library's `json`, not `nsupervisor.json_codec`.
STANDARD_JSON = {
    "api/client.py": "loaded by commands, which must start fast",
    "api/http/messages.py": "writes lone surrogates as JSON escapes, from which clients get the same names back",
    "service/recovery/upgrade.py": "messages to processes of other versions",
    "service/recovery/upgrade_guard.py": "uses the standard library only",
    "service/state/checkpoint.py": "digests of bytes that earlier versions wrote",
    "service/state/digest.py": "digests of bytes that earlier versions wrote",
    "service/state/file.py": "reads state files, and writes the lines that orjson refuses",
    "service/state/assigned_ids.py": "state files, indented for people",
}


def test_json_follows_the_written_rule() -> None:
    users = {path: imports(path) for path in PACKAGE.rglob("*.py")}
    assert {path.name for path, names in users.items() if "orjson" in names} == {"json_codec.py"}
    standard = {str(path.relative_to(PACKAGE)) for path, names in users.items() if "json" in names}
    running = {name for name in standard if name.split("/")[0] in ("api", "logs", "metrics", "service")}
    assert running == set(STANDARD_JSON), "see docs/decisions.md, Output: JSON has two libraries, and one rule"


def test_no_import_cycles() -> None:
    graph = import_graph.read(ROOT, "nsupervisor")
    assert import_graph.cycles(graph) == []
    for folder in ("nsupervisor", "nsupervisor.service"):
        assert import_graph.cycles(import_graph.between_units(graph, folder)) == [], f"between the folders of {folder}"


def test_links_between_pages_lead_somewhere() -> None:
    broken = {
        f"{page.relative_to(ROOT)}: {target}"
        for page in tracked("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        if "://" not in target and not (page.parent / target).exists()
    }
    assert broken == set()


def test_no_file_has_marks_of_a_conflict() -> None:
    marks = re.compile(r"^(<{7} |>{7} )", re.MULTILINE)
    texts = {
        path: path.read_text(errors="replace") for path in tracked("*.md", "*.py", "*.toml", "*.json", "scripts/*")
    }
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if marks.search(text)] == []


def test_the_map_is_one_page_and_names_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert len(text.splitlines()) <= 120, "the map with its glossary; reasons go to docs/decisions.md"
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == folders
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", text + (ROOT / "docs" / "decisions.md").read_text())
    assert [name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists())] == []


def defined_names(path: Path) -> set[str]:
    """Return the names that a module defines: `NAME` at its top, and `Class.member`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef(name=owner):
                names.add(owner)
                for inner in ast.walk(node):
                    match inner:
                        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                            names.add(f"{owner}.{name}")
                        case ast.AnnAssign(target=ast.Name(id=name)):
                            names.add(f"{owner}.{name}")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/decisions.md", "docs/internals.md", "CONTRIBUTING.md"])
def test_pages_name_files_and_symbols_that_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    defined = {path: defined_names(path) for path in PACKAGE.rglob("*.py")}
    everywhere = set().union(*defined.values())
    missing = [
        path
        for path in re.findall(r"`((?:[\w.]+/)+(?:\w+\.py)?)`", text)
        if not any((folder / path).exists() for folder in (ROOT, PACKAGE, *(PACKAGE / name for name in ARROWS)))
    ]
    # `NAME` and `OTHER` of `path.py`; elsewhere, `Class.member`.
    for names, path in re.findall(r"((?:`[\w.]+`(?: and |, )?)+)\s+of\s+`(?:nsupervisor/)?([\w/]+\.py)`", text):
        if (PACKAGE / path).exists():
            named = re.findall(r"`([\w.]+)`", names)
            missing += [f"{path}: {name}" for name in named if name not in defined[PACKAGE / path]]
    missing += [name for name in re.findall(r"`([A-Z]\w*\.\w+)`", text) if name not in everywhere]
    for name in re.findall(r"`nsupervisor\.([\w.]+)`", text):
        module = PACKAGE.joinpath(*name.split("."))
        owner = module.parent if module.parent.is_dir() else module.parent.with_suffix(".py")
        source = owner / "__init__.py" if owner.is_dir() else owner
        if not (module.is_dir() or module.with_suffix(".py").exists() or module.name in source.read_text()):
            missing.append(f"nsupervisor.{name}")
    assert missing == []


def test_scripts_can_be_run() -> None:
    for path in tracked("scripts/*"):
        if path.parent.name == "scripts" and not path.name.startswith("_"):
            assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
            assert path.read_text().startswith("#!"), f"{path.name} does not say what runs it"


@needs("program:bash")
def test_shell_scripts_are_well_formed() -> None:
    for path in tracked("scripts/*", ".ci/*"):
        first = path.read_text(errors="replace").partition("\n")[0] if path.is_file() else ""
        if re.fullmatch(r"#!.*\b(ba|da)?sh\b.*", first) or path.suffix == ".sh":
            assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


def test_programs_that_tests_need_are_known_to_the_set_up() -> None:
    listed = (ROOT / "tests" / "programs.txt").read_text().splitlines()
    known = {line.split()[0] for line in listed if line and not line.startswith("#")}
    used = {
        name
        for path in tracked("tests/*.py")
        if path != Path(__file__) and path.name != "needs.py"
        for name in re.findall(r'needs\([^)]*?"program:([^"]+)"', path.read_text())
    }
    assert used <= known, "add them to tests/programs.txt, with their Debian packages"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[><=~ \[]", name)[0].replace("-", "_") for name in project["dependencies"]}
    roots = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) - {"nsupervisor"} == declared


def test_changelog_has_an_unreleased_part_on_top() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


@pytest.mark.fault("E3")
@pytest.mark.parametrize("status", [0, 1])
def test_a_tier_runs_once_and_its_failures_count(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    runner_module = importlib.import_module("_test")
    runs = tmp_path / "runs"

    class Runner(runner_module.Runner):
        def pytest(self, tier: str, *more: str) -> list[str]:
            counts = json.dumps({"passed": 3, "failed": status, "failures": ["tests/test_some.py::test_one"] * status})
            script = 'echo run >>"$1"; printf %s "$2" >"$3"; exit "$4"'
            return ["sh", "-c", script, "sh", str(runs), counts, str(self.counts), str(status)]

    with open(tmp_path / "output", "w") as output:
        result = Runner([], False, tmp_path / "code", output).code()
    assert runs.read_text() == "run\n"
    assert (result.passed, result.failed, result.status) == (3, status, status)


@pytest.mark.fault("E3")
def test_no_plugin_or_option_runs_failed_tests_again() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings = project["project"]["optional-dependencies"]["dev"] + project["tool"]["pytest"]["ini_options"]["addopts"]
    texts = [path.read_text() for path in tracked("scripts/test", "scripts/_test.py", "scripts/setup", ".ci/*")]
    texts += [path.read_text() for path in tracked("tests/conftest.py", "tests/isolation.py")]
    forbidden = re.compile(r"rerun|flaky|pytest-retry|--lf\b|--last-failed|--ff\b|--failed-first|runtestprotocol")
    assert [found[0] for text in [*settings, *texts] if (found := forbidden.search(text))] == []


def test_the_page_about_reloads_lists_the_keys_that_change_live() -> None:
    text = (ROOT / "docs" / "reload.md").read_text()
    listed = re.findall(r"`(\w+)(\*?)`", text.partition("These keys change live:")[2].partition(".\n")[0])
    composed = {"extends", "override", "expand"}  # no workload has them after composition
    live = {key for key, slot in key_slots(WorkloadConfig).items() if slot.is_live} - composed
    named = {key for key in live if any(key == name or (star and key.startswith(name)) for name, star in listed)}
    assert named == live
    assert [name for name, _ in listed if not any(key.startswith(name) for key in live)] == []
