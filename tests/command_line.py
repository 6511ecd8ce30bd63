"""The command line as its tests call it, and a small run of a network whose narrower widths are faster."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from pruning.cli import cli
from pruning.verify import CHOOSING

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two stages with a residual block, wide enough for narrower widths to be faster."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(48, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(64, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48))
        self.deep = nn.Sequential(nn.Conv2d(48, 96, 3, stride=2, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.head = nn.Linear(96, num_classes)

    def forward(self, images):
        stream = self.stem(images)
        stream = torch.relu(stream + self.outer(self.inner(stream)))
        return self.head(self.deep(stream).mean(dim=(2, 3)))


def net(num_classes=10):
    return Net(num_classes)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
'''
"""A file of models."""


SMALL_RUN = (
    *("--data", "digits", "--input-size", "1x3x16x16", "--train-epochs", "2", "--speedup", "1.4"),
    *("--candidates", "24", "--held-out", "5", "--search-epochs", "1", "--epochs", "1"),
)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@contextlib.contextmanager
def quick_certificates() -> Iterator[None]:
    """Certificates rest on eight sessions over most of a minute; two side by side say the same here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruning.verify.VERIFYING", replace(CHOOSING, n_sessions=2))
        yield
