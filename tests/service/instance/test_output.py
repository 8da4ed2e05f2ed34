"""The output of an instance while its settings change."""

import gzip
import os
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from nsupervisor.config.model import LogConfig, RateLimitConfig
from nsupervisor.logs import open_journal
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.instance.output import Output
from tests.service.instance.output_context import output_context
from tests.timing import deadline


@asynccontextmanager
async def captured(tmp_path, settings):
    """An Output with one running capture of standard output, and the end of the pipe that its program has."""
    (reader, writer), (err_reader, err_writer) = os.pipe(), os.pipe()
    for fd in (reader, err_reader):
        os.set_blocking(fd, False)
    os.close(err_writer)
    with trio.fail_after(deadline(30)):
        async with open_journal(str(tmp_path / "journal")) as journal, trio.open_nursery() as nursery:
            output = Output("web", None, settings, Counters(), output_context(tmp_path, journal, nursery))
            output.capture(1, 4711, reader, err_reader)
            yield output, writer


def text_of_all_files(tmp_path):
    def age(path):
        return -int(path.name.split(".")[2]) if path.name != "web.log" else 0

    paths = sorted(tmp_path.glob("web.log*"), key=age)
    return b"".join(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths)


@pytest.mark.fault("H3")
async def test_reloads_that_change_the_rotation_lose_and_double_no_line(tmp_path):
    settings = LogConfig(stdout="file", format="raw", max_size=100_000, max_files=1000, compress=True)
    text = b"".join(b"line %07d\n" % number for number in range(100_000))
    async with captured(tmp_path, settings) as (output, writer):
        file = output.files["stdout"]
        view = memoryview(text)
        for number in range(20):
            output.apply_config(attrs.evolve(settings, max_files=1000 + number % 2))
            assert output.files["stdout"] is file
            piece = view[number * len(text) // 20 : (number + 1) * len(text) // 20]
            while piece:
                piece = piece[await trio.to_thread.run_sync(os.write, writer, piece) :]
        os.close(writer)
    while (compressing := file._compressing) is not None:
        compressing.join()
    assert text_of_all_files(tmp_path) == text


@pytest.mark.fault("H3")
async def test_a_file_to_which_a_reload_returns_is_the_same(tmp_path):
    settings = LogConfig(stdout="file")
    async with captured(tmp_path, settings) as (output, writer):
        file = output.files["stdout"]
        output.apply_config(attrs.evolve(settings, path=str(tmp_path / "other.log")))
        assert output.files["stdout"] is not file
        output.apply_config(settings)
        assert output.files["stdout"] is file
        os.close(writer)


@pytest.mark.fault("D3")
async def test_a_reload_removes_the_files_above_the_new_limit(tmp_path):
    settings = LogConfig(stdout="file", max_files=6)
    for number in range(1, 6):
        (tmp_path / f"web.log.{number}").write_bytes(b"old\n")
    async with captured(tmp_path, settings) as (output, writer):
        output.apply_config(attrs.evolve(settings, max_files=2))
        os.close(writer)
    assert sorted(path.name for path in tmp_path.glob("web.log.*")) == ["web.log.1"]


@pytest.mark.fault("A15")
async def test_a_reload_sets_changes_and_removes_the_rate_limit(tmp_path):
    settings = LogConfig()
    async with captured(tmp_path, settings) as (output, writer):
        assert output._route("stdout").limiter is None
        output.apply_config(attrs.evolve(settings, rate_limit=RateLimitConfig(lines=1)))
        limiter = output._route("stdout").limiter
        assert output._route("stderr").limiter is limiter
        os.write(writer, b"one\ntwo\nthree\n")
        while output.counters.output["stdout"].dropped_lines < 2:  # noqa: ASYNC110 - a plain number
            await trio.sleep(0.001)
        assert output.counters.output["stdout"].limited_bytes == len("two\nthree\n")
        output.apply_config(attrs.evolve(settings, rate_limit=RateLimitConfig(lines=5)))
        assert output._route("stdout").limiter is limiter
        output.apply_config(settings)
        assert output._route("stdout").limiter is None
        os.close(writer)
