"""`attrs.evolve`, without a search for the attributes in each call: state with many attributes changes several times
for each event of a workload."""

from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import evolve as evolve
else:

    def evolve(instance: Any, /, **changes: Any) -> Any:
        """Return a copy of an attrs object with other values of some attributes, as `attrs.evolve` does."""
        cls = type(instance)
        layout = _layout(cls)
        if layout is None:
            return attrs.evolve(instance, **changes)
        values_of, positions = layout
        values = list(values_of(instance))
        try:
            for name, value in changes.items():
                values[positions[name]] = value
        except KeyError as error:
            raise TypeError(f"{cls.__name__} has no attribute {error}") from None
        return cls(*values)


@cache
def _layout(cls: type[attrs.AttrsInstance]) -> tuple[Callable[[Any], tuple[Any, ...]], Mapping[str, int]] | None:
    """Return what reads all values of an object, in the order of its initialiser, and the place of each argument.

    None: `attrs.evolve` has to be used.
    """
    fields = attrs.fields(cls)
    # attrgetter of one name returns no tuple; the other attributes are no positional arguments.
    if len(fields) < 2 or any(field.kw_only or not field.init for field in fields):
        return None
    places = {field.alias or field.name: place for place, field in enumerate(fields)}
    return attrgetter(*(field.name for field in fields)), places
