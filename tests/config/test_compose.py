"""Includes, defaults and templates: each composed configuration equals the one that is written as one file."""

import contextlib
import os
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.compose import MAX_EXTENDS_DEPTH, MAX_INCLUDE_DEPTH, compose, read_documents, read_included
from nsupervisor.config.documents import parse_document
from nsupervisor.config.expansion import Expander, Scope
from nsupervisor.config.files import IncludedFile, SourceFile, find_among, find_included
from nsupervisor.config.load import load, parse, parse_sound_parts
from nsupervisor.config.model import Config
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.to_toml import format_file
from nsupervisor.core.instances import expand_instances

WEB = '[workload.web]\ncommand = ["web"]\n'


def composed(text: str, **files: str) -> Config:
    """Parse a main file with others, by the name that stands for `NAME.toml`."""
    return parse(text, "main.toml", among(files))


def among(files: dict[str, str]) -> Any:
    return lambda pattern: [
        SourceFile(f"{name}.toml", text) for name, text in files.items() if pattern == f"{name}.toml"
    ]


def problems(text: str, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        composed(text, **files)
    return [str(problem) for problem in caught.value.problems]


def without_lines(config: Config) -> Config:
    workloads = {
        name: attrs.evolve(workload, policy=tuple(attrs.evolve(rule, line=0) for rule in workload.policy))
        for name, workload in config.workloads.items()
    }
    return attrs.evolve(config, path="", workloads=workloads)


# ---- what it means


def test_a_workload_has_its_own_keys_then_those_of_its_templates_then_the_defaults() -> None:
    config = composed(
        """
        defaults.workload = { nice = 1, umask = "0001", restart = "no", timeout_stop_sec = 1 }
        [template.base]
        nice = 2
        umask = "0002"
        restart = "always"
        [template.worker]
        extends = "base"
        nice = 3
        umask = "0003"
        [workload.web]
        extends = "worker"
        command = ["web"]
        nice = 4
        """
    )
    web = config.workloads["web"]
    assert (web.nice, web.umask, web.restart, web.timeout_stop_sec) == (4, 0o003, "always", 1)


def test_tables_merge_and_lists_replace() -> None:
    config = composed(
        """
        [template.base]
        command = ["base", "argument"]
        environment = { A = "1", B = "1" }
        log = { stdout = "none" }
        [workload.web]
        extends = "base"
        command = ["web"]
        environment.B = "2"
        log.stderr = "none"
        """
    )
    web = config.workloads["web"]
    assert web.command == ("web",)
    assert web.environment == {"A": "1", "B": "2"}
    assert (web.log.stdout, web.log.stderr) == ("none", "none")


def test_defaults_need_no_keys_of_their_own_in_a_workload() -> None:
    config = composed('[defaults.workload]\ncommand = ["x"]\n[workload.a]\n[workload.b]\nnice = 1\n')
    assert [workload.command for workload in config.workloads.values()] == [("x",), ("x",)]
    assert "nice" not in tomllib.loads(format_file(expanded("[defaults.workload]\nnice = 1\n")))


def test_an_included_file_adds_to_the_main_one() -> None:
    config = composed(
        'include = ["a.toml", "b.toml"]\n' + WEB + "[supervisor]\nlog_level = 'debug'\n",
        a='[workload.a]\ncommand = ["a"]\ngroup = "g"\nrequires = ["web"]\n',
        b="[group.g]\npids_max = 10\n[supervisor]\nname = 'other'\n",
    )
    assert list(config.workloads) == ["web", "a"]
    assert config.groups["g"].pids_max == 10
    assert (config.supervisor.log_level, config.supervisor.name) == ("debug", "other")
    assert config.path == "main.toml"


def test_a_later_file_overrides_key_by_key() -> None:
    config = composed(
        'include = ["a.toml", "b.toml"]\n'
        + WEB
        + 'environment = { A = "1" }\n[group.g]\npids_max = 1\ncpu_weight = 2\n',
        a='[workload.web]\noverride = true\nnice = 1\nenvironment.B = "2"\n[group.g]\noverride = true\npids_max = 3\n',
        b="[workload.web]\noverride = true\nnice = 2\n",
    )
    web, group = config.workloads["web"], config.groups["g"]
    assert (web.command, web.nice, web.environment) == (("web",), 2, {"A": "1", "B": "2"})
    assert (group.pids_max, group.cpu_weight) == (3, 2)


def test_an_included_file_may_have_templates_and_includes() -> None:
    config = composed(
        'include = ["a.toml"]\n[workload.web]\nextends = "base"\n',
        a='include = ["b.toml"]\n',
        b='[template.base]\ncommand = ["base"]\n',
    )
    assert config.workloads["web"].command == ("base",)


# ---- problems


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ('include = ["a.toml"]\n', {"a": "\n[workload.a]\nnice = 99\ncommand = ['a']\n"}, "a.toml:3: workload.a.nice"),
        ('include = ["a.toml"]\n', {"a": "[workload.a]\n"}, "a.toml:1: workload.a.command: is missing"),
        ('include = ["a.toml"]\n', {"a": "x = 1\n"}, "a.toml:1: x: is not a key of the file"),
        ('include = ["a.toml"]\n', {"a": "\nx"}, "a.toml:2: this is not TOML"),
        ('include = ["a.toml"]\n' + WEB, {"a": WEB}, "a.toml:1: workload.web: is declared already"),
        ('include = ["a.toml"]\n[host]\npolicy = []', {"a": "[host]\npolicy = []\n"}, "a.toml:2: host.policy: is set"),
        ('include = ["a.toml"]\n[supervisor]\nname = "x"', {"a": "supervisor.name = 'y'"}, "a.toml:1: supervisor.name"),
        ('include = ["a.toml"]\n', {"a": "[workload.web]\noverride = true\n"}, "a.toml:2: workload.web.override: over"),
        ('include = ["a.toml"]\n' + WEB, {"a": "[workload.web]\noverride = 1\n"}, "override: 1 is neither"),
        ('include = ["a.toml"]\n', {"a": 'include = ["main.toml"]\n', "main": ""}, "a.toml:1: include[0]: main.toml: "),
        ('include = ["main.toml"]\n', {"main": ""}, "main.toml:1: include[0]: main.toml: would include itself"),
        ('include = ["a.toml", "a.toml"]\n', {"a": ""}, "main.toml:1: include[1]: a.toml: is included already"),
        ("include = 'a.toml'\n", {}, 'main.toml:1: include: "a.toml" is not a list'),
        ("include = [1]\n", {}, "main.toml:1: include[0]: 1 is not the path of a file"),
        ("[template.x]\nnice = 99\n" + WEB, {}, "main.toml:2: template.x.nice: 99 is out of range"),
        ("[defaults.workload]\nnice = 99\n", {}, "main.toml:2: defaults.workload.nice: 99 is out of range"),
        ("[defaults.workload]\nnice = 99\n" + WEB, {}, "main.toml:2: defaults.workload.nice: 99 is out of range"),
        ("[defaults.group]\n", {}, "main.toml:1: defaults.group: has no defaults"),
        ("defaults = 1\n", {}, "main.toml:1: defaults: 1 is not a table"),
        ("defaults.workload = 1\n", {}, "main.toml:1: defaults.workload: 1 is not a table"),
        ("template = 1\n", {}, "main.toml:1: template: 1 is not a table"),
        ("template.x = 1\n", {}, "main.toml:1: template.x: 1 is not a table"),
        ('template.x = 1\n[workload.web]\nextends = "x"\n', {}, "extends: the template \"x\" is not a table"),
        ('[template."a b"]\n', {}, 'main.toml:1: template."a b": "a b" is not a name'),
        ('[template.base]\n[workload.web]\nextends = "bas"\n', {}, 'extends: there is no template "bas"; did'),
        ("[workload.web]\nextends = 1\n", {}, "main.toml:2: workload.web.extends: 1 is not the name of a template"),
        (
            '[template.a]\nextends = "b"\n[template.b]\nextends = "a"\n[workload.web]\nextends = "a"\n',
            {},
            "main.toml:4: template.b.extends: the templates extend each other in a circle, a → b → a",
        ),
    ],
)  # fmt: skip
def test_each_problem_names_its_own_file_and_line(text: str, files: dict[str, str], message: str) -> None:
    found = problems(text, **files)
    assert any(message in problem for problem in found), found


