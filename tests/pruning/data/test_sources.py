import pytest

from pruning.data.sources import load_data
from pruning.errors import DataError, SettingError


def test_digits_are_a_task() -> None:
    task = load_data("digits", (3, 16, 16), seed=5)
    assert (task.n_classes, task.n_train, task.n_test) == (10, 1437, 360)
    assert task.normalisation.name == "half"
    assert task.seed == 5
    images, labels = next(task.train_batches(0, 64))
    assert images.shape == (64, 3, 16, 16)
    assert labels.shape == (64,)
    assert float(images.min()) == -1


def test_a_given_normalisation_is_used() -> None:
    task = load_data("digits", (3, 8, 8), normalisation="none")
    assert task.normalisation.mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("spec", ["mnist", "", "npz", "npz:", "folder:", "cifar10"])
def test_what_is_not_understood_lists_the_forms(spec: str) -> None:
    with pytest.raises(DataError, match=f"'{spec}' is not understood; give digits, cifar10:ROOT"):
        load_data(spec, (3, 8, 8))


@pytest.mark.parametrize("size", [(3, 0, 8), (-1, 8, 8), (8, 8)])
def test_an_input_size_of_nothing_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(SettingError, match="give channels, height and width above 0"):
        load_data("digits", size)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SettingError, match="Seed -1 is not allowed"):
        load_data("digits", (3, 8, 8), seed=-1)
