"""Exports a PyTorch network to the base ONNX model that everything else is cut from."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnx_ir.passes.common as onnx_passes
import torch
from onnx import numpy_helper
from onnxscript import opset18, optimizer
from torch import nn

from latency.graph import DERIVED
from latency.space import SearchSpace
from pruning.errors import TraceError

_MODULE_PATH = "pkg.torch.onnx.name_scopes"
"""Metadata key under which torch's exporter stores the path of modules that a node was called in."""

_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE, onnx_ir.DataType.FLOAT16)


def trace(
    model: nn.Module, input_shape: tuple[int, int, int, int], *, keep_unknown: bool = False
) -> SearchSpace:
    """Search space of a network at one input shape.

    BatchNorm stays unfolded, and parameters and buffers keep their `nn.Module` names. Both are lost in the
    exporter's own optimisation, so the graph is simplified here: functions inlined, constants folded,
    unused and repeated nodes removed.

    Args:
        model: the network; its training mode and gradients are left as they are.
        input_shape: batch size, channels, height and width of the input.
        keep_unknown: keep all channels that an operator which is not understood touches, instead of refusing.

    Raises:
        TraceError: the network cannot be exported, for example because its control flow depends on data.
        ModelFileError: a shape in the exported graph is not static.
        UnsupportedGraphError: an operator is not understood where channels meet it.
    """
    space = SearchSpace.from_model(export_base(model, input_shape))
    if not keep_unknown:
        space.require_understood()
    return space


def save_base(space: SearchSpace, path: Path) -> None:
    """Write a search space's base model."""
    onnx.save(space.model, path)


def export_base(model: nn.Module, input_shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """The base ONNX model of a network; see `trace`."""
    device = next(model.parameters()).device
    example = torch.zeros(input_shape, device=device)
    with _evaluating(model), _out_of_place(model, input_shape), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=["input"],
                custom_translation_table={torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d},
            )
        except Exception as error:  # the exporter raises whatever the traced code raises
            reason = _first_line(error)
            raise TraceError(
                f"{type(model).__name__} cannot be traced at input {'x'.join(map(str, input_shape))}: {reason}"
                ". trimms needs a network whose control flow does not depend on the data; check --input-size."
            ) from error
    assert program is not None
    stored = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    proto = _simplified(program.model, stored)
    _drop_zero_biases_(proto, stored)
    _mark_derived_(proto, stored)
    return proto


def adaptive_avg_pool2d(images: Any, output_size: Sequence[int]) -> Any:
    """Adaptive average pooling as two products with constant matrices, one for each side.

    Where the output does not divide the input the exporter's own form gathers, masks and divides.
    """
    height, width = images.shape[-2], images.shape[-1]
    if height % output_size[0] == 0 and width % output_size[1] == 0:
        kernel = [height // output_size[0], width // output_size[1]]
        return opset18.AveragePool(images, kernel_shape=kernel, strides=kernel)
    rows = opset18.Constant(value=numpy_helper.from_array(_averages(height, output_size[0])))
    columns = opset18.Constant(value=numpy_helper.from_array(_averages(width, output_size[1]).T.copy()))
    return opset18.MatMul(opset18.MatMul(rows, images), columns)


def _averages(n_in: int, n_out: int) -> npt.NDArray[np.float32]:
    """Weight of each input position in each pooled one, [n_out, n_in]; bins as in torch's documentation."""
    weights = np.zeros((n_out, n_in), dtype=np.float32)
    for row in range(n_out):
        first, last = row * n_in // n_out, -(-(row + 1) * n_in // n_out)
        weights[row, first:last] = 1.0 / (last - first)
    return weights


def _simplified(model: onnx_ir.Model, stored: Set[str]) -> onnx.ModelProto:
    def keep_parameters(node: onnx_ir.Node) -> bool | None:
        """Fold no parameter or buffer into another constant: it would lose its name."""
        reads = (value for value in node.inputs if value is not None and value.name in stored)
        return False if any(value.dtype in _FLOATS for value in reads) else None

    optimizer.inline(model)
    # Folding turns them into Split nodes without metadata, whose outputs it names after theirs.
    split_paths = {
        f"{node.outputs[0].name}_split_0": node.metadata_props.get(_MODULE_PATH)
        for node in model.graph
        if node.op_type == "SplitToSequence"
    }
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=False, should_fold=keep_parameters)
        optimizer.remove_unused_nodes(model)
        if not any(node.op_type == "Shape" for node in model.graph):
            break
        onnx_passes.ShapeInferencePass()(model)  # makes constants of them
    onnx_passes.CommonSubexpressionEliminationPass()(model)
    onnx_passes.IdentityEliminationPass()(model)
    optimizer.remove_unused_nodes(model)
    proto = onnx_ir.to_proto(model)
    for node in proto.graph.node:
        paths = [item.value for item in node.metadata_props if item.key == _MODULE_PATH]
        paths += filter(None, [split_paths.get(node.output[0])])
        del node.metadata_props[:]  # holds paths of source files
        if paths:
            node.metadata_props.add(key="module", value=_module_path(paths[0]))
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto


def _drop_zero_biases_(model: onnx.ModelProto, stored: Set[str]) -> None:
    """Drop the zeros that the exporter gives to convolutions without a bias."""
    zeros = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name not in stored and not np.any(numpy_helper.to_array(tensor))
    }
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in zeros:
            del node.input[2]
    read = {name for node in model.graph.node for name in node.input}
    for index in range(len(model.graph.initializer) - 1, -1, -1):
        if model.graph.initializer[index].name not in read:
            del model.graph.initializer[index]


def _mark_derived_(model: onnx.ModelProto, stored: Set[str]) -> None:
    """Give constants that are no parameters or buffers a name that no module can have."""
    derived = {t.name: DERIVED + t.name for t in model.graph.initializer if t.name not in stored}
    for tensor in model.graph.initializer:
        tensor.name = derived.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in derived:
                node.input[position] = derived[name]


def _module_path(scopes: str) -> str:
    """Path of the innermost module of a scope list; its last entry names the call itself."""
    names = json.loads(scopes.replace("'", '"'))
    return str(names[-2]) if len(names) > 1 else ""


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(cause).__name__


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _out_of_place(model: nn.Module, input_shape: tuple[int, ...]) -> Iterator[None]:
    """Run activations out of place, if the outputs stay the same.

    Where a tensor is overwritten, the exporter makes slices of splits and loses the module they stand in.
    """
    in_place = [module for module in model.modules() if vars(module).get("inplace") is True]
    device = next(model.parameters()).device
    images = torch.rand(input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        before = _tensors(model, images)
        _set_inplace_(in_place, inplace=False)
        after = _tensors(model, images)
        if not all(map(torch.equal, before, after)):
            _set_inplace_(in_place, inplace=True)
        yield
    finally:
        _set_inplace_(in_place, inplace=True)


def _set_inplace_(modules: Iterable[nn.Module], *, inplace: bool) -> None:
    for module in modules:
        module.inplace = inplace  # type: ignore[assignment]


def _tensors(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in a network's output; none where it does not run, which the export will explain."""
    try:
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(model(images))
    except Exception:  # whatever the network's own code raises
        return []
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
