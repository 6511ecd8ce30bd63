"""The step of a device's latency staircase in channels, found by measuring single convolutions.

Kernels work on blocks of channels, so latency is a staircase in width: where blocks hold 16 channels, 50 cost
as much as 64. Which blocks depends on processor and provider; nothing about them is assumed here. A width is
worth having only where widening it costs something, so the step is the largest S in 2, 4, … 32 for which
rounding an odd multiple of S/2 up to the next multiple of S is free. "Free" is judged by the share of the
growth that a cost proportional to width would show: 0 on a stair's tread, 1 where cost rises in steps below S.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from latency.device import DeviceSettings
from latency.grid import ChannelStep
from latency.measure import Protocol, device_lock, measure_pair
from latency.probe_formats import convolution_in
from latency.session import bound_run, make_session, random_feed

STEPS = (2, 4, 8, 16, 32)
KINDS = ("dense outputs", "dense inputs", "pointwise outputs", "grouped outputs", "depthwise")
"""Kinds of convolution that can be probed: 3 x 3 with varying outputs or inputs, 1 x 1, 3 x 3 in `N_CONV_GROUPS`
groups, where a width is that of one group, and 3 x 3 depthwise."""

GRID_KINDS = ("dense outputs", "dense inputs", "depthwise")
"""The kinds that the grid's step is read off."""

N_CONV_GROUPS = 4
"""Groups of the grouped convolution."""

# All widths around 64, where each small step can show, and multiples of 8 far enough out for the large ones.
WIDTHS = tuple(sorted({*range(49, 81), *range(16, 129, 8)}))
REFERENCE_WIDTH = 64
# Half-way between a tread (0) and a smooth cost (1).
_FREE_SHARE = 0.5
# A step whose multiples are this much faster than the widths just below them marks a fast path's condition.
_CLIFF_SAVING = 0.05
# Coarser than for networks: 43 widths a curve within a few seconds.
PROBE_PROTOCOL = Protocol(max_pairs=24, max_seconds=1.0)
# Longest convolution of the reference width; larger images only cost time.
_SLOWEST_MS = 1.0


@dataclass(frozen=True, slots=True)
class ProbePoint:
    """One measured convolution.

    Attributes:
        width: its channels.
        ratio: its latency over that of the same convolution with `REFERENCE_WIDTH` channels.
        ratio_stderr: relative standard error of the ratio.
        ms: median latency.
    """

    width: int
    ratio: float
    ratio_stderr: float
    ms: float


@dataclass(frozen=True, slots=True)
class Staircase:
    """Latency against width of one kind of convolution, and the step read off it.

    Attributes:
        kind: one of `KINDS`.
        image_px: height and width of the images.
        points: measured points, ascending in width.
        step: largest step up to whose multiples widening is free, 1 where it never is.
        cliff: largest step whose multiples are clearly faster than the narrower widths between, else 1.
    """

    kind: str
    image_px: int
    points: tuple[ProbePoint, ...]
    step: int
    cliff: int

    @property
    def reference_ms(self) -> float:
        """Typical latency of the reference width over the whole curve."""
        return float(np.median([point.ms / point.ratio for point in self.points]))

    @classmethod
    def from_points(cls, kind: str, image_px: int, points: Sequence[ProbePoint]) -> "Staircase":
        """The staircase through measured points."""
        ratios = {point.width: point.ratio for point in points}
        return cls(kind, image_px, tuple(points), step=staircase_step(ratios), cliff=cliff_step(ratios))


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe found out, with everything it measured.

    Attributes:
        step: the device's channel step.
        staircases: one for each kind that was probed.
        seconds: how long the probe took.
    """

    step: ChannelStep
    staircases: tuple[Staircase, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProbeResult":
        """The result that `to_json` gave."""
        staircases = tuple(
            Staircase(**{**curve, "points": tuple(ProbePoint(**point) for point in curve["points"])})
            for curve in record["staircases"]
        )
        return cls(step=ChannelStep(**record["step"]), staircases=staircases, seconds=record["seconds"])


def probe_step(
    settings: DeviceSettings | None = None,
    *,
    kinds: Sequence[str] = GRID_KINDS,
    widths: Sequence[int] = WIDTHS,
    protocol: Protocol = PROBE_PROTOCOL,
    lock_wait_s: float = 60.0,
    lock_part: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Find the device's channel step by measuring single convolutions: about 130 in 20 s if nothing else is said.

    Args:
        settings: provider, threads, batch size; the CPU with one thread if left out.
        kinds: which of `KINDS` to measure, `GRID_KINDS` among them.
        widths: which widths.
        protocol: how each convolution is measured against the reference width's.
        lock_wait_s: how long to wait for another measurement on the device.
        lock_part: see `latency.measure.device_lock`.
        progress: called with the number of convolutions measured and their total.

    Raises:
        ProviderUnavailableError: the installed ONNX Runtime lacks the provider.
        DeviceBusyError: another measurement holds the device.
    """
    settings = settings or DeviceSettings()
    start, total = time.perf_counter(), len(kinds) * len(widths)
    curves: dict[str, Staircase] = {}
    with device_lock(settings, wait_s=lock_wait_s, part=lock_part):
        for kind in kinds:
            make_model, sizes_px = _MAKERS[kind]
            px = _image_size(make_model, sizes_px, settings)
            reference = _session(make_model(REFERENCE_WIDTH, px, settings.batch_size), settings)
            points: list[ProbePoint] = []
            for width in widths:
                candidate = _session(make_model(width, px, settings.batch_size), settings)
                found = measure_pair(candidate, reference, protocol)
                points.append(ProbePoint(width, found.ratio, found.ratio_stderr, found.candidate_ms))
                if progress is not None:
                    progress(len(curves) * len(widths) + len(points), total)
            curves[kind] = Staircase.from_points(kind, px, points)
    outputs, inputs, depthwise = (curves[kind] for kind in GRID_KINDS)
    # A channel count is one layer's outputs and the next one's inputs; both steps are powers of two.
    step = ChannelStep(dense=max(outputs.step, inputs.step), depthwise=depthwise.step)
    return ProbeResult(step, tuple(curves.values()), seconds=time.perf_counter() - start)


