"""Image data: sources, normalisation, augmentation, and the task that a network is trained and tested on."""

from pruning.data.base import Batch, ImageTask
from pruning.data.normalisation import Normalisation
from pruning.data.sources import load_data

__all__ = ["Batch", "ImageTask", "Normalisation", "load_data"]
