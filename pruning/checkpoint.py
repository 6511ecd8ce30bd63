"""Checkpoints: named tensors and a JSON record in one safetensors file, replaced atomically, without pickle.

The record sits in the file's own header, so tensors and record cannot come from different moments. A
checksum over the tensors tells a damaged file from a good one; safetensors itself only checks lengths.

Version history of the format:
    1: header fields `version`, `record` (JSON), `crc32` (of the tensors in order of their names).
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pruning.errors import CheckpointError
from pruning.files import write_atomically

_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A moment of a training.

    Attributes:
        tensors: by name: weights, momentum buffers, whatever the stage needs to go on.
        record: counters, settings and history, as JSON values.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path`; until it is complete on disk, the previous one stays in place.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    header = {
        "version": _VERSION,
        "record": json.dumps(checkpoint.record),
        "crc32": str(_crc32(tensors)),
    }
    # A copy of each: safetensors refuses tensors that share memory, such as tied weights.
    write_atomically(path, save({name: tensor.clone() for name, tensor in tensors.items()}, header))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in `path`, on the CPU, or None where there is no such file.

    Raises:
        CheckpointError: the file is damaged, or of another version of the format.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if header.get("version") != _VERSION:
        raise CheckpointError(
            f"Checkpoint '{path}' has format version {header.get('version')}, this release reads {_VERSION}; "
            "delete it to start afresh."
        )
    if header.get("crc32") != str(_crc32(tensors)):
        raise _damaged(path, "its checksum does not agree")
    try:
        return Checkpoint(tensors, json.loads(header["record"]))
    except (KeyError, ValueError) as error:
        raise _damaged(path, "its record is unreadable") from error


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        content = tensors[name].contiguous().flatten().view(torch.uint8)
        total = zlib.crc32(content.numpy().data, zlib.crc32(name.encode(), total))
    return total


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"Checkpoint '{path}' is damaged ({reason}); delete it to start that stage afresh."
    )
