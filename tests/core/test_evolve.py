import attrs
import pytest

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.evolve import evolve
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Lifecycle, State


@attrs.frozen
class Plain:
    first: int
    _second: int = attrs.field(default=2, converter=int)


@attrs.frozen
class Alone:
    only: int = 1


@attrs.frozen(kw_only=True)
class Named:
    first: int = 1
    second: int = 2


@attrs.frozen
class Computed:
    first: int
    second: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.first + 1, takes_self=True))


@pytest.mark.parametrize(
    ("instance", "changes"),
    [
        (Plain(1), {}),
        (Plain(1), {"first": 5}),
        (Plain(1), {"first": 5, "second": "7"}),
        (Alone(), {"only": 3}),
        (Named(), {"second": 3}),
        (Computed(1), {"first": 4}),
        (Exit(code=1), {"oom_killed": True}),
        (Lifecycle(), {"state": State.RUNNING, "generation": 3, "reason": "started"}),
        (WorkloadConfig(name="web", command=("true",)), {"restart": "always"}),
    ],
    ids=lambda value: type(value).__name__ if attrs.has(type(value)) else "+".join(value) or "nothing",
)
def test_a_copy_is_that_of_attrs(instance, changes):
    copy = evolve(instance, **changes)
    assert type(copy) is type(instance)
    assert copy == attrs.evolve(instance, **changes)
    assert copy is not instance


@pytest.mark.parametrize("instance", [Plain(1), Alone(), Lifecycle()], ids=lambda value: type(value).__name__)
def test_an_unknown_attribute_is_an_error(instance):
    with pytest.raises(TypeError):
        evolve(instance, third=1)


def test_a_private_attribute_has_the_name_of_its_argument():
    with pytest.raises(TypeError):
        evolve(Plain(1), _second=3)
