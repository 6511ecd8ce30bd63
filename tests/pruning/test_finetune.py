from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import ImageTask, MemorySplit
from pruning.data.normalisation import Normalisation
from pruning.finetune import finetune, recalibrate_batchnorm_
from pruning.precision import Precision
from pruning.training import TrainingConfig, accuracy, train


@pytest.fixture(autouse=True)
def _plain_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (Precision(), {}))


def _batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 3, 4, 4, generator=generator) * (i + 1) + i for i in range(3)]


def _task() -> ImageTask:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 3
    images = torch.randint(0, 100, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(64), labels] += 60
    split = MemorySplit(images, labels)
    return ImageTask(
        source="colours",
        input_size=(3, 8, 8),
        n_classes=3,
        normalisation=Normalisation("half", (0.5,) * 3, (0.5,) * 3),
        augmentation=ShiftAndFlip(1, flip=False),
        train=split,
        calibration=split,
        test=split,
        seed=0,
    )


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def test_statistics_are_the_mean_over_the_batches() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    network[0].running_mean.fill_(99)
    recalibrate_batchnorm_(network, _batches())
    means = torch.stack([batch.mean((0, 2, 3)) for batch in _batches()])
    variances = torch.stack([batch.var((0, 2, 3)) for batch in _batches()])
    torch.testing.assert_close(network[0].running_mean, means.mean(0))
    torch.testing.assert_close(network[0].running_var, variances.mean(0))


@pytest.mark.parametrize("training", [True, False])
def test_modes_weights_and_momenta_stay(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(3)).train(
        training
    )
    network[1].train(not training)
    weights = [parameter.clone() for parameter in network.parameters()]
    recalibrate_batchnorm_(network, _batches())
    assert [module.training for module in network] == [training, not training, training]
    assert [network[0].momentum, network[2].momentum] == [0.3, 0.1]
    for parameter, before in zip(network.parameters(), weights, strict=True):
        assert torch.equal(parameter, before)


def test_dropout_is_off_while_statistics_are_taken() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    recalibrate_batchnorm_(network, _batches()[:1])
    torch.testing.assert_close(network[1].running_mean, _batches()[0].mean((0, 2, 3)))


def test_a_norm_without_statistics_is_left_alone() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3))
    recalibrate_batchnorm_(network, _batches())
    assert network[0].running_mean is None


def test_a_network_without_norms_is_left_alone() -> None:
    recalibrate_batchnorm_(nn.Conv2d(3, 2, 1), _batches())


def test_a_disturbed_network_recovers() -> None:
    task, teacher = _task(), _net(0)
    config = TrainingConfig(epochs=5, batch_size=16, learning_rate=0.1)
    train(teacher, task, config)
    network = _net(0)
    network.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        network[0].weight[:2] = 0
        network[1].running_mean += 5
    disturbed = accuracy(network, task)
    history = finetune(network, teacher, task, config, title=None)
    assert history.rows[-1].test_accuracy > max(disturbed, 0.9)


def test_an_interrupted_fine_tuning_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, teacher = _task(), _net(1)
    config = TrainingConfig(epochs=3, batch_size=16)
    whole, interrupted, resumed = _net(0), _net(0), _net(0)
    finetune(whole, teacher, task, config, title=None)
    visits = []

    def stop(network: nn.Module, task: ImageTask, precision: object = None) -> float:
        visits.append(task)
        if len(visits) == 2:
            raise KeyboardInterrupt
        return accuracy(network, task)

    monkeypatch.setattr("pruning.training.accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(interrupted, teacher, task, config, checkpoint=tmp_path / "state", title=None)
    monkeypatch.setattr("pruning.training.accuracy", accuracy)
    finetune(resumed, teacher, task, config, checkpoint=tmp_path / "state", title=None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