def test_a_wrong_value_of_a_template_is_reported_once() -> None:
    text = "[template.x]\nnice = 99\n" + "".join(
        f'[workload.w{number}]\nextends = "x"\ncommand = ["x"]\n' for number in range(5)
    )
    assert len(problems(text)) == 1


def test_a_workload_without_its_template_is_no_further_problem() -> None:
    text = '[workload.a]\nextends = "x"\n[workload.b]\ncommand = ["b"]\nrequires = ["a"]\n'
    assert [problem.partition("; ")[0] for problem in problems(text)] == [
        'main.toml:2: workload.a.extends: there is no template "x"'
    ]


def test_includes_and_templates_have_a_limit_of_depth() -> None:
    files = {f"f{number}": f'include = ["f{number + 1}.toml"]\n' for number in range(20)}
    assert f"more than {MAX_INCLUDE_DEPTH} files" in problems('include = ["f0.toml"]\n', **files)[0]
    templates = "".join(f'[template.t{number}]\nextends = "t{number + 1}"\n' for number in range(20))
    found = problems(templates + '[template.t20]\n[workload.web]\nextends = "t0"\n')
    assert any(f"more than {MAX_EXTENDS_DEPTH} templates" in problem for problem in found)


def test_a_conflict_names_the_file_of_the_value() -> None:
    found = problems('include = ["a.toml"]\n' + WEB, a='\n[workload.a]\ncommand = ["a"]\nrequires = ["wob"]\n')
    assert found == ['a.toml:4: workload.a.requires[0]: there is no workload "wob"; did you mean "web"?']


