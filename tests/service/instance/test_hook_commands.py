"""The commands of hooks of an instance, with streams that are not real."""

import math

import trio

from nsupervisor.keeper.entry import Entry
from nsupervisor.service.instance.probe_command import MAX_OUTPUT_BYTES, wait_for_end


class EndlessStreams:
    """Output without end, on both streams."""

    outputs = 2

    def __init__(self):
        self.reads = 0

    async def read(self, number):
        self.reads += 1
        await trio.lowlevel.checkpoint()
        return b"y" * 65536


async def test_output_without_end_costs_little(autojump_clock):
    streams, entry = EndlessStreams(), Entry("web#1/exec_stop.0")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end():
            await trio.sleep(10)
            entry.ended(256)

        result = await wait_for_end(entry, streams, math.inf)
    assert result.detail == f"exit code 1: {'y' * MAX_OUTPUT_BYTES}"
    assert streams.reads < 2500, "by its count of bytes it would be as fast as the command writes"
