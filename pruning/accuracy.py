"""Accuracy of an ONNX file, measured through ONNX Runtime: of what is deployed, not of what was trained."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from latency.device import DeviceSettings, usable_cores
from latency.session import make_session
from pruning.data import ImageTask


def onnx_accuracy(
    path: Path, task: ImageTask, title: str | None = None, settings: DeviceSettings | None = None
) -> float:
    """Top-1 accuracy on the task's test images, in [0, 1].

    Images go through in batches of the file's own batch size; the last batch is filled up.

    Args:
        path: the ONNX file.
        task: whose test images to use.
        title: shown beside a progress bar; None shows none.
        settings: what runs the file; the CPU with all cores if left out.
    """
    session = make_session(path, settings or DeviceSettings(threads=usable_cores()))
    value = session.get_inputs()[0]
    batch_size = int(value.shape[0])
    n_right = 0
    with tqdm(total=task.n_test, desc=title, unit="image", disable=title is None, leave=False) as bar:
        for images, labels in task.test_batches():
            for part, wanted in zip(
                torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
            ):
                missing = batch_size - len(part)
                full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
                scores = session.run(None, {value.name: full.numpy()})[0][: len(part)]
                n_right += int((np.argmax(scores, axis=1) == wanted.numpy()).sum())
            bar.update(len(labels))
    return n_right / task.n_test
