"""Numbers and names as a report writes them: units, signs, significant digits, places to break a line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from markupsafe import Markup, escape


@dataclass(frozen=True, slots=True)
class MillisecondsFormat:
    """Writes milliseconds with the same number of decimals all over a report."""

    decimals: int

    @classmethod
    def telling_apart(cls, measured_ms: float, budget_ms: float) -> Self:
        """About three significant digits; more where two different times would look the same."""
        decimals = 3 if budget_ms < 1 else 2 if budget_ms < 100 else 1
        apart = measured_ms != budget_ms
        # Nine decimals are a picosecond: no clock tells closer ones apart.
        while apart and decimals < 9 and f"{measured_ms:.{decimals}f}" == f"{budget_ms:.{decimals}f}":
            decimals += 1
        return cls(decimals)

    def __call__(self, value_ms: float) -> str:
        """`value_ms` with its unit."""
        return f"{self.number(value_ms)}\u00a0ms"

    def number(self, value_ms: float) -> str:
        """`value_ms` without its unit, where the unit is stated beside it."""
        return f"{value_ms:.{self.decimals}f}"


def percent(share: float, decimals: int = 1) -> str:
    """A share in percent: 0.123 is "12.3 %"."""
    return f"{100 * share:.{decimals}f}\u00a0%"


def signed(value: float, decimals: int = 1) -> str:
    """With a sign, a true minus, and no sign on what rounds to nothing."""
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}".replace("-", "\u2212") if rounded else f"{0:.{decimals}f}"


def change(after: float, before: float) -> str:
    """Relative change in percent; a dash where there was nothing before."""
    return f"{signed(100 * (after / before - 1))}\u00a0%" if before else "–"


def count(value: float) -> str:
    """Three significant digits and a prefix: 11181642 is "11.2 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # What rounds up to 1000 of one unit is 1 of the next.
        if value >= 0.9995 * size:
            return f"{value / size:.3g}\u00a0{unit}"
    return f"{value:.0f}"


def written(value: Any) -> str:
    """A JSON value as people would write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {written(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(written(item) for item in value) or "none"
    return "none" if value is None else str(value)


def breakable(text: object) -> Markup:
    """Escaped, with places where a browser may break a long dotted name."""
    return Markup(re.sub(r"([._])(?=[A-Za-z])", r"\1<wbr>", str(escape(text))))


FILTERS = {"breakable": breakable, "change": change, "count": count, "percent": percent, "signed": signed}
"""What a template may call, by name."""
