"""Single networks that are asked for at the same time, priced together: a run costs little more for many."""

import asyncio

import numpy as np

from latency.predictor import FloatArray, Prediction, Predictor


class Batcher:
    """Collects width vectors until the event loop has taken in what is there, then prices them at once.

    Nobody waits for others to come: a vector that is alone is priced alone.

    Attributes:
        predictor: what prices them.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._waiting: list[tuple[FloatArray, asyncio.Future[Prediction]]] = []

    async def predict(self, widths: FloatArray) -> Prediction:
        """Prediction of one network, [n_groups]; see `Predictor.predict`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Prediction] = loop.create_future()
        self._waiting.append((widths, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._price_all)
        return await future

    def _price_all(self) -> None:
        waiting = [(widths, future) for widths, future in self._waiting if not future.done()]
        self._waiting = []
        if not waiting:
            return
        try:
            found = self.predictor.predict(np.stack([widths for widths, _ in waiting]))
        except Exception:  # one of them is no network: which one, is found one by one
            self._price_each(waiting)
            return
        for row, (_, future) in enumerate(waiting):
            future.set_result(_row(found, row))

    def _price_each(self, waiting: list[tuple[FloatArray, asyncio.Future[Prediction]]]) -> None:
        for widths, future in waiting:
            try:
                future.set_result(self.predictor.predict(widths))
            except Exception as error:  # each asker gets its own
                future.set_exception(error)


def _row(found: Prediction, row: int) -> Prediction:
    rows = slice(row, row + 1)
    return Prediction(
        found.latency_ms[rows],
        found.low_ms[rows],
        found.high_ms[rows],
        found.out_of_range[rows],
        found.layer_ms[rows],
    )
