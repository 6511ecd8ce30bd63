"""A network in the number format that a device computes in, made from its fp32 network once.

The converted network is a search space of its own: its candidates are cut out of it as they are out of the fp32 one. It
has the same groups and goes by the same structure hash, so that profiles, LPNets and plans are the fp32 network's.
"""

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from latency.errors import EnvironmentFailure, ModelFileError, UnsupportedGraphError
from latency.session import Feed
from latency.space import PRECISION_KEY, STRUCTURE_KEY, SearchSpace

_SOURCE_KEY = "trimms.source_sha256"


@functools.lru_cache(maxsize=2)
def space_in(space: SearchSpace, precision: str) -> SearchSpace:
    """The search space of the same network in another number format.

    Args:
        space: the fp32 network's.
        precision: see `latency.device.DeviceSettings`.

    Raises:
        UnsupportedGraphError: the network cannot be converted, or its channels are tied otherwise then.
    """
    if precision == space.precision:
        return space
    found = SearchSpace.from_model(model_in(space, precision))
    _require_same_groups(space, found)
    return found


def model_in(
    space: SearchSpace,
    precision: str,
    feeds: Iterable[Feed] | None = None,
    *,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """The network in another number format.

    Args:
        space: the fp32 network's search space.
        precision: see `latency.device.DeviceSettings`.
        feeds: inputs by name, in fp32, to take the ranges of 8-bit activations from; random ones if left out,
            which is enough for the latency.
        reduce_range: 7-bit weights in int8, see `latency.device.DeviceFingerprint.saturates_int8`.

    Raises:
        ModelFileError: the network is not in fp32.
        UnsupportedGraphError: the network cannot be converted.
    """
    if space.precision != "fp32":
        raise ModelFileError(f"Only a network in fp32 can be converted; this one is in {space.precision}.")
    if precision == "int8":
        from latency.quantisation import quantised

        feeds = _random_feeds(space) if feeds is None else feeds
        model = quantised(space.structure.graph, feeds, reduce_range=reduce_range)
    elif precision == "fp16":
        from latency.half_precision import halved

        model = halved(space.structure.graph)
    else:
        return space.model
    _set_metadata(model, PRECISION_KEY, precision)
    _set_metadata(model, STRUCTURE_KEY, space.structure_hash)
    return model


def base_in(base: Path, precision: str) -> Path:
    """The file of a base network in a number format, made beside the fp32 one where it is missing or outdated.

    Raises:
        ModelFileError: the fp32 file cannot be read.
        UnsupportedGraphError: as `space_in`.
        EnvironmentFailure: the file cannot be written.
    """
    if precision == "fp32":
        return base
    if not base.is_file():
        raise ModelFileError(f"There is no ONNX file {base}.")
    source = hashlib.sha256(base.read_bytes()).hexdigest()
    path = base.with_name(f"{base.stem}.{precision}.onnx")
    if path.is_file() and metadata_of(path).get(_SOURCE_KEY) == source:
        return path
    model = onnx.ModelProto()
    model.CopyFrom(space_in(SearchSpace.load(base), precision).model)
    _set_metadata(model, _SOURCE_KEY, source)
    _write(path, model.SerializeToString())
    return path


def metadata_of(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself; nothing where it cannot be read."""
    try:
        return {item.key: item.value for item in onnx.load(path, load_external_data=False).metadata_props}
    except Exception:  # protobuf's errors share no base class; such a file is made again
        return {}


def _require_same_groups(space: SearchSpace, found: SearchSpace) -> None:
    for one, other in zip(space.groups, found.groups, strict=False):
        if (one.name, one.n_channels, one.zero_allowed, one.implied_zero) != (
            other.name,
            other.n_channels,
            other.zero_allowed,
            other.implied_zero,
        ):
            raise UnsupportedGraphError(
                f"In {found.precision} the channels of '{one.name}' are tied otherwise than in fp32; profile this "
                "network in fp32."
            )
    if len(space.groups) != len(found.groups):
        raise UnsupportedGraphError(
            f"The network has {len(space.groups)} channel groups in fp32 and {len(found.groups)} in "
            f"{found.precision}; profile it in fp32."
        )


def _random_feeds(space: SearchSpace) -> list[Feed]:
    graph, rng = space.structure.graph, np.random.default_rng(0)
    return [{name: rng.standard_normal(graph.shapes[name]).astype(np.float32) for name in graph.inputs}]


def _set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    kept = [item for item in model.metadata_props if item.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=key, value=value)])


def _write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFailure(
            f"Cannot write {path} ({error.strerror}); free some space, or copy the base network to where you may write."
        ) from error
