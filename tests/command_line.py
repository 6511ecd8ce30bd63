"""The command line as its tests call it, and a network whose narrower widths are faster."""

from click.testing import CliRunner, Result

from pruning.cli import cli

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


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
