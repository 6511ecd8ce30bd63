import numpy as np
import onnx
import pytest

from latency.candidate import candidate_model, first_channels
from latency.errors import ModelFileError
from latency.recovery import recovered_widths
from latency.space import SearchSpace
from tests.nets import NETS

SPACES = {name: SearchSpace.from_model(make().model) for name, make in NETS.items()}


@pytest.mark.parametrize("name", sorted(name for name, space in SPACES.items() if space.groups))
def test_widths_come_back_from_the_shapes_of_the_weights(name: str) -> None:
    space = SPACES[name]
    rng = np.random.default_rng(0)
    n_tried = 0
    for _ in range(20):
        widths = rng.integers(0, space.full_widths + 1)
        widths = np.where([group.zero_allowed for group in space.groups], widths, np.maximum(widths, 1))
        if space.is_alive(widths):
            pruned = candidate_model(space, first_channels(widths))
            assert recovered_widths(space, pruned).tolist() == space.canonical(widths).tolist()
            n_tried += 1
    assert n_tried > 5


def test_a_network_with_other_weights_is_refused(residual_space: SearchSpace) -> None:
    for change, match in (
        (_without_stem, "is missing, for its widths it would be"),
        (lambda model: _widen(model, 10_000), "would leave .* of the 8 channels of group 'stem'"),
    ):
        other = onnx.ModelProto()
        other.CopyFrom(residual_space.model)
        change(other)
        with pytest.raises(ModelFileError, match=match):
            recovered_widths(residual_space, other)


def _without_stem(model: onnx.ModelProto) -> None:
    kept = [tensor for tensor in model.graph.initializer if not tensor.name.startswith("stem")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _widen(model: onnx.ModelProto, n_channels: int) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.startswith("stem"):
            tensor.dims[0] = n_channels
