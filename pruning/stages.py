"""Stages that need torch: trace, train, fit, fine-tune; the one in between is in `pruning.prune_stage`.

Each reads and writes files of a run directory. A stage that is finished with the same inputs is not run again;
one that was interrupted goes on from its checkpoint.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from latency.device import usable_cores
from latency.fitting import fit
from latency.lpnet_files import FORMAT_VERSION
from latency.profiles import ProfileSet, read_profile
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.accuracy import onnx_accuracy
from pruning.certificate import recorded_versions
from pruning.criteria import find_method
from pruning.data import ImageTask, load_data
from pruning.distributed import from_first, training_device
from pruning.errors import SettingError, WeightsError
from pruning.export import (
    dense_model,
    deployed_model,
    require_same_outputs,
    trained_model,
    write_onnx,
    write_program,
)
from pruning.files import file_sha256
from pruning.finetune import finetune
from pruning.models import load_model, require_fit
from pruning.plan import Plan
from pruning.remote_lpnet import LatencyPredictor, differentiable, find_lpnet
from pruning.run import RunDirectory, RunSettings
from pruning.surgery import slim
from pruning.trace import trace
from pruning.training import TrainingConfig, train
from pruning.weights import load_weights_, save_weights

MADE = ("pruned.onnx", "pruned.safetensors")
"""Files of a fine-tuning whose hashes are kept with its result: what it says is true of them alone."""


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How the slim network is fine-tuned.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: largest learning rate.
        distillation: share of the loss that compares with the dense network's scores.
    """

    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 0.02
    distillation: float = 0.7


class Workbench:
    """A run directory with what its stages load once: data, networks, search space, profile, LPNet.

    Args:
        run: the directory.
        settings: the run's settings; None reads them from the directory.
        lpnet_at: folder of another LPNet than the run's, or URL of a service that holds one.
    """

    def __init__(
        self, run: RunDirectory, settings: RunSettings | None = None, *, lpnet_at: str | None = None
    ) -> None:
        self.run = run
        self.lpnet_at = lpnet_at
        if settings is not None:
            run.begin(settings)
        self.settings = run.settings()

    @cached_property
    def task(self) -> ImageTask:
        """The run's data."""
        settings = self.settings
        return load_data(settings.data, settings.image_size, settings.normalisation, settings.seed)

    def new_network(self) -> nn.Module:
        """The network as its factory and weights file give it."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        weights = None if settings.weights is None else self.run.path.cwd() / settings.weights
        known = settings.weights_sha256
        if weights is not None and known is not None and weights.is_file() and file_sha256(weights) != known:
            raise WeightsError(
                f"'{weights}' has changed since this run was begun, and its other files were made with what it held "
                "then; bring that file back, or begin another run with another --out."
            )
        return load_model(settings.model, weights, self.task.n_classes)

    def dense_network(self) -> nn.Module:
        """The network with the weights that are pruned: given, or trained by this run."""
        network = self.new_network()
        if self.settings.train_epochs:
            path = self.run.require("dense.safetensors", "run `trimms run`, which trains the network first")
            load_weights_(network, path)
        return network.eval()

    @cached_property
    def space(self) -> SearchSpace:
        """Search space of the run's network."""
        return SearchSpace.load(self.run.require("base.onnx", "run `trimms trace` first"))

    @cached_property
    def profile(self) -> ProfileSet:
        """What was measured on the device."""
        return read_profile(self.run.require("profile.jsonl", "run `trimms profile` first"))

    @cached_property
    def predictor(self) -> LatencyPredictor:
        """LPNet, for prediction."""
        where = self.lpnet_at or str(self.run.require("lpnet", "run `trimms fit` first"))
        return find_lpnet(where, self.space, self.profile)

    @cached_property
    def lpnet(self) -> nn.Module:
        """LPNet, for gradients."""
        where = self.lpnet_at or str(self.run.file("lpnet"))
        return differentiable(where, self.predictor)


