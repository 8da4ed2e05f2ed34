"""Warnings about rules that can never fire, or always do."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.lint import lint
from nsupervisor.config.load import ConfigError, parse
from tests.config.test_conditions import PARTS

LIMITS = 'pids_max = 256, memory_max = "512M", cpu_max = "50%"'


def found(when: str, more: str = 'action = "log"', resources: str = LIMITS) -> list[str]:
    toml = f"""
    [workload.web]
    command = ["true"]
    resources = {{ {resources} }}
    [[workload.web.policy]]
    when = "{when}"
    {more}
    """
    return [conflict.message for conflict in lint(parse(toml, "site.toml"))]


def test_the_rate_of_what_no_limit_makes_count_is_nothing() -> None:
    (said,) = found("cpu.stat nr_throttled rate > 5/s", resources="pids_max = 9")
    assert "does nothing: cpu.stat nr_throttled counts at cpu_max, which is not set" in said
    assert found("cpu.stat nr_throttled rate > 5/s") == []


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("pids.current >= 300", "can never be true, so this rule does nothing: pids.current is at most 256"),
        ("pids.current > 256", "at most 256; write a smaller threshold"),
        ("pids.current > 100%", "can never be true"),
        ("memory.current > 1G", "memory.current is at most 512M"),
        ("memory.stat anon > 600M", "memory.stat anon is at most 512M"),
        ("pids.current < 1", "pids.current is at least 1; write a larger threshold"),
        ("memory.pressure some avg10 > 100%", "is at most 100%"),
        ("cpu.stat usage_usec rate > 60%", "can never be true"),
        ("pids.current >= 0", "is always true, so this rule fires at once: pids.current is at least 1"),
        ("pids.current >= 1", "is always true"),
        ("memory.current > 0", "is always true"),
        ("memory.pressure some avg10 >= 0", "is always true"),
        ("memory.events oom_kill or pids.current > 0", "is always true"),
        ("pids.current > 300 and memory.events oom_kill", "can never be true"),
        ("pids.current > 50 and pids.current < 30", "its parts exclude each other; write other thresholds"),
        ("pids.current > 30 or pids.current < 50", "its parts leave nothing out"),
        ("pids.current > 50% and pids.current < 100", "exclude each other"),
        ("not pids.current >= 1", "can never be true"),
        ("memory.events high", "memory.events high counts at memory_high, which is not set; set it under resources"),
        ("exit code > 255", "can never be true"),
        ("exit code == 3 and exit code == 4", "exclude each other"),
    ],
)
def test_what_is_doubtful(when: str, message: str) -> None:
    (text,) = found(when)
    assert message in text
    assert "; " in text, "it says what to write instead"


@pytest.mark.parametrize(
    "when",
    [
        "pids.current >= 256",
        "pids.current >= 90%",
        "memory.current >= 512M",
        "memory.events oom_kill",
        "pids.events max",
        "cpu.stat nr_throttled rate > 50/s",
        "cpu.stat usage_usec rate > 40%",
        "pids.current > 30 and pids.current < 50",
        "exit code == 3 or exit code == 4",
        "uptime > 7d",
        "memory.pressure some stall > 100ms/1s",
        "not exit oom_killed",
    ],
)
def test_what_is_not(when: str) -> None:
    assert found(when) == []


def test_a_limit_of_the_host_is_not_known_here() -> None:
    assert found("pids.current > 4000000", resources='pids_max = "50%"') == []
    assert "can never be true" in found("pids.current > 100%", resources='pids_max = "50%"')[0]


def test_an_escalation_that_cannot_be_reached() -> None:
    more = 'action = "log"\nat_most = 3\nwithin = "1min"\nthen = "stop"\ncooldown = '
    (text,) = found("pids.events max", more + '"30s"')
    assert text.startswith("then is never reached: the rule fires once in 30s, so less than 4 times in 1min;")
    assert found("pids.events max", more + '"10s"') == []


def test_an_action_on_what_has_ended() -> None:
    (text,) = found("exit code == 3", 'action = "freeze"')
    assert text.startswith('"freeze" has nothing to act on')
    assert found("exit code == 3", 'action = "stop"') == []


def test_a_set_that_is_at_its_bound_from_the_beginning() -> None:
    (text,) = found("pids.events max", 'action = "set"\nset = { pids_max = "+5" }\nlimit = { pids_max = 200 }')
    assert text == "is where pids_max is already, so there is nothing to set; write a larger value"


ATOMS = ["pids.current > 5", "pids.current < 300", "pids.events max", "exit code == 3", "memory.current > 5M", *PARTS]


@given(st.lists(st.sampled_from([*ATOMS, "and", "or", "not"]), min_size=1, max_size=12).map(" ".join))
def test_whatever_is_a_condition_is_looked_at_quickly(when: str) -> None:
    with contextlib.suppress(ConfigError):
        assert len(found(when)) <= 1


@pytest.mark.fault("C7")
@pytest.mark.parametrize(
    "when",
    [
        "exit code == 0 or exit code != 0",
        "exit code >= 0",
        "not exit code == 3 or exit code == 3",
        "exit oom_killed or not exit oom_killed",
        "exit code >= 0 and pids.current >= 1",
    ],
)
def test_an_exit_of_any_kind_was_called_always_true(when: str) -> None:
    """It is true at each exit, and at no other time."""
    assert found(when) == []


@pytest.mark.fault("C7")
def test_what_is_true_without_an_exit_too_is_always_true() -> None:
    assert "is always true" in found("exit code == 3 or pids.current >= 1")[0]


def test_keys_about_restarts_that_another_key_makes_void():
    text = """
    [workload.web]
    command = ["sleep", "60"]
    restart_prevent_exit_status = [2, "SIGTERM"]
    restart_force_exit_status = [75, "TERM"]
    runtime_randomized_extra_sec = "10s"
    """
    assert [(conflict.path[2:], conflict.message) for conflict in lint(parse(text, "site.toml"))] == [
        (
            ("restart_force_exit_status", 1),
            '"SIGTERM" is in restart_prevent_exit_status too, which wins; remove it from one of them',
        ),
        (
            ("runtime_randomized_extra_sec",),
            "has no effect without runtime_max_sec, to which it adds; set that, or remove this",
        ),
    ]


def test_keys_about_stops_and_failures_that_another_key_makes_void():
    text = """
    [workload.web]
    command = ["sleep", "60"]
    restart = "no"
    restart_mode = "debug"
    kill_signal = "HUP"
    send_sighup = true
    final_kill_signal = "QUIT"
    timeout_stop_sec = "infinity"
    """
    assert [(conflict.path[2:], conflict.message) for conflict in lint(parse(text, "site.toml"))] == [
        (
            ("restart_mode",),
            'has no effect with restart = "no", which restarts nothing that failed; remove one of them',
        ),
        (("final_kill_signal",), 'is never sent with timeout_stop_sec = "infinity"; write a time there'),
        (("send_sighup",), "has no effect: kill_signal is SIGHUP already; remove one of them"),
    ]


def lint_command(command: str) -> list[str]:
    conflicts = lint(parse(f"[workload.web]\ncommand = {command}\n", "site.toml"))
    return [f"{conflict.path[-1]}: {conflict.message}" for conflict in conflicts]


@pytest.mark.fault("D21")
@pytest.mark.parametrize(
    ("command", "syntax"),
    [
        ('["make", "&&", "run"]', '1: no shell reads this: "&&" is passed as it is'),
        ('["server", ">", "/dev/null"]', '1: no shell reads this: ">" is passed as it is'),
        ('["server", ">>/var/log/x"]', '1: no shell reads this: ">>/var/log/x" is passed as it is'),
        ('["server", "2>&1"]', '1: no shell reads this: "2>&1" is passed as it is'),
        ('["server", "--port=$PORT"]', '1: no shell reads this: "$PORT" is passed as it is'),
        ('["server", "${HOME}/x"]', '1: no shell reads this: "${HOME}" is passed as it is'),
        ('["server", "%(here)s/x"]', '1: no shell reads this: "%(here)s" is passed as it is'),
        ('["~/bin/server"]', '0: no shell reads this: "~" is passed as it is'),
        ('["cat", "*.log"]', '1: no shell reads this: the pattern "*.log" is passed as it is'),
        ('["kill", "$(cat x.pid)"]', '1: no shell reads this: "$(cat x.pid)" is passed as it is'),
        ('["server", "&"]', '1: no shell reads this: "&" is passed as it is'),
    ],
)
def test_check_was_silent_about_what_a_shell_would_read(command: str, syntax: str) -> None:
    (message,) = lint_command(command)
    assert message.startswith(syntax)
    assert '; for a shell, write ["sh", "-c", "' in message


@pytest.mark.fault("D21")
def test_the_advice_is_the_whole_command_for_a_shell() -> None:
    (message,) = lint_command('["make", "&&", "run"]')
    assert message.endswith('; for a shell, write ["sh", "-c", "make && run"]')


@pytest.mark.fault("D21")
@pytest.mark.parametrize(
    "command",
    [
        '["sh", "-c", "make && ./run > $LOG *.x"]',
        '["/bin/bash", "-ec", "echo ~/x | cat"]',
        '["timeout", "5", "sh", "-c", "a && b"]',
        '["env", "A=$B", "server"]',
        '["awk", "{print $1 > 2}"]',
        '["python3", "-c", "print(1 > 0)"]',
        '["find", "/srv", "-name", "*.log"]',
        '["grep", "-E", "a.*b$", "/x"]',
        '["server", "--match", "a&&b"]',
        '["server", "user@host", "50%", "a > b", "-", "--", "x?y=1&z=2", "https://h/?a=b*c"]',
        '["server", "price$"]',
    ],
)
def test_what_a_program_may_well_get_is_no_shell_syntax(command: str) -> None:
    assert lint_command(command) == []


def lint_isolation(program: str, keys: str = "") -> list[str]:
    toml = f'[workload.web]\ncommand = ["{program}", "-D", "/srv/data"]\n{keys}'
    conflicts = [conflict for conflict in lint(parse(toml, "site.toml")) if conflict.path[-1] == "namespaces"]
    return [f"{'.'.join(map(str, conflict.path))}: {conflict.message}" for conflict in conflicts]


@pytest.mark.fault("C10")
def test_check_was_silent_about_a_database_whose_lock_is_not_valid_outside_of_its_namespaces() -> None:
    expected = (
        "workload.web.namespaces: postgres is known by a process id and shared memory, which mean nothing outside of "
        "its own namespaces ({}): a second server on the same directory would start outside; write "
        "namespaces = {{ {} }}, or run its tools only inside"
    )
    for program in ("postgres", "/usr/lib/postgresql/15/bin/postgres"):
        assert lint_isolation(program) == [expected.format("pid, ipc", "pid = false, ipc = false")]
    assert lint_isolation("postgres", "namespaces = { pid = false }") == [expected.format("ipc", "ipc = false")]


@pytest.mark.fault("C10")
@pytest.mark.parametrize("program", ["nginx", "/usr/sbin/nginx", "apache2", "httpd", "squid", "pgbouncer", "uwsgi"])
def test_check_was_silent_about_a_server_that_its_own_tools_signal_by_a_number(program: str) -> None:
    (message,) = lint_isolation(program)
    assert "would signal a stranger outside; write namespaces = { pid = false }, or run its tools" in message


@pytest.mark.fault("C10")
@pytest.mark.parametrize(
    ("program", "keys"),
    [
        ("postgres", "namespaces = { pid = false, ipc = false }"),
        ("nginx", "namespaces = { pid = false }"),
        ("redis-server", ""),
        ("nginx-exporter", ""),
        ("/srv/nginx/bin/server", ""),
    ],
)
def test_no_warning_where_the_lock_is_valid_or_the_program_has_none(program: str, keys: str) -> None:
    assert lint_isolation(program, keys) == []


def lint_daemon(*command: str) -> list[str]:
    words = ", ".join(f"'{word}'" for word in command)
    toml = f"[workload.web]\ncommand = [{words}]\nnamespaces = {{ pid = false }}"
    return [f"{'.'.join(map(str, conflict.path))}: {conflict.message}" for conflict in lint(parse(toml, "site.toml"))]


@pytest.mark.fault("B16")
@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("nginx", 'run it with -g "daemon off;"'),
        ("/usr/sbin/apache2", "run it with -D FOREGROUND"),
        ("memcached -m 64 -d", "run it without -d or --daemon"),
        ("redis-server /etc/redis.conf --daemonize yes", "run it without --daemonize yes"),
        ("gunicorn --daemon app:app", "run it without -D or --daemon"),
        ("celery -A app worker --detach", "run it as celery worker, without --detach"),
        ("celery multi start w1", "run it as celery worker, without --detach"),
        ("pg_ctl -D /srv/data start", "run postgres -D DIRECTORY instead"),
        ("php-fpm8.2", "run it with --nodaemonize"),
        ("uwsgi --daemonize=/var/log/uwsgi.log", "run it without -d or --daemonize or --daemonize2"),
    ],
)
def test_check_was_silent_about_a_program_that_goes_to_the_background(command: str, remedy: str) -> None:
    name = command.split()[0].rpartition("/")[2]
    name = "php-fpm" if name == "php-fpm8.2" else name
    assert lint_daemon(*command.split()) == [
        f"workload.web.command: {name} goes to the background, and would be taken for a program that has ended; "
        f"{remedy}"
    ]


@pytest.mark.fault("B16")
@pytest.mark.parametrize(
    "command",
    [
        ("nginx", "-g", "daemon off;"),
        ("nginx", "-c", "/srv/nginx.conf"),  # which may say "daemon off"
        ("nginx", "-t"),
        ("apache2", "-DFOREGROUND"),
        ("memcached", "-u", "d", "--daemons", "x-d"),
        ("redis-server", "--daemonize", "no"),
        ("gunicorn", "app:app"),
        ("celery", "-A", "app", "worker"),
        ("sshd", "-D", "-e"),
        ("nginx-exporter",),
    ],
)
def test_no_warning_of_a_program_that_stays_in_the_foreground(command: tuple[str, ...]) -> None:
    assert lint_daemon(*command) == []
