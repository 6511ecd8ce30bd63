from dataclasses import dataclass
from typing import Any

import pytest

from pruning.errors import InputError
from pruning.records import decode_record, require


@dataclass(frozen=True)
class Inner:
    ratio: float


@dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...]
    interval: tuple[float, float]
    names: dict[str, str]
    anything: Any


VALUES = {
    "inner": {"ratio": 2},
    "sizes": [1, 2, 3],
    "interval": [0.5, 1],
    "names": {"a": "b"},
    "anything": [None, {"x": 1}],
}


def test_nested_records_lists_and_objects_are_decoded():
    outer = decode_record(Outer, VALUES, "the document")
    assert outer == Outer(Inner(2.0), (1, 2, 3), (0.5, 1.0), {"a": "b"}, [None, {"x": 1}])


def test_integers_become_floats_where_a_float_is_meant():
    assert type(decode_record(Inner, {"ratio": 2}, "it").ratio) is float


def test_keys_that_are_no_fields_are_left_alone():
    assert decode_record(Inner, {"ratio": 1.0, "comment": "x"}, "it") == Inner(1.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"inner": {}}, "inner lacks ratio"),
        ({"inner": {"ratio": None}}, "ratio should be a number, but is None"),
        ({"sizes": [1, 2.5]}, "sizes should be an integer, but is 2.5"),
        ({"sizes": "123"}, "sizes should be a list, but is '123'"),
        ({"interval": [1.0]}, r"interval should be a list of 2, but is \[1.0\]"),
        ({"names": {"a": 1}}, "names.a should be a text, but is 1"),
        ({"names": ["a"]}, "names should be an object"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        decode_record(Outer, VALUES | changes, "the document")


def test_requirements_say_what_is_allowed_and_what_was_got():
    require(True, "x", 1, "anything")
    with pytest.raises(InputError, match="x should be even, but is 3"):
        require(False, "x", 3, "even")
