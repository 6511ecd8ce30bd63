import math

import numpy as np
import pytest

from latency.clock import Clock
from latency.pace import pace_exponent


def measured_twice(exponent: float, *, n: int = 60, noise: float = 0.005) -> tuple[np.ndarray, np.ndarray]:
    """Ratios and paces of networks on a machine whose ratios move with its pace by `exponent`."""
    rng = np.random.default_rng(0)
    settled = rng.uniform(0.2, 1.0, (n, 1))
    paces = rng.normal(0.0, 0.1, (n, 2))
    ratios = settled ** (1 - exponent * paces) * np.exp(noise * rng.standard_normal((n, 2)))
    return ratios, paces


@pytest.mark.parametrize("exponent", [0.4, -0.3])
def test_the_exponent_is_found_and_corrects(exponent: float) -> None:
    ratios, paces = measured_twice(exponent)

    found = pace_exponent(ratios, paces)

    assert found == pytest.approx(exponent, abs=0.05)
    corrected = np.array(
        [
            [Clock(1.0, found).latency_ms(q, math.exp(m)) for q, m in zip(*pair, strict=True)]
            for pair in zip(ratios, paces, strict=True)
        ]
    )
    before, after = (np.abs(np.log(r[:, 0] / r[:, 1])).mean() for r in (ratios, corrected))
    assert after < 0.6 * before


def test_a_few_wild_measurements_hardly_move_it() -> None:
    ratios, paces = measured_twice(0.4)
    ratios[::12, 0] *= 1.5

    assert pace_exponent(ratios, paces) == pytest.approx(0.4, abs=0.1)


def test_where_pace_says_nothing_nothing_is_corrected() -> None:
    ratios, paces = measured_twice(0.0, noise=0.02)

    assert pace_exponent(ratios, paces) == 0.0


def test_a_few_pairs_say_nothing() -> None:
    ratios, paces = measured_twice(0.4, n=19)

    assert pace_exponent(ratios, paces) == 0.0
