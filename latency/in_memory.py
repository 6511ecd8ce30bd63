"""ONNX models whose weights stay NumPy arrays until ONNX Runtime reads them.

A file's worth of bytes is copied several times on its way into a session, and touching a hundred megabytes of
fresh memory takes longer than cutting the weights. Here the weights are copied once, into one array (for which
NumPy asks the system for large pages), and ONNX Runtime reads them in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from latency.graph import Array

# Smaller initialisers are written into the graph: shapes and bounds among them are needed to load it.
_LEAST_BYTES = 1024
# ONNX Runtime's kernels read whole vectors of up to 64 bytes.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class InMemoryModel:
    """A model in two parts.

    Attributes:
        graph: an ONNX file's bytes, in which the weights' contents are external data.
        weights: those contents by name.
    """

    graph: bytes
    weights: Mapping[str, Array]

    def ort_values(self) -> tuple[list[str], list[ort.OrtValue]]:
        """The weights' names and values as `SessionOptions.add_external_initializers` takes them; no copies."""
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in self.weights.values()]
        return list(self.weights), values


def in_memory(model: onnx.ModelProto, initializers: Mapping[str, Array]) -> InMemoryModel:
    """A model with further initialisers; their contents are copied.

    Args:
        model: the model without them; they are added to it, without their contents.
        initializers: values by name.
    """
    large = {name: value for name, value in initializers.items() if value.nbytes >= _LEAST_BYTES}
    arena = np.empty(sum(_aligned(value.nbytes) for value in large.values()), dtype=np.uint8)
    weights: dict[str, Array] = {}
    offset = 0
    for name, value in initializers.items():
        data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = model.graph.initializer.add(name=name, data_type=data_type, dims=value.shape)
        if name not in large:
            tensor.raw_data = value.tobytes()
            continue
        place = arena[offset : offset + value.nbytes].view(value.dtype).reshape(value.shape)
        np.copyto(place, value)
        weights[name] = place
        offset += _aligned(value.nbytes)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="in memory")
        tensor.external_data.add(key="length", value=str(value.nbytes))
    return InMemoryModel(model.SerializeToString(), weights)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
