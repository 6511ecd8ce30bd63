"""Weights on disk: reading safetensors and torch files, unwrapping them, and fitting them to a model."""

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from pruning.errors import WeightsError
from pruning.files import write_atomically

# Keys under which training scripts store a model's weights beside their own state.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
# Prefixes that DataParallel, DistributedDataParallel, Lightning and torch.compile put before every name.
_PREFIXES = ("module.", "model.", "_orig_mod.")
# Names shown in a message before it only counts the rest.
_N_SHOWN = 4
_SIZE_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers to `path` as safetensors, atomically."""
    # A copy of each: safetensors refuses tensors that share memory, such as tied weights.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(path, save_safetensors(state))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file by name, wrapper keys such as `state_dict` removed.

    Raises:
        WeightsError: the file is missing, damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"Weights file '{path}' does not exist; give a safetensors or torch file.")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch_file(path)
    return _tensors_of(_unwrapped(content), path)


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load a weights file into `model` in place; every name and shape has to fit.

    The model's own `load_state_dict` hooks run, so a factory may accept weights of another layout.

    Raises:
        WeightsError: the file cannot be read, a tensor is missing, unexpected or of another shape, or
            a value is NaN or infinite.
    """
    state = _without_prefixes(read_weights(path), model.state_dict())
    try:
        # Not strict, so that all faults can be named at once.
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(_shape_message(path, str(error))) from error
    # Files older than PyTorch 0.4.1 have no counters; nothing that is pruned depends on them.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    _require_same_names(path, missing, unexpected)
    require_finite(model, f"Weights file '{path}'")


def require_finite(model: nn.Module, what: str) -> None:
    """Raise WeightsError naming the tensors of `model` with NaN or infinity; `what` starts the message."""
    broken = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise WeightsError(
            f"{what} holds NaN or infinite values in {_shown(broken)}; train or export it again."
        )


def _is_safetensors(path: Path) -> bool:
    """Whether the file is to be read as safetensors: by its name, or by the JSON header it starts with."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"Weights file '{path}' is no readable safetensors file ({error}).") from error


def _read_torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise WeightsError(f"Weights file '{path}' is damaged or no torch file.") from error
        raise WeightsError(
            f"Weights file '{path}' is damaged, or holds Python objects besides tensors, which are not "
            "loaded for safety; save only the tensors: torch.save(model.state_dict(), FILE)."
        ) from error
    # A damaged file fails anywhere inside torch's unpickler, with whatever its bytes happen to mean.
    except Exception as error:
        raise WeightsError(
            f"Weights file '{path}' is damaged or no torch file ({_first_line(error)})."
        ) from error


def _unwrapped(content: Any) -> Any:
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    return content


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"Weights file '{path}' holds a {type(content).__name__} instead of named tensors; "
            "save model.state_dict()."
        )
    others = [
        f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)
    ]
    if others:
        raise WeightsError(
            f"Weights file '{path}' holds entries that are no tensors: {_shown(others)}; "
            f"save model.state_dict(), alone or under one of the keys {', '.join(_WRAPPERS)}."
        )
    return {str(name): tensor for name, tensor in content.items()}


def _without_prefixes(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """The tensors under the names the model gives them, as far as wrapper prefixes hid those."""
    return {_name_in_model(name, expected): tensor for name, tensor in state.items()}


def _name_in_model(name: str, expected: Collection[str]) -> str:
    short = name
    while short not in expected:
        prefix = next((prefix for prefix in _PREFIXES if short.startswith(prefix)), None)
        if prefix is None:
            return name
        short = short.removeprefix(prefix)
    return short


def _require_same_names(path: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    faults = [
        f"{label} {_shown(names)}"
        for label, names in (("lacks", list(missing)), ("has in excess", list(unexpected)))
        if names
    ]
    if faults:
        raise WeightsError(
            f"Weights file '{path}' does not fit the model: it {' and '.join(faults)}; "
            "give the weights of this very architecture."
        )


def _shape_message(path: Path, error: str) -> str:
    found = _SIZE_MISMATCH.findall(error)
    if not found:
        return f"Weights file '{path}' does not fit the model: {error.splitlines()[-1].strip()}"
    faults = [
        f"{name} is [{in_file}] in the file and [{in_model}] in the model"
        for name, in_file, in_model in found
    ]
    return (
        f"Weights file '{path}' does not fit the model: {_shown(faults)}; give the weights of this very "
        "architecture, trained for the same number of classes."
    )


def _shown(names: list[str]) -> str:
    rest = len(names) - _N_SHOWN
    return ", ".join(names[:_N_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
