"""systemd as a user manager, which can run on hosts with any init system."""

import os
import signal
from pathlib import Path

from benchmarks import hierarchy, processes
from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer, script

UNIT = """[Unit]
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
StartLimitIntervalSec=0
[Service]
Type=exec
ExecStart={0}
Restart=always
RestartSec=0
TimeoutStopSec=10
StandardOutput={1}
StandardError={1}
"""
JOURNALD = f"""[Journal]
Storage=persistent
SystemMaxUse={LOG_SIZE * (LOG_FILES + 1)}
SystemMaxFileSize={LOG_SIZE}
RateLimitIntervalSec=0
Compress=no
ForwardToSyslog=no
"""
START_JOURNALD = """
mkdir -p /run/systemd/journal /var/log/journal
touch /run/systemd/journal/flushed
mount --bind {1} /var/log/journal
if [ -d /etc/systemd ]; then mount --bind {0}/journald.conf /etc/systemd/journald.conf; fi
/lib/systemd/systemd-journald &
while ! [ -S /run/systemd/journal/stdout ]; do sleep .01; done
"""
STANDARD_UNITS = ("shutdown.target", "exit.target", "systemd-exit.service", "app.slice")


class Systemd(Peer):
    """`systemd --user`, in a view of pure cgroup v2 and a /run of its own; logs go to a journald of its own."""

    name = "systemd"
    product = "/lib/systemd/systemd"
    note = "systemd --user (+ journald for logs), RestartSec=0"

    def write(self) -> None:
        """Write one unit per service, and a target that wants all of them."""
        units = self.directory / "units"
        units.mkdir()
        (self.directory / "run").mkdir()
        log = next((service.log for service in self.services if service.log), None)
        for service in self.services:
            text = UNIT.format(" ".join(service.command), "journal" if log else "null")
            (units / f"{service.name}.service").write_text(text)
        wants = " ".join(f"{service.name}.service" for service in self.services)
        target = f"[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\nWants={wants}\n"
        (units / "all.target").write_text(target)
        for name in STANDARD_UNITS:
            source = Path("/usr/lib/systemd/user") / name
            if source.exists():
                (units / name).write_text(source.read_text())
        (self.directory / "journald.conf").write_text(JOURNALD)
        # sd_booted(3) checks this directory, and systemd requires it.
        start = "mount -t tmpfs none /run && mkdir -p /run/systemd/system\n"
        if log:
            start += START_JOURNALD.format(self.directory, log)
        script(self.directory / "go", start + "exec /lib/systemd/systemd --user --unit=all.target --log-target=null")

    def environment(self) -> dict[str, str]:
        """Exclude the user's own units."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "SYSTEMD_UNIT_PATH": str(self.directory / "units"),
            "SYSTEMD_GENERATOR_PATH": "/nonexistent",
            "SYSTEMD_USER_GENERATOR_PATH": "/nonexistent",
        }

    @property
    def cgroup(self) -> str:
        """Unique among runs at the same time."""
        return f"benchmark-systemd-{os.getpid()}-{self.directory.name}"

    def command(self) -> list[str]:
        """In the foreground."""
        return [str(Path(__file__).parent / "pure-view"), self.cgroup, str(self.directory / "go")]

    def stop(self) -> None:
        """Stop journald last, because it is not a unit."""
        below = processes.commands(processes.descendants(self.pid))
        journals = [pid for pid, command in below.items() if command[:1] == ["/lib/systemd/systemd-journald"]]
        self.signal(signal.SIGTERM)
        if journals:
            processes.wait_gone([self.pid], 60)
            for pid in journals:
                os.kill(pid, signal.SIGTERM)

    def clean(self) -> None:
        """Remove the cgroup that pure-view created."""
        hierarchy.remove(self.cgroup)
