"""What methods are compared on: networks with their data, weights and schedules, the same for every method."""

from dataclasses import dataclass
from pathlib import Path

import click
import torch
from environment import ROOT

from pruning.data import ImageTask, load_data
from pruning.distributed import training_device
from pruning.files import file_sha256
from pruning.models import load_model
from pruning.run import RunSettings
from pruning.training import TrainingConfig, train
from pruning.weights import load_weights_, save_weights

_MODELS = ROOT / "benchmarks" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A trained network, its data, and how long every method may train on it.

    Attributes:
        name: as on the command line.
        model: as for `trimms run`.
        data: source of images; a `{place}` in it is where the data lie, given on the command line.
        input_shape: batch size, channels, height, width.
        weights: file name of the given weights; None starts from the factory's.
        normalisation: name; None is the data's usual one.
        dense_epochs: epochs that the given weights are first adapted to the data for; 0 takes them as they are.
        dense_lr: highest learning rate of that.
        epochs: training epochs of every method, search included.
        search_epochs: how many of them a method that searches while training searches for.
        batch_size: images per training step.
        n_candidates: networks that LPNet is trained on.
        n_held_out: networks that it is judged by.
    """

    name: str
    model: str
    data: str
    input_shape: tuple[int, int, int, int]
    weights: str | None = None
    normalisation: str | None = None
    dense_epochs: int = 0
    dense_lr: float = 0.02
    epochs: int = 8
    search_epochs: int = 3
    batch_size: int = 128
    n_candidates: int = 300
    n_held_out: int = 60


_CIFAR = {"data": "npz:{cifar10}", "input_shape": (1, 3, 32, 32), "normalisation": "imagenet"}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="cifar10-resnet20",
            model=f"{_MODELS}/cifar_resnet.py:resnet20",
            weights="resnet20-12fca82f.th",
            **_CIFAR,  # type: ignore[arg-type]
        ),
        Workload(
            name="cifar10-resnet56",
            model=f"{_MODELS}/cifar_resnet.py:resnet56",
            weights="resnet56-4bfd9763.th",
            **_CIFAR,  # type: ignore[arg-type]
        ),
        # ImageNet's weights at 224 px, dequantised from 8 bits: what training at 128 px alone gains would
        # otherwise count as the methods' gain.
        Workload(
            name="imagenette-mobilenetv2",
            model=f"{_MODELS}/imagenette_mobilenet_v2.py:mobilenet_v2",
            data="folder:{imagenette}",
            input_shape=(1, 3, 128, 128),
            weights="mobilenet_v2_imagenet.pth",
            dense_epochs=5,
            batch_size=64,
        ),
        Workload(
            name="digits-smoke",
            model=f"{_MODELS}/cifar_resnet.py:resnet8",
            data="digits",
            input_shape=(1, 3, 32, 32),
            dense_epochs=4,
            dense_lr=0.05,
            epochs=2,
            search_epochs=1,
            batch_size=64,
            n_candidates=24,
            n_held_out=5,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Places:
    """Where data and weights lie.

    Attributes:
        data: folder or file by the name in `Workload.data`'s braces.
        weights: folder of the given weights; None where no workload needs one.
    """

    data: dict[str, Path]
    weights: Path | None = None


def settings_of(workload: Workload, places: Places, dense: Path, seed: int) -> RunSettings:
    """What a run of the workload prunes: the network with the weights in `dense`.

    Raises:
        click.UsageError: the place of the data was not given.
    """
    return RunSettings(
        model=workload.model,
        data=_located(workload, places),
        input_shape=workload.input_shape,
        weights=str(dense),
        weights_sha256=file_sha256(dense),
        normalisation=workload.normalisation,
        seed=seed,
    )


def load_task(workload: Workload, places: Places, seed: int) -> ImageTask:
    """The workload's data.

    Raises:
        click.UsageError: their place was not given.
    """
    return load_data(_located(workload, places), workload.input_shape[1:], workload.normalisation, seed)


def dense_weights(workload: Workload, places: Places, folder: Path) -> Path:
    """File of the weights that are pruned: the given ones, or those adapted to the data, once, into `folder`.

    Raises:
        click.UsageError: the given weights are missing.
    """
    given = None
    if workload.weights is not None:
        if places.weights is None or not (places.weights / workload.weights).is_file():
            raise click.UsageError(f"{workload.name} needs --weights FOLDER with {workload.weights} in it.")
        given = places.weights / workload.weights
    if not workload.dense_epochs and given is not None:
        return given
    start = "new" if given is None else file_sha256(given)[:8]
    path = folder / f"dense-{start}-{workload.dense_epochs}.safetensors"
    if not path.is_file():
        _adapt(workload, load_task(workload, places, seed=0), given, path)
    return path


def _adapt(workload: Workload, task: ImageTask, given: Path | None, path: Path) -> None:
    torch.manual_seed(0)
    network = load_model(workload.model, None, task.n_classes)
    if given is not None:
        load_weights_(network, given)
    config = TrainingConfig(
        epochs=workload.dense_epochs, batch_size=workload.batch_size, learning_rate=workload.dense_lr
    )
    state = path.with_suffix(".state")
    network.to(training_device())
    train(network, task, config, checkpoint=state, title=f"{workload.name}: the dense network")
    save_weights(network, path)
    state.unlink(missing_ok=True)


def _located(workload: Workload, places: Places) -> str:
    try:
        return workload.data.format(**{name: path.resolve() for name, path in places.data.items()})
    except KeyError as error:
        raise click.UsageError(f"{workload.name} needs --{error.args[0]}.") from error
