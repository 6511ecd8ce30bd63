"""Every operator rule, beside a candidate that must compute what the gated network computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from latency.candidate import candidate_model, masked_model
from latency.operators import RULES
from latency.space import SearchSpace
from tests.nets import NetBuilder, max_relative_difference, run_onnx

UNARY = (
    "Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip
POOLS = {
    "AveragePool": {"kernel_shape": [2, 2]},
    "GlobalAveragePool": {},
    "GlobalLpPool": {},
    "GlobalMaxPool": {},
    "LpPool": {"kernel_shape": [2, 2]},
    "MaxPool": {"kernel_shape": [2, 2]},
}


@dataclass(frozen=True)
class Case:
    """A snippet between two convolutions: from [1, 8, 6, 6] to [1, n_channels, …], and its free slots."""

    build: Callable[[NetBuilder, str], str]
    slots: dict[str, int]
    n_channels: int = 8
    opset: int = 20


def ints(net: NetBuilder, name: str, *values: int) -> str:
    return net.constant(name, np.array(values, dtype=np.int64))


def plain(operator: str, **attributes: Any) -> Case:
    return Case(lambda net, data: net.op(operator, data, **attributes), {"a": 8})


def vector(net: NetBuilder, low: float = 0.5) -> str:
    return net.weight("vector", 8, 1, 1, low=low, high=1.5)


def with_vector(operator: str) -> Case:
    return Case(lambda net, data: net.op(operator, data, vector(net)), {"a": 8})


def with_branch(operator: str) -> Case:
    """Combined with another convolution's output: the two are tied."""
    return Case(lambda net, data: net.op(operator, data, net.conv("b", data, 8, 8)), {"a": 8})


def compared(operator: str) -> Case:
    def build(net: NetBuilder, data: str) -> str:
        chosen = net.op(operator, data, vector(net, low=-0.5))
        return str(net.op("Where", chosen, data, net.op("Neg", data)))

    return Case(build, {"a": 8})


def logical(operator: str) -> Case:
    def build(net: NetBuilder, data: str) -> str:
        zero = net.constant("zero", np.float32(0))
        high, low = net.op("Greater", data, zero), net.op("Less", data, vector(net))
        chosen = net.op("Not", high) if operator == "Not" else net.op(operator, high, low)
        return str(net.op("Where", chosen, data, zero))

    return Case(build, {"a": 8})


def positive(operator: str) -> Case:
    """Operators that need positive input."""
    return Case(lambda net, data: net.op(operator, net.op("Exp", data)), {"a": 8})


def reduce_positions(operator: str) -> Case:
    return Case(lambda net, data: net.op(operator, data, ints(net, "axes", 2, 3)), {"a": 8})


def reduce_dropping_axes(net: NetBuilder, data: str) -> str:
    reduced = net.op("ReduceMean", data, ints(net, "axes", -1), keepdims=0)
    return str(net.op("Unsqueeze", reduced, ints(net, "last", 3)))


def radix_sum(net: NetBuilder, data: str) -> str:
    """Split attention: the sum over one part of the channel axis ties what it adds."""
    data = net.op("Reshape", data, ints(net, "parted", 1, 2, 4, 6, 6))
    weights = net.op("Softmax", data, axis=1)
    return str(net.op("ReduceSum", net.op("Mul", weights, data), ints(net, "axes", 1), keepdims=0))


def selective_kernel(net: NetBuilder, data: str) -> str:
    """Two paths stacked, weighted by attention over the paths: a channel of both goes with its weights."""
    axis = ints(net, "axis", 1)
    paths = [net.op("Unsqueeze", net.conv(name, data, 8, 8), axis) for name in ("b", "c")]
    stacked = net.op("Concat", *paths, axis=1)
    weights = net.conv("select", net.op("GlobalAveragePool", data), 8, 16)
    weights = net.op("Softmax", net.op("Reshape", weights, ints(net, "apart", 1, 2, 8, 1, 1)), axis=1)
    return str(net.op("ReduceSum", net.op("Mul", stacked, weights), axis, keepdims=0))


def concat_positions(net: NetBuilder, data: str) -> str:
    return str(net.op("Concat", data, net.conv("b", data, 8, 8), axis=2))


def group_norm_by_reshape(net: NetBuilder, data: str) -> str:
    """As torch exports it: instance normalisation of whole groups, then scale and shift."""
    data = net.op("Reshape", data, ints(net, "groups", 1, 4, -1))
    ones, zeros = (net.constant(n, np.full(4, v, np.float32)) for n, v in (("ones", 1), ("zeros", 0)))
    data = net.op("InstanceNormalization", data, ones, zeros)
    data = net.op("Reshape", data, ints(net, "back", 1, 8, 6, 6))
    return str(net.op("Add", net.op("Mul", data, vector(net)), net.weight("shift", 8, 1, 1)))


