"""Is the channel structure exact for the networks people use? One row a network.

    python benchmarks/structure_sweep.py --curve --processes 2 --json benchmarks/results/structure_sweep.json
    python benchmarks/structure_sweep.py --models resnet18,timm:ghostnet_100,my_net.py:make

A network is traced with random weights and random BatchNorm statistics, then cut at random widths, on and off
a grid, with and without groups at width 0. Three networks must agree on a random input: the full one with the
removed channels gated off (masked), the slim `nn.Module`, and the sliced ONNX model in ONNX Runtime.
Differences are relative to the largest output.
"""

import gc
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from environment import environment
from networks import default_models
from torch import Tensor, nn
from torch.func import functional_call

from latency.candidate import candidate_in_memory, candidate_model, first_channels, kept_slots
from latency.channels import find_channels
from latency.errors import LatencyError
from latency.grid import ChannelStep, Grid
from latency.space import SearchSpace
from latency.structure import FIXED, IntArray
from pruning.errors import PruningError
from pruning.models import load_model
from pruning.plan import make_plan
from pruning.surgery import slim
from pruning.trace import trace

TOLERANCE = 1e-4
SIZES_PX = (64, 96, 128, 160, 192, 224, 256, 299)
"""Input sizes, of which each network gets the smallest that it takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the sweep found out about one network."""

    model: str
    ok: bool
    reason: str
    input_px: int = 0
    groups: int = 0
    removable_groups: int = 0
    prunable_channels_share: float = 0.0
    prunable_macs_share: float = 0.0
    max_rel_diff_masked_vs_slim: float | None = None
    max_rel_diff_onnx_vs_slim: float | None = None
    max_rel_diff_onnx_vs_masked: float | None = None
    smallest_rel_change: float | None = None
    trace_seconds: float = 0.0
    structure_seconds: float = 0.0
    candidate_ms: float = 0.0
    n_nodes: int = 0
    kept: tuple[tuple[int, str], ...] = ()


