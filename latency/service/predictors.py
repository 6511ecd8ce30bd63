"""The LPNets that a service holds in memory, and the search spaces that uploads are compared with."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from latency.registry.networks import uploaded_space
from latency.registry.registry import Registry
from latency.service.batching import Batcher
from latency.space import SearchSpace

Value = TypeVar("Value")


class LastUsed(Generic[Value]):
    """Values by name, loaded when first asked for; the ones used longest ago are dropped.

    Args:
        load: the value of a name.
        n_kept: values to keep.
    """

    def __init__(self, load: Callable[[str], Value], n_kept: int) -> None:
        self._load = load
        self._n_kept = n_kept
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def peek(self, name: str) -> Value | None:
        """The value, if it is in memory."""
        with self._lock:
            value = self._values.get(name)
            if value is not None:
                self._values.move_to_end(name)
            return value

    def get(self, name: str) -> Value:
        """The value; loading may take a while, and raises what `load` raises."""
        value = self.peek(name)
        if value is not None:
            return value
        with self._loading:  # one at a time: a crowd that asks for the same one loads it once
            value = self.peek(name)
            if value is None:
                value = self._load(name)
                with self._lock:
                    self._values[name] = value
                    while len(self._values) > self._n_kept:
                        self._values.popitem(last=False)
        return value


def cached_predictors(registry: Registry, n_kept: int) -> LastUsed[Batcher]:
    """Predictors by the LPNet's id."""
    return LastUsed(lambda lpnet_id: Batcher(registry.lpnets.load(lpnet_id)), n_kept)


def cached_spaces(registry: Registry, n_kept: int) -> LastUsed[SearchSpace]:
    """Search spaces by their structure hash."""
    return LastUsed(lambda name: uploaded_space(registry.networks.base(name)), n_kept)
