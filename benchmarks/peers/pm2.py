"""pm2, https://pm2.keymetrics.io."""

import json
import os

from benchmarks.peer import Peer
from benchmarks.products import NODE


class Pm2(Peer):
    """pm2-runtime; it does not rotate logs by itself."""

    name = "pm2"
    product = "pm2"
    note = "pm2-runtime, exec_mode fork; looks at memory once a second (default 30 s)"
    benchmarks = (*Peer.benchmarks, "react")

    def write(self) -> None:
        """A JSON file."""
        applications = [
            {
                "name": service.name,
                "script": service.command[0],
                "args": list(service.command[1:]),
                "interpreter": "none",
                "exec_mode": "fork",
                "autorestart": True,
                "min_uptime": 0,
                "max_restarts": 10**9,
                "restart_delay": 0,
                "out_file": str(service.log / "current") if service.log else "/dev/null",
                "error_file": "/dev/null",
                "merge_logs": True,
                "pmx": False,
                "vizion": False,
                "kill_timeout": 10000,
                "treekill": False,
                **({"max_memory_restart": service.restart_above} if service.restart_above else {}),
            }
            for service in self.services
        ]
        (self.directory / "pm2.config.json").write_text(json.dumps({"apps": applications}))

    def environment(self) -> dict[str, str]:
        """Use a separate home directory and no network."""
        home = str(self.directory / "home")
        quiet = {"PM2_DISCRETE_MODE": "1", "PM2_SILENT": "true", "PM2_DISABLE_VERSION_CHECK": "true"}
        return {**os.environ, **quiet, "PM2_HOME": home, "PM2_WORKER_INTERVAL": "1000"}

    def command(self) -> list[str]:
        """In the foreground."""
        return [str(NODE["pm2"]), "start", str(self.directory / "pm2.config.json"), "--raw"]
