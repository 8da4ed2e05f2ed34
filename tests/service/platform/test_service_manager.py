"""sd_notify(3) as a client: what the manager's socket gets."""

import os
import socket

import pytest

from nsupervisor.logs import open_journal
from nsupervisor.service.platform.service_manager import notify_service_manager


@pytest.mark.parametrize("abstract", [False, True])
async def test_says_it_to_the_manager(tmp_path, monkeypatch, abstract):
    address = f"@nsupervisor-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0") if abstract else address)
        async with open_journal("stdout", level="info", format="json") as journal:
            notify_service_manager(journal, "READY=1", "STATUS=up")
        assert manager.recv(100) == b"READY=1\nSTATUS=up"


async def test_nobody_to_tell(monkeypatch, capfd):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with open_journal("stdout", level="info", format="json") as journal:
        notify_service_manager(journal, "READY=1")
    assert capfd.readouterr().out == ""


async def test_a_manager_that_is_gone_is_told_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    async with open_journal(str(tmp_path / "log"), level="info", format="json") as journal:
        notify_service_manager(journal, "READY=1")
    log = (tmp_path / "log").read_text()
    assert "cannot send READY=1 to the service manager at NOTIFY_SOCKET=" in log
    assert "No such file or directory" in log