def staircase_step(ratios: Mapping[int, float]) -> int:
    """Largest of `STEPS` up to whose multiples widening is free, 1 if there is none.

    Args:
        ratios: relative latency by width.
    """
    free = [s for s in STEPS if (shares := _growth_shares(ratios, s)) and np.median(shares) <= _FREE_SHARE]
    return max(free, default=1)


def cliff_step(ratios: Mapping[int, float]) -> int:
    """Largest of `STEPS` whose multiples are over 5 % faster than the narrower widths between, else 1."""
    cliffs = [
        s
        for s in STEPS
        if (growth := _growths(ratios, s)) and np.median([g for _, g in growth]) < -_CLIFF_SAVING
    ]
    return max(cliffs, default=1)


def _growth_shares(ratios: Mapping[int, float], step: int) -> list[float]:
    """Measured growth over proportional growth, from each odd multiple of step / 2 to the next of step."""
    return [growth / (step / 2 / width) for width, growth in _growths(ratios, step)]


def _growths(ratios: Mapping[int, float], step: int) -> list[tuple[int, float]]:
    half = step // 2
    pairs = [(w, w + half) for w in ratios if w % step == half and w + half in ratios]
    return [(narrow, ratios[wide] / ratios[narrow] - 1) for narrow, wide in pairs]


def _image_size(make_model: "_Maker", sizes_px: Sequence[int], settings: DeviceSettings) -> int:
    """The largest image size at which the reference convolution is fast enough, else the smallest."""
    for px in sizes_px:
        session = _session(make_model(REFERENCE_WIDTH, px, settings.batch_size), settings)
        run = bound_run(session, random_feed(session, batch_size=settings.batch_size))
        times_ms = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times_ms.append((time.perf_counter() - start) * 1e3)
        if np.median(times_ms) <= _SLOWEST_MS:
            return px
    return sizes_px[-1]


def _session(convolution: onnx.ModelProto, settings: DeviceSettings) -> ort.InferenceSession:
    return make_session(convolution_in(convolution, settings.precision), settings)


def _convolution(
    inputs: int, outputs: int, conv_groups: int, px: int, batch_size: int, kernel: int = 3
) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shape = (outputs, inputs // conv_groups, kernel, kernel)
    weight = numpy_helper.from_array((rng.standard_normal(shape) * 0.05).astype(np.float32), "weight")
    bias = numpy_helper.from_array(rng.standard_normal(outputs).astype(np.float32), "bias")
    names = ["x", "weight", "bias"]
    node = helper.make_node(
        "Conv", names, ["y"], kernel_shape=shape[2:], pads=[kernel // 2] * 4, group=conv_groups
    )
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch_size, channels, px, px])
        for name, channels in (("x", inputs), ("y", outputs))
    ]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _dense_outputs(width: int, px: int, batch_size: int) -> onnx.ModelProto:
    return _convolution(REFERENCE_WIDTH, width, 1, px, batch_size)


def _dense_inputs(width: int, px: int, batch_size: int) -> onnx.ModelProto:
    return _convolution(width, REFERENCE_WIDTH, 1, px, batch_size)


def _pointwise_outputs(width: int, px: int, batch_size: int) -> onnx.ModelProto:
    return _convolution(REFERENCE_WIDTH, width, 1, px, batch_size, kernel=1)


def _grouped_outputs(width: int, px: int, batch_size: int) -> onnx.ModelProto:
    inputs = N_CONV_GROUPS * REFERENCE_WIDTH
    return _convolution(inputs, N_CONV_GROUPS * width, N_CONV_GROUPS, px, batch_size)


def _depthwise(width: int, px: int, batch_size: int) -> onnx.ModelProto:
    return _convolution(width, width, width, px, batch_size)


_Maker = Callable[[int, int, int], onnx.ModelProto]

# Image sizes to choose from, largest first; a depthwise convolution does a 64th of the work.
_MAKERS: Mapping[str, tuple[_Maker, tuple[int, ...]]] = {
    "dense outputs": (_dense_outputs, (28, 14, 7)),
    "dense inputs": (_dense_inputs, (28, 14, 7)),
    "pointwise outputs": (_pointwise_outputs, (56, 28, 14)),
    "grouped outputs": (_grouped_outputs, (14, 7)),
    "depthwise": (_depthwise, (56, 28, 14)),
}
