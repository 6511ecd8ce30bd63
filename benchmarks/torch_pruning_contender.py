"""Runs a Torch-Pruning configuration: ratio by measuring, then the fine-tuning and measurements of all methods."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from configurations import Configuration, Outcome
from contenders import Ground, schedule_of
from torch import nn
from torch_pruning_baseline import VARIANTS, TorchPruning, Tried, try_ratios

from latency.measure import PairedMeasurement
from latency.sessions import SessionPlan, measure_sessions
from latency.space import SearchSpace
from pruning.accuracy import onnx_accuracy
from pruning.correction import slowest_within
from pruning.distributed import training_device
from pruning.export import dense_model, require_same_outputs, write_onnx
from pruning.files import write_atomically
from pruning.finetune import finetune
from pruning.pipeline import MAX_CORRECTIONS
from pruning.prices import PricedSpace
from pruning.stages import Workbench, n_parameters
from pruning.trace import trace
from pruning.training import TrainingConfig, TrainingHistory
from pruning.verify import CHOOSING, VERIFYING, clocked_ms, require_profiled_device
from pruning.weights import save_weights

TRIED_FILE = "ratios.json"


@dataclass(frozen=True, slots=True)
class _Made:
    """A fine-tuned network in its folder, measured."""

    network: nn.Module
    space: SearchSpace
    history: TrainingHistory
    certified_ms: float


def run_torch_pruning(ground: Ground, configuration: Configuration) -> Outcome:
    """The outcome of a Torch-Pruning configuration; goes on where it was interrupted."""
    bench = ground.workbench(configuration)
    budget_ms = ground.budget_ms(configuration)
    device = PricedSpace(bench.space, bench.profile, bench.lpnet, bench.predictor)
    aim_ms = device.aim_ms(budget_ms)
    pruning = _pruning(bench, configuration)
    made: _Made | None = None
    for _ in range(1 + MAX_CORRECTIONS):
        tried = _tried(bench, pruning, budget_ms, aim_ms)
        chosen = slowest_within(tried, budget_ms, aim_ms)
        if chosen is None and made is None:
            smallest_ms = min(one.measured_ms for one in tried)
            note = "no ratio of channels gives a network within the budget"
            return ground.outcome(configuration, smallest_ms=smallest_ms, note=note)
        if chosen is None:  # what was trained stays, and is shown as over
            break
        made = _made(bench, configuration, pruning.at(chosen.ratio), chosen)
        if made.certified_ms <= budget_ms:
            break
        aim_ms = min(aim_ms * budget_ms / made.certified_ms, 0.999 * chosen.measured_ms)
    assert made is not None
    run, task = bench.run, bench.task
    return ground.outcome(
        configuration,
        certified_ms=made.certified_ms,
        accuracy=onnx_accuracy(run.file("pruned.onnx"), task, "accuracy of pruned.onnx"),
        dense_accuracy=onnx_accuracy(run.file("base.onnx"), task, "accuracy of base.onnx"),
        macs=made.space.macs(made.space.full_widths),
        params=n_parameters(made.network),
        wall_seconds=sum(row.seconds for row in made.history.rows),
    )


def _pruning(bench: Workbench, configuration: Configuration) -> TorchPruning:
    probe = bench.profile.header.probe
    assert probe is not None, "profiles made by the comparison hold their probe"
    variant = VARIANTS[configuration.method]
    return TorchPruning(bench.dense_network(), variant, bench.task, probe.step.dense)


def _tried(bench: Workbench, pruning: TorchPruning, budget_ms: float, aim_ms: float) -> tuple[Tried, ...]:
    """Ratios with their latencies, from the folder where they are known for this aim."""
    path = bench.run.file(TRIED_FILE)
    record = json.loads(path.read_text()) if path.is_file() else {"aims_ms": [], "tried": []}
    known = tuple(Tried(**one) for one in record["tried"])
    if aim_ms in record["aims_ms"]:
        return known

    def measure(network: nn.Module) -> tuple[float, float]:
        model = dense_model(_space(bench, network), network).SerializeToString()
        found = _measured(bench, model, CHOOSING)
        measured_ms, (_, high_ms) = clocked_ms(bench.profile.clock, found)
        return measured_ms, high_ms

    tried = try_ratios(pruning.at, measure, budget_ms, aim_ms, known)
    record = {"aims_ms": [*record["aims_ms"], aim_ms], "tried": [asdict(one) for one in tried]}
    write_atomically(path, json.dumps(record, indent=1).encode())
    return tried


def _made(bench: Workbench, configuration: Configuration, network: nn.Module, chosen: Tried) -> _Made:
    run = bench.run
    _, options = schedule_of(configuration)
    config = TrainingConfig(**asdict(options), seed=configuration.seed)
    state: Path = run.file(f"finetune/state-{chosen.ratio:.4f}.safetensors")
    teacher = bench.dense_network().to(training_device())
    history = finetune(network.to(training_device()), teacher, bench.task, config, checkpoint=state)
    space = _space(bench, network.cpu())
    model = dense_model(space, network)
    require_same_outputs(network, model)
    write_onnx(model, run.file("pruned.onnx"))
    save_weights(network, run.file("pruned.safetensors"))
    certified_ms, _ = clocked_ms(bench.profile.clock, _measured(bench, model.SerializeToString(), VERIFYING))
    return _Made(network, space, history, certified_ms)


def _space(bench: Workbench, network: nn.Module) -> SearchSpace:
    return trace(network, bench.settings.input_shape, keep_unknown=True)


def _measured(bench: Workbench, model: bytes, plan: SessionPlan) -> PairedMeasurement:
    settings = require_profiled_device(bench.profile)
    dense = bench.run.file("base.onnx").read_bytes()
    return measure_sessions(model, dense, settings, plan, title="measuring")
