import asyncio

import numpy as np
import pytest

from latency.errors import WidthError
from latency.predictor import Prediction, Predictor
from latency.service.batching import Batcher
from tests.known_network import KnownNetwork


@pytest.fixture
def batcher(known_network: KnownNetwork) -> Batcher:
    return Batcher(Predictor.load(known_network.lpnet_folder))


def sizes_asked_for(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks each run of the model prices."""
    sizes: list[int] = []
    predict = batcher.predictor.predict

    def noted(widths: np.ndarray) -> Prediction:
        sizes.append(len(np.atleast_2d(widths)))
        return predict(widths)

    monkeypatch.setattr(batcher.predictor, "predict", noted)
    return sizes


async def all_at_once(batcher: Batcher, rows: list[list[float]]) -> list[Prediction | BaseException]:
    asked = [batcher.predict(np.array(row)) for row in rows]
    return await asyncio.gather(*asked, return_exceptions=True)


def test_networks_that_are_asked_for_together_are_priced_together(
    batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[8.0, 12.0], [4.0, 0.0], [6.0, 2.0]]
    expected = batcher.predictor.predict(rows)
    sizes = sizes_asked_for(batcher, monkeypatch)
    found = asyncio.run(all_at_once(batcher, rows))
    assert sizes == [3]
    for row, one in enumerate(found):
        assert isinstance(one, Prediction)
        for name in ("latency_ms", "low_ms", "high_ms", "out_of_range", "layer_ms"):
            np.testing.assert_array_equal(getattr(one, name), getattr(expected, name)[row : row + 1])


def test_one_that_is_no_network_spoils_no_other(batcher: Batcher) -> None:
    rows = [[8.0, 12.0], [9.0, 12.0], [4.0, 0.0]]
    first, wrong, last = asyncio.run(all_at_once(batcher, rows))
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(wrong, WidthError)
    assert last.latency_ms == batcher.predictor.predict_ms(rows[2])


def test_who_has_gone_is_not_waited_for(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_asked_for(batcher, monkeypatch)

    async def leave() -> None:
        task = asyncio.create_task(batcher.predict(np.array([8.0, 12.0])))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert sizes == []
    assert isinstance(asyncio.run(all_at_once(batcher, [[8.0, 12.0]]))[0], Prediction)
