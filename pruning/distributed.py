"""Processes that `torchrun` starts train as one: the result is that of a single process, up to rounding.

Each process takes its share of every batch. BatchNorm's statistics are those of the whole batch, and gradients are
averaged over the processes before they are used. Where there is one process, nothing here does anything.

Two of torch's own means do not serve: `SyncBatchNorm` refuses the CPU, and `DistributedDataParallel` expects the loss
to reach the parameters through the network's output alone, which the latency term of a search does not. Gradients are
therefore averaged after the backward pass, in one message. Dropout draws other masks than a single process would.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.data.share import WHOLE, Share
from pruning.errors import SettingError

LONGEST_WAIT = timedelta(days=1)
"""For the others while the first process profiles the device alone."""

Json = TypeVar("Json")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, where it did; left together at the end.

    Raises:
        SettingError: there are GPUs, but fewer than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    device = training_device()
    if device.type == "cuda":
        n_here, n_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if n_here > n_gpus:
            raise SettingError(
                f"{n_here} processes on a machine with {n_gpus} GPU{'s' * (n_gpus != 1)}: each trains on its own; give "
                f"torchrun --nproc-per-node {n_gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU."
            )
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def training_device() -> torch.device:
    """The device that this process trains on: its own GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def own_share() -> Share:
    """The part of every batch that is this process's."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else WHOLE


def is_first() -> bool:
    """Whether this process is the one that measures, writes files and shows progress."""
    return own_share().index == 0


def from_first(work: Callable[[], Json]) -> Json:
    """What `work` gives, done by the first process alone while the others wait; JSON values, the same in each.

    Where it fails the first process ends, and torchrun ends the others.
    """
    if not dist.is_initialized():
        return work()
    text = json.dumps(work()).encode() if is_first() else b""
    size = torch.tensor(len(text))
    dist.broadcast(size, src=0)
    content = (
        torch.frombuffer(bytearray(text), dtype=torch.uint8) if is_first() else torch.empty(int(size)).byte()
    )
    dist.broadcast(content, src=0)
    result: Json = json.loads(content.numpy().tobytes())
    return result


def require_shares(batch_size: int) -> None:
    """Refuse a batch that the processes cannot share equally: the mean of their gradients would not be the batch's.

    Raises:
        SettingError: the batch size is no multiple of the number of processes, or leaves one image to each.
    """
    count = own_share().count
    if batch_size % count or batch_size < 2 * count:
        raise SettingError(
            f"the training's batch size is a multiple of the {count} processes with at least 2 images for each; got "
            f"{batch_size}. Give another --train-batch-size, or start another number of processes."
        )


@torch.no_grad()
def copy_from_first_(network: nn.Module) -> None:
    """Give every process the first one's parameters and buffers, in place."""
    if dist.is_initialized():
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor, src=0)


def number_from_first(number: int) -> int:
    """The first process's number, for choices that rest on its clock."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number)
    dist.broadcast(shared, src=0)
    return int(shared)


def sum_over_all(value: float) -> float:
    """The sum of the processes' values, the same in each."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def mean_over_all(value: float) -> float:
    """The mean of the processes' values, the same in each."""
    return sum_over_all(value) / own_share().count


@torch.no_grad()
def tensor_mean_over_all(values: Tensor) -> Tensor:
    """The mean of the processes' tensors, the same in each."""
    if not dist.is_initialized():
        return values
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / own_share().count


@torch.no_grad()
def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in place; parameters without one are left out."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = tensor_mean_over_all(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(together, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def batchnorm_over_all(network: nn.Module) -> Iterator[None]:
    """Let the network's BatchNorms, in training mode, see the whole batch instead of this process's share."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)] if dist.is_initialized() else []
    for norm in norms:
        norm.forward = MethodType(_normalised_over_all, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalised_over_all(norm: _BatchNorm, images: Tensor) -> Tensor:
    """What `norm` gives for this process's images, [n, channels, …], with the statistics of all processes'."""
    if not norm.training:
        own: Tensor = type(norm).forward(norm, images)
        return own
    axes = [axis for axis in range(images.ndim) if axis != 1]
    shape = [1, -1] + [1] * (images.ndim - 2)
    values = images.float()
    n_values = values.numel() // values.shape[1] * own_share().count
    mean = all_reduce(values.sum(axes)) / n_values  # type: ignore[no-untyped-call]
    centred = values - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes)) / n_values  # type: ignore[no-untyped-call]
    _track_(norm, mean.detach(), variance.detach() * n_values / max(n_values - 1, 1))
    normalised: Tensor = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        normalised = normalised * norm.weight.view(shape) + norm.bias.view(shape)
    return normalised.to(images.dtype)


def _track_(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as BatchNorm itself does, in place."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