# ---- files


def test_files_are_included_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "main.toml").write_text('include = ["conf.d/*.toml"]\n')
    (tmp_path / "conf.d").mkdir()
    for name in ("b.toml", "a.toml", ".hidden.toml", "c.toml~"):
        (tmp_path / "conf.d" / name).write_text(f"[workload.{name[0]}]\ncommand = ['x']\n")
    assert list(load(tmp_path / "main.toml").workloads) == ["a", "b"]


def test_a_missing_directory_has_no_files_and_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    main = tmp_path / "main.toml"
    main.write_text('include = ["conf.d/*.toml"]\n')
    assert load(main).workloads == {}
    for name in ("none.toml", "none/none.toml"):
        main.write_text(f'include = ["{name}"]\n')
        with pytest.raises(ConfigError, match=rf"main.toml:1: include\[0\]: .*{name}: there is no such file"):
            load(main)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*/x.toml", "write wildcards in the last part"),
        ("fifo.toml", "it is not a regular file"),
        ("open.toml", "every user may write to it"),
        ("open/x.toml", "every user may write to this directory"),
        ("main.toml/x", "Not a directory"),
        ("latin.toml", "is not UTF-8"),
    ],
)
def test_what_is_not_included(tmp_path: Path, pattern: str, message: str) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "open.toml").touch()
    (tmp_path / "open.toml").chmod(0o666)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "x.toml").touch()
    (tmp_path / "latin.toml").write_bytes(b"\xe4")
    (tmp_path / "main.toml").write_text(f'include = ["{pattern}"]\n')
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "main.toml")


