"""Scrapes at the same time, and the format that each of them gets."""

import pytest
import trio

from nsupervisor.metrics import exposition as module
from nsupervisor.metrics.exposition import Exposition, _render
from nsupervisor.metrics.formats import FORMATS, OPENMETRICS, PROMETHEUS_TEXT, PROMETHEUS_TEXT_1, choose_format
from nsupervisor.metrics.snapshot import ServiceSnapshot
from tests.metrics.test_families import service


@pytest.fixture
def exposition(monkeypatch):
    """An exposition that notes the formats of each text it makes, in `made`; `ready` lets it make the next one."""
    monkeypatch.setattr(ServiceSnapshot, "from_measures", classmethod(lambda cls, *_: service()))
    it = Exposition(None, None, 1)
    made = []
    ready = trio.Semaphore(0)

    async def run_sync(function, *arguments, abandon_on_cancel):
        assert function is module._render_all
        assert abandon_on_cancel
        made.append(sorted(arguments[2]))
        await ready.acquire()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return it, made, ready


async def nothing():
    """Read the values of a service without instances."""
    return [], []


async def test_hundreds_of_scrapes_at_once_share_a_text_of_each_format(exposition):
    """512 clients at the metrics' address kept the service busy for 40 seconds, and a scrape waited for all of them."""
    it, made, ready = exposition
    answers = []

    async def scrape(accept):
        answers.append((accept, await it.render(nothing, accept)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape, OPENMETRICS)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(300):
            nursery.start_soon(scrape, f"{OPENMETRICS};q=0.{number}" if number % 2 else f"text/html;q=0.{number}")
        await trio.testing.wait_all_tasks_blocked()
        ready.release()
        ready.release()
    # Those that came later are not answered with what was read before.
    assert made == [[OPENMETRICS], sorted([PROMETHEUS_TEXT, OPENMETRICS])]
    assert len(answers) == 301
    assert all(kind.startswith("application/" if OPENMETRICS in accept else "text/") for accept, (_, kind) in answers)


async def test_a_scrape_whose_client_has_gone_leaves_no_other_without_its_text(exposition):
    it, made, ready = exposition
    answers = []

    async def scrape():
        answers.append(await it.render(nothing, ""))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as first:
            first.start_soon(scrape)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(scrape)
            nursery.start_soon(scrape)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        ready.release()
    assert made == [[PROMETHEUS_TEXT], [PROMETHEUS_TEXT]]
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("", PROMETHEUS_TEXT),
        ("*/*", PROMETHEUS_TEXT),
        ("text/plain", PROMETHEUS_TEXT),
        ("text/plain;version=0.0.4", PROMETHEUS_TEXT),
        ("text/plain; version=1.0.0; escaping=allow-utf-8", PROMETHEUS_TEXT_1),
        ("application/openmetrics-text", OPENMETRICS),
        ("text/html, application/openmetrics-text; version=1.0.0;q=0.5, text/plain;version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1, text/plain;version=0.0.4", PROMETHEUS_TEXT),
    ],
)
def test_the_first_format_of_the_accept_header_that_there_is(accept, found):
    assert choose_format(accept) == found


@pytest.mark.parametrize("version", ["abc", "1.0.0 ", "1..0", "9" * 5000, "٣.0.0", "1.0.0.0", "=1", "-1", "1."])
def test_a_version_that_is_no_version_gets_the_plain_format(version):
    """It was answered with 500: prometheus_client raises TypeError."""
    assert choose_format(f"application/openmetrics-text;version={version}x") == PROMETHEUS_TEXT
    assert choose_format(f"text/plain;version={version}x") == PROMETHEUS_TEXT


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_has_its_content_type(format_):
    text, content_type = _render([], service(), format_)
    assert content_type.startswith(format_.replace(";", "; ") or "text/plain; version=0.0.4")
    assert text.endswith(b"# EOF\n") == (format_ == OPENMETRICS)
