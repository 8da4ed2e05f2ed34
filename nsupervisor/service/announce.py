"""sd_notify(3), the other way round from `notify`: what we say of ourselves to a service manager that runs us."""

import os
import socket

from nsupervisor.logs import Journal

PATIENCE = 1.0
"""Seconds for a manager that does not read: it may be replacing itself (``systemctl daemon-reexec``)."""


def announce(journal: Journal, *assignments: str) -> None:
    """Send assignments ("READY=1") to $NOTIFY_SOCKET; does nothing where there is none. A failure is only told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name in the abstract name space, unix(7)
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.settimeout(PATIENCE)
            ours.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        text = f"cannot say {' '.join(assignments)} to the service manager at NOTIFY_SOCKET={address!r}: {error}"
        journal.log.warning("service manager not told", message=text)
