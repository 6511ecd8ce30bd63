"""torchvision's MobileNetV2 for Imagenette, the ten classes of ImageNet that fast.ai chose.

The factory takes weights for ImageNet's 1000 classes as well as for the ten: of a classifier with 1000 rows
it keeps those of Imagenette's classes, which makes a trained ten-way classifier without any training.

    trimms run --model benchmarks/models/imagenette_mobilenet_v2.py:mobilenet_v2 --weights mobilenet_v2.pth …

To write the ten-way weights to a file of their own:

    python benchmarks/models/imagenette_mobilenet_v2.py IN.pth OUT.safetensors
"""

import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

# Imagenette's WordNet ids, in the order an image folder sorts them, and their rows among ImageNet's 1000.
CLASS_ROWS = {
    "n01440764": 0,  # tench
    "n02102040": 217,  # English springer
    "n02979186": 482,  # cassette player
    "n03000684": 491,  # chain saw
    "n03028079": 497,  # church
    "n03394916": 566,  # French horn
    "n03417042": 569,  # garbage truck
    "n03425413": 571,  # gas pump
    "n03445777": 574,  # golf ball
    "n03888257": 701,  # parachute
}
_N_IMAGENET = 1000
_CLASSIFIER = ("classifier.1.weight", "classifier.1.bias")


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 with ten classes, whose `load_state_dict` also takes ImageNet's 1000."""
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=len(CLASS_ROWS))
    model.register_load_state_dict_pre_hook(_before_loading)
    return model


def select_classes_(state: MutableMapping[str, Tensor]) -> None:
    """Keep the rows of Imagenette's classes where the classifier in `state` has ImageNet's; in place."""
    rows = torch.tensor(list(CLASS_ROWS.values()))
    for name in _CLASSIFIER:
        if name in state and len(state[name]) == _N_IMAGENET:
            state[name] = state[name][rows]


def _before_loading(module: nn.Module, state: MutableMapping[str, Tensor], *_: Any) -> None:
    select_classes_(state)


def _main(source: Path, target: Path) -> None:
    from pruning.weights import load_weights_, save_weights

    model = mobilenet_v2()
    load_weights_(model, source)
    save_weights(model, target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
