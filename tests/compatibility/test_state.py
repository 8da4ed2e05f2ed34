"""A state file of 0.1.0 is read: what ran, what an operator had stopped and set, and what rules remembered."""

import json
import zlib
from pathlib import Path

import pytest

from nsupervisor.config.model import Resources
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import State
from nsupervisor.service.state import checkpoint, file

DATA = Path(__file__).parent / "data" / "0.1.0"


def line(value):
    """A line as 0.1.0 wrote it."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return b'{"sum":"%08x","of":%s}\n' % (zlib.crc32(body), body)


@pytest.fixture
def directory(tmp_path):
    """A runtime directory with the file of 0.1.0, as if this boot were the one that it is of."""
    first, *rest = (DATA / "state.json").read_bytes().splitlines(keepends=True)
    about = json.loads(first)["of"]
    assert line(about) == first
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "state.json").write_bytes(b"".join([line({**about, "boot": boot}), *rest]))
    return tmp_path


def test_all_that_0_1_0_knew_of_its_workloads_is_read(directory):
    found = file.read_state(directory)
    assert found.problem == ""
    assert (found.header["version"], found.header["name"]) == ("0.1.0", "golden")
    records = found.instances
    assert {name: record.lifecycle.state for name, record in records.items()} == {
        "plain": State.RUNNING,
        "inside": State.RUNNING,
        "says": State.READY,
        "stopped": State.STOPPED,
        "once": State.EXITED,
        "fails": State.FAILED,
    }
    plain, inside, stopped = records["plain"], records["inside"], records["stopped"]
    assert plain.process is not None
    assert plain.process.first == plain.process.program
    assert inside.process is not None
    assert inside.process.first != inside.process.program
    assert all(plain.process.pipes)
    assert plain.lifecycle.should_run
    assert not stopped.lifecycle.should_run
    assert stopped.lifecycle.reason == "stopped by operator"
    assert (stopped.lifecycle.exit, records["fails"].last_exit) == (Exit(signal=15), Exit(code=3))
    assert plain.changed_limits == {"pids_max": 60}
    assert checkpoint.limits_in_force(Resources(pids_max=50, memory_max=1 << 20), plain.changed_limits) == Resources(
        pids_max=60, memory_max=1 << 20
    )
    assert [rule.when for rule in plain.rules] == ["pids.current > 40", "memory.events oom_kill"]
    level = plain.rules[0].state.atoms[0]
    assert (level.value, level.is_true) == (1, False)
    assert found.groups["group/batch"].changed_limits == {"pids_max": 200}
    assert found.groups["group/batch"].rules[0].name == "group.batch.policy[0]"


def test_what_was_read_is_written_byte_for_byte_as_0_1_0_wrote_it(directory):
    found = file.read_state(directory)
    written = file.StateFile(directory, {})
    for name, group in found.groups.items():
        written.save_group(name, group)
    for name, record in found.instances.items():
        written.save(name, record)
    lines = (directory / "state.json").read_bytes().splitlines(keepends=True)[1:]
    assert sorted(lines) == sorted(found.lines.values())


def test_limits_have_the_digest_that_0_1_0_gave_them(directory):
    """It is in the state file, and tells whether the cgroup has these limits already."""
    assert checkpoint.limits_digest(Resources()) == file.read_state(directory).instances["inside"].limits_digest