def quantised(net: NetBuilder, data: str) -> str:
    """Rounded to 8 bits, and back."""
    scale, zero = net.constant("scale", np.float32(0.05)), net.constant("zero", np.uint8(100))
    return str(net.op("DequantizeLinear", net.op("QuantizeLinear", data, scale, zero), scale, zero))


def quantised_layer(net: NetBuilder, data: str) -> str:
    """A convolution whose weight and bias are kept in 8 and 32 bits, each channel with a scale of its own."""
    rng = np.random.default_rng(3)
    values = {"b.weight_quantized": rng.integers(-127, 128, (6, 8, 1, 1), dtype=np.int8)}
    values["bias_quantized"] = rng.integers(-99, 100, 6, dtype=np.int32)
    real = []
    for name, value in values.items():
        scale = net.weight(f"{name}_scale", 6, low=0.001, high=0.01)
        zero = net.constant(f"{name}_zero", np.zeros(6, value.dtype))
        real.append(net.op("DequantizeLinear", net.constant(name, value), scale, zero, axis=0))
    return str(net.op("Conv", data, *real))


def channels_last(net: NetBuilder, data: str) -> str:
    """Linear layers over the last axis, as in ConvNeXt; weights are stored transposed."""
    data = net.op("Transpose", data, perm=[0, 2, 3, 1])
    for name, n_in, n_out in (("b", 8, 12), ("c", 12, 6)):
        weight = net.op("Transpose", net.weight(f"{name}.weight", n_out, n_in), perm=[1, 0])
        data = net.op(
            "Relu", net.op("Add", net.op("MatMul", data, weight), net.weight(f"{name}.bias", n_out))
        )
    return str(net.op("Transpose", data, perm=[0, 3, 1, 2]))


def position_mixing(net: NetBuilder, data: str) -> str:
    left, right = net.weight("left.weight", 5, 6), net.weight("right.weight", 6, 4)
    return str(net.op("MatMul", left, net.op("MatMul", data, right)))


def layer_norm(net: NetBuilder, data: str) -> str:
    """Over positions only: each channel by itself."""
    return str(net.op("LayerNormalization", data, net.weight("scale", 6), net.weight("shift", 6), axis=-1))


def slices(net: NetBuilder, data: str) -> str:
    bounds = [ints(net, *item) for item in (("starts", 2), ("ends", 7), ("axes", 1), ("steps", 1))]
    return str(net.op("Slice", data, *bounds))


def reversed_slice(net: NetBuilder, data: str) -> str:
    bounds = [ints(net, *item) for item in (("starts", -1), ("ends", -99), ("axes", 2), ("steps", -1))]
    return str(net.op("Slice", data, *bounds))


def pads(net: NetBuilder, data: str) -> str:
    return str(net.op("Pad", data, ints(net, "pads", 0, 2, 0, 0, 0, 1, 0, 0)))


def resizes(net: NetBuilder, data: str) -> str:
    return str(net.op("Resize", data, "", "", ints(net, "sizes", 1, 8, 9, 9), mode="nearest"))


def expands(net: NetBuilder, data: str) -> str:
    return str(net.op("Expand", net.op("GlobalAveragePool", data), ints(net, "shape", 1, 8, 3, 3)))


def splits(net: NetBuilder, data: str) -> str:
    left, right = net.op("Split", data, ints(net, "sizes", 3, 5), axis=1, n_outputs=2)
    return str(net.op("Concat", right, left, axis=1))


def squeezes(net: NetBuilder, data: str) -> str:
    data = net.op("Squeeze", net.op("GlobalAveragePool", data), ints(net, "axes", 2, 3))
    return str(net.op("Unsqueeze", data, ints(net, "again", 2, 3)))


def flattens(net: NetBuilder, data: str) -> str:
    data = net.linear("b", net.op("Flatten", data), 288, 7)
    return str(net.op("Reshape", data, ints(net, "image", 1, 7, 1, 1)))


def gathers(net: NetBuilder, data: str) -> str:
    return str(net.op("Gather", data, ints(net, "picked", 6, 0, 3, 2, -1), axis=1))


def gathers_twice(net: NetBuilder, data: str) -> str:
    return str(net.op("Gather", data, ints(net, "picked", *range(7, -1, -1), *range(8)), axis=1))


