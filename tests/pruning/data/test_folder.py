import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.data.base import MemorySplit
from pruning.data.folder import StreamedSplit, load_folder
from pruning.data.sources import load_data
from pruning.errors import DataError

_SIZE = (3, 16, 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, red and blue, of 4 training and 2 validation images, wide and tall."""
    for part, n_images in (("train", 4), ("val", 2)):
        for name, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 200))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(n_images):
                size = (40, 24) if index % 2 else (20, 30)
                Image.new("RGB", size, colour).save(folder / f"{index}.png")
    return tmp_path


def test_images_are_decoded_into_memory(root: Path) -> None:
    source = load_folder(str(root), _SIZE, progress=False)
    assert isinstance(source.train, MemorySplit)
    assert source.train.images.shape == (8, 3, 18, 18)
    images, labels = next(source.test.batches(torch.arange(4), 4))
    assert images.shape == (4, *_SIZE)
    # Classes in the order of their names: blue, red.
    assert labels.tolist() == [0, 0, 1, 1]
    assert images[:, 0].amax((1, 2)).tolist() == [10, 10, 200, 200]
    assert "decoded once into memory" in source.notes


@pytest.mark.parametrize("n_workers", [0, 2])
def test_streamed_images_are_those_in_memory(root: Path, n_workers: int) -> None:
    kept = load_folder(str(root), _SIZE, progress=False)
    streamed = load_folder(str(root), _SIZE, largest_in_memory_bytes=0, progress=False)
    assert isinstance(streamed.train, StreamedSplit)
    assert "decoded at every visit" in streamed.notes
    split = dataclasses.replace(streamed.train, n_workers=n_workers)
    order = torch.tensor([5, 0, 7, 2, 1])
    for ours, theirs in zip(split.batches(order, 2), kept.train.batches(order, 2), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_calibration_images_are_prepared_as_test_images(root: Path) -> None:
    shutil.copy(root / "train" / "red" / "1.png", root / "val" / "red" / "1.png")
    source = load_folder(str(root), _SIZE, progress=False)
    ours = next(source.calibration.batches(torch.tensor([5]), 1))
    theirs = next(source.test.batches(torch.tensor([3]), 1))
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(("side", "kept"), [(8, 16), (16, 16), (17, 17), (40, 18)])
def test_training_images_keep_a_margin_where_the_files_have_the_detail(
    root: Path, side: int, kept: int
) -> None:
    for path in root.glob("train/*/*.png"):
        Image.new("RGB", (side, 2 * side)).save(path)
    source = load_folder(str(root), _SIZE, progress=False)
    assert next(source.train.batches(torch.arange(2), 2)).images.shape == (2, 3, kept, kept)


def test_the_centre_of_an_image_is_kept(root: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 250
    Image.fromarray(pixels).save(root / "val" / "red" / "0.png")
    source = load_folder(str(root), _SIZE, progress=False)
    image = next(source.test.batches(torch.tensor([2]), 1)).images
    assert (image == 250).all()


def test_one_channel_is_read_as_grey(root: Path) -> None:
    source = load_folder(str(root), (1, 16, 16), progress=False)
    assert next(source.test.batches(torch.arange(4), 4)).images.shape == (4, 1, 16, 16)


def test_a_folder_is_a_task(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load_data(f"folder:{root}", _SIZE)
    assert (task.n_classes, task.n_train, task.n_test) == (2, 8, 4)
    assert task.normalisation.name == "imagenet"
    images, _ = next(task.train_batches(0, 4))
    assert images.shape == (4, *_SIZE)
    assert next(task.calibration_batches(4)).images.shape == (4, *_SIZE)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decode train" in captured.err


def test_a_damaged_image_is_named(root: Path) -> None:
    (root / "train" / "red" / "1.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"red/1\.png' cannot be read .*mend or remove it") as caught:
        load_folder(str(root), _SIZE, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_image_damaged_while_streaming_is_named(root: Path, n_workers: int) -> None:
    streamed = load_folder(str(root), _SIZE, largest_in_memory_bytes=0, progress=False).train
    assert isinstance(streamed, StreamedSplit)
    (root / "train" / "red" / "1.png").write_bytes(b"rubbish")
    split = dataclasses.replace(streamed, n_workers=n_workers)
    with pytest.raises(DataError, match=r"red/1\.png' cannot be read .*mend or remove it") as caught:
        list(split.batches(torch.arange(8), 4))
    assert "\n" not in str(caught.value)


def test_a_truncated_image_is_named(root: Path) -> None:
    path = root / "val" / "blue" / "1.png"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"blue/1\.png' cannot be read"):
        load_folder(str(root), _SIZE, progress=False)


def test_a_missing_split_is_named(root: Path) -> None:
    (root / "val").rename(root / "test")
    with pytest.raises(
        DataError, match="val' does not exist; give a folder with train/CLASS/ and val/CLASS/"
    ):
        load_folder(str(root), _SIZE)


def test_classes_in_one_split_only_are_named(root: Path) -> None:
    (root / "val" / "red").rename(root / "val" / "green")
    with pytest.raises(DataError, match="classes green, red are in one of train/ and val/ only"):
        load_folder(str(root), _SIZE)


def test_an_empty_class_is_named(root: Path) -> None:
    for path in (root / "train" / "red").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no valid file for the classes red") as caught:
        load_folder(str(root), _SIZE)
    assert "\n" not in str(caught.value)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="Couldn't find any class folder"):
        load_folder(str(tmp_path), _SIZE)


def test_other_channels_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="can be read with 1 or 3 channels, the input size says 4"):
        load_folder(str(root), (4, 16, 16))
