"""The descriptions that the classes of the model give of themselves."""

import inspect
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from attrs import fields, has

from nsupervisor.config import kinds, model
from nsupervisor.config.kinds import Choice

CLASSES = [value for _, value in inspect.getmembers(model, inspect.isclass) if has(value)]
WORDS = [
    (cls, attribute.name, kind)
    for cls in CLASSES
    for attribute in fields(cls)
    if "key" in attribute.metadata and isinstance(kind := attribute.metadata["key"].kind, Choice)
]


def test_there_are_choices():
    assert len(WORDS) > 10


@pytest.mark.parametrize(("cls", "name", "kind"), WORDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_choice_has_the_words_of_its_type(cls, name, kind):
    hint = get_type_hints(cls)[name]
    literals = [item for item in (hint, *get_args(hint)) if get_origin(item) is Literal]
    (words,) = [get_args(literal) for literal in literals]
    assert set(kind.words) <= set(words)
    assert kind is kinds.GROUP_ACTION or kind.words == words


def test_the_words_of_a_choice_are_declared_by_its_type_alone():
    source = inspect.getsource(model)
    assert "Choice.of(" in source
    assert "Choice(" not in source