def trace_stage(bench: Workbench) -> dict[str, Any]:
    """Export the network and find its channel groups: `base.onnx`."""
    run, settings = bench.run, bench.settings
    inputs = asdict(settings)
    known = run.finished("trace", inputs)
    if known is not None and run.file("base.onnx").is_file():
        return known
    _require_trained(settings)
    network = bench.new_network()
    require_fit(network, settings.image_size, bench.task.n_classes)
    space = trace(network, settings.input_shape, keep_unknown=settings.keep_unknown)
    if not space.groups:
        reasons = "; ".join(f"{kept.layer}: {kept.reason}" for kept in space.kept[:5])
        raise SettingError(f"nothing in this network can be pruned ({reasons}).")
    write_onnx(dense_model(space, network), run.file("base.onnx"))
    result = {
        "base": str(run.file("base.onnx")),
        "groups": len(space.groups),
        "removable_groups": sum(bool(group.removes) for group in space.groups),
        "prunable_channels_share": space.prunable_channels_share,
        "prunable_macs_share": space.prunable_macs_share,
        "macs": space.macs(space.full_widths),
        "structure_hash": space.structure_hash,
        "widths": {group.name: group.n_channels for group in space.groups},
        "kept": [asdict(kept) for kept in space.kept],
    }
    run.finish("trace", inputs, result)
    return result


def _require_trained(settings: RunSettings) -> None:
    untrained = settings.model.startswith(("torchvision:", "timm:")) and settings.weights is None
    if untrained and not settings.train_epochs:
        raise SettingError(
            f"{settings.model} comes without trained weights; give --weights FILE, or --train-epochs N to train it."
        )


def train_stage(bench: Workbench) -> dict[str, Any]:
    """Train the network on the data, where the run asks for it: `dense.safetensors`, new `base.onnx`."""
    run, settings = bench.run, bench.settings
    inputs = asdict(settings)
    known = run.finished("train", inputs)
    if known is not None:
        return known
    if not settings.train_epochs:
        return {"epochs": 0}
    network = bench.new_network().to(training_device())
    config = TrainingConfig(epochs=settings.train_epochs, seed=settings.seed)
    history = train(network, bench.task, config, checkpoint=run.checkpoint("train", inputs), title="training")

    def finish() -> dict[str, Any]:
        save_weights(network, run.file("dense.safetensors"))
        write_onnx(dense_model(bench.space, network), run.file("base.onnx"))
        result = {
            "epochs": settings.train_epochs,
            "accuracy": history.rows[-1].test_accuracy,
            "history": history.to_json(),
        }
        run.finish("train", inputs, result)
        return result

    return from_first(finish)


def fit_stage(run: RunDirectory, seed: int) -> dict[str, Any]:
    """Fit LPNet to the profile: `lpnet/`."""
    profile = read_profile(run.require("profile.jsonl", "run `trimms profile` first"))
    inputs = {"profile": profile.digest, "seed": seed, "format": FORMAT_VERSION}
    known = run.finished("fit", inputs)
    if known is not None and run.file("lpnet").is_dir():
        return known
    space = SearchSpace.load(run.require("base.onnx", "run `trimms trace` first"))
    fitted = fit(profile, space, seed=seed)
    fitted.save(run.file("lpnet"))
    manifest = fitted.manifest
    result = {
        "n_train": manifest.n_train,
        "noise_floor_mape": manifest.noise_floor_mape,
        "dense_ms": manifest.reference_ms,
        "lpnet_mape": manifest.metrics[manifest.kind].mape if manifest.metrics else None,
        "metrics": {name: asdict(metrics) for name, metrics in manifest.metrics.items()},
    }
    run.finish("fit", inputs, result)
    return result


def finetune_stage(bench: Workbench, options: FinetuneOptions) -> dict[str, Any]:
    """Slim, fine-tune and export: `pruned.onnx`, `pruned.safetensors`, `pruned.pt2`."""
    run = bench.run
    pruned = run.result("prune", "run `trimms prune` first")
    plan_path = run.require("plan.json", "run `trimms prune` first")
    searched_path = run.require("prune/network.safetensors", "run `trimms prune` first")
    inputs = {
        "plan": Plan.read(plan_path).fingerprint,
        "weights": file_sha256(searched_path),
        "options": asdict(options),
    }
    if pruned.get("precision", "fp32") != "fp32":
        inputs["precision"] = pruned["precision"]
    known = run.finished("finetune", inputs)
    asked = {"budget_ms": pruned["budget_ms"], "predicted_ms": pruned["predicted_ms"]}
    if known is not None and run.file("pruned.onnx").is_file():
        return from_first(partial(_taken_over, bench, known, asked))
    teacher = bench.dense_network().to(training_device())
    network, plan = _slimmed(bench)
    network.to(training_device())
    config = finetuning(options, pruned, bench.settings.seed)
    history = finetune(network, teacher, bench.task, config, checkpoint=run.checkpoint("finetune", inputs))

    def finish() -> dict[str, Any]:
        plan.write(plan_path)
        result = _export(bench, network.cpu(), teacher, plan.positions(bench.space)) | asked
        result |= {
            "history": history.to_json(),
            "plan": plan.fingerprint,
            "sha256": {name: file_sha256(run.file(name)) for name in MADE},
        }
        run.finish("finetune", inputs, result)
        return result

    return from_first(finish)


