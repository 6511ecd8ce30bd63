"""Types of what strangers upload: a dataclass does not check its own."""

import dataclasses
from typing import Any

import msgspec

from latency.errors import ProfileError


def require_types(value: Any) -> None:
    """Make sure that the fields of a dataclass, and of those in it, are of the types that it declares.

    Raises:
        ProfileError: one is not.
    """
    try:
        msgspec.convert(dataclasses.asdict(value), type(value))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise ProfileError(f"A {type(value).__name__} is damaged: {error}.") from error
