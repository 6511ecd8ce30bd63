"""Labels: one number per channel of every tensor, and the ties that make channels live or die together."""

from collections.abc import Mapping

import numpy as np

from latency.structure import IntArray

NO_LABEL = 0
"""Label of elements that are never removed: network inputs, constants, what is not understood."""


class LabelTies:
    """Makes labels, ties them to each other, and pins those that must stay.

    A tensor's labels are an integer array that broadcasts to the tensor's shape: axes along which all
    elements live and die together have length 1. Ties and pins are collected and resolved at once.
    """

    def __init__(self) -> None:
        self._n_labels = 1  # label 0 is NO_LABEL
        self._edges: list[IntArray] = []
        self._pins: list[tuple[IntArray, str]] = []

    def fresh(self, n_channels: int) -> IntArray:
        """New labels, [n_channels], tied to nothing."""
        first = self._n_labels
        self._n_labels += n_channels
        return np.arange(first, self._n_labels, dtype=np.int64)

    def tie(self, left: IntArray, right: IntArray, reason: str) -> None:
        """Tie two broadcastable label arrays element by element.

        A label tied to `NO_LABEL` is pinned, for `reason`.
        """
        pairs = np.stack([side.ravel() for side in np.broadcast_arrays(left, right)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.size == 0:
            return
        labelled = (pairs != NO_LABEL).all(axis=0)
        if not labelled.all():
            self.pin(pairs[:, ~labelled].max(axis=0), reason)
        if labelled.any():
            self._edges.append(np.unique(pairs[:, labelled], axis=1))

    def tie_along(self, labels: IntArray, axis: int, reason: str) -> IntArray:
        """Tie all elements along `axis`; returns the labels with that axis collapsed to length 1."""
        first = np.take(labels, [0], axis=axis)
        if labels.shape[axis] > 1:
            self.tie(labels, first, reason)
        return first

    def pin(self, labels: IntArray, reason: str) -> None:
        """Pin labels: their channels are never removed, for `reason`."""
        labels = np.unique(labels)
        labels = labels[labels != NO_LABEL]
        if labels.size:
            self._pins.append((labels, reason))

    def classes(self) -> IntArray:
        """Class of each label, [n_labels]: the smallest label it is tied to. Ignores pins."""
        parent = np.arange(self._n_labels, dtype=np.int64)
        if not self._edges:
            return parent
        left, right = np.concatenate(self._edges, axis=1)
        while True:
            low = np.minimum(parent[left], parent[right])
            before = parent.copy()
            for side in (left, right):
                np.minimum.at(parent, before[side], low)
            parent = parent[parent]
            if np.array_equal(parent, before) and np.array_equal(parent[left], parent[right]):
                return parent

    def pin_reasons(self, classes: IntArray) -> Mapping[int, str]:
        """First reason for which each pinned class is pinned, by class."""
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for label in np.unique(classes[labels]):
                reasons.setdefault(int(label), reason)
        return reasons


def collapse(labels: IntArray) -> IntArray:
    """The same labels with every axis along which they are constant reduced to length 1."""
    for axis in range(labels.ndim):
        first = np.take(labels, [0], axis=axis)
        if labels.shape[axis] > 1 and (labels == first).all():
            labels = first
    return labels


def varying_axes(labels: IntArray) -> list[int]:
    """Axes along which the labels differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]
