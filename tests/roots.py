"""Small root file systems for tests: some programs of this host with their libraries, and a user database."""

import re
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("sh", "cat", "ls", "id", "stat", "touch", "mkdir", "grep", "sleep", "readlink", "env")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nsite:x:1234:1235:site:/home/site:/bin/sh\n"
GROUP = "root:x:0:\nsite:x:1235:\nextra:x:1236:site\n"


def make_root(path: Path, *programs: str) -> Path:
    """Make a root file system at `path` with `PROGRAMS` and further ones; return the path."""
    files: set[str] = set()
    for name in (*PROGRAMS, *programs):
        found = shutil.which(name)
        assert found is not None, name
        (path / "bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(found, path / "bin" / name)
        listed = subprocess.run(["ldd", found], capture_output=True, text=True).stdout
        files.update(re.findall(r"(/\S+) \(0x", listed))
    for file in files:
        copy = path / file.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    for directory in ("etc", "tmp", "root", "home/site"):
        (path / directory).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    (path / "etc/of-the-root").write_text("of the root\n")
    return path


def open_directories(path: Path) -> None:
    """Let all users, also those of user namespaces, enter the directories above `path`."""
    for above in list(path.parents)[:3]:
        if str(above) != "/tmp":
            above.chmod(0o755)
