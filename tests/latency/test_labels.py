import numpy as np

from latency.labels import NO_LABEL, LabelTies, collapse, varying_axes


def test_labels_start_tied_to_nothing() -> None:
    ties = LabelTies()
    labels = ties.fresh(4)
    assert NO_LABEL not in labels
    assert len(set(ties.classes()[labels].tolist())) == 4


def test_a_tie_joins_labels_element_by_element() -> None:
    ties = LabelTies()
    left, right = ties.fresh(3), ties.fresh(3)
    ties.tie(left, right, "sum")
    classes = ties.classes()
    assert (classes[left] == classes[right]).all()
    assert len(set(classes[left].tolist())) == 3


def test_ties_are_transitive_over_long_chains() -> None:
    ties = LabelTies()
    layers = [ties.fresh(2) for _ in range(200)]
    for left, right in zip(layers[1:], layers, strict=False):
        ties.tie(left, right, "chain")
    classes = ties.classes()
    assert {tuple(classes[layer].tolist()) for layer in layers} == {(1, 2)}


def test_a_tie_broadcasts() -> None:
    ties = LabelTies()
    labels = ties.fresh(6).reshape(2, 3)
    ties.tie(labels, labels[:1], "tied along the first axis")
    assert len(set(ties.classes()[labels].ravel().tolist())) == 3


def test_a_label_tied_to_a_fixed_channel_is_pinned_with_the_reason() -> None:
    ties = LabelTies()
    labels = ties.fresh(3)
    ties.tie(labels, np.array([NO_LABEL, labels[1], NO_LABEL]), "the input")
    assert ties.pin_reasons(ties.classes()) == {1: "the input", 3: "the input"}


def test_a_pin_holds_for_the_whole_class() -> None:
    ties = LabelTies()
    left, right = ties.fresh(2), ties.fresh(2)
    ties.pin(right[:1], "an output")
    ties.tie(left, right, "sum")
    assert dict(ties.pin_reasons(ties.classes())) == {int(left[0]): "an output"}


def test_the_first_reason_for_a_pin_is_reported() -> None:
    ties = LabelTies()
    labels = ties.fresh(1)
    ties.pin(labels, "first")
    ties.pin(labels, "second")
    assert ties.pin_reasons(ties.classes()) == {1: "first"}


def test_tie_along_returns_the_labels_without_that_axis() -> None:
    ties = LabelTies()
    labels = ties.fresh(6).reshape(3, 2)
    kept = ties.tie_along(labels, 0, "positions")
    assert kept.tolist() == [[1, 2]]
    assert ties.classes()[labels].tolist() == [[1, 2]] * 3


def test_collapse_drops_axes_along_which_labels_are_constant() -> None:
    labels = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (2, 3, 4))
    assert collapse(labels).shape == (1, 3, 1)
    assert varying_axes(collapse(labels)) == [1]
