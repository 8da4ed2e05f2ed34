"""`nsupervisor logs` on real files, that are put aside, compressed and removed while it reads."""

import gzip
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsupervisor.cli.log_reader import LogReader
from nsupervisor.cli.workload_output import FileSource, LogLocation, Selection
from nsupervisor.logs import LogFile, Pipe, Rotation
from tests.cli.command import nsupervisor


def record(number, text=None, age=0, **more):
    time = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    head = {"timestamp": time, "level": "info", "event": "output", "workload": "web", "generation": 1, "pid": 1}
    return (
        json.dumps(
            {**head, "stream": "stdout", "seq": number, "message": text or f"line {number}", **more},
            separators=(",", ":"),
        )
        + "\n"
    )


@pytest.fixture
def files(tmp_path):
    """Twelve lines in three files, one of them compressed; two lines came an hour ago."""
    ages = [3600] * 2 + [60] * 10
    lines = [record(number, age=age).encode() for number, age in enumerate(ages)]
    (tmp_path / "web.log.2.gz").write_bytes(gzip.compress(b"".join(lines[:4])))
    (tmp_path / "web.log.1").write_bytes(b"".join(lines[4:8]))
    (tmp_path / "web.log").write_bytes(b"".join(lines[8:]))
    return tmp_path / "web.log"


def shown(*arguments):
    done = nsupervisor("logs", *map(str, arguments))
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("  ", 1)[1] for line in done.stdout.splitlines()]


def test_the_last_lines_come_from_all_files(files):
    assert shown(files) == [f"line {number}" for number in range(12)]
    assert shown("-n", 2, files) == ["line 10", "line 11"]
    assert shown("-n", 6, files) == [f"line {number}" for number in range(6, 12)]
    assert shown("-n", 0, files) == []
    assert shown("--since", "30min", files) == [f"line {number}" for number in range(2, 12)]
    assert shown("-n", 2, "--grep", "[13]$", files) == ["line 3", "line 11"]


def test_records_for_programs_are_as_they_are(files):
    done = nsupervisor("logs", "-n", "5", "--json", str(files))
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == list(range(7, 12))


def test_a_raw_file_is_shown_as_it_is_and_has_no_times(tmp_path):
    (tmp_path / "web.log").write_bytes(b"one\ntwo\nno end")
    assert nsupervisor("logs", f"{tmp_path}/web.log").stdout == "one\ntwo\nno end\n"
    (tmp_path / "web.log.1.gz").write_bytes(gzip.compress(b"zero\n"))
    assert nsupervisor("logs", f"{tmp_path}/web.log.1.gz").stdout == "zero\n"
    refused = nsupervisor("logs", "--since", "5min", f"{tmp_path}/web.log")
    assert (refused.returncode, "is raw" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["/nonexistent/web.log"], 1, "cannot read /nonexistent/web.log: No such file or directory; nothing has been"),
        (["--since", "yesterday", "/x"], 2, "is neither a duration nor a time"),
        (["--grep", "(", "/x"], 2, "'(': missing )"),
        (["web"], 3, "no supervisor answers"),
    ],
)
def test_what_cannot_be_shown_is_told(arguments, status, words):
    done = nsupervisor("logs", *arguments)
    assert done.returncode == status
    assert words in done.stderr


def test_a_broken_compressed_file_is_told(tmp_path):
    for content in (b"not gzip", gzip.compress(b"zero\n" * 1000)[:-9]):
        (tmp_path / "web.log.1.gz").write_bytes(content)
        done = nsupervisor("logs", f"{tmp_path}/web.log.1.gz")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"cannot read {tmp_path}/web.log.1.gz: " in done.stderr
        assert "Traceback" not in done.stderr


def test_following_misses_nothing_while_files_are_put_aside(tmp_path):
    path = tmp_path / "web.log"
    file = LogFile(path, Rotation(max_size=4096, max_files=1000, compress=True))
    file.append(record(0).encode())
    command = [sys.executable, "-m", "nsupervisor", "logs", "-f", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            assert follower.stdout.readline().endswith("line 0\n")
            for number in range(1, 400):
                file.append(record(number).encode())
            for number in range(1, 400):
                assert follower.stdout.readline().endswith(f"line {number}\n")
        finally:
            follower.terminate()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from([b"a\n", b"bc\n", b"d"]), max_size=5), st.booleans()), max_size=12),
    st.integers(1, 30),
)
def test_what_is_appended_is_read_once_and_in_order(tmp_path_factory, steps, size):
    """Whatever is written and put aside between two looks."""
    path = tmp_path_factory.mktemp("log") / "web.log"
    file = LogFile(path, Rotation(max_size=size, max_files=1000), records=False)
    file.reopen()
    reader = LogReader(str(path))
    written, found = b"", []

    for pieces, look in steps:
        for piece in pieces:
            reader_, writer = os.pipe()
            os.set_blocking(reader_, False)
            os.write(writer, piece)
            file.append_raw(Pipe(reader_), piece)
            os.close(reader_)
            os.close(writer)
            written += piece
        if look:
            found += reader.read_new_lines()
    found += reader.read_new_lines()
    reader.close()
    file.close()
    assert found == written.split(b"\n")[:-1]


