"""The files by which programs resolve names: where they are, and how they follow the peers."""

import os
import stat
from pathlib import Path

import pytest
import trio

from nsupervisor.config.load import parse
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.name_files import HOSTS, RESOLVER
from nsupervisor.service.platform.name_files import NameFiles
from tests.timing import deadline

LOCALHOST = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
BLUE = "# The addresses of the workloads in the network blue:\n"


class Site:
    """A state directory, the host's files, and the networks of a service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.members: dict[str, list[str]] = {}
        self.warnings: list[str] = []
        (directory / "resolv.conf").write_text("nameserver 127.0.0.53\nsearch a.org\n")
        (directory / "upstream").write_text("nameserver 10.0.0.1\nsearch b.org\n")
        (directory / "hosts").write_text("127.0.0.1 localhost\n10.1.1.1 printer\n")

    def service(self) -> NameFiles:
        return NameFiles(
            str(self.directory / "state"),
            "test",
            lambda: [(name, "blue", addresses) for name, addresses in self.members.items()],
            lambda instance, text: self.warnings.append(text),
            str(self.directory / "hosts"),
            (str(self.directory / "resolv.conf"), str(self.directory / "upstream")),
        )

    def path(self, name: str) -> Path:
        return self.directory / "state/names/test" / name

    def read(self, name: str) -> str:
        return self.path(name).read_text()

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory / "state/names/test"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def workload(keys: str = 'namespaces.network = "cni:blue"') -> WorkloadConfig:
    return parse(f'[workload.web]\ncommand = ["a"]\n{keys}\n', "f").workloads["web"]


async def until(condition: object) -> None:
    with trio.fail_after(deadline(20)):
        while not condition():  # type: ignore[operator] # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_a_program_in_a_network(site: Site) -> None:
    site.members = {"web": ["10.0.0.2"], "db": ["10.0.0.3"]}
    old = os.umask(0o077)
    try:
        found = await site.service().prepare("web", workload(), "shop", "web")
    finally:
        os.umask(old)
    assert found == {
        HOSTS: {"source": str(site.path("web.hosts")), "settings": []},
        RESOLVER: {"source": str(site.path("web.resolv.conf")), "settings": []},
    }
    assert site.read("web.hosts") == f"10.0.0.2 shop\n{LOCALHOST}{BLUE}10.0.0.3 db\n10.0.0.2 web\n"
    assert site.read("web.resolv.conf") == "nameserver 10.0.0.1\nsearch b.org\n", "not the host's loopback"
    assert [stat.S_IMODE(site.path(name).stat().st_mode) for name in (".", "web.hosts")] == [0o700, 0o644]


async def test_a_program_of_the_hosts_network(site: Site) -> None:
    keys = 'network = { hosts = { db = "10.0.0.5" }, dns = { options = ["rotate"] } }'
    await site.service().prepare("web", workload(keys), "web", "web")
    assert site.read("web.hosts") == "10.0.0.5 db\n127.0.0.1 localhost\n10.1.1.1 printer\n"
    assert site.read("web.resolv.conf") == "nameserver 127.0.0.53\nsearch a.org\noptions rotate\n"


async def test_a_file_of_the_host_that_is_too_large_is_refused(site: Site) -> None:
    (site.directory / "hosts").write_bytes(b"\n" * ((1 << 20) + 1))
    with pytest.raises(OSError, match="hosts has more than 1,048,576 bytes and cannot be copied"):
        await site.service().prepare("web", workload('network.hosts = { db = "10.0.0.5" }'), "web", "web")


async def test_files_follow_their_peers_in_place(site: Site) -> None:
    """Also after a takeover: the beginning of the file stays, whatever the configuration says now."""
    site.members = {"web": ["10.0.0.2"]}
    service = site.service()
    await service.prepare("web", workload('namespaces.network = "cni:blue"\nnetwork.hosts.x = "10.9.9.9"'), None, "web")
    head = f"10.9.9.9 x\n{LOCALHOST}"
    with site.path("web.hosts").open() as of_the_program:
        for after in (service, site.service()):
            async with trio.open_nursery() as nursery:
                if after is not service:
                    await after.begin(lambda name: True)
                nursery.start_soon(after.run)
                for db in ("10.0.0.3", "10.0.0.4", ""):
                    site.members = {"web": ["10.0.0.2"], **({"db": [db]} if db else {})}
                    expected = f"{head}{BLUE}" + (f"{db} db\n" if db else "") + "10.0.0.2 web\n"
                    after.notify()
                    await until(lambda text=expected: of_the_program.seek(0) or of_the_program.read() == text)
                nursery.cancel_scope.cancel()
    assert site.warnings == []


async def test_files_of_programs_that_have_ended_are_removed(site: Site) -> None:
    service = site.service()
    for name in ("web", "db@1"):
        await service.prepare(name, workload(), None, name)
    await service.release("web")
    assert site.names() == ["db@1.hosts", "db@1.resolv.conf"]
    after = site.service()
    await after.begin(lambda name: False)
    assert site.names() == []
    await after.release("db@1")
    assert site.warnings == []


async def test_without_files_nothing_is_made(site: Site) -> None:
    service = site.service()
    await service.begin(lambda name: True)
    await service.release("web")
    assert not (site.directory / "state").exists()


async def test_a_sidecar_sees_the_files_of_the_other_workload(site: Site) -> None:
    service, side = (
        site.service(),
        workload('namespaces.network = "workload:db"\n[workload.db]\ncommand = ["b"]\nnamespaces.network = true'),
    )
    assert await service.prepare("web", side, None, "db") == {}, "it has the host's files, too"
    await service.prepare("db", workload('namespaces.network = true\nnetwork.hosts.x = "10.9.9.9"'), None, "db")
    found = await service.prepare("web", side, None, "db")
    assert found == {HOSTS: {"source": str(site.path("db.hosts")), "settings": []}}


async def test_a_link_in_place_of_the_file_is_not_followed(site: Site) -> None:
    service = site.service()
    await service.prepare("web", workload(), None, "web")
    site.path("web.hosts").unlink()
    site.path("web.hosts").symlink_to(site.directory / "hosts")
    with pytest.raises(OSError, match="is a symbolic link"):
        await service.prepare("web", workload(), None, "web")
    assert "printer" in (site.directory / "hosts").read_text()


async def test_a_failure_to_write_is_reported_once(site: Site) -> None:
    site.members = {"web": ["10.0.0.2"]}
    service = site.service()
    await service.prepare("web", workload(), None, "web")
    site.path("web.hosts").unlink()
    site.path("web.hosts").symlink_to("nowhere")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await until(lambda: site.warnings)
        service.notify()
        await until(lambda: not service._has_changed.is_set())
        nursery.cancel_scope.cancel()
    (warning,) = site.warnings
    assert "cannot write the addresses of workloads" in warning
