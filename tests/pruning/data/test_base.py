import dataclasses
import json

import torch

from pruning.data.augmentation import ShiftAndFlip
from pruning.data.base import ImageTask, MemorySplit
from pruning.data.normalisation import Normalisation


def _split(n: int, size: int = 4) -> MemorySplit:
    """Images whose every pixel is their own index."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, size, size).contiguous()
    return MemorySplit(images, torch.arange(n) % 2)


def _task(n_train: int = 20, n_test: int = 6, size: int = 4) -> ImageTask:
    return ImageTask(
        source="npz:x",
        input_size=(3, 4, 4),
        n_classes=2,
        normalisation=Normalisation("none", (0.0,) * 3, (1.0,) * 3),
        augmentation=ShiftAndFlip(0, flip=False),
        train=_split(n_train, size),
        calibration=_split(n_train),
        test=_split(n_test),
        seed=3,
    )


def _indices(batches: object) -> list[int]:
    return [round(float(v) * 255) for batch in batches for v in batch.images[:, 0, 0, 0]]  # type: ignore[attr-defined]


def test_an_epoch_visits_every_image_once_with_its_label() -> None:
    batches = list(_task().train_batches(0, 5))
    assert [len(batch.labels) for batch in batches] == [5] * 4
    assert sorted(_indices(batches)) == list(range(20))
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long() % 2, labels)


def test_an_epoch_is_the_same_whatever_came_before() -> None:
    task = _task()
    list(task.train_batches(0, 5))
    list(task.calibration_batches(5))
    assert _indices(task.train_batches(1, 5)) == _indices(_task().train_batches(1, 5))


def test_epochs_and_seeds_differ_in_order() -> None:
    task = _task()
    other = dataclasses.replace(task, seed=4)
    orders = [_indices(task.train_batches(epoch, 5)) for epoch in range(3)]
    orders += [_indices(other.train_batches(epoch, 5)) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6


def test_an_epoch_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(_task().train_batches(0, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_last_incomplete_batch_is_left_out() -> None:
    task = _task()
    assert task.steps_per_epoch(6) == 3
    assert [len(batch.labels) for batch in task.train_batches(0, 6)] == [6, 6, 6]


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    task = _task()
    assert task.steps_per_epoch(64) == 1
    assert [len(batch.labels) for batch in task.train_batches(0, 64)] == [20]


def test_calibration_takes_the_same_random_images_each_time() -> None:
    task = _task()
    first = _indices(task.calibration_batches(8, 3))
    assert len(set(first)) == 8
    assert first == _indices(task.calibration_batches(8, 5))
    assert first != list(range(8))
    assert len(_indices(task.calibration_batches(100))) == 20


def test_test_images_come_in_their_own_order() -> None:
    assert _indices(_task().test_batches(4)) == list(range(6))


def test_calibration_images_are_prepared_as_test_images() -> None:
    assert next(_task(size=6).calibration_batches(4)).images.shape == (4, 3, 4, 4)


def test_the_record_is_json() -> None:
    record = json.loads(json.dumps(_task().record()))
    assert record["n_train"] == 20
    assert record["n_test"] == 6
    assert record["normalisation"] == {"name": "none", "mean": [0.0] * 3, "deviation": [1.0] * 3}
    assert "ShiftAndFlip" in record["augmentation"]
