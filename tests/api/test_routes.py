"""The table of routes, the description made from it, and the application built from it say the same."""

import jsonschema
import pytest

from nsupervisor.api.application import app
from nsupervisor.api.routes import ROUTES, SCHEMAS, STATES, VERBS, openapi
from nsupervisor.core.lifecycle import State
from tests.api.standin import Standin


def validate(value, name):
    """Check a value against a component of the description."""
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)


def test_every_component_is_a_valid_schema():
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_description_has_exactly_the_routes_of_the_application():
    described = {(method.upper(), path) for path, methods in openapi()["paths"].items() for method in methods}
    served = {(endpoint.method, endpoint.path) for endpoint in app(Standin()).endpoints}
    assert described == served == {(route.method, route.path) for route in ROUTES}


def test_every_reference_in_the_description_is_there():
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    document = openapi()
    found = set(references(document))
    assert found == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_states_are_those_of_the_lifecycle():
    assert set(STATES) == {state.value for state in State}


def test_the_description_lists_the_verbs():
    (verb,) = openapi()["paths"]["/v1/workloads/{verb}"]["post"]["parameters"]
    assert verb["schema"]["enum"] == list(VERBS)


@pytest.mark.parametrize("wrong", [{}, {"names": []}, {"names": [""]}, {"names": ["a"], "extra": 1}, {"names": "a"}])
def test_wrong_commands_are_wrong_by_the_description_too(wrong):
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, "Command")
