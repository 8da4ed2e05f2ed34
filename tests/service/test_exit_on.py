"""The service ends with its workloads (`supervisor.exit_on`)."""

from tests.service.simulated import Client, course, make_site, serve, workload

EXIT_ON = 'exit_on = ["web failed", "all exited"]\n'


def run_to_its_end(*workloads: str) -> tuple[int | None, list[str], list[str]]:
    """Run a service until its workloads end it; return its exit status, what happened, and why it stopped."""

    async def client(service: Client) -> None:
        service.has_stopped = True

    site = make_site(EXIT_ON + "".join(workloads))
    status = serve(site, client)
    reasons = [record["message"] for record in site.records() if record["event"] == "supervisor stopping"]
    return status, course(site), reasons


def test_a_failure_of_the_main_job_ends_the_service_with_its_status() -> None:
    status, events, reasons = run_to_its_end(
        workload("web", 'restart = "no"', program="exit=7@1"),
        workload("helper", program="term=0@0.5"),
    )
    assert (status, reasons) == (7, ["web failed (supervisor.exit_on); exit status 7"])
    assert events[2:] == ["ends web#1", "ends helper#1"]


def test_the_service_ends_when_all_jobs_are_done() -> None:
    status, events, reasons = run_to_its_end(
        workload("web", 'type = "oneshot"', program="exit=0@1"), workload("job", program="exit=0@3")
    )
    assert (status, reasons) == (0, ["all exited (supervisor.exit_on); exit status 0"])
    assert events[2:] == ["ends web#1", "ends job#1"]


def test_a_start_that_its_requirement_blocks_does_not_keep_the_service() -> None:
    status, _, reasons = run_to_its_end(
        workload("migration", 'type = "oneshot"', 'restart = "no"', program="exit=4@1"),
        workload("web", 'requires = ["migration"]'),
    )
    assert (status, reasons) == (4, ["all exited (supervisor.exit_on); exit status 4"])


def test_a_restart_is_no_end() -> None:
    status, events, _ = run_to_its_end(
        workload("web", "start_limit_burst = 3", "restart_sec = 0.1", program="exit=5@0.1")
    )
    assert (status, events.count("execed web#3"), "execed web#4" in events) == (5, 1, False)


def test_a_signal_decides_the_status_of_the_service() -> None:
    async def client(service: Client) -> None:
        await service.until("web", "running")

    site = make_site(EXIT_ON + workload("web", program="term=9@0.5"))
    assert serve(site, client) == 0