def _slimmed(bench: Workbench) -> tuple[nn.Module, Plan]:
    """The network as the search has left it, without what its plan removes; and the plan with what that took."""
    searched = bench.new_network()
    load_weights_(searched, bench.run.file("prune/network.safetensors"))
    return slim(searched, bench.space, Plan.read(bench.run.file("plan.json")))


def _taken_over(bench: Workbench, known: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The result of a fine-tuning for what is asked of its plan now, completed where a cut has written it anew."""
    run = bench.run
    if not Plan.read(run.file("plan.json")).modules:
        _, plan = _slimmed(bench)
        plan.write(run.file("plan.json"))
    if known | asked != known:
        run.amend("finetune", known | asked)
    return known | asked


def finetuning(options: FinetuneOptions, pruned: Mapping[str, Any], seed: int) -> TrainingConfig:
    """How a slim network is trained after its search.

    On other variations of the images, and without warm-up where the learning rate was left as high, or higher.

    Args:
        options: what was asked for.
        pruned: result of `prune_stage`.
        seed: seed of the training.
    """
    config = TrainingConfig(**asdict(options), seed=seed, first_epoch=pruned["search_epochs"])
    left_high = pruned["search_epochs"] > 0 and find_method(pruned["method"]).leaves_rate_high
    goes_on = left_high and config.learning_rate <= pruned.get("search_lr", 0.0)
    return replace(config, warm_up=0.0) if goes_on else config


def _export(
    bench: Workbench, network: nn.Module, teacher: nn.Module, kept: tuple[IntArray, ...]
) -> dict[str, Any]:
    """Write the slim network in all its forms and measure the accuracy of its ONNX file."""
    run, task = bench.run, bench.task
    model = trained_model(bench.space, network, kept)
    difference = require_same_outputs(network, model)
    accuracy = _write_deployed(bench, model)
    save_weights(network, run.file("pruned.safetensors"))
    write_program(network, bench.settings.input_shape, run.file("pruned.pt2"))
    widths = np.array([len(positions) for positions in kept])
    return {
        **accuracy,
        "dense_accuracy": onnx_accuracy(run.file("base.onnx"), task, "accuracy of base.onnx"),
        "macs": bench.space.macs(widths),
        "dense_macs": bench.space.macs(bench.space.full_widths),
        "params": n_parameters(network),
        "dense_params": n_parameters(teacher),
        "onnx_difference": difference,
        "input_shape": list(bench.settings.input_shape),
        "mean": list(task.normalisation.mean),
        "std": list(task.normalisation.deviation),
        "versions": recorded_versions(),
    }


def _write_deployed(bench: Workbench, model: onnx.ModelProto) -> dict[str, float]:
    """Write `pruned.onnx` in the number format that was profiled; its accuracy, and in another format fp32's too."""
    run, task, title = bench.run, bench.task, "accuracy of pruned.onnx"
    device = bench.profile.header.fingerprint
    if device.settings.precision == "fp32":
        write_onnx(model, run.file("pruned.onnx"))
        return {"accuracy": onnx_accuracy(run.file("pruned.onnx"), task, title)}
    write_onnx(model, run.file("pruned.fp32.onnx"))
    deployed = deployed_model(model, task, device)
    write_onnx(deployed, run.file("pruned.onnx"))
    settings = replace(device.settings, threads=usable_cores())
    return {
        "accuracy": onnx_accuracy(run.file("pruned.onnx"), task, title, settings),
        "fp32_accuracy": onnx_accuracy(run.file("pruned.fp32.onnx"), task, "accuracy in fp32"),
    }


def n_parameters(network: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
