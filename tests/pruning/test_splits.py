import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.splits import split_elsewhere_


class _Inner(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        first, second = images.chunk(2, dim=1)
        return torch.cat([second, first], dim=1)


class _Outer(nn.Module):
    """Splits before and after a module that splits on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(6, 6, 1)
        self.inner = _Inner()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        before = torch.split(images, 3, dim=1)
        return (*before, self.inner(images), *torch.tensor_split(images, 2, dim=1))


IMAGES = torch.arange(6.0).reshape(1, 6, 1, 1)


def channels(tensor: Tensor) -> list[float]:
    return tensor[0, :, 0, 0].tolist()


def test_each_module_counts_its_own_splits() -> None:
    network = _Outer()
    split_elsewhere_(network, [(2, 4), (5, 1)])
    split_elsewhere_(network.inner, [(1, 5)])

    first, second, inner, third, fourth = network(IMAGES)

    assert (channels(first), channels(second)) == ([0, 1], [2, 3, 4, 5])
    assert channels(inner) == [1, 2, 3, 4, 5, 0]
    assert (channels(third), channels(fourth)) == ([0, 1, 2, 3, 4], [5])


def test_splits_without_new_sizes_stay_as_the_code_says() -> None:
    network = _Outer()
    split_elsewhere_(network, [None, (4, 2)])
    split_elsewhere_(network.inner, [None])

    first, _, inner, third, _ = network(IMAGES)

    assert channels(first) == [0, 1, 2]
    assert channels(inner) == [3, 4, 5, 0, 1, 2]
    assert channels(third) == [0, 1, 2, 3]


def test_a_part_may_be_empty() -> None:
    network = _Inner()
    split_elsewhere_(network, [(6, 0)])

    assert channels(network(IMAGES)) == [0, 1, 2, 3, 4, 5]


def test_names_of_weights_and_the_class_stay() -> None:
    network = _Outer()
    names = list(network.state_dict())

    split_elsewhere_(network, [(2, 4), (5, 1)])

    assert list(network.state_dict()) == names
    assert isinstance(network, _Outer)
    assert type(network).__name__ == "_Outer"
    assert isinstance(copy.deepcopy(network), _Outer)


def test_other_modules_of_the_class_stay_as_they_are() -> None:
    changed, other = _Inner(), _Inner()

    split_elsewhere_(changed, [(1, 5)])

    assert channels(other(IMAGES)) == [3, 4, 5, 0, 1, 2]


def test_a_forward_that_splits_more_often_than_it_did_is_refused() -> None:
    network = _Inner()
    split_elsewhere_(network, [(1, 5), (2, 4)])

    with pytest.raises(RuntimeError, match="_Inner splits 1 times; it did so 2 times when traced"):
        network(IMAGES)


def test_an_exported_program_has_the_new_sizes() -> None:
    network = _Outer().eval()
    split_elsewhere_(network, [(2, 4), (5, 1)])
    split_elsewhere_(network.inner, [(1, 5)])

    program = torch.export.export(network, (IMAGES,)).module()

    for found, wanted in zip(program(IMAGES), network(IMAGES), strict=True):
        assert torch.equal(found, wanted)


class _Slicing(nn.Module):
    """Adds to its first channels, then keeps the others, as in ReXNet."""

    def forward(self, images: Tensor) -> Tensor:
        positions = images[:, :, 0:, :]
        return torch.cat([positions[:, 0:4] + 10, positions[:, -2:], positions[:, :1, 0].unsqueeze(2)], dim=1)


def test_slices_of_channels_are_cut_where_they_now_lie() -> None:
    network = _Slicing()
    images = IMAGES[:, [0, 2, 3, 5]]  # of six channels, two of the first four and one of the last two went
    split_elsewhere_(network, [], [(6, 0, 4, 4, 0, 3), (6, 4, 6, 4, 3, 4), (6, 0, 1, 4, 0, 1)])

    assert channels(network(images)) == [10, 12, 13, 5, 0]


class _SlicingTwo(nn.Module):
    """Slices two tensors by the same number, as in DPN."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first[:, 2:], second[:, 2:]], dim=1)


def test_the_same_slice_of_tensors_of_two_sizes() -> None:
    network = _SlicingTwo()
    split_elsewhere_(network, [], [(6, 2, 6, 5, 1, 5), (4, 2, 4, 3, 2, 3)])

    assert channels(network(IMAGES[:, :5], IMAGES[:, :3])) == [1, 2, 3, 4, 2]


def test_the_same_slice_of_two_tensors_of_one_size_in_turn() -> None:
    network = _SlicingTwo()
    split_elsewhere_(network, [], [(6, 2, 6, 5, 1, 5), (6, 2, 6, 5, 2, 5)])

    for _ in range(2):
        assert channels(network(IMAGES[:, :5], IMAGES[:, :5])) == [1, 2, 3, 4, 2, 3, 4]


class _Pooling(nn.Module):
    """Everything that PyTorch refuses to do to images without channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blur", torch.full((4, 1, 3, 3), 1 / 9))
        self.blur: Tensor

    def forward(self, images: Tensor) -> list[Tensor]:
        return [
            F.max_pool2d(images, 2),
            F.avg_pool2d(images, 3, stride=2),
            F.adaptive_avg_pool2d(images, 3),
            F.adaptive_max_pool2d(images, (2, 1)),
            F.interpolate(images, scale_factor=2, mode="bilinear"),
            F.pad(images, (1, 1, 1, 1), mode="reflect"),
            F.conv2d(images, self.blur, stride=2, groups=4),
        ]


def test_images_without_channels_are_pooled_to_the_size_of_others() -> None:
    network = _Pooling()
    wanted = [tuple(made.shape) for made in network(torch.rand(2, 4, 9, 7))]
    split_elsewhere_(network, [])

    made = network(torch.rand(2, 0, 9, 7))

    assert [(n, 4, height, width) for n, _, height, width in (m.shape for m in made)] == wanted
    assert all(m.shape[1] == 0 for m in made)


def test_images_with_channels_are_pooled_as_ever() -> None:
    network = _Pooling()
    images = torch.rand(2, 4, 9, 7)
    wanted = network(images)
    split_elsewhere_(network, [])

    for made, expected in zip(network(images), wanted, strict=True):
        assert torch.equal(made, expected)
