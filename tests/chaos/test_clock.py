"""Clocks that differ, and that are set."""

import os
import signal
import time

import pytest

from tests.chaos.service import over, running, site, until
from tests.needs import needs

TOML = """
[workload.crash]
command = ["false"]
restart_sec = "500ms"
restart_max_delay_sec = "500ms"
start_limit_burst = 1000000
[workload.chill]
command = ["sleep", "100000"]
"""
DAY = 86400


@needs("root", "cgroup", "time_namespace", "kernel:6.1", "program:unshare")
def test_a_service_in_a_time_namespace_whose_clocks_are_ten_days_ahead():
    wrapper = ["unshare", "--time", "--monotonic", str(10 * DAY), "--boottime", str(10 * DAY)]
    with site(TOML) as where, running(where, wrapper) as run:
        chill = run.program("chill")
        run.record(event="exited", workload="crash", generation=3)
        assert run.client.info()["uptime_sec"] < DAY
        assert run.one("chill")["uptime_sec"] < DAY
        os.kill(chill, signal.SIGKILL)
        assert run.record(event="started", workload="chill", generation=2)
        run.stop()
        over(run)


@pytest.mark.vm_only
@needs("root", "cgroup")
def test_the_wall_clock_is_set_back_and_forth():
    """Nothing that waits or counts may go by the wall clock. Where this runs nobody else needs it."""
    real, monotonic = time.time(), time.monotonic()
    try:
        with site(TOML) as where, running(where) as run:
            chill = run.program("chill")
            for days in (-1, 400, -3000):
                time.clock_settime(time.CLOCK_REALTIME, real + days * DAY)
                generation = run.one("crash")["generation"]
                run.record(event="exited", workload="crash", generation=generation + 2)
                until("it answers", lambda: 0 <= run.client.info()["uptime_sec"] < DAY)
                assert 0 <= run.one("chill")["uptime_sec"] < DAY
            assert run.program("chill") == chill
            starts = run.one("crash")["generation"]
            run.signal(signal.SIGKILL)
            run.wait()
            run.close()
            time.clock_settime(time.CLOCK_REALTIME, real + 900 * DAY)
            with running(where) as second:
                assert second.program("chill") == chill
                assert 0 <= second.one("chill")["uptime_sec"] < DAY
                second.record(event="exited", workload="crash", generation=starts + 2)
                second.stop()
                over(second)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, real + time.monotonic() - monotonic)
