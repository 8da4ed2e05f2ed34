"""The recipes of configs/recipes, each with its real program, under traffic, through all that an operator does."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio

from nsupervisor.config.lint import lint
from nsupervisor.config.load import parse
from tests.needs import PROGRAM_PATH, ROOT, needs
from tests.system.service import Service, service
from tests.timing import deadline

RECIPES = ROOT / "configs" / "recipes"
PYTHON = ROOT / ".programs" / "python"
POSTGRES = Path("/usr/lib/postgresql/15/bin")
PATIENCE_S = 40.0
TIMEOUT_S = 10.0
REQUESTS_PER_STEP = 5
"""Requests that each program must have answered after a step before the next one."""

APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
    else:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
"""
TASKS = """
import celery
app = celery.Celery(broker="redis://127.0.0.1:PORT/0", backend="redis://127.0.0.1:PORT/1")

@app.task
def add(a, b):
    return a + b
"""
CLIENT = """
import sys, tasks
print("begun", flush=True)
for line in sys.stdin:
    try:
        answer = tasks.add.delay(int(line), 1).get(timeout=20)
    except Exception as error:  # while redis is killed, too
        answer = repr(error)
    print(answer, flush=True)
"""
SERVER = """
const server = require("http").createServer((request, response) => response.end("ok"));
server.listen(process.env.PORT, "127.0.0.1");
process.on("SIGTERM", () => { server.close(); server.closeAllConnections(); });
"""
NGINX = """
pid RUN/nginx.pid;
events {}
http { access_log off; server { listen 127.0.0.1:PORT; location / { return 200 "ok"; } } }
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.define
class Program:
    """A recipe with its names replaced for the test, and its traffic."""

    recipe: str
    text: str
    name: str
    """The workload that gets the traffic."""
    request: Callable[[], None]
    """Makes one request; raises if it is not answered."""
    reload: Callable[[Service], Awaitable[object]] | None = None
    """Makes the program read its configuration again, without losing a request."""
    answered: int = 0
    failures: list[str] = attrs.field(factory=list)


def recipe(name: str, *replacements: tuple[str, str]) -> str:
    """Return the text of a recipe with each of these replaced, which it must have."""
    text = (RECIPES / f"{name}.toml").read_text()
    for old, new in replacements:
        assert old in text, (name, old)
        text = text.replace(old, new)
    return text


def http_request(port: int) -> Callable[[], None]:
    def request() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 200
            response.read()

    return request


def line_request(port: int, question: bytes, answer: bytes) -> Callable[[], None]:
    def request() -> None:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(question)
            assert connection.recv(100).startswith(answer)

    return request


def signal_reload(name: str) -> Callable[[Service], Awaitable[object]]:
    return lambda it: it.cli("signal", "-s", "HUP", name)


# ---- the programs


def nginx(directory: Path) -> Program:
    config, port = directory / "nginx.conf", free_port()
    config.write_text(NGINX.replace("RUN", str(directory)).replace("PORT", str(port)))

    async def reload(_: Service) -> None:
        """By its own tool, from outside: its process id is valid there."""
        await trio.run_process(["/usr/sbin/nginx", "-c", str(config), "-s", "reload"], capture_stderr=True)

    return Program(
        "nginx", recipe("nginx", ("/etc/nginx/nginx.conf", str(config))), "nginx", http_request(port), reload
    )


def redis(directory: Path, port: int) -> Program:
    config, data = directory / "redis.conf", directory / "redis"
    data.mkdir()
    shutil.chown(data, "redis")
    config.write_text(f"bind 127.0.0.1\nport {port}\ndir {data}\ndaemonize yes\n")
    text = recipe("redis", ("/etc/redis/redis.conf", str(config)))
    return Program("redis", text, "redis", line_request(port, b"PING\r\n", b"+PONG"))


def memcached(_: Path) -> Program:
    port = free_port()
    text = recipe("memcached", ('"11211"', f'"{port}"'))
    return Program("memcached", text, "memcached", line_request(port, b"version\r\n", b"VERSION "))


def postgresql(directory: Path) -> Program:
    data, port = directory / "postgresql", free_port()
    data.mkdir(mode=0o700)
    shutil.chown(data, "postgres")
    initdb = [POSTGRES / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale"]
    subprocess.run(initdb, check=True, capture_output=True, user="postgres", extra_groups=[], cwd="/")
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{data}'\n")
    command = ["psql", "-h", str(data), "-p", str(port), "-U", "postgres", "-Atqc", "SELECT 6 * 7"]

    def request() -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd="/")
        assert done.stdout == "42\n", done.stderr

    async def reload(_: Service) -> None:
        """By its own tool, from outside. A second server finds that the first one runs."""
        as_postgres = {"user": "postgres", "extra_groups": [], "cwd": "/"}
        await trio.run_process([POSTGRES / "pg_ctl", "-D", data, "reload"], capture_stdout=True, **as_postgres)
        second = [POSTGRES / "postgres", "-D", data, "-p", str(free_port())]
        done = await trio.run_process(second, capture_stdout=True, capture_stderr=True, check=False, **as_postgres)
        assert done.returncode == 1
        assert b'lock file "postmaster.pid" already exists' in done.stderr

    text = recipe(
        "postgresql",
        ("/var/lib/postgresql/15/main", str(data)),
        ("/etc/postgresql/15/main/postgresql.conf", str(data / "postgresql.conf")),
    )
    return Program("postgresql", text, "postgresql", request, reload)


def is_reachable(path: Path) -> bool:
    """Return whether other users may enter the directory of a file, and of what it leads to."""
    return all(parent.stat().st_mode & 0o001 for parent in {*path.parents, *path.resolve().parents})


def as_reachable_user(text: str) -> str:
    """Return the text of a recipe of the application; it runs as root if Python is in a directory of root."""
    return text if is_reachable(PYTHON / "bin/python") else text.replace('user = "www-data"\n', "")


def application(directory: Path, name: str, port: str, traffic: str = "") -> Program:
    """Return a program of the application in /srv/app; `port`: what the recipe has."""
    number = free_port()
    text = as_reachable_user(
        recipe(
            name,
            ("/srv/app", str(directory / "app")),
            (port, port.replace(re.findall("[0-9]+", port)[-1], str(number))),
        )
    )
    is_signalled = name == "gunicorn"
    return Program(name, text, traffic or name, http_request(number), signal_reload(name) if is_signalled else None)


class Tasks:
    """A client of the tasks: a line with a number gets one that is greater by one."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [directory / "app/.venv/bin/python", "-c", CLIENT],
            cwd=directory / "app",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def request(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("41\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "42\n", answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


# ---- the test


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that users other than root may enter; those of pytest are closed to them."""
    path = Path(tempfile.mkdtemp(prefix="nsupervisor-recipes-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def make_application(directory: Path, redis_port: int) -> None:
    """Make the application; its virtual environment is one that scripts/setup has made."""
    app = directory / "app"
    app.mkdir()
    (app / ".venv").symlink_to(PYTHON)
    for name, text in (
        ("app.py", APPLICATION),
        ("tasks.py", TASKS.replace("PORT", str(redis_port))),
        ("server.js", SERVER),
        ("migrate.py", "print('migrated')\n"),
    ):
        (app / name).write_text(text)


async def send_traffic(program: Program, is_over: trio.Event) -> None:
    """Make one request after the other; a failure is noted."""
    while not is_over.is_set():
        try:
            await trio.to_thread.run_sync(program.request)
            program.answered += 1
        except (OSError, AssertionError, http.client.HTTPException, subprocess.SubprocessError) as error:
            program.failures.append(repr(error))
        await trio.sleep(0.01)  # so that the others get their turn on few processors


async def more_answers(programs: list[Program]) -> None:
    """Wait until each program has answered some more requests, none of them in vain."""
    wanted = {program.name: program.answered + REQUESTS_PER_STEP for program in programs}
    with trio.fail_after(deadline(PATIENCE_S)):
        while any(program.answered < wanted[program.name] for program in programs):
            assert not any(program.failures for program in programs), programs
            await trio.sleep(0.02)
    assert not any(program.failures for program in programs), programs


async def is_answered(it: Service, program: Program) -> None:
    """Wait until a program that has been started answers; one that does not report readiness may need a moment."""
    with trio.fail_after(deadline(PATIENCE_S)):
        while True:
            try:
                return await trio.to_thread.run_sync(program.request)
            except (OSError, AssertionError, http.client.HTTPException, subprocess.SubprocessError) as error:
                last = error
            if trio.current_effective_deadline() - trio.current_time() < 1:
                records = [record for record in it.records if record.get("workload") == program.name]
                raise AssertionError(f"{program.name} does not answer: {last}; its records: {records[-20:]}")
            await trio.sleep(0.05)


async def pids(it: Service) -> dict[str, int]:
    statuses = json.loads(await it.cli("status", "--json"))
    return {status["name"]: status["pid"] for status in statuses if status["pid"]}


def has(program: str) -> bool:
    return shutil.which(program, path=PROGRAM_PATH) is not None


@pytest.mark.host_only
@pytest.mark.timeout(400)
@needs("root", "cgroup", "memory", "pids", "program:nginx", "program:redis-server", "program:memcached")
@needs("program:gunicorn", "program:uvicorn", "program:celery")
@pytest.mark.fault("C10")
async def test_the_recipes_keep_what_their_programs_promise(directory: Path) -> None:
    """No request is lost by a reload, a kill of the service, its successor, or an upgrade; a killed program returns."""
    redis_port = free_port()
    make_application(directory, redis_port)
    programs = [
        nginx(directory),
        redis(directory, redis_port),
        memcached(directory),
        application(directory, "gunicorn", ":8000"),
        application(directory, "uvicorn", '"8001"'),
        application(directory, "port-80", '0.0.0.0:80"', traffic="site"),
        application(directory, "migration", '"8003"', traffic="app"),
    ]
    if has("node"):
        programs.append(application(directory, "node", '"8002"'))
    if POSTGRES.exists() and has("psql"):
        programs.append(postgresql(directory))
    celery = as_reachable_user(recipe("celery", ("/srv/app", str(directory / "app"))))
    text = "\n".join([*(program.text for program in programs), celery])
    is_over = trio.Event()
    async with trio.open_nursery() as nursery:
        async with service(directory, text, status=-signal.SIGKILL) as it:
            for program in programs:
                await is_answered(it, program)
            tasks = await trio.to_thread.run_sync(Tasks, directory)
            nursery.start_soon(close_at_end, tasks)
            programs.append(Program("celery", celery, "celery", tasks.request))
            await is_answered(it, programs[-1])
            for program in programs:
                nursery.start_soon(send_traffic, program, is_over)
            began = await pids(it)
            await more_answers(programs)
            for program in programs:
                if program.reload is not None:
                    await program.reload(it)
            await more_answers(programs)
            await it.cli("reload")
            it.process.kill()
            await more_answers(programs)
        async with service(directory, text) as it:
            await more_answers(programs)
            await it.cli("upgrade")
            await more_answers(programs)
            assert await pids(it) == began
            is_over.set()
            async with trio.open_nursery() as killers:
                for program in programs:
                    killers.start_soon(kill, it, program, began[program.name])
        nursery.cancel_scope.cancel()
    exits = [record for record in it.records if record["event"] == "exited"]
    assert sorted(record["workload"] for record in exits if record["signal"] == "SIGKILL") == sorted(
        program.name for program in programs
    ), "each was killed once, by the test, and none by its stop"


async def kill(it: Service, program: Program, pid: int) -> None:
    """Kill a program, and wait until its successor answers."""
    os.kill(pid, signal.SIGKILL)
    await it.record(event="started", workload=program.name, generation=2, patience=PATIENCE_S)
    await is_answered(it, program)


async def close_at_end(tasks: Tasks) -> None:
    try:
        await trio.sleep_forever()
    finally:
        tasks.close()


# ---- check


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.stem)
def test_check_has_no_doubt_about_a_recipe(path: Path) -> None:
    assert list(lint(parse(path.read_text(), path.name))) == []


@pytest.mark.fault("C10")
@pytest.mark.parametrize("name", ["postgresql", "nginx"])
def test_check_warns_of_a_recipe_whose_namespaces_were_left_out(name: str) -> None:
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    (conflict,) = lint(parse("\n".join(line for line in lines if not line.startswith("namespaces")), "site.toml"))
    assert conflict.path == ("workload", name, "namespaces")


def test_the_index_has_each_recipe() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    assert [path.name for path in sorted(RECIPES.iterdir()) if f"configs/recipes/{path.name})" not in page] == []
