"""Recovers the accuracy of a slim network: BatchNorm statistics first, then training with distillation."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data import ImageTask
from pruning.training import TrainingConfig, TrainingHistory, train

CALIBRATION_IMAGES = 2048
"""Images that BatchNorm statistics are estimated on: a mean over so many varies by 2 % of its spread."""


def finetune(
    network: nn.Module,
    teacher: nn.Module,
    task: ImageTask,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    title: str | None = "fine-tuning",
) -> TrainingHistory:
    """Recalibrate a slim network's BatchNorms, then train it to fit labels and the dense network's scores.

    Args:
        network: the slim network, changed in place; ends in evaluation mode.
        teacher: the dense network.
        task: the data.
        config: how to train.
        checkpoint: file of the training's state; see `train`.
        title: shown beside the progress bar; None shows none.
    """
    if checkpoint is None or not checkpoint.exists():
        recalibrate_batchnorm_(
            network, (batch.images for batch in task.calibration_batches(CALIBRATION_IMAGES))
        )
    return train(network, task, config, teacher=teacher, checkpoint=checkpoint, title=title)


def recalibrate_batchnorm_(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate all BatchNorm statistics anew, as the mean over batches; the network's mode stays.

    Args:
        network: changed in place.
        batches: images, [n, channels, height, width].
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    device = next(network.parameters()).device
    with torch.no_grad():
        for images in batches:
            network(images.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training
