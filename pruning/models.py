"""Models by name: `torchvision:NAME`, `timm:NAME` or `path/to/file.py:factory`, with their weights."""

import contextlib
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import ModelSpecError
from pruning.weights import load_weights_, require_finite

_FORMS = "torchvision:NAME, timm:NAME or path/to/file.py:factory"
# Two of torchvision's nets have auxiliary heads, used in training only, and start slowly unless told not to.
_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def load_model(spec: str, weights: Path | None = None, n_classes: int | None = None) -> nn.Module:
    """The network that `spec` names, in evaluation mode, with the weights of a file where one is given.

    Args:
        spec: `torchvision:NAME`, `timm:NAME`, or `path/to/file.py:factory`, where the factory is called
            without arguments, or with `num_classes` where it accepts that and `n_classes` is given.
        weights: a safetensors or torch file of a state dict; None leaves what the factory made.
        n_classes: number of classes; None leaves the model's own default.

    Raises:
        ModelSpecError: the model is unknown, cannot be built, or is no convolutional network.
        WeightsError: the weights cannot be read or do not fit.
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise ModelSpecError(f"Model '{spec}' is not understood; give {_FORMS}.")
    build = _SOURCES.get(source)
    model = build(name, n_classes) if build else _from_file(Path(source), name, n_classes)
    _require_convolutions(model, spec)
    if weights is not None:
        load_weights_(model, weights)
    require_finite(model, f"Model '{spec}'")
    return model.eval()


def require_fit(model: nn.Module, input_size: Sequence[int], n_classes: int) -> None:
    """Raise ModelSpecError unless `model` turns images [N, *input_size] into scores [N, n_classes].

    Args:
        model: left as it is.
        input_size: (channels, height, width) in pixels.
        n_classes: classes of the data.
    """
    scores = _trial_scores(model, tuple(input_size))
    if scores.ndim != 2 or scores.shape[0] != 2:
        raise ModelSpecError(
            f"The model returns a tensor of shape {list(scores.shape)} for 2 images; "
            "a classifier that returns [2, classes] is needed."
        )
    if scores.shape[1] != n_classes:
        raise ModelSpecError(
            f"The model gives {scores.shape[1]} scores an image, the data has {n_classes} classes; "
            "give a model, and weights, made for these classes."
        )


def class_scores(output: Any) -> Tensor:
    """The classifier's scores, [N, classes], from what a network returns; extra heads are left out."""
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ModelSpecError(
            f"The model returns a {type(output).__name__}; a classifier that returns a tensor is needed."
        )
    return output


def _trial_scores(model: nn.Module, input_size: tuple[int, ...]) -> Tensor:
    parameter = next(model.parameters())
    images = torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in model.modules()}
    try:
        with torch.inference_mode():
            return class_scores(model.eval()(images))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ModelSpecError(
            f"The model does not take images of {'x'.join(map(str, input_size))}: {_first_line(error)}; "
            "give the input size it is made for."
        ) from error
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _from_torchvision(name: str, n_classes: int | None) -> nn.Module:
    import torchvision

    segmenting = torchvision.models.list_models(module=torchvision.models.segmentation)
    known = [*torchvision.models.list_models(module=torchvision.models), *segmenting]
    _require_known("torchvision", name, known)
    options: dict[str, Any] = dict(_TORCHVISION_OPTIONS.get(name, {}))
    if name in segmenting:
        options["weights_backbone"] = None
    if n_classes is not None:
        options["num_classes"] = n_classes
    return _built(f"torchvision:{name}", lambda: torchvision.models.get_model(name, weights=None, **options))


def _from_timm(name: str, n_classes: int | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelSpecError(
            f"Model 'timm:{name}' needs timm, which is not installed: pip install timm."
        ) from error
    _require_known("timm", name, timm.list_models())
    options: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    return _built(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **options))


_SOURCES: dict[str, Callable[[str, int | None], nn.Module]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _from_file(path: Path, name: str, n_classes: int | None) -> nn.Module:
    if not path.is_file():
        raise ModelSpecError(f"Model file '{path}' does not exist; give {_FORMS}.")
    # The path holds while the factory runs too: it may import its neighbours only then.
    with _importable(path.resolve().parent):
        module = _imported(path)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise ModelSpecError(
                f"Model file '{path}' has no function '{name}'; it has: {_functions(module)}."
            )
        options = _factory_options(factory, n_classes)
        return _built(f"{path}:{name}", lambda: factory(**options))


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in `folder` be imported by name inside the block."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _imported(path: Path) -> ModuleType:
    # The name cannot clash with an installed module's, and is the same in every process.
    name = f"trimms_model_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ModelSpecError(f"Model file '{path}' is no Python file; give {_FORMS}.")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and torch.export look their module up here.
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    # The user's own code may raise anything.
    except Exception as error:
        del sys.modules[name]
        raise ModelSpecError(
            f"Model file '{path}' cannot be imported: {type(error).__name__}: {_first_line(error)}."
        ) from error
    return module


def _functions(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(sorted(own)) or "none"


def _factory_options(factory: Callable[..., Any], n_classes: int | None) -> dict[str, int]:
    if n_classes is None or "num_classes" not in inspect.signature(factory).parameters:
        return {}
    return {"num_classes": n_classes}


def _built(spec: str, build: Callable[[], Any]) -> nn.Module:
    try:
        model = build()
    # The user's own code may raise anything.
    except Exception as error:
        raise ModelSpecError(
            f"Model '{spec}' cannot be built: {type(error).__name__}: {_first_line(error)}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelSpecError(
            f"Model '{spec}' is a {type(model).__name__}; the factory has to return an nn.Module."
        )
    return model


def _require_known(source: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"it knows {', '.join(known[:5])}, …"
    raise ModelSpecError(f"Model '{source}:{name}' is unknown; {hint}")


def _require_convolutions(model: nn.Module, spec: str) -> None:
    # A 4-D parameter outside nn.Conv2d is a convolution that the user's code calls itself.
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return
    if any(parameter.ndim == 4 for parameter in model.parameters()):
        return
    raise ModelSpecError(
        f"Model '{spec}' ({type(model).__name__}) has no 2-D convolution; "
        "only convolutional networks are pruned."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
