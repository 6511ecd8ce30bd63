import pytest
import torch

from pruning.data.normalisation import Normalisation, parse_normalisation
from pruning.errors import SettingError


def test_pixels_are_shifted_and_scaled_per_channel() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    values = Normalisation("explicit", (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)).apply(images)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, 3.0, 0.1]))


def test_imagenet_agrees_with_torchvision() -> None:
    from torchvision.transforms.v2.functional import normalize

    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    ours = parse_normalisation("imagenet", 3, "half")
    theirs = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(ours.apply(images), theirs)


@pytest.mark.parametrize(
    ("text", "n_channels", "name", "mean", "deviation"),
    [
        ("imagenet", 3, "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar", 3, "cifar", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("half", 3, "half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("none", 1, "none", (0.0,), (1.0,)),
        ("0.1,0.2, 0.3/1,2,3", 3, "explicit", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
        ("0.1/2", 3, "explicit", (0.1, 0.1, 0.1), (2.0, 2.0, 2.0)),
        (None, 3, "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (None, 1, "half", (0.5,), (0.5,)),
    ],
)
def test_a_normalisation_is_understood(
    text: str | None, n_channels: int, name: str, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> None:
    assert parse_normalisation(text, n_channels, "imagenet") == Normalisation(name, mean, deviation)


@pytest.mark.parametrize("text", ["imagnet", "0.5", "a/b", "0.5/0.5/0.5", ""])
def test_what_is_not_understood_lists_the_forms(text: str) -> None:
    with pytest.raises(SettingError, match=f"'{text}' is not understood; give imagenet, cifar, half, none"):
        parse_normalisation(text, 3, "imagenet")


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(SettingError, match="'imagenet' is for 3 channels, the images have 1"):
        parse_normalisation("imagenet", 1, "half")


@pytest.mark.parametrize("text", ["0.5,0.5,0.5/0.5", "0.5/0", "0.5/-1", "0.5/nan", "inf/1"])
def test_numbers_that_cannot_normalise_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="deviations above 0"):
        parse_normalisation(text, 3, "imagenet")
