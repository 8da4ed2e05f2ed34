"""A short run of `scripts/chaos --attack`, and that what it looks at can fail."""

from itertools import islice

import pytest

from tests.attack.attack import Attack, lost
from tests.attack.packets import ENDLESS, Ending, catalogue, packets
from tests.needs import needs


@pytest.mark.fault("A1")
@pytest.mark.slow
@needs("root", "cgroup")
def test_the_service_survives_packets_and_floods():
    print(Attack(1, packets=400, connections=275).run())


def test_the_same_seed_sends_the_same_packets():
    one, again, other = (list(islice(packets(seed), 3000)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_the_first_packets_have_each_kind_with_each_ending():
    kinds = catalogue()
    first = {(packet.name, packet.ending) for packet in islice(packets(1), len(kinds) * len(Ending))}
    never = {(name, Ending.HALF_CLOSE) for name in ENDLESS}
    assert first == {(name, ending) for name in kinds for ending in Ending} - never


def test_that_missing_and_doubled_lines_are_found():
    assert lost(["a"], {"a": [1, 2, 3]}, {"a": 3}) == []
    assert lost(["a"], {"a": [1, 3]}, {"a": 3}) == ["a: 2 lines, not 3; missing: [2]"]
    assert lost(["a"], {"a": [1, 1, 2]}, {"a": 2}) == ["a: 3 lines, not 2; missing: []"]
    assert lost(["a"], {"a": [1]}, {}) == ["a: its last line is missing"]
