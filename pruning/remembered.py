"""Losses of width vectors, kept in a file as they are found: neither an interruption nor another budget loses them.

JSON lines, {"widths": […], "loss": …}, with losses to the last bit. What the file holds decides nothing: a search goes
the way it would have gone, only faster.
"""

import json
from collections.abc import Callable
from pathlib import Path

from latency.structure import IntArray
from pruning.distributed import is_first
from pruning.errors import CheckpointError
from pruning.files import append_line, write_atomically

Loss = Callable[[IntArray], float]
"""A loss at width vectors, [n_groups]."""


def remembered(loss: Loss, path: Path) -> Loss:
    """The same loss, computed once for each width vector, whichever process asked for it before.

    Where several processes train, each knows what the file held at the start, and the first one writes.

    Args:
        loss: the same for the same widths, whenever it is asked.
        path: file of its values; the name has to tell apart whatever else decides the loss.

    Raises:
        CheckpointError: the file is damaged.
        StorageError: it cannot be written.
    """
    known = _read(path)

    def found(widths: IntArray) -> float:
        key = tuple(map(int, widths))
        if key not in known:
            known[key] = loss(widths)
            if is_first():
                append_line(path, json.dumps({"widths": key, "loss": known[key]}))
        return known[key]

    return found


def _read(path: Path) -> dict[tuple[int, ...], float]:
    if not path.is_file():
        return {}
    # What is no UTF-8 is no number either, and refused with its line.
    whole, newline, torn = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    if torn and is_first():  # a process was killed while it wrote
        write_atomically(path, (whole + newline).encode())
    known = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            known[tuple(int(width) for width in record["widths"])] = float(record["loss"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"'{path}' is damaged in line {number}; delete it to have its losses computed again."
            ) from error
    return known
