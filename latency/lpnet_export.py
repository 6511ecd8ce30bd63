"""Writing a latency model's folder: ONNX files for prediction without torch, weights, and the manifest."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from latency.errors import ProfileError
from latency.lpnet import LatencyModel, LPNet
from latency.lpnet_files import (
    GRADIENT_FILE,
    GRID_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    LPNetManifest,
    write_manifest,
)
from latency.tabulated import MOST_ROWS, n_rows, tabulate

# Sizes that agree are taken for one and the same, so the number of rows is one that nothing else has.
_UNLIKE_ANY_WIDTH = 7919


def save_lpnet(model: LatencyModel, directory: Path, manifest: LPNetManifest) -> None:
    """Write the files that `latency.predictor` names into the folder, made if need be, `lpnet.json` last.

    Raises:
        ProfileError: the manifest is of another kind of model.
    """
    if manifest.kind != type(model).__name__:
        raise ProfileError(f"The manifest is of a {manifest.kind}, the model is a {type(model).__name__}.")
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    for name in (GRADIENT_FILE, GRID_FILE):  # not those of an earlier model
        (directory / name).unlink(missing_ok=True)
    for name, content in {WEIGHTS_FILE: save(state), **onnx_files(model)}.items():
        temporary = directory / f"{name}.tmp"
        temporary.write_bytes(content)
        temporary.replace(directory / name)
    write_manifest(manifest, directory)


def onnx_files(model: LatencyModel) -> dict[str, bytes]:
    """ONNX files of the model by name: `widths` float32 [n, n_groups], any n, → what each is for; and its tables.

    The gradient is torch's own, traced through autograd.
    """
    model = model.eval()
    example = torch.ones(2, model.n_groups)
    outputs = list(model.outputs(example))
    files = {ONNX_FILE: _onnx_bytes(_AllOutputs(model), outputs, example)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = make_fx(
            _Gradient(model),
            decomposition_table=dict(core_aten_decompositions()),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(torch.ones(_UNLIKE_ANY_WIDTH, model.n_groups))
    files[GRADIENT_FILE] = _onnx_bytes(traced.eval(), ["latency_ms", "gradient"], example)
    if isinstance(model, LPNet) and n_rows(model) <= MOST_ROWS:
        files[GRID_FILE] = tabulate(model).to_onnx()
    return files


def _onnx_bytes(module: nn.Module, outputs: Sequence[str], example: Tensor) -> bytes:
    with warnings.catch_warnings():
        # The exporter warns of its own internals, which nobody here can mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["widths"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None
    model_proto = program.model_proto
    for node in model_proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    return model_proto.SerializeToString()


class _AllOutputs(nn.Module):
    """A model whose forward gives all its outputs."""

    def __init__(self, model: LatencyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, widths: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.outputs(widths).values())


class _Gradient(nn.Module):
    """A model whose forward gives the latency and its gradient."""

    def __init__(self, model: LatencyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            widths = widths.detach().requires_grad_()
            latency_ms = self.model(widths)
            (gradient,) = torch.autograd.grad(latency_ms.sum(), widths)
        return latency_ms.detach(), gradient
