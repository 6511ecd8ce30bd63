"""Frozen records from parsed JSON: every value checked against its field's annotation, refused by name.

Understood are float, int, str, Any, `dict[str, …]`, `tuple[…]` and dataclasses of these.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pruning.errors import InputError

Record = TypeVar("Record")


def decode_record(record: type[Record], value: object, name: str) -> Record:
    """The dataclass `record` with its fields taken from `value`, an object parsed from JSON.

    Args:
        record: a dataclass. Keys that are none of its fields are left alone; fields with a default may be absent, as
            in files written before they were added.
        value: what `json.loads` gave.
        name: what to call `value` in a message.

    Raises:
        InputError: a field without a default is missing, or one is of the wrong type; or the record itself refuses.
    """
    require(isinstance(value, dict), name, value, "an object")
    assert isinstance(value, dict)
    assert is_dataclass(record)
    missing = [field.name for field in fields(record) if field.name not in value and not _has_default(field)]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}.")
    hints = get_type_hints(record)
    names = [field.name for field in fields(record) if field.name in value]
    return record(**{key: _decode(hints[key], value[key], key) for key in names})


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse `value` unless `condition` holds, saying what it is called and what is allowed.

    Raises:
        InputError: `condition` does not hold.
    """
    if not condition:
        raise InputError(f"{name} should be {allowed}, but is {value!r}.")


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _decode(expected: Any, value: Any, name: str) -> Any:
    if is_dataclass(expected) and isinstance(expected, type):
        return decode_record(expected, value, name)
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is dict:
        require(isinstance(value, dict), name, value, "an object")
        return {key: _decode(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is tuple:
        return _decode_tuple(arguments, value, name)
    return value if expected is Any else _decode_scalar(expected, value, name)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    require(isinstance(value, list), name, value, "a list")
    variadic = arguments[-1] is Ellipsis
    if not variadic:
        require(len(value) == len(arguments), name, value, f"a list of {len(arguments)}")
    expected = [arguments[0]] * len(value) if variadic else arguments
    return tuple(_decode(kind, item, name) for kind, item in zip(expected, value, strict=True))


# JSON type by annotation: what is accepted, and what to call it. JSON has no integers of its own, so a
# float field accepts an integer; a boolean is never a number.
_SCALARS: Mapping[type, tuple[types.UnionType | type, str]] = {
    float: (float | int, "a number"),
    int: (int, "an integer"),
    str: (str, "a text"),
}


def _decode_scalar(expected: type, value: Any, name: str) -> Any:
    accepted, description = _SCALARS[expected]
    fits = isinstance(value, accepted) and not isinstance(value, bool)
    require(fits, name, value, description)
    try:
        return expected(value)
    except OverflowError as error:
        raise InputError(f"{name} is too large.") from error
