"""Workloads with `dynamic_user`: a user that nothing else has, and directories that stay its own."""

import json
import os
from pathlib import Path

from nsupervisor.service.state.dynamic_users import DYNAMIC_USERS
from tests.needs import needs
from tests.roots import make_root, open_directories
from tests.system.service import service
from tests.system.test_program_directories import name, output

__all__ = ["name"]
pytestmark = needs("root", "cgroup", "seccomp")


def workload(script: str, keys: str = "") -> str:
    command = json.dumps(["sh", "-c", script])
    return f'[workload.w]\ncommand = {command}\nrestart = "no"\ndynamic_user = true\n{keys}\n'


async def run(tmp_path: Path, script: str, keys: str = "") -> list[str]:
    """Run a workload to its end; return the lines of its output."""
    async with service(tmp_path, workload(script, keys)) as it:
        text = await output(it)
        await it.record(event="state", workload="w", to="exited")
    return text.splitlines()


async def test_it_has_a_number_of_its_own_that_it_keeps(tmp_path: Path) -> None:
    (first,) = await run(tmp_path, "echo $(id -u) $(id -g) $(id -G)")
    uid = int(first.split()[0])
    assert uid in DYNAMIC_USERS
    assert first == f"{uid} {uid} {uid}"
    assert await run(tmp_path, "id -u") == [str(uid)]
    other = workload("id -u").replace("workload.w", "workload.v")
    async with service(tmp_path, workload("id -u") + other) as it:
        found = {one: int((await it.record(event="output", workload=one))["message"]) for one in ("v", "w")}
    assert found["w"] == uid
    assert found["v"] in {*DYNAMIC_USERS} - {uid}


async def test_no_file_of_it_stays_but_in_its_directories(tmp_path: Path, name: str) -> None:
    """As nothing else is writable, not even a directory in which everyone may make files."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    open_directories(shared)
    script = f"""
        t() {{ (echo x >$1/left) 2>/dev/null && echo $1; }}
        t {shared}; t /tmp; t /var/tmp; t /dev/shm; t $STATE_DIRECTORY; t $RUNTIME_DIRECTORY
        chmod u+s $STATE_DIRECTORY/left 2>/dev/null || echo no setuid; ls /root >/dev/null 2>&1 || echo closed
        grep NoNewPrivs /proc/self/status"""
    found = await run(tmp_path, script, f'state_directory = ["{name}"]\nruntime_directory = ["{name}"]')
    assert found[:5] == ["/tmp", "/var/tmp", "/dev/shm", f"/var/lib/{name}", f"/run/{name}"]
    assert found[5:] == ["no setuid", "closed", "NoNewPrivs:\t1"]
    assert not (shared / "left").exists()


async def test_its_directories_are_its_own_also_after_its_number_has_changed(tmp_path: Path, name: str) -> None:
    place = Path(f"/var/lib/{name}")
    keys = f'state_directory = ["{name}"]'
    (first,) = await run(
        tmp_path, "cd $STATE_DIRECTORY; mkdir -p a/b; echo kept >a/b/file; ln -s /etc link; id -u", keys
    )
    (place / "a/of-root").write_text("")  # which the program may not get
    file = tmp_path / "state/dynamic-users.json"
    known = json.loads(file.read_text())
    (key,) = known["users"]
    new = next(number for number in DYNAMIC_USERS if number != int(first))
    file.write_text(json.dumps({"users": {key: new}}))
    found = await run(tmp_path, "cd $STATE_DIRECTORY; id -u; cat a/b/file; echo new >a/b/file", keys)
    assert found == [str(new), "kept"]
    owners = {path: os.lstat(place / path).st_uid for path in (".", "a", "a/b", "a/b/file", "link", "a/of-root")}
    assert owners == {**dict.fromkeys((".", "a", "a/b", "a/b/file", "link"), new), "a/of-root": 0}
    assert os.stat("/etc").st_uid == 0, "no link is followed"


async def test_it_has_its_number_in_a_root_of_its_own(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    open_directories(root)
    (uid,) = await run(tmp_path, "id -u", f'root = {{ path = "{root}" }}')
    assert int(uid) in DYNAMIC_USERS


async def test_it_may_be_strict(tmp_path: Path) -> None:
    (uid,) = await run(tmp_path, "id -u", 'security.profile = "strict"')
    assert int(uid) in DYNAMIC_USERS
