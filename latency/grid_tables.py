"""LPNet on the grid of allowed widths, in numpy: sums over tables, the same figures many times as fast.

On the grid a layer's features depend on two whole numbers alone, the steps of channels that it reads and those that it
writes. All that LPNet takes from the features is linear in them (the physics, its members, the directions that the
MLP sees, and the bytes of weights). So each layer has a table with these sums for every pair of steps, and a
prediction is one row of each layer's table, added up, and LPNet's own MLP:

    Σ_l table_l[steps in, steps out]  →  physics, members, directions, bytes  →  latency, spread

A layer whose branch is removed has the row of zeros. A single network's time goes into calls, not into arithmetic:
`latency.tabulated` works out beforehand what can be, and ONNX Runtime would take a microsecond for each step of it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from latency.errors import ProfileError

Floats = npt.NDArray[np.float32]

LEAST_MS = 1e-6
"""Far below any network's latency: keeps the logarithm finite where every width is 0."""

# Multiplications from which OpenBLAS wakes its other threads: far too few for them to be worth it.
_THREADED = 2**18
# Numbers of numpy's own spare it a conversion in each call.
_ZERO, _ONE, _LEAST = np.float32(0), np.float32(1), np.float32(LEAST_MS)


class GridOutputs(NamedTuple):
    """What LPNet says of n networks, see `latency.lpnet.LPNet.outputs`."""

    latency_ms: Floats
    spread: Floats
    layer_ms: Floats


class _Sums(NamedTuple):
    rows: Floats  # each layer's row, and the network's own, [n, n_layers + 1, n_sums]
    beyond: Floats  # what exceeding caches adds, [n, n_sums]
    total: Floats  # all together, the physics as its logarithm, [n, n_sums]
    physics_ms: Floats  # [n]
    factor: Floats  # [n]


