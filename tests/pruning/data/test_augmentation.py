import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.data.augmentation import Augmentation, ResizedCropAndFlip, ShiftAndFlip


def _images(n: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augmentation", [ShiftAndFlip(2, flip=True), ResizedCropAndFlip()])
class TestAugmentation:
    def test_equal_generators_give_equal_images(self, augmentation: Augmentation) -> None:
        images = _images(8, 8)
        first, second = (augmentation(images, (8, 8), _generator()) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, augmentation(images, (8, 8), _generator(1)))

    def test_the_given_images_are_left_as_they_are(self, augmentation: Augmentation) -> None:
        images = _images(8, 8)
        augmentation(images, (8, 8), _generator())
        assert torch.equal(images, _images(8, 8))

    def test_images_of_one_colour_keep_it_inside(self, augmentation: Augmentation) -> None:
        images = torch.full((16, 3, 9, 9), 77, dtype=torch.uint8)
        varied = augmentation(images, (9, 9), _generator())
        assert varied.dtype == torch.uint8
        assert varied.shape == images.shape
        assert (varied[:, :, 4, 4] == 77).all()


def test_a_shift_is_a_crop_of_the_padded_image_mirrored_or_not() -> None:
    images = _images(400, 6)
    varied = ShiftAndFlip(1, flip=True)(images, (6, 6), _generator())
    seen = set()
    for image, result in zip(F.pad(images, [1] * 4), varied, strict=True):
        for top in range(3):
            for left in range(3):
                window = image[:, top : top + 6, left : left + 6]
                seen |= {(top, left, False)} if torch.equal(result, window) else set()
                seen |= {(top, left, True)} if torch.equal(result, window.flip(2)) else set()
    assert len(seen) == 18


def test_without_flip_nothing_is_mirrored() -> None:
    images = _images(64, 6)
    varied = ShiftAndFlip(0, flip=False)(images, (6, 6), _generator())
    assert torch.equal(varied, images)


def test_the_whole_image_resized_is_what_torch_gives() -> None:
    images = _images(16, 24)
    varied = ResizedCropAndFlip(smallest_area=1, largest_aspect=1)(images, (16, 16), _generator())
    resized = F.interpolate(images.float(), size=(16, 16), mode="bilinear", antialias=True)
    straight = (varied - resized).abs().amax((1, 2, 3))
    mirrored = (varied - resized.flip(3)).abs().amax((1, 2, 3))
    assert torch.minimum(straight, mirrored).max() <= 1
    assert 2 <= (mirrored < straight).sum() <= 14


def test_crops_cover_at_least_the_smallest_area_and_lie_inside() -> None:
    crop = ResizedCropAndFlip(smallest_area=0.3, largest_aspect=1.5)
    boxes = crop._boxes(2000, 40, 60, _generator())
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / (40 * 60)
    assert float(left.min()) >= 0
    assert float(top.min()) >= 0
    assert float(right.max()) <= 60 + 1e-4
    assert float(bottom.max()) <= 40 + 1e-4
    assert 0.24 < float(area.min()) < 0.35
    assert float(area.max()) > 0.95
