"""sd_notify(3) to the service manager that runs this service; `nsupervisor.service.instance.readiness` receives
it."""

import os
import socket

from nsupervisor.logs import Journal

SEND_TIMEOUT_S = 1.0
"""Seconds to wait for a manager that does not read: it may be re-executing itself (`systemctl daemon-reexec`)."""


def notify_service_manager(journal: Journal, *assignments: str) -> None:
    """Send assignments ("READY=1") to $NOTIFY_SOCKET, if it is set. A failure is only logged."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket address, unix(7)
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        text = f"cannot send {' '.join(assignments)} to the service manager at NOTIFY_SOCKET={address!r}: {error}"
        journal.log.warning("service manager not notified", message=text)
