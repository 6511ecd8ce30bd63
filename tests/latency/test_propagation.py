import numpy as np
import onnx
import pytest

from latency.graph import make_graph
from latency.labels import NO_LABEL
from latency.operators import RULES
from latency.propagation import OUTPUT, Propagation, adopt, aligned, propagate
from latency.structure import IntArray
from tests.nets import NetBuilder, residual, unknown_operator


def state_of(model: onnx.ModelProto) -> Propagation:
    return propagate(make_graph(model), RULES)


def classes_of(state: Propagation, constant: str, axis: int) -> IntArray:
    return state.ties.classes()[state.axes[constant, axis].labels]


def reasons(state: Propagation) -> set[str]:
    return set(state.ties.pin_reasons(state.ties.classes()).values())


def test_inputs_have_no_labels() -> None:
    assert not state_of(residual().model).labels["input"].any()


def test_outputs_are_pinned() -> None:
    assert reasons(state_of(residual().model)) == {OUTPUT}


def test_a_sum_ties_its_operands() -> None:
    state = state_of(residual().model)
    assert (classes_of(state, "stem.weight", 0) == classes_of(state, "b.weight", 0)).all()
    assert not (classes_of(state, "stem.weight", 0)[:6] == classes_of(state, "a.weight", 0)).any()


def test_what_reads_a_channel_has_its_label() -> None:
    state = state_of(residual().model)
    assert (classes_of(state, "a.weight", 1) == classes_of(state, "stem.weight", 0)).all()
    assert state.axes["a.weight", 1].role == "in"
    assert state.axes["stem.weight", 0].role == "out"


def test_an_operator_without_a_rule_pins_what_it_reads_and_is_named() -> None:
    state = state_of(unknown_operator().model)
    assert any("LpNormalization" in reason for reason in reasons(state))
    (opaque,) = state.opaque
    assert opaque.startswith("lpnormalization")


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    net = NetBuilder()
    model = net.model(net.head(net.op("Relu", net.conv("a", "input", 3, 4)), 4))
    model.graph.node[1].domain = "com.example"
    state = state_of(model)
    assert "operator com.example::Relu ('relu_1') is not understood" in reasons(state)


def test_a_spatial_map_times_channels_ties_nothing() -> None:
    """Spatial attention: one channel is spread over all; it stays, they stay free."""
    net = NetBuilder()
    data = net.conv("a", "input", 3, 8)
    scaled = net.op("Mul", net.op("Sigmoid", net.conv("map", data, 8, 1)), data)
    state = state_of(net.model(net.head(scaled, 8)))
    assert len(set(classes_of(state, "a.weight", 0).tolist())) == 8
    assert any("broadcasts it over channels" in reason for reason in reasons(state))


def test_channels_laid_out_as_positions_are_pinned_by_a_convolution() -> None:
    """ECA attention: a convolution slides over the channel axis."""
    net = NetBuilder()
    data = net.conv("a", "input", 3, 8)
    shape = net.constant("row", np.array([1, 1, 8], dtype=np.int64))
    pooled = net.op("Reshape", net.op("GlobalAveragePool", data), shape)
    mixed = net.op("Conv", pooled, net.weight("eca.weight", 1, 1, 3), pads=[1, 1])
    back = net.constant("column", np.array([1, 8, 1, 1], dtype=np.int64))
    output = net.op("Mul", data, net.op("Sigmoid", net.op("Reshape", mixed, back)))
    state = state_of(net.model(net.head(output, 8)))
    assert any("mixes channels laid out as positions" in reason for reason in reasons(state))


def test_a_computed_dense_weight_pins_what_it_reads() -> None:
    net = NetBuilder()
    data = net.conv("a", "input", 3, 8)
    weight = net.op("Softmax", net.weight("w", 4, 8, 1, 1), axis=1)
    state = state_of(net.model(net.head(net.op("Conv", data, weight), 4)))
    assert any("is computed, not stored" in reason for reason in reasons(state))


def test_a_view_of_a_constant_is_bound_on_the_constant() -> None:
    net = NetBuilder((1, 6, 3))
    turned = net.op("Transpose", net.weight("b.weight", 5, 3), perm=[1, 0])
    state = state_of(net.model(net.op("MatMul", "input", turned)))
    assert set(state.axes) == {("b.weight", 0), ("b.weight", 1)}
    assert state.axes["b.weight", 0].role == "out"


def test_layers_on_constants_alone_make_no_channels() -> None:
    """Position-bias networks run on a table of coordinates: nothing is saved there."""
    net = NetBuilder((1, 4))
    table = net.op("MatMul", net.weight("table", 4, 2), net.weight("mlp.weight", 2, 4))
    state = state_of(net.model(net.op("Add", "input", table)))
    assert not state.axes


def test_adopting_ties_along_axes_that_the_constant_does_not_have() -> None:
    net = NetBuilder()
    net.weight("scale", 4, 1, 1)
    data = net.op("Mul", net.conv("a", "input", 3, 4), "scale")
    state = Propagation(make_graph(net.model(data)))
    labels = state.ties.fresh(8).reshape(1, 4, 2, 1)
    adopt(state, "scale", labels)
    assert len(set(state.ties.classes()[labels.ravel()].tolist())) == 4
    assert (state.axes["scale", 0].labels == labels[0, :, 0, 0]).all()


def test_aligned_puts_axes_in_front() -> None:
    assert aligned(np.zeros((3, 1), dtype=np.int64), 4).shape == (1, 1, 3, 1)


@pytest.mark.parametrize("name", ["Add", "Concat"])
def test_what_meets_the_networks_input_is_pinned(name: str) -> None:
    net = NetBuilder((1, 4, 8, 8))
    data = net.conv("a", "input", 4, 4)
    joined = net.op("Add", data, "input") if name == "Add" else net.op("Concat", data, "input", axis=2)
    state = state_of(net.model(net.head(joined, 4)))
    assert (classes_of(state, "a.weight", 0) != NO_LABEL).all()
    assert any("fixed" in reason or "never removed" in reason for reason in reasons(state))
