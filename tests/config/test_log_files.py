"""Each log file has one writer: what `check` refuses before anything is written."""

import pytest

from nsupervisor.config.load import parse
from nsupervisor.config.problems import ConfigError

SUPERVISOR = '[supervisor]\nlog_directory = "/logs"\nlog_output = "/logs/stream"\n'
DEFAULT = '[workload.b]\ncommand = ["b"]\nlog = { stdout = "file" }\n'


def problems(text):
    try:
        parse(text, "site.toml")
    except ConfigError as error:
        return [(problem.key, problem.message) for problem in error.problems]
    return []


def with_path(path):
    return f'{SUPERVISOR}{DEFAULT}[workload.a]\ncommand = ["a"]\nlog = {{ stdout = "file", path = "{path}" }}\n'


@pytest.mark.fault("D1")
@pytest.mark.parametrize("path", ["/logs/b.log", "/logs/./b.log", "/logs/x/../b.log", "//logs//b.log"])
def test_the_default_file_of_another_workload_is_refused_however_it_is_spelled(path):
    message = f'"{path}" is the file of workload "b", too; write another one'
    assert problems(with_path(path)) == [("workload.a.log.path", message)]


@pytest.mark.fault("D1")
def test_the_file_of_the_stream_is_refused():
    message = '"/logs/../logs/stream" is the file of supervisor.log_output, too; write another one'
    assert problems(with_path("/logs/../logs/stream")) == [("workload.a.log.path", message)]


@pytest.mark.fault("D1")
def test_the_default_file_of_an_instance_is_refused():
    text = with_path("/logs/b@2.log").replace('["b"]', '["b"]\ninstances = 2')
    assert problems(text) == [
        ("workload.a.log.path", '"/logs/b@2.log" is the file of workload "b", too; write another one')
    ]


@pytest.mark.fault("D1")
@pytest.mark.parametrize("path", ["/logs/b.log.1", "/logs/b.log.12.gz"])
def test_a_name_that_rotation_gives_to_another_file_is_refused(path):
    ((key, message),) = problems(with_path(path))
    assert key == "workload.a.log.path"
    assert message.startswith(f'"{path}" would be overwritten when the file of workload "b" is rotated')


@pytest.mark.fault("D1")
@pytest.mark.parametrize("path", ["/logs/a.log", "/logs/c.log.1", "/other/b.log", "/logs/stream2"])
def test_a_file_of_its_own_is_accepted(path):
    assert problems(with_path(path)) == []


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/dev/stdout", 'stdout = "inherit" for the bytes as they are'),
        ("/proc/self/fd/1", 'stdout = "inherit" for the bytes as they are'),
        ("/dev/fd/2", 'stderr = "inherit" for the bytes as they are'),
        ("/dev/../dev/null", 'stdout = "journal" for the stream of records'),
        ("//dev/stderr", 'stderr = "inherit" for the bytes as they are'),
    ],
)
def test_a_device_is_no_log_file(path, advice):
    """At its largest size /dev/stdout itself was renamed."""
    ((key, message),) = problems(with_path(path))
    assert key == "workload.a.log.path"
    assert message.endswith(f"is no place for a log file; write {advice}")


def with_log(log):
    return f'{SUPERVISOR}{DEFAULT}[workload.a]\ncommand = ["a"]\nlog = {{ {log} }}\n'


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    ("log", "key", "message"),
    [
        (
            'stdout_path = "/logs/a.out"',
            "stdout_path",
            'has no effect without stdout = "file"; add that, or remove this',
        ),
        (
            'stderr = "inherit", stderr_path = "/logs/a.err"',
            "stderr_path",
            'has no effect without stderr = "file"; add that, or remove this',
        ),
        (
            'stdout = "file", stdout_path = "/logs/b.log"',
            "stdout_path",
            '"/logs/b.log" is the file of workload "b", too; write another one',
        ),
        (
            'stderr = "both", stderr_path = "/dev/stdout"',
            "stderr_path",
            '"/dev/stdout" is no place for a log file; write stderr = "inherit" for the bytes as they are',
        ),
        (
            'stdout = "file", stderr = "file", stdout_path = "/logs/a", stderr_path = "/logs/a.1"',
            "stderr_path",
            '"/logs/a.1" would be overwritten when the file of log.stdout_path is rotated; write another one',
        ),
        (
            'stdout = "file", stderr = "file", stdout_path = "/logs/a.1", stderr_path = "/logs/a"',
            "stdout_path",
            '"/logs/a.1" would be overwritten when the file of log.stderr_path is rotated; write another one',
        ),
    ],
)
def test_the_file_of_one_stream_has_one_writer_and_a_use(log, key, message):
    assert problems(with_log(log)) == [(f"workload.a.log.{key}", message)]


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    "log",
    [
        'stdout = "file", stderr = "file", stdout_path = "/logs/a.out", stderr_path = "/logs/a.err"',
        'stdout = "both", stdout_path = "/logs/a.out"',
        'stdout = "file", stderr = "file", path = "/logs/a.err", stdout_path = "/logs/a.out"',
        'stdout = "file", stderr = "file", stdout_path = "/logs/a.all", stderr_path = "/logs/a.all"',
    ],
)
def test_each_stream_may_have_a_file(log):
    assert problems(with_log(log)) == []