def randomise_(model: nn.Module, seed: int) -> None:
    """Random BatchNorm statistics, and random values for parameters that start out constant.

    Layer scales of 1e-6 and classifiers of zeros would hide every difference.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                low, high = (-0.3, 0.3) if name.endswith("bias") else (0.5, 1.5)
                parameter.uniform_(low, high, generator=generator)
            if parameter.ndim == 2 and bool((parameter.abs() < 1e-9).all()):
                parameter.normal_(0, 0.05, generator=generator)


def check(spec: str, *, n_widths: int, seed: int) -> Row:
    """Row of one network."""
    gc.collect()
    try:
        model = load_model(spec if ":" in spec else f"torchvision:{spec}")
        randomise_(model, seed)
        size_px = smallest_size(model)
        return Examination(spec, model, size_px, seed).row(n_widths)
    except (LatencyError, PruningError) as error:
        return Row(spec, ok=False, reason=str(error))
    except Exception as error:  # a fault of ours is a row too, and does not end the sweep
        return Row(spec, ok=False, reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def smallest_size(model: nn.Module) -> int:
    """Smallest input size that a network takes, in pixels."""
    with torch.inference_mode():
        for size_px in SIZES_PX:
            try:
                model.eval()(torch.zeros(1, 3, size_px, size_px))
                return size_px
            except Exception:  # whatever the network's own code raises
                continue
    return SIZES_PX[-1]


class Examination:
    """Traces one network and compares its three slimmed forms."""

    def __init__(self, spec: str, model: nn.Module, size_px: int, seed: int) -> None:
        self._spec, self._model, self._size_px = spec, model, size_px
        started = time.perf_counter()
        self._space = trace(model, (1, 3, size_px, size_px))
        self._trace_seconds = time.perf_counter() - started
        self._rng = np.random.default_rng(seed)
        self._images = self._rng.standard_normal((1, 3, size_px, size_px)).astype(np.float32)

    def row(self, n_widths: int) -> Row:
        """Compares at `n_widths` random widths."""
        space = self._space
        structure_seconds = min(_seconds(lambda: find_channels(space.structure.graph)) for _ in range(2))
        dense = _outputs(self._model(torch.from_numpy(self._images)))
        worst, change, failure = np.zeros(3), np.inf, ""
        for kept in self._choices(n_widths):
            masked = self._run_masked(kept)
            change = min(change, _difference(dense, masked))
            onnx_outputs = run_onnx(candidate_model(space, kept), space, self._images)
            worst[2] = max(worst[2], _difference(masked, onnx_outputs))
            if not failure:
                failure = self._compare_slim(kept, masked, onnx_outputs, worst)
        limits = worst <= TOLERANCE
        if not failure and not limits.all():
            failure = "outputs differ"
        return Row(
            self._spec,
            ok=not failure,
            reason=failure,
            input_px=self._size_px,
            groups=len(space.groups),
            removable_groups=sum(group.zero_allowed for group in space.groups),
            prunable_channels_share=round(space.prunable_channels_share, 4),
            prunable_macs_share=round(space.prunable_macs_share, 4),
            max_rel_diff_masked_vs_slim=float(worst[0]),
            max_rel_diff_onnx_vs_slim=float(worst[1]),
            max_rel_diff_onnx_vs_masked=float(worst[2]),
            smallest_rel_change=float(change),
            trace_seconds=round(self._trace_seconds, 2),
            structure_seconds=round(structure_seconds, 4),
            candidate_ms=round(1e3 * self._candidate_seconds(), 2),
            n_nodes=len(space.structure.graph.nodes),
            kept=kept_channels(space),
        )

    def _compare_slim(
        self,
        kept: Sequence[IntArray],
        masked: list[npt.NDArray[Any]],
        onnx_outputs: list[npt.NDArray[Any]],
        worst: npt.NDArray[np.float64],
    ) -> str:
        """Update the worst differences with the slim module's; returns why there is none."""
        try:
            module, _ = slim(self._model, self._space, make_plan(self._space, tuple(kept)))
            with torch.inference_mode():
                outputs = _outputs(module.eval()(torch.from_numpy(self._images)))
        except (LatencyError, PruningError) as error:
            return str(error)
        except Exception as error:  # whatever the network's own code raises once its layers are narrower
            return f"slim module fails: {type(error).__name__}: {str(error).splitlines()[0]}"
        if [o.shape for o in outputs] != [o.shape for o in masked]:
            return f"slim module's outputs have shapes {[o.shape for o in outputs]}"
        worst[0] = max(worst[0], _difference(masked, outputs))
        worst[1] = max(worst[1], _difference(onnx_outputs, outputs))
        return ""

    def _choices(self, n_widths: int) -> list[tuple[IntArray, ...]]:
        """Kept positions: half of the widths on a grid of 8 channels, half of them with groups at 0."""
        space = self._space
        grid = Grid.from_step(space.structure, ChannelStep(dense=8, depthwise=8))
        choices = []
        while len(choices) < n_widths:
            zeros, on_grid = 0.2 * (len(choices) % 2), len(choices) % 4 >= 2
            widths = np.array([self._rng.integers(1, group.n_channels + 1) for group in space.groups])
            if on_grid:
                widths = np.maximum(grid.snap_down(widths), [min(a for a in w if a) for w in grid.allowed])
            for group in space.groups:
                if group.zero_allowed and self._rng.random() < zeros:
                    widths[group.index] = 0
                    if not space.is_alive(widths):
                        widths[group.index] = group.n_channels
            choices.append(
                tuple(
                    np.sort(self._rng.permutation(group.n_channels)[:width])
                    for group, width in zip(space.groups, widths, strict=True)
                )
            )
        return choices

    def _run_masked(self, kept: Sequence[IntArray]) -> list[npt.NDArray[Any]]:
        """Outputs of the full module with the removed channels gated off."""
        values = masked_parameters(self._model, self._space, kept)
        with torch.inference_mode():
            return _outputs(functional_call(self._model, values, (torch.from_numpy(self._images),)))

    def _candidate_seconds(self) -> float:
        """Median time of a candidate at random widths, as bytes that ONNX Runtime reads."""
        full = self._space.full_widths
        times = []
        for _ in range(5):
            widths = np.maximum(1, (full * self._rng.uniform(0.3, 1.0, len(full))).astype(np.int64))
            times.append(_seconds(lambda w=widths: candidate_in_memory(self._space, first_channels(w))))
        return float(np.median(times))


def masked_parameters(model: nn.Module, space: SearchSpace, kept: Sequence[IntArray]) -> dict[str, Tensor]:
    """A module's parameters with every weight that reads a removed channel zero; see `masked_model`."""
    mask = kept_slots(space, kept)
    values = {name: value.detach() for name, value in model.named_parameters()}
    for axis in space.parameter_axes:
        if axis.role == "in" and axis.parameter in values:
            factors = torch.from_numpy(np.where(axis.slots == FIXED, True, mask[axis.slots]))
            shape = [1] * values[axis.parameter].ndim
            shape[axis.axis] = -1
            values[axis.parameter] = values[axis.parameter] * factors.view(shape)
    removal = space.structure.removal.at([i for i, positions in enumerate(kept) if not len(positions)])
    for name in removal.presence:
        values[name] = values[name] * 0
    return values