@pytest.mark.parametrize("compressed", [(), (1, 2, 3), (2,)])
def test_files_written_in_the_same_tick_of_the_clock_are_all_followed(tmp_path, compressed):
    """Their times are the same to the nanosecond, and once compressed they are other files than the one we held."""
    path = tmp_path / "web.log"
    path.write_bytes(b"1\n2\n")
    reader = LogReader(str(path))
    assert reader.read_new_lines() == [b"1", b"2"]
    for number, text in [(3, b""), (2, b"3\n4\n"), (1, b"5\n6\n")]:
        file = path.with_name(f"web.log.{number}")
        if number == 3:  # ours
            path.rename(file)
            text = file.read_bytes()
        if number in compressed:
            file.unlink(missing_ok=True)
            file = file.with_name(f"{file.name}.gz")
            file.write_bytes(gzip.compress(text))
        else:
            file.write_bytes(text)
        os.utime(file, (1_000_000_000, 1_000_000_000))
    path.write_bytes(b"7\n")
    os.utime(reader._file.fileno(), (1_000_000_000, 1_000_000_000))
    assert reader.read_new_lines() == [b"3", b"4", b"5", b"6", b"7"]
    reader.close()


def test_the_last_lines_are_found_whatever_their_length(tmp_path):
    lines = [b"x" * length for length in (0, 1, 300_000, 5, 262_143, 262_144, 0, 7)]
    (tmp_path / "log").write_bytes(b"\n".join(lines) + b"\nno end")
    reader = LogReader(str(tmp_path / "log"))
    assert list(reader.read_backwards()) == lines[::-1]
    reader.close()


@pytest.mark.fault("D8", "F6")
@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_output_that_the_encoding_lacks_was_a_traceback(tmp_path, environment):
    (tmp_path / "web.log").write_text(record(1, "grün → 漢") + record(2, "plain"))
    done = nsupervisor("logs", f"{tmp_path}/web.log", PYTHONCOERCECLOCALE="0", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("  ", 1)[1] for line in done.stdout.splitlines()] == ["gr\\xfcn \\u2192 \\u6f22", "plain"]


@pytest.mark.fault("F6")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_our_own_characters_that_the_encoding_lacks_were_a_traceback(tmp_path, encoding):
    (tmp_path / "site.toml").write_text('[workload.web]\ncommand = ["grün", "→"]\nrestart = "→"\n')
    done = nsupervisor("check", f"{tmp_path}/site.toml", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert '"\\u2192" is not one of the choices' in done.stderr


@pytest.mark.fault("D8")
def test_following_a_file_before_its_first_line_exists(tmp_path):
    (tmp_path / "web.log").write_text(record(0))
    command = [sys.executable, "-m", "nsupervisor", "logs", "-f", f"{tmp_path}/web.log", f"{tmp_path}/late.log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            assert follower.stdout.readline().endswith("line 0\n")  # so it has looked for the other one
            (tmp_path / "new").write_text(record(1, "late"))
            (tmp_path / "new").rename(tmp_path / "late.log")
            assert follower.stdout.readline().endswith("late\n")
        finally:
            follower.terminate()


@pytest.fixture
def three(tmp_path):
    """The files of three workloads, whose lines alternate, and that of a silent one."""
    for place, name in enumerate(("web", "db", "cache")):
        text = "".join(
            record(number, f"{name} {number}", age=60 - 3 * number - place, workload=name) for number in range(3)
        )
        (tmp_path / f"{name}.log").write_text(text)
    return [str(tmp_path / f"{name}.log") for name in ("cache", "db", "web", "silent")]


@pytest.mark.fault("D9")
def test_lines_of_several_files_were_not_merged_by_time(three):
    done = nsupervisor("logs", *three)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert [line[-1] for line in lines] == [
        f"{name} {number}" for number in range(3) for name in ("web", "db", "cache")
    ]
    assert [line[0].strip() for line in lines[:3]] == ["web", "db", "cache"]
    assert [line.split("  ")[-1] for line in nsupervisor("logs", "-n", "2", *three).stdout.splitlines()] == [
        "db 2",
        "cache 2",
    ]
    as_json = nsupervisor("logs", "--json", *three).stdout
    assert [json.loads(line)["message"] for line in as_json.splitlines()] == [line[-1] for line in lines]


@pytest.mark.fault("D9")
def test_the_file_of_the_stream_is_read_once_for_all_workloads(tmp_path):
    location = LogLocation(str(tmp_path / "all.log"), ("web", "db"), False)
    (tmp_path / "all.log").write_text(
        record(1, "a", workload="web") + record(2, "b", workload="other") + record(3, "c", workload="db")
    )
    source = FileSource(location, Selection(None, None, False))
    assert [(line.name, line.text) for line in source.last_lines(None, follow=False)] == [("web", "a"), ("db", "c")]
    source.close()


@pytest.mark.fault("D10")
@pytest.mark.parametrize("option", [["--since", "5min"], ["--json"]])
def test_one_raw_file_among_the_names_hid_all_others(three, tmp_path, option):
    (tmp_path / "raw.log").write_text("no time\n")
    done = nsupervisor("logs", *option, *three[:3], f"{tmp_path}/raw.log")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 9
    assert done.stderr == (
        f"{tmp_path}/raw.log is raw: its lines have neither times nor fields, so {option[0]} leaves it out\n"
    )


def test_a_raw_file_among_others_comes_first(three, tmp_path):
    (tmp_path / "raw.log").write_text("no time\n")
    done = nsupervisor("logs", *three[:3], f"{tmp_path}/raw.log")
    assert done.stdout.splitlines()[0] == "raw.log     no time"


def test_without_names_all_workloads_are_meant(supervisor):
    done = nsupervisor("logs", socket=supervisor)
    assert done.returncode == 1
    assert done.stderr == (
        "nothing is kept of what web@1, web@2, db, batch write; to change that, write "
        'log = { stdout = "file", stderr = "file" } under [workload.web]\n'
    )
