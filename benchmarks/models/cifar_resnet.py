"""ResNets for CIFAR-10 as in He et al., "Deep Residual Learning" (arXiv 1512.03385, section 4.2).

Three stages of n blocks with 16, 32 and 64 channels at 32, 16 and 8 pixels: 6 n + 2 layers. Shortcuts are the
paper's option A, without parameters: every other row and column, and zeros for the channels that are new.
Parameters are named as in akamaster/pytorch_resnet_cifar10, whose published weights fit.

    trimms run --model benchmarks/models/cifar_resnet.py:resnet56 --weights resnet56-4bfd9763.th …
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ZeroPadShortcut(nn.Module):
    """Every other row and column, between equal numbers of zero channels: [N, C, H, W] → [N, C + 2 n, H/2, W/2]."""

    def __init__(self, n_zeros: int) -> None:
        super().__init__()
        self.n_zeros = n_zeros

    def forward(self, x: Tensor) -> Tensor:
        """Subsampled and padded input."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.n_zeros, self.n_zeros))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm, added to the block's input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = ZeroPadShortcut((channels - in_channels) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, channels, H / stride, W / stride] of features [N, in_channels, H, W]."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network with `n_blocks` blocks a stage, 6 · n_blocks + 2 layers."""

    def __init__(self, n_blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n_blocks, stride=1)
        self.layer2 = _stage(16, 32, n_blocks, stride=2)
        self.layer3 = _stage(32, 64, n_blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, num_classes] of images [N, 3, 32, 32]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.linear(x)


def resnet8(num_classes: int = 10) -> nn.Module:
    """ResNet-8: the smallest of the family, for quick runs."""
    return CifarResNet(1, num_classes)


def resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20: 0.27 M parameters, 41 M multiply-accumulates."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> nn.Module:
    """ResNet-56: 0.85 M parameters, 126 M multiply-accumulates."""
    return CifarResNet(9, num_classes)


def _stage(in_channels: int, channels: int, n_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(n_blocks - 1)))