def kept_channels(space: SearchSpace) -> tuple[tuple[int, str], ...]:
    """Channels that are never pruned, by reason, the most frequent first; the network's outputs left out."""
    counts: dict[str, int] = {}
    for row in space.kept:
        if "output of the network" not in row.reason:
            reason = f"{row.layer}: {row.reason}"
            counts[reason] = counts.get(reason, 0) + row.n_channels
    return tuple((count, reason) for reason, count in sorted(counts.items(), key=lambda item: -item[1])[:8])


def run_onnx(model: onnx.ModelProto, space: SearchSpace, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Outputs of an ONNX model in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {space.structure.graph.inputs[0]: images})]


def _outputs(value: Any) -> list[npt.NDArray[Any]]:
    """Tensors in a network's result, in order."""
    if isinstance(value, Tensor):
        return [value.detach().numpy()]
    parts = value.values() if isinstance(value, Mapping) else value
    return [array for part in parts if part is not None for array in _outputs(part)]


def _difference(left: list[npt.NDArray[Any]], right: list[npt.NDArray[Any]]) -> float:
    """Largest difference, relative to the largest value of each output."""
    pairs = zip(left, right, strict=True)
    return max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-12) for a, b in pairs)


def _seconds(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def depth_curve(depths: Sequence[int] = (4, 8, 16, 32, 64, 128)) -> list[dict[str, float]]:
    """Structure and candidate time of bottleneck ResNets by number of blocks."""
    from torchvision.models.resnet import Bottleneck, ResNet

    rows = []
    for depth in depths:
        space = trace(ResNet(Bottleneck, [1, 1, depth - 2, 1], width_per_group=8), (1, 3, 32, 32))
        seconds = min(_seconds(lambda s=space: find_channels(s.structure.graph)) for _ in range(3))
        half = first_channels(np.maximum(1, space.full_widths // 2))
        candidate = min(_seconds(lambda s=space, k=half: candidate_in_memory(s, k)) for _ in range(3))
        rows.append(
            {
                "blocks": depth,
                "nodes": len(space.structure.graph.nodes),
                "structure_seconds": round(seconds, 4),
                "candidate_ms": round(1e3 * candidate, 2),
            }
        )
    return rows


@click.command(help=__doc__)
@click.option("--models", default="", help="Networks, comma-separated; the default is the whole table.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File for the rows.")
@click.option("--widths", "n_widths", default=4, show_default=True, help="Width vectors for each network.")
@click.option("--processes", default=1, show_default=True, help="Networks at a time, one thread each.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights, widths and inputs.")
@click.option("--curve", is_flag=True, help="Also time the structure by depth.")
def main(models: str, json_path: Path | None, n_widths: int, processes: int, seed: int, curve: bool) -> None:
    """See the module's docstring."""
    _one_thread()
    here = environment()
    depths = depth_curve() if curve else []
    for row in depths:
        click.echo(json.dumps(row))
    specs = models.split(",") if models else default_models()
    rows: list[Row] = []
    with ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool:
        for row in pool.map(partial(check, n_widths=n_widths, seed=seed), specs):
            rows.append(row)
            click.echo(line(row))
            if json_path is not None:
                write(json_path, here, rows, depths)
    click.echo(f"{sum(row.ok for row in rows)} of {len(rows)} ok")
    sys.exit(0 if all(row.ok for row in rows) else 1)


def _one_thread() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def line(row: Row) -> str:
    """One line for the terminal."""
    if row.max_rel_diff_onnx_vs_masked is None:
        return f"{row.model:44} {'ok' if row.ok else 'NO':3} {row.reason}"
    return (
        f"{row.model:44} {'ok' if row.ok else 'NO':3} {row.input_px} px, {row.groups} groups, "
        f"channels {row.prunable_channels_share:.1%}, MACs {row.prunable_macs_share:.1%}, differences "
        f"{row.max_rel_diff_masked_vs_slim:.0e} {row.max_rel_diff_onnx_vs_slim:.0e} "
        f"{row.max_rel_diff_onnx_vs_masked:.0e}, change {row.smallest_rel_change:.0e}, structure "
        f"{row.structure_seconds:.2f} s, candidate {row.candidate_ms:.0f} ms  {row.reason}"
    )


def write(path: Path, here: dict[str, Any], rows: Sequence[Row], depths: Sequence[dict[str, float]]) -> None:
    """Write the rows so far."""
    record = {"environment": here, "rows": [asdict(row) for row in rows], "depth_curve": depths}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
