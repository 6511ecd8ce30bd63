"""ONNX files of trained networks: the base graph, cut by a plan, with the weights of the `nn.Module`."""

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from latency.candidate import candidate_model, first_channels
from latency.device import DeviceFingerprint
from latency.number_formats import model_in
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.data import ImageTask
from pruning.errors import TraceError
from pruning.files import write_atomically

SMALLEST_WEIGHT = 1e-30
"""Weights below this in size are written as 0: as denormals they can slow a network down tenfold."""

CALIBRATION_IMAGES = 256
"""Training images that the ranges of 8-bit activations are taken from."""

LARGEST_DIFFERENCE = 1e-3
"""Largest difference between ONNX Runtime's and torch's outputs, relative to the largest output."""


def dense_model(space: SearchSpace, network: nn.Module) -> onnx.ModelProto:
    """ONNX model of the unpruned network with its present weights."""
    return trained_model(space, network, first_channels(space.full_widths))


def trained_model(space: SearchSpace, network: nn.Module, kept: tuple[IntArray, ...]) -> onnx.ModelProto:
    """ONNX model of a slim network with its present weights.

    Args:
        space: search space of the unpruned network.
        network: the network, slimmed to `kept`.
        kept: ascending kept positions of each group.

    Raises:
        TraceError: a weight's shape differs from the graph's.
    """
    model = candidate_model(space, kept)
    state = network.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name not in state:
            continue
        value = state[tensor.name].detach().float().cpu().numpy()
        if list(value.shape) != list(tensor.dims):
            raise TraceError(
                f"'{tensor.name}' has shape {list(value.shape)} in the slim network and {list(tensor.dims)} in "
                "its graph; the layer cannot be narrowed in place."
            )
        value = np.where(np.abs(value) < SMALLEST_WEIGHT, np.float32(0), value)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return model


def deployed_model(model: onnx.ModelProto, task: ImageTask, device: DeviceFingerprint) -> onnx.ModelProto:
    """A trained network in the number format that a device runs it in.

    Args:
        model: the network in fp32.
        task: whose training images the ranges of 8-bit activations are taken from.
        device: the device, its settings included.

    Raises:
        UnsupportedGraphError: the network cannot be converted.
    """
    space = SearchSpace.from_model(model)
    batch_size = space.input_shape[0]
    (name,) = space.structure.graph.inputs
    batches = task.calibration_batches(
        CALIBRATION_IMAGES // batch_size * batch_size or batch_size, batch_size
    )
    feeds = ({name: images.numpy()} for images, _ in batches if len(images) == batch_size)
    return model_in(space, device.settings.precision, feeds, reduce_range=device.saturates_int8)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX model atomically."""
    write_atomically(path, model.SerializeToString())


def write_program(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Write a `torch.export` program that loads without the network's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that share memory; none do
        program = torch.export.export(network.eval(), (torch.zeros(input_shape),))
        content = io.BytesIO()
        torch.export.save(program, content)
    write_atomically(path, content.getvalue())


def require_same_outputs(network: nn.Module, model: onnx.ModelProto, seed: int = 0) -> float:
    """Largest difference between a network's outputs in torch and in ONNX Runtime, relative to the largest.

    Raises:
        TraceError: the difference exceeds `LARGEST_DIFFERENCE`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    value = session.get_inputs()[0]
    images = np.random.default_rng(seed).standard_normal(value.shape).astype(np.float32)
    (found,) = session.run(None, {value.name: images})[:1]
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images))
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= LARGEST_DIFFERENCE:
        raise TraceError(
            f"the ONNX graph and the slim network differ by {difference:.1e} of the largest output; a layer's "
            "code fixes channel counts that the plan changes. Name the model in a bug report."
        )
    return difference