@dataclass(frozen=True, slots=True)
class GridTables:
    """An LPNet's tables, and what turns their sums into latencies.

    A row's sums are physics, members, directions, bytes of weights, and last a 1 in the network's own row alone: what
    that meets in a matrix below is a bias.

    Attributes:
        tables: the row of zeros, the network's own (what does not depend on the widths), and those of all layers,
            [n_rows, n_sums].
        canonical: groups without which a group is gone, itself among them, [n_groups, n_groups]; no rows where no
            group needs another.
        canonical_bias: one less than their number, negative, [1, n_groups].
        steps: what each channel adds to a layer's steps in, to its steps out, and takes from a group's absence; the
            last is for the network, [n_groups, 2 · n_layers + n_groups + 1]. All are rounded up.
        steps_bias: [1, 2 · n_layers + n_groups + 1].
        places: steps → row in the tables, negative in the absence of a group that the layer needs,
            [2 · n_layers + n_groups + 1, n_layers + 1].
        excess: sums → bytes of weights that do not fit each cache, negative where all fit, [n_sums, n_caches].
        beyond: what each such byte adds to the sums, [n_caches, n_sums].
        disagreement: sums → each member's part of the standard error, [n_sums, n_members].
        hidden: sums, the physics as its logarithm, → half of each hidden unit's input, [n_sums, n_hidden].
        output: hidden units → the MLP's output, [n_hidden].
        amplitude: largest logarithm of the MLP's factor, [1].
    """

    tables: Floats
    canonical: Floats
    canonical_bias: Floats
    steps: Floats
    steps_bias: Floats
    places: Floats
    excess: Floats
    beyond: Floats
    disagreement: Floats
    hidden: Floats
    output: Floats
    amplitude: Floats
    _ones: Floats = field(init=False, repr=False, compare=False)
    _at_once: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        (n_groups, n_steps), (_, n_rows_each) = self.steps.shape, self.places.shape
        n_sums, n_caches, n_hidden = self.tables.shape[1], len(self.beyond), len(self.output)
        wanted = {
            "tables": (len(self.tables), n_sums),
            "canonical": (n_groups if len(self.canonical) else 0, n_groups),
            "canonical_bias": (1, n_groups),
            "steps": (n_groups, n_steps),
            "steps_bias": (1, n_steps),
            "places": (n_steps, n_rows_each),
            "excess": (n_sums, n_caches),
            "beyond": (n_caches, n_sums),
            "disagreement": (n_sums, self.disagreement.shape[-1]),
            "hidden": (n_sums, n_hidden),
            "output": (n_hidden,),
            "amplitude": (1,),
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise ProfileError(
                    f"'{name}' is {array.dtype} of shape {array.shape}, not float32 of {shape}"
                )
        object.__setattr__(self, "_ones", np.ones(n_rows_each, dtype=np.float32))
        object.__setattr__(self, "_at_once", max(1, (_THREADED - 1) // max(1, self.places.size)))

    @property
    def n_groups(self) -> int:
        """Length of a width vector."""
        return len(self.steps)

    def latency_ms(self, widths: Floats) -> Floats:
        """Latency in ms, [n], of widths on the grid, [n, n_groups]; what it says elsewhere means nothing."""
        if len(widths) > self._at_once:
            return np.concatenate([self.latency_ms(part) for part in self._parts(widths)])
        sums = self._sums(widths)
        return sums.physics_ms * sums.factor

    def outputs(self, widths: Floats) -> GridOutputs:
        """Latency in ms, [n], spread, [n], and each layer's share in ms, [n, n_layers + 1]; as `latency_ms`."""
        if len(widths) > self._at_once:
            parts = [self.outputs(part) for part in self._parts(widths)]
            return GridOutputs(*(np.concatenate(values) for values in zip(*parts, strict=True)))
        sums = self._sums(widths)
        variance = np.square(sums.total.dot(self.disagreement)).sum(axis=1)
        layer_ms = sums.rows[:, :, 0].copy()
        layer_ms[:, -1] += sums.beyond[:, 0]
        return GridOutputs(
            latency_ms=sums.physics_ms * sums.factor,
            spread=np.sqrt(variance) / sums.physics_ms,
            layer_ms=layer_ms * sums.factor[:, None],
        )

    def _parts(self, widths: Floats) -> Iterator[Floats]:
        for first in range(0, len(widths), self._at_once):
            yield widths[first : first + self._at_once]

    def _sums(self, widths: Floats) -> _Sums:
        # The clipping turns rows before the first one, of layers that are gone, into the row of zeros.
        rows = self.tables.take(self._rows(widths), axis=0, mode="clip")
        total = self._ones @ rows  # faster than `sum`
        beyond = np.maximum(total.dot(self.excess), _ZERO).dot(self.beyond)
        total += beyond
        physics_ms = np.maximum(total[:, 0], _LEAST)
        total[:, 0] = np.log(physics_ms)
        # SiLU of 2x is x + x · tanh x.
        half = total.dot(self.hidden)
        out = (half + half * np.tanh(half)).dot(self.output)
        return _Sums(rows, beyond, total, physics_ms, np.exp(self.amplitude * np.tanh(out)))

    def _rows(self, widths: Floats) -> npt.NDArray[np.int64]:
        """Row of each layer in the tables, the network's own last, [n, n_layers + 1]."""
        if len(self.canonical):
            there = np.minimum(widths, _ONE).dot(self.canonical) + self.canonical_bias
            widths = widths * np.maximum(there, _ZERO)
        rows: Floats = np.ceil(widths.dot(self.steps) + self.steps_bias).dot(self.places)
        return rows.astype(np.int64)

    def to_onnx(self) -> bytes:
        """The tables as tensors in an ONNX file, without a graph."""
        names = [each.name for each in dataclasses.fields(self) if each.init]
        tensors = [numpy_helper.from_array(getattr(self, name), name) for name in names]
        graph = onnx.GraphProto(name="tables", initializer=tensors)
        return onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=graph).SerializeToString()

    @classmethod
    def from_onnx(cls, content: bytes) -> "GridTables | None":
        """The tables in a file of `to_onnx`; None for a graph of LPNets of format 4, which `lpnet.onnx` stands in for.

        Raises:
            ProfileError: it is neither, or damaged.
        """
        try:
            graph = onnx.ModelProto.FromString(content).graph
            if graph.node:
                return None
            return cls(**{tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
        except (DecodeError, TypeError, ValueError, IndexError) as error:
            raise ProfileError(f"it holds no tables: {error}") from error
