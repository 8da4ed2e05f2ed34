"""How many standbys are made in advance."""

from types import SimpleNamespace

import pytest

from nsupervisor.keeper.server import zygote as zygotes
from nsupervisor.keeper.server.demand import CALM_S, MAX_IN_ADVANCE, Demand
from nsupervisor.keeper.server.zygote import MAX_WAITING, Kind, Zygote
from nsupervisor.keeper.setup.spec import Spec


def test_each_start_that_finds_no_standby_doubles_the_demand_up_to_the_limit() -> None:
    demand = Demand(10)
    wanted = []
    for number in range(5):
        demand.note_start(10 + number * 0.01, found_one=number == 0)
        wanted.append(demand.wanted)
    assert wanted == [1, 2, 4, MAX_IN_ADVANCE, MAX_IN_ADVANCE]


def test_when_starts_have_found_standbys_for_long_one_is_enough() -> None:
    demand = Demand(10)
    for number in range(3):
        demand.note_start(10 + number * 0.01, found_one=False)
    demand.note_start(10.02 + CALM_S / 2, found_one=True)
    assert not demand.is_calm(10.02 + CALM_S / 2)
    assert demand.is_calm(10.02 + CALM_S)
    demand.note_start(10.02 + CALM_S, found_one=False)
    assert demand.wanted == 1


class MadeUpZygote(Zygote):
    """A zygote whose inits are objects that count, at a time that the test sets."""

    def __init__(self) -> None:
        self._socket, self._waiting, self._demands = SimpleNamespace(), {}, {}
        self._last_start, self.is_urgent = 0.0, False
        self.ordered, self.closed = 0, 0

    def _order_init(self, kind: Kind) -> SimpleNamespace:
        self.ordered += 1
        return SimpleNamespace(close_keeper_ends=self._close, report=None)

    def _close(self) -> None:
        self.closed += 1

    def discard_outdated(self) -> None:
        pass

    def kinds(self) -> dict[int, int]:
        """How many wait, by the flags of their kind."""
        return {kind.flags: len(waiting) for kind, waiting in self._waiting.items()}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(time=100.0)
    monkeypatch.setattr(zygotes, "time", SimpleNamespace(monotonic=lambda: clock.time))
    monkeypatch.setattr(zygotes, "_wait_started", lambda fds: 1)
    monkeypatch.setattr(zygotes.standby, "send_program", lambda *arguments: None)
    return clock


SPEC = Spec({"id": "x", "argv": ["true"], "env": {}, "cwd": "/"})


def test_single_starts_have_one_standby_in_advance(now: SimpleNamespace) -> None:
    zygote, kind = MadeUpZygote(), Kind(1)
    for _ in range(3):
        now.time += 0.5
        zygote.start(kind, SPEC, -1)
        zygote.refill(kind)
        assert not zygote.refill_further()
        assert zygote.discard_further() == -1
    assert (zygote.kinds(), zygote.ordered) == ({1: 1}, 4)


def test_a_burst_has_more_in_advance_which_are_discarded_after_it(now: SimpleNamespace) -> None:
    zygote, kind = MadeUpZygote(), Kind(1)
    for _ in range(4):  # each is faster than the zygote
        now.time += 0.001
        zygote.start(kind, SPEC, -1)
    assert not zygote.refill_further()  # the first one comes with the request
    zygote.refill(kind)
    zygote.refill(kind)
    assert zygote.kinds() == {1: 1}
    while zygote.refill_further():
        pass
    assert zygote.kinds() == {1: MAX_IN_ADVANCE}
    assert zygote.discard_further() == pytest.approx(CALM_S)
    now.time += CALM_S
    assert zygote.discard_further() == -1
    assert (zygote.kinds(), zygote.closed) == ({1: 1}, MAX_IN_ADVANCE - 1)


def test_further_standbys_take_no_other_kinds_place(now: SimpleNamespace) -> None:
    zygote, kinds = MadeUpZygote(), [Kind(1 << number) for number in range(MAX_WAITING)]
    for kind in kinds * 3:
        now.time += 0.001
        zygote.start(kind, SPEC, -1)
    for kind in kinds[:-1]:
        zygote.refill(kind)
    while zygote.refill_further():
        pass
    assert sum(zygote.kinds().values()) == MAX_WAITING
    assert set(zygote.kinds()) == {kind.flags for kind in kinds[:-1]}
    zygote.refill(kinds[-1])  # a second one of another kind makes room
    assert zygote.kinds() == {kind.flags: 1 for kind in kinds}
    assert zygote.closed == 1
