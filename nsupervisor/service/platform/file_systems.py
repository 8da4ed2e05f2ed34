"""The file system of a path, by the table of mounts: no file system is asked, as one may not answer."""

from __future__ import annotations

_WITHOUT_EVENTS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "virtiofs", "fuse", "fuseblk")
_OF_THE_KERNEL = ("proc", "sysfs", "debugfs", "tracefs")


def file_system_without_events(path: str) -> str:
    """Return the kind of the file system of an absolute path if changes by others are not reported there; or "".

    Others are other hosts, and the kernel itself, which changes its files without a write.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return find_without_events(file.read(), path)


def find_without_events(mountinfo: str, path: str) -> str:
    """Do the same with the text of a table of mounts, proc_pid_mountinfo(5). Symbolic links are not followed."""
    longest, kind = "", ""
    for line in mountinfo.split("\n"):
        fields, separator, rest = line.partition(" - ")
        if not separator or len(words := fields.split(" ")) < 5:
            continue
        point = words[4].encode("latin-1", "replace").decode("unicode_escape") if "\\" in words[4] else words[4]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(longest):
            longest, kind = point, rest.split(" ")[0]
    return kind if kind in (*_WITHOUT_EVENTS, *_OF_THE_KERNEL) or kind.startswith("fuse.") else ""