def gathers_position(net: NetBuilder, data: str) -> str:
    row = net.op("Gather", data, net.constant("row", np.int64(2)), axis=2)
    return str(net.op("Unsqueeze", row, ints(net, "axis", 2)))


def tiles(net: NetBuilder, data: str) -> str:
    return str(net.op("Tile", data, ints(net, "repeats", 1, 2, 1, 2)))


def clips(net: NetBuilder, data: str) -> str:
    return str(net.op("Clip", data, net.constant("low", np.float32(-1)), net.constant("high", np.float32(1))))


def casts_like(net: NetBuilder, data: str) -> str:
    return str(net.op("CastLike", data, net.constant("like", np.float32(0))))


def batch_norm(net: NetBuilder, data: str) -> str:
    parts = [net.weight(name, 8, low=0.2) for name in ("scale", "shift", "mean", "var")]
    return str(net.op("BatchNormalization", data, *parts))


def instance_norm(net: NetBuilder, data: str) -> str:
    return str(net.op("InstanceNormalization", data, net.weight("scale", 8), net.weight("shift", 8)))


def conv_transpose(n_groups: int, n_out: int) -> Callable[[NetBuilder, str], str]:
    def build(net: NetBuilder, data: str) -> str:
        weight, bias = net.weight("up.weight", 8, n_out // n_groups, 2, 2), net.weight("up.bias", n_out)
        return str(net.op("ConvTranspose", data, weight, bias, strides=[2, 2], group=n_groups))

    return build


def blur(net: NetBuilder, data: str) -> str:
    """Depthwise convolution with one fixed kernel, expanded to all channels."""
    kernel = net.op("Expand", net.weight("kernel", 1, 1, 3, 3), ints(net, "shape", 8, 1, 3, 3))
    return str(net.op("Conv", data, kernel, group=8, pads=[1] * 4))


def frozen_batch_norm(net: NetBuilder, data: str) -> str:
    """Scale and shift computed from stored vectors."""
    weight, bias, mean, var = (net.weight(name, 8, low=0.2) for name in ("weight", "bias", "mean", "var"))
    scale = net.op("Div", weight, net.op("Sqrt", net.op("Add", var, net.constant("eps", np.float32(1e-5)))))
    shift = net.op("Sub", bias, net.op("Mul", mean, scale))
    shape = ints(net, "shape", 1, 8, 1, 1)
    scaled = net.op("Mul", data, net.op("Reshape", scale, shape))
    return str(net.op("Add", scaled, net.op("Reshape", shift, shape)))


def shared_statistics(net: NetBuilder, data: str) -> str:
    return str(net.op("Div", data, net.op("Exp", net.op("Abs", data))))


def gemm_untransposed(net: NetBuilder, data: str) -> str:
    data = net.op("Flatten", net.op("GlobalAveragePool", data))
    data = net.op("Gemm", data, net.weight("b.weight", 8, 6), net.weight("b.bias", 1, 6))
    return str(net.op("Reshape", data, ints(net, "image", 1, 6, 1, 1)))


CASES: dict[str, Case] = {
    **{name: plain(name) for name in UNARY},
    **{name: plain(name, **attributes) for name, attributes in POOLS.items()},
    **{name: reduce_positions(name) for name in REDUCTIONS},
    **{name: positive(name) for name in ("Log", "Reciprocal", "Sqrt")},
    **{name: compared(name) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{name: logical(name) for name in ("And", "Not", "Or")},
    **{name: with_branch(name) for name in ("Add", "Max", "Mean", "Min", "Mul", "Sub", "Sum")},
    "Add/vector": with_vector("Add"),
    "BatchNormalization": Case(batch_norm, {"a": 8}),
    "Cast": plain("Cast", to=1),
    "CastLike": Case(casts_like, {"a": 8}),
    "Clip": Case(clips, {"a": 8}),
    "Concat": Case(splits, {"a": 8}),
    "Concat/positions": Case(concat_positions, {"a": 8}),
    "Conv/blur": Case(blur, {"a": 8}),
    "Conv": Case(lambda net, data: net.conv("b", data, 8, 6), {"a": 8, "b": 6}, 6),
    "ConvTranspose": Case(conv_transpose(1, 6), {"a": 8, "up": 6}, 6),
    "ConvTranspose/depthwise": Case(conv_transpose(8, 8), {"a": 8}),
    "ConvTranspose/grouped": Case(conv_transpose(2, 12), {"a": 4, "up": 6}, 12),
    "DequantizeLinear": Case(quantised_layer, {"a": 8, "b": 6}, 6),
    "DepthToSpace": Case(lambda net, data: net.op("DepthToSpace", data, blocksize=2), {"a": 2}, 2),
    "DepthToSpace/CRD": Case(
        lambda net, data: net.op("DepthToSpace", net.conv("b", data, 8, 32), blocksize=2, mode="CRD"),
        {"a": 8, "b": 8},
    ),
    "DepthToSpace/DCR": Case(
        lambda net, data: net.op("DepthToSpace", net.conv("b", data, 8, 32), blocksize=2), {"a": 8, "b": 8}
    ),
    "Div": Case(shared_statistics, {"a": 8}),
    "Dropout": plain("Dropout"),
    "Expand": Case(expands, {"a": 8}),
    "Flatten": Case(flattens, {"a": 8, "b": 7}, 7),
    "Gather": Case(gathers, {"a": 5}, 5),
    "Gather/twice": Case(gathers_twice, {"a": 8}, 16),
    "Gather/position": Case(gathers_position, {"a": 8}),
    "Gemm": Case(gemm_untransposed, {"a": 8, "b": 6}, 6),
    "InstanceNormalization": Case(instance_norm, {"a": 8}),
    "InstanceNormalization/groups": Case(group_norm_by_reshape, {"a": 4}),
    "LRN": Case(lambda net, data: net.op("LRN", data, size=3), {}),
    "LayerNormalization": Case(layer_norm, {"a": 8}),
    "LogSoftmax": plain("LogSoftmax", axis=3),
    "MatMul": Case(channels_last, {"a": 8, "b": 12, "c": 6}, 6),
    "MatMul/positions": Case(position_mixing, {"a": 8}),
    "Mul/frozen": Case(frozen_batch_norm, {"a": 8}),
    "PRelu": with_vector("PRelu"),
    "Pad": Case(pads, {"a": 8}, 11),
    "Pow": Case(lambda net, data: net.op("Pow", data, net.constant("two", np.float32(2))), {"a": 8}),
    "QuantizeLinear": Case(quantised, {"a": 8}),
    "ReduceMean/dropping": Case(reduce_dropping_axes, {"a": 8}),
    "ReduceSum/paths": Case(selective_kernel, {"a": 8, "b": 8}),
    "ReduceSum/radix": Case(radix_sum, {"a": 4}, 4),
    "Reshape": Case(flattens, {"a": 8, "b": 7}, 7),
    "Resize": Case(resizes, {"a": 8}),
    "Slice": Case(slices, {"a": 5}, 5),
    "Slice/reversed": Case(reversed_slice, {"a": 8}),
    "Softmax": plain("Softmax", axis=2),
    "SpaceToDepth": Case(lambda net, data: net.op("SpaceToDepth", data, blocksize=2), {"a": 8}, 32),
    "Split": Case(splits, {"a": 8}),
    "Squeeze": Case(squeezes, {"a": 8}),
    "Swish": Case(lambda net, data: net.op("Swish", data), {"a": 8}, opset=24),
    "Tile": Case(tiles, {"a": 8}, 16),
    "Transpose": Case(channels_last, {"a": 8, "b": 12, "c": 6}, 6),
    "Unsqueeze": Case(squeezes, {"a": 8}),
    "Where": compared("Greater"),
}


def space_of(case: Case) -> SearchSpace:
    net = NetBuilder((1, 3, 6, 6))
    data = case.build(net, net.conv("a", "input", 3, 8))
    return SearchSpace.from_model(net.model(net.head(data, case.n_channels), opset=case.opset))


def test_every_rule_has_a_case() -> None:
    assert {name.partition("/")[0] for name in CASES} == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_the_free_channels_are_those_that_the_operator_leaves_free(name: str) -> None:
    found: dict[str, int] = {}
    for group in space_of(CASES[name]).groups:
        layer = group.name.partition("#")[0]
        found[layer] = found.get(layer, 0) + group.n_channels
    assert found == CASES[name].slots


# Swish is an operator of opset 24, newer than some runtimes.
@pytest.mark.parametrize("name", [name for name in CASES if name != "Swish"])
def test_a_candidate_computes_what_the_gated_network_computes(name: str) -> None:
    space = space_of(CASES[name])
    rng = np.random.default_rng(3)
    for _ in range(2):
        kept = [
            np.sort(rng.permutation(group.n_channels)[: rng.integers(1, group.n_channels + 1)])
            for group in space.groups
        ]
        gated, cut = run_onnx(masked_model(space, kept)), run_onnx(candidate_model(space, kept))
        assert max_relative_difference(gated, cut) <= 1e-5
