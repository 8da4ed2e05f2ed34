"""PostgreSQL and nginx in a root file system of Debian, with networks of plugins, reached from where clients are."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian_root import POSTGRESQL, make_debian_root
from tests.needs import PROGRAM_PATH, ROOT, needs
from tests.system.service import Service, service

PACKAGE_LISTS = ("file:/var/lib/dpkg/info/postgresql-15.list", "file:/var/lib/dpkg/info/nginx.list")
pytestmark = [
    needs("root", "cgroup", "netns", "program:ip", "program:iptables", "program:host-local"),
    needs("program:curl", "program:nginx", "program:psql", *PACKAGE_LISTS),
]

NGINX = """
daemon off;
user www-data;
error_log stderr notice;
events {}
http {
    access_log off;
    server {
        listen 80;
        location / { return 200 "served by $hostname\\n"; }
    }
}
"""
TOML = """
[network]
allow_forwarding = true
config_directory = "DIRECTORY"

[workload.initdb]
command = ["POSTGRESQL/initdb", "-D", "/srv/data/main", "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale"]
type = "oneshot"
user = "postgres"
root = { path = "DIRECTORY/debian", overlay = true }
volumes = { data = "/srv/data" }

[workload.db]
command = [
    "POSTGRESQL/postgres", "-D", "/srv/data/main", "-c", "listen_addresses=*", "-c", "unix_socket_directories=/tmp",
    "-c", "hba_file=/etc/hba.conf", "-c", "fsync=off",
]
user = "postgres"
requires = ["initdb"]
root = { path = "DIRECTORY/debian", overlay = true }
volumes = { data = "/srv/data" }
namespaces = { network = "cni:servers" }
network = { publish = ["5432:5432"] }
kill_signal = "SIGINT"

[workload.web]
command = ["nginx", "-c", "/etc/nginx/site.conf"]
root = { path = "DIRECTORY/debian", overlay = true }
namespaces = { network = "cni:servers" }
network = { publish = ["8080:80"] }

[workload.client]
command = ["sleep", "1000"]
user = "nobody"
namespaces = { network = "cni:clients" }
"""
QUERY = ("psql", "-U", "postgres", "-Atc", "SELECT 6 * 7 || ' by ' || current_setting('data_directory')", "-h")


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Path]:
    """Make the root; remove it at the end, as it is large."""
    yield make_debian_root(tmp_path / "debian")
    shutil.rmtree(tmp_path / "debian")


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Make two networks, and a network namespace in place of the host's; yield the command that enters it."""
    monkeypatch.setenv("PATH", PROGRAM_PATH)
    monkeypatch.setenv("CNI_PATH", f"{ROOT}/.programs/cni/usr/lib/cni:/usr/lib/cni")
    for name, subnet in (("servers", "10.88.7.0/24"), ("clients", "10.88.8.0/24")):
        bridge = {
            "type": "bridge", "bridge": f"{name}0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
            "ipam": {
                "type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }  # fmt: skip
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]
        document = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        (tmp_path / f"{name}.conflist").write_text(json.dumps(document))
    script = "ip link set lo up; echo; read line"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=-1, stdout=-1) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"\n"
        yield ("nsenter", f"--net=/proc/{it.pid}/ns/net")
        it.kill()


async def output(it: Service, name: str, text: str) -> None:
    """Wait until a workload has written a text."""
    found = await it.heard(
        lambda: any(
            record["event"] == "output" and record["workload"] == name and text in record["message"]
            for record in it.records
        )
    )
    assert found, json.dumps(it.records[-20:])


async def test_postgresql_and_nginx_serve_the_host_and_another_network(
    tmp_path: Path, debian: Path, within: tuple[str, ...]
) -> None:
    root = debian
    (root / "etc/nginx/site.conf").write_text(NGINX)
    (root / "etc/hba.conf").write_text("host all all 0.0.0.0/0 trust\n")
    for directory in (*root.parents[:3], root):
        directory.chmod(directory.stat().st_mode | 0o055)

    def on_the_host(*command: str) -> str:
        return subprocess.run([*within, *command], check=True, capture_output=True, text=True).stdout

    toml = TOML.replace("DIRECTORY", str(tmp_path)).replace("POSTGRESQL", POSTGRESQL)
    async with service(tmp_path, toml, within=within) as it:
        await output(it, "db", "database system is ready to accept connections")
        await output(it, "web", "start worker process ")
        await it.record(event="started", workload="client")
        page, row = "served by web\n", "42 by /srv/data/main\n"
        assert on_the_host("curl", "-sS", "http://127.0.0.1:8080/") == page
        assert on_the_host(*QUERY, "127.0.0.1") == row
        for address in ("10.88.8.1", "10.88.7.1"):  # of the host
            assert await it.cli("exec", "client", "--", "curl", "-sS", f"http://{address}:8080/") == page
            assert await it.cli("exec", "client", "--", *QUERY, address) == row
        assert (await it.cli("exec", "db", "--", "cat", "/etc/debian_version")) == Path(
            "/etc/debian_version"
        ).read_text()
        assert "postgres" in await it.cli("exec", "db", "--", "id", "-un")
        assert (await it.cli("exec", "db", "--", "ls", "/")).split() == sorted(
            {path.name for path in root.iterdir()} | {"proc", "sys", "dev", "srv"}
        )
    assert not (root / "srv/data").exists()
    assert (tmp_path / "state/volumes/data/main/PG_VERSION").read_text() == "15\n"
