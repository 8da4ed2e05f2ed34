"""As a service of a real systemd, in the virtual machine, with the unit that ships and the page's commands."""

import sys

import pytest

from tests.deployment.running import COMMAND, documented
from tests.needs import needs
from tests.vm.machine import LIMIT, vm

pytestmark = [pytest.mark.host_only, pytest.mark.slow, needs("vm"), pytest.mark.timeout(LIMIT + 60)]

USER = 64321

PREPARE = f"""
set -eu
cat >/usr/local/bin/nsupervisor <<'END'
{COMMAND}END
chmod 755 /usr/local/bin/nsupervisor
cat >/etc/nsupervisor.toml <<'END'
[workload.web]
command = ["sh", "-c", "sleep 1000 & wait"]
resources = {{ memory_max = "64M" }}
[workload.leak]
command = ["{sys.executable}", "-S", "-c", "x = [bytearray(1 << 20) for _ in range(100)]"]
restart = "no"
restart_sec = 0
start_limit_burst = 2
resources = {{ memory_max = "24M" }}
[[workload.leak.policy]]
when = "memory.events oom_kill"
action = "restart"
END
own=/sys/fs/cgroup/system.slice/nsupervisor.service
web=$own/nsupervisor/web
show() {{ systemctl show --value --property "$1" nsupervisor; }}
settled() {{ until [ "$(wc -l <$web/cgroup.procs)" = 2 ]; do sleep 0.1; done; }}  # the shell and its child
"""

STARTED = """
settled
echo "1 $(show ActiveState) $(cat $web/memory.max) pids $(wc -l <$web/cgroup.procs)"
grep -qx "$(show MainPID)" $own/supervisor/cgroup.procs && echo "2 in its leaf"
until grep -q "oom_kill 2" $own/nsupervisor/leak/memory.events; do sleep 0.1; done
echo "3 $(show ActiveState) $(show NRestarts)"
"""

RESTARTED = """
settled
[ "$main" != "$(show MainPID)" ] && [ "$(cat $web/cgroup.procs)" != "$pids" ] && echo "4 new ones, $(show ActiveState)"
"""

REPLACED = """
[ "$main" = "$(show MainPID)" ] && [ "$(cat $web/cgroup.procs)" = "$pids" ] && echo "5 the same, $(show ActiveState)"
"""

KILLED = """
kill -KILL "$main"
until [ "$(show NRestarts)" = 1 ] && [ "$(show ActiveState)" = active ]; do sleep 0.1; done
settled
for pid in $pids; do [ ! -e /proc/$pid ] || echo "process $pid is still there"; done
echo "6 $(wc -l <$web/cgroup.procs) anew"
"""

TAKEN_OVER = """
kill -KILL "$(cat /run/nsupervisor/lock)"
until journalctl --unit nsupervisor --output cat | grep -q '"taken over"'; do sleep 0.1; done
nsupervisor status --json web | grep -q '"generation": *1,' || echo "another generation"
[ "$main" = "$(show MainPID)" ] && [ "$(cat $web/cgroup.procs)" = "$pids" ] && echo "5a taken over, $(show NRestarts)"
"""

STOPPED = """
[ ! -e $own ] && [ ! -e /run/nsupervisor ] && echo "7 nothing is left, $(show ActiveState)"
echo "[workload.web]" >/etc/nsupervisor.toml
systemctl start nsupervisor 2>/dev/null || echo "8 $(show ActiveState) $(show ExecMainStatus) $(show NRestarts)"
"""

ROOTLESS = f"""
chmod 755 /root  # where this Python may be installed
echo "deploy:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
echo "deploy:x:{USER}:" >>/etc/group
cat >/etc/nsupervisor.toml <<'END'
[workload.web]
command = ["sleep", "1000"]
namespaces = {{ user = true }}
resources = {{ memory_max = "64M" }}
END
{documented("mkdir -p /etc/systemd/system/nsupervisor.service.d").replace("1000", str(USER))}
echo "9 $(show ActiveState) $(stat -c %u /proc/$(show MainPID)) $(cat $web/memory.max)"
systemctl stop nsupervisor
[ ! -e $own ] && echo "10 $(show Result)"
"""

REMEMBER = "main=$(show MainPID) pids=$(cat $web/cgroup.procs)\n"


def test_a_service_of_systemd(tmp_path, no_leaks):
    lines = documented("systemctl restart nsupervisor").splitlines(keepends=True)
    restart, reload, replace, read, status, stop = lines
    script = [
        *(PREPARE, documented("nsupervisor check"), STARTED),
        *(REMEMBER, restart, RESTARTED),
        *(REMEMBER, reload, replace, REPLACED, TAKEN_OVER, KILLED),
        *(f'{read.strip()} | grep -o -m1 \'"action":"restart"\'\n', f"{status.strip()} | cut -d' ' -f1\n"),
        *(stop, STOPPED, ROOTLESS),
    ]
    done = vm("--time-limit=800", "--systemd", "--", "sh", "-c", "".join(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "/etc/nsupervisor.toml: ok, 2 workloads",
        f"1 active {64 << 20} pids 2",
        "2 in its leaf",
        "3 active 0",
        "4 new ones, active",
        "5 the same, active",
        "5a taken over, 0",
        "6 2 anew",
        '"action":"restart"',
        *("NAME", "web", "leak"),
        "7 nothing is left, inactive",
        "8 failed 2 0",
        f"9 active {USER} {64 << 20}",
        "10 success",
    ], done.stderr
