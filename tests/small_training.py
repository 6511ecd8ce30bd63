"""A training of a second: three classes that differ in colour, a small network, an objective."""

from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import ImageTask, MemorySplit
from pruning.data.normalisation import Normalisation
from pruning.training import TrainingConfig

N_CLASSES = 3
CONFIG = TrainingConfig(epochs=4, batch_size=16, learning_rate=0.1)


def coloured_split(n: int, seed: int) -> MemorySplit:
    """Noise, with one colour channel brightened: its number is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % N_CLASSES
    images[torch.arange(n), labels] += 60
    return MemorySplit(images, labels)


def coloured_task(seed: int = 0) -> ImageTask:
    train_split = coloured_split(64, 0)
    return ImageTask(
        source="colours",
        input_size=(3, 8, 8),
        n_classes=N_CLASSES,
        normalisation=Normalisation("half", (0.5,) * 3, (0.5,) * 3),
        augmentation=ShiftAndFlip(1, flip=True),
        train=train_split,
        calibration=train_split,
        test=coloured_split(30, 1),
        seed=seed,
    )


def small_net(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, N_CLASSES),
    )


class Pull(nn.Module):
    """An objective: pulls a parameter of its own to 3; stops the training at a given step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.progress: list[float] = []
        self.stop_at = stop_at

    def penalty(self, progress: float) -> Tensor:
        self.progress.append(progress)
        if self.stop_at is not None and len(self.progress) > self.stop_at:
            raise KeyboardInterrupt
        return ((self.value - 3) ** 2).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.value], "lr": 0.2, "weight_decay": 0.0}]

    def latency_ms(self) -> float:
        return float(self.value.detach())


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
