"""The state of an unfinished training: weights, momenta and a record, and which training it belongs to."""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.errors import CheckpointError

_NETWORK = "network."


def weights_digest(network: nn.Module) -> int:
    """Checksum of the names and values of all parameters."""
    digest = 0
    for name, parameter in network.named_parameters():
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest = zlib.crc32(values.numpy().data, zlib.crc32(name.encode(), digest))
    return digest


def save_state(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, record: Mapping[str, Any]
) -> None:
    """Write network, momenta and record to `path`, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {f"{_NETWORK}{name}": value for name, value in network.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimiser)):
        momentum = optimiser.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{index}"] = momentum
    save_checkpoint(path, Checkpoint(tensors, record))


def restore_(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, belongs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Bring network and optimiser to the state in `path`, in place; its record, or None where there is none.

    Args:
        path: a file of `save_state`.
        network: the network in training.
        optimiser: its optimiser.
        belongs: what the training is: the record has to hold the same.

    Raises:
        CheckpointError: the file is damaged or of another training.
    """
    saved = load_checkpoint(path)
    if saved is None:
        return None
    differing = [name for name, value in belongs.items() if saved.record.get(name) != value]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"'{path}' belongs to another training, with {name} {saved.record.get(name)!r} instead of "
            f"{belongs[name]!r}; delete it to start afresh, or give the same settings to go on."
        )
    network.load_state_dict(_network_state(saved.tensors))
    for index, parameter in enumerate(_parameters(optimiser)):
        momentum = saved.tensors.get(f"momentum.{index}")
        if momentum is not None:
            optimiser.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    return saved.record


def _network_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_NETWORK): value for name, value in tensors.items() if name.startswith(_NETWORK)
    }


def _parameters(optimiser: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]