def test_files_are_found_by_the_receiver_as_the_sender_has_read_them(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text('include = ["b/*.toml"]\n[workload.a]\ncommand = ["a"]\n')
    (tmp_path / "conf.d" / "b").mkdir()
    (tmp_path / "conf.d" / "b" / "c.toml").write_text('[workload.c]\ncommand = ["c"]\n')
    text, path = 'include = ["conf.d/*.toml"]\n' + WEB, str(tmp_path / "main.toml")
    sent = read_included(text, path)
    assert [Path(file.path).name for file in sent] == ["a.toml", "c.toml"]
    assert parse(text, path, find_among(sent)) == parse(text, path)
    assert read_included(WEB, path) == read_included("include = [", path) == []


def test_a_found_file_has_the_path_that_the_include_says(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x = 1\n")
    assert find_included(f"{tmp_path}/*.toml") == [SourceFile(f"{tmp_path}/a.toml", "x = 1\n")]
    assert find_among([IncludedFile("p", "a", "t")])("q") == []


# ---- placeholders


def expansion(text: str, **environment: str) -> Config:
    config, found, _ = parse_sound_parts(text, "main.toml", among({}), environment=environment)
    assert found == []
    return config


def expansion_problems(text: str, **environment: str) -> list[str]:
    return [
        str(problem) for problem in parse_sound_parts(text, "main.toml", among({}), environment=environment).problems
    ]


def test_placeholders_have_their_values_in_every_kind_of_key() -> None:
    config = expansion(
        """
        var = { port = 8000, region = "eu" }
        [workload.web]
        expand = true
        command = ["web", "--name={name}", "--{var.region}", "{8000+instance}", "{var.port-1:06}", "{{}}"]
        instances = "{env.COUNT}"
        autostart = "{env.START}"
        nice = "{env.NICE}"
        timeout_stop_sec = "{env.SECONDS}"
        environment = { NUMBER = "{instance-1:02}", COUNT = "{env.COUNT}" }
        resources.memory_max = "{env.COUNT}M"
        log = { stdout = "file", path = "/var/log/web-{instance}.log" }
        """,
        COUNT="2",
        START="false",
        NICE="-3",
        SECONDS="1.5",
    )
    web = config.workloads["web"]
    assert (web.instances, web.autostart, web.nice, web.timeout_stop_sec) == (2, False, -3, 1.5)
    assert web.resources.memory_max == 2 << 20
    first, second = (web.for_instance(number) for number in web.instance_ids)
    assert first.command == ("web", "--name=web", "--eu", "8001", "007999", "{}")
    assert second.command == ("web", "--name=web", "--eu", "8002", "007999", "{}")
    assert (first.environment, second.environment) == (
        {"NUMBER": "00", "COUNT": "2"},
        {"NUMBER": "01", "COUNT": "2"},
    )
    assert second.log.path == "/var/log/web-2.log"
    assert (second.variants, second.nice, second.log.stdout) == ({}, -3, "file")


def test_instances_can_have_names() -> None:
    web = expansion('workload.web = { command = ["{instance}"], expand = true, instances = ["eu", "us"] }').workloads[
        "web"
    ]
    assert [web.instance_name(instance) for instance in web.instance_ids] == ["web@eu", "web@us"]
    assert [web.for_instance(instance).command for instance in web.instance_ids] == [("eu",), ("us",)]
    assert list(expand_instances(expansion('workload.web = { command = ["x"], instances = ["eu"] }'))) == ["web@eu"]


def test_a_single_instance_is_number_one() -> None:
    web = expansion('workload.web = { command = ["{instance}"], expand = true }').workloads["web"]
    assert web.for_instance(None).command == ("1",)


def test_without_expand_everything_is_literal() -> None:
    assert expansion('workload.web = { command = ["{instance}", "{{", "{"] }').workloads["web"].command == (
        "{instance}",
        "{{",
        "{",
    )


def test_what_a_placeholder_stands_for_is_not_expanded() -> None:
    text = 'var.x = "{env.A}{{"\nworkload.web = { command = ["{var.x}{env.A}"], expand = true }'
    assert expansion(text, A="{name}").workloads["web"].command == ("{env.A}{{{name}",)


def test_an_empty_variable_is_no_number_and_a_list_of_instances_is_no_text() -> None:
    found = expansion_problems('workload.web = { command = ["x"], expand = true, nice = "{env.A}" }', A="")
    assert found == ['main.toml:1: workload.web.nice: "" is not a whole number; write for example 10']


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", 'main.toml:3: workload.web.description: "{" has a lone "{"; write "{{" for a brace'),
        ("}", 'has a lone "}"; write "}}" for a brace'),
        ("{}", 'has "{}", which is no placeholder; write'),
        ("{ name }", 'has "{ name }", which is no placeholder'),
        ("{var.x.y}", "which is no placeholder"),
        ("{instance:5}", "which is no placeholder"),
        ("{var.regoin}", 'has no value for {var.regoin}; did you mean "region"?'),
        ("{var.b}", "has no value for {var.b}; add it to [var]: b = …"),
        ("{env.NONE}", "has no value for {env.NONE}: the variable is not set; start nsupervisor with NONE=…"),
        ("{env.LATIN}", "has no value for {env.LATIN}: the variable is not UTF-8"),
        ("{var.region+1}", 'calculates with "{var.region+1}", whose value is no number'),
        ("{var.region:02}", "calculates with"),
        ("{env.LONG}", "is longer than 131072 characters"),
    ],
)
def test_each_wrong_placeholder_is_a_problem_with_its_line(value: str, message: str) -> None:
    text = f'var.region = "eu"\n[workload.web]\ndescription = "{value}"\ncommand = ["x"]\nexpand = true\ninstances = 3'
    (found,) = expansion_problems(text, LATIN="\udce4", LONG="x" * 200_000)
    assert message in found


def test_what_instances_share_cannot_depend_on_them() -> None:
    text = '[workload.web]\ncommand = ["x"]\nexpand = true\ninstances = 2\nrequires = ["db-{instance}"]\n'
    (found,) = expansion_problems(text)
    assert "main.toml:5: workload.web.requires[0]" in found
    assert "is the same for all instances; leave {instance} out" in found


def test_the_problems_of_one_instance_are_found() -> None:
    text = '[workload.web]\ncommand = ["x"]\nexpand = true\ninstances = 3\nnice = "{instance+17}"\n'
    assert expansion_problems(text) == [
        'main.toml:5: workload.web.nice: "20" is out of range; write a number from -20 to 19'
    ]
    log = 'log = { stdout = "file", path = "/x/{instance-1}/{env.A}" }\n'
    assert expansion_problems(text.replace("nice", "#") + log, A="a") == []
    path = 'log = { stdout = "file", path = "/x/{env.A}" }\n'
    (found,) = expansion_problems(text.replace("nice", "#") + path, A="a")
    assert "would be the file of several instances" in found


def test_instances_that_write_the_same_file_are_found() -> None:
    text = (
        '[workload.web]\ncommand = ["{instance}"]\nexpand = true\ninstances = ["a", "b"]\n'
        'log = { stdout = "file", path = "/x" }\n'
    )
    (found,) = expansion_problems(text)
    assert 'is the file of workload "web@a", too' in found


def test_a_change_of_the_whole_configuration_reaches_every_instance() -> None:
    text = """
    [workload.web]
    command = ["x"]
    expand = true
    instances = 2
    namespaces.hostname = "h{instance}"
    """
    web = expansion(text).workloads["web"]
    changed = attrs.evolve(web, namespaces=attrs.evolve(web.namespaces, pid=False))
    assert changed.for_instance(2).namespaces == attrs.evolve(web.namespaces, pid=False, hostname="h2")


TEXT = st.text(
    st.sampled_from(list("ab{}.:+-01 ")) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=12
)
PIECE = st.sampled_from(["{name}", "{instance}", "{instance-1:02}", "{var.x}", "{env.A}", "{{", "}}", "{7+instance}"])


@given(st.lists(TEXT | PIECE, max_size=4), st.integers(1, 4), TEXT, TEXT)
def test_an_expanded_text_equals_the_text_without_placeholders(
    pieces: list[str], instance: int, variable: str, value: str
) -> None:
    values = {
        "{name}": "web",
        "{instance}": str(instance),
        "{instance-1:02}": f"{instance - 1:02}",
        "{var.x}": variable,
        "{env.A}": value,
        "{{": "{",
        "}}": "}",
        "{7+instance}": str(7 + instance),
    }
    pieces = [piece if piece in values else piece.replace("{", "").replace("}", "") for piece in pieces]
    found: list[str] = []
    expander = Expander(Scope("web", {"x": variable}, {"A": value}), lambda _path, message: found.append(message))
    result = expander.expand({"command": ["".join(pieces)]}, instance)
    assert found == []
    assert result == {"command": ["".join(values.get(piece, piece) for piece in pieces)]}
    assert expander.has_instance == any("instance" in piece for piece in pieces if piece in values)


@given(TEXT, st.dictionaries(st.sampled_from(["A", "B"]), TEXT))
def test_no_placeholder_raises_anything_else(text: str, environment: dict[str, str]) -> None:
    found: list[str] = []
    expander = Expander(Scope("web", environment, environment), lambda _path, message: found.append(message))
    result = expander.expand({"command": [text], "instances": text}, 1)
    assert found or isinstance(result["command"][0], str)


# ---- every text

VALUES = st.sampled_from([1, 99, "0022", "always", True, ["a"], {"A": "1"}, {"A": 1}, [], "base", "other", -1.5])
KEYS = st.sampled_from(
    [
        "nice",
        "umask",
        "restart",
        "command",
        "environment",
        "log",
        "extends",
        "override",
        "instances",
        "description",
        "x",
    ]
)
WORKLOAD = st.dictionaries(KEYS, VALUES, max_size=4)
NAMED = st.dictionaries(st.sampled_from(["web", "base", "other", "a b"]), WORKLOAD | st.just(1), max_size=3)
FILE = st.fixed_dictionaries(
    {},
    optional={
        "include": st.lists(st.sampled_from(["a.toml", "b.toml", "main.toml", 1]), max_size=2) | st.just("a.toml"),
        "defaults": st.fixed_dictionaries({}, optional={"workload": WORKLOAD | st.just(1), "x": st.just({})}) | VALUES,
        "template": NAMED | VALUES,
        "workload": NAMED | VALUES,
        "group": st.dictionaries(st.sampled_from(["g", "h"]), st.dictionaries(KEYS, VALUES, max_size=2), max_size=2),
        "host": st.fixed_dictionaries({}, optional={"policy": st.just([])}),
        "supervisor": st.fixed_dictionaries({}, optional={"name": st.just("x"), "log_level": st.just("info")}),
        "x": VALUES,
    },
)


def expanded(text: str, files: dict[str, str] | None = None) -> dict[str, Any]:
    return compose(read_documents(parse_document(text, "main.toml"), among(files or {}))).table


@given(FILE, FILE, FILE)
def test_a_composed_configuration_is_that_of_the_expanded_file(main: Any, a: Any, b: Any) -> None:
    files = {"a": format_file(a), "b": format_file(b)}
    text = format_file(main)
    assert tomllib.loads(text) == main
    try:
        config, found, _ = parse_sound_parts(text, "main.toml", among(files))
    except ConfigError as error:
        found = error.problems
        config = None
    for problem in found:
        assert problem.path in ("main.toml", "a.toml", "b.toml")
        assert 1 <= problem.line <= {**files, "main": text}[problem.path.removesuffix(".toml")].count("\n") + 1
        assert problem.message
    if not found:
        by_hand = parse(format_file(expanded(text, files)), "main.toml")
        assert config is not None
        assert without_lines(by_hand) == without_lines(config)


@given(st.text(), st.text())
def test_no_text_raises_anything_else(text: str, included: str) -> None:
    for main in (text, 'include = ["a.toml"]\n' + text):
        with contextlib.suppress(ConfigError):
            composed(main, a=included)


# ---- size


LARGE = "".join(f'A{number} = "{{instance}}"\n' for number in range(1_001))


@pytest.mark.parametrize(
    "text",
    [
        f"[defaults.workload.environment]\n{LARGE}" + "".join(f"[workload.w{number}]\n" for number in range(1_000)),
        f"[workload.w]\nexpand = true\ninstances = 1000\n[workload.w.environment]\n{LARGE}",
    ],
    ids=["workloads", "instances"],
)
def test_few_lines_that_make_many_values_are_refused(text: str) -> None:
    """Each workload, or instance, has a copy of a large table: 35 KB took 18 s."""
    with pytest.raises(ConfigError, match=r"more than 1,000,000 values; divide them"):
        compose([parse_document(text, "main.toml")], {})
