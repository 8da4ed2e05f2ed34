"""No message, plan or trace shows a value that may be a secret."""

import pytest

from nsupervisor.config.load import ConfigError, parse
from nsupervisor.config.urls import check_url, public_url
from nsupervisor.core.reload.plan import CurrentInstance, make_plan
from nsupervisor.core.replay.trace import rule_settings, rules_without_position, workload_settings
from nsupervisor.core.states import State

SITE = """
[workload.web]
command = ["true"]
[[workload.web.policy]]
when = "pids.events max"
action = "webhook"
{}
"""


def site(lines: str):
    return parse(SITE.format(lines), "site.toml")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:9000/hook?token=SECRET", "http://127.0.0.1:9000/…"),
        ("https://hooks.example/services/T0/SECRET", "https://hooks.example/…"),
        ("https://[::1]:9/?SECRET", "https://[::1]:9/…"),
        ("http://h?SECRET", "http://h/…"),
        ("http://h/", "http://h/"),
        ("http://h", "http://h"),
        ("SECRET", "…"),
    ],
)
def test_scheme_and_host_are_what_may_be_shown(url: str, shown: str) -> None:
    assert public_url(url) == shown


@pytest.mark.fault("A13")
@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("http://h/?t=SECRET", "http://h/?t=SECRET2", ('"http://h/…"', '"http://h/…"')),
        ("http://h/?t=SECRET", "https://h/?t=SECRET", ('"http://h/…"', '"https://h/…"')),
    ],
)
def test_a_plan_showed_the_secret_of_a_webhook(before: str, after: str, change: tuple[str, str]) -> None:
    old, new = (site(f'webhook = "{url}"') for url in (before, after))
    workload = old.workloads["web"]
    running = CurrentInstance("web", workload, workload.resources, State.RUNNING, should_run=True, was_started=True)
    (step,) = make_plan(old, new, [running]).steps
    assert [(found.before, found.after) for found in step.changes] == [change]
    added = make_plan(site('webhook_file = "/x"'), new, [running]).to_json("site.toml")
    assert "SECRET" not in str(added)


PROBE = "tcp_socket = { port = 1 }"
HEADERS = 'http_get = { port = 80, http_headers = { Authorization = "SECRET" } }'


@pytest.mark.parametrize(("before", "after"), [("", HEADERS), (HEADERS, ""), (HEADERS, PROBE), (PROBE, HEADERS)])
def test_no_plan_and_no_trace_shows_the_headers_of_a_probe(before: str, after: str) -> None:
    old, new = (
        parse(f'[workload.web]\ncommand = ["true"]\n{f"readiness = {{ {probe} }}" if probe else ""}\n', "site.toml")
        for probe in (before, after)
    )
    workload = old.workloads["web"]
    running = CurrentInstance("web", workload, workload.resources, State.RUNNING, should_run=True, was_started=True)
    plan = make_plan(old, new, [running])
    assert plan.steps[0].changes
    assert "SECRET" not in str(plan.to_json("site.toml"))
    assert "SECRET" not in str(workload_settings(workload))


@pytest.mark.fault("A13")
def test_a_trace_had_the_secret_of_a_webhook() -> None:
    (rule,) = site('webhook = "http://h/?t=SECRET"').workloads["web"].policy
    settings = rule_settings(rule)
    assert settings["webhook"] == "http://h/…"
    recorded_by_0_1_0 = {**settings, "webhook": "http://h/?t=SECRET"}
    assert rules_without_position({"rules": [recorded_by_0_1_0]}) == rules_without_position({"rules": [settings]})


@pytest.mark.fault("A13")
@pytest.mark.parametrize(
    "text",
    [
        SITE.format('webhook = "ftp://SECRET"'),
        SITE.format('webhook = "http://user:SECRET@h/"'),
        SITE.format('webhook = "http://h/\u00fcSECRET"'),
        '[workload.web]\ncommand = ["true"]\nenvironment = { A = 12345678 }\n',
        '[workload.web]\ncommand = ["true"]\nenvironment = { A = "SECRET\\u0000" }\n',
        '[workload.web]\ncommand = ["true"]\nenvironment = "SECRET"\n',
        '[workload.web]\ncommand = ["true"]\n[workload.web.environment.A]\nB = "SECRET"\n',
    ],
)
def test_a_message_about_a_wrong_value_showed_the_secret(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "site.toml")
    assert len(caught.value.problems) == 1
    assert not any(secret in str(caught.value) for secret in ("SECRET", "12345678"))


def test_a_url_is_checked_without_being_quoted() -> None:
    assert check_url("https://h:1/x?y") == "https://h:1/x?y"
    with pytest.raises(ValueError, match=r"^is not a URL of http or https; write") as caught:
        check_url("gopher://SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_webhook_has_one_address() -> None:
    with pytest.raises(ConfigError, match=r"policy\[0\].webhook_file: is there next to webhook; write one of the two"):
        site('webhook = "http://h/"\nwebhook_file = "/x"')
    with pytest.raises(ConfigError, match=r'webhook_file: is for action = "webhook" alone'):
        parse(SITE.format('webhook_file = "/x"').replace('action = "webhook"', 'action = "log"'), "site.toml")
