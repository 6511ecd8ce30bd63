"""The report: one self-contained HTML page for the person who has to decide on the pruned network.

Everything on the page comes from `ReportInputs`; the same inputs give the same bytes. Nothing is loaded
from elsewhere: style and plots are inside, and there is no script.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latency.structure import KeptChannels
from pruning.certificate import Certificate
from pruning.files import write_atomically
from pruning.report_plots import CurvePanel, curve_plot, latency_plot, prediction_plot
from pruning.report_text import FILTERS, MillisecondsFormat, percent, written

_TEMPLATES = Path(__file__).parent / "templates"

# Beyond this, readers are told: a machine that is quietly shared drifts by as much within minutes.
_NOTABLE_DRIFT = 0.05
_PREDICTION_TOLERANCE = 0.05

_FILE_DESCRIPTIONS: Mapping[str, str] = {
    "base.onnx": "the dense network as traced",
    "pruned.onnx": "the pruned network, for ONNX Runtime",
    "pruned.safetensors": "its weights, for PyTorch",
    "pruned.pt2": "the pruned network as a torch.export program",
    "plan.json": "which channels stay in which layer",
}


@dataclass(frozen=True, slots=True)
class WidthRow:
    """Width of one channel group before and after pruning.

    Attributes:
        name: name of the group.
        before: channels in the dense network.
        after: channels in the pruned network; 0 where the branch was removed.
        removes: layers that disappeared with the group.
    """

    name: str
    before: int
    after: int
    removes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a group that grew, or that had no channels to begin with."""
        if not 0 <= self.after <= self.before or self.before == 0:
            raise ValueError(f"Group {self.name!r} cannot go from {self.before} to {self.after} channels.")

    @property
    def removed(self) -> bool:
        """Whether nothing of the group is left."""
        return self.after == 0

    @property
    def others_removed(self) -> tuple[str, ...]:
        """Layers that disappeared with the group, but for the one it is named after."""
        return tuple(layer for layer in self.removes if layer != self.name)


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One point of a training curve; what a stage does not have stays None.

    Attributes:
        epoch: passes over the training images so far; may be a fraction.
        loss: training loss.
        accuracy: top-1 accuracy on held-out images, in [0, 1].
        latency_ms: LPNet's latency of the network with its gates as they are, in ms.
    """

    epoch: float
    loss: float
    accuracy: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PredictionPoint:
    """Predicted and measured latency of one candidate that LPNet was not fitted to, in ms."""

    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True)
class PredictionQuality:
    """How well LPNet predicts the held-out candidates.

    Attributes:
        n_train: candidates that it was fitted to.
        mape: mean absolute percentage error, 0.01 is 1 %.
        within_5: share of candidates predicted within ±5 %, in [0, 1].
        baseline_mape: error of a straight line in the multiply-accumulates, fitted to the same candidates.
        noise_floor_mape: difference between two measurements of one candidate; None where it is not known.
    """

    n_train: int
    mape: float
    within_5: float
    baseline_mape: float
    noise_floor_mape: float | None


@dataclass(frozen=True, slots=True)
class LatencySamples:
    """Raw latency of each call of the interleaved run, in ms, in order of time.

    Attributes:
        dense_ms: of the dense network, [n_dense].
        pruned_ms: of the pruned network, [n_pruned].
    """

    dense_ms: tuple[float, ...]
    pruned_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """What a report is made of; parts that a run did not produce may be empty, and are then left out.

    Attributes:
        certificate: the evidence.
        model: the model as the user named it.
        data: the data set as the user named it.
        command: the command that repeats the run.
        widths: every channel group.
        kept: channels that could not be pruned, and why.
        search: curve of the search for widths.
        finetune: curve of the fine-tuning.
        predictions: held-out candidates.
        quality: error of LPNet on them.
        samples: the interleaved run.
    """

    certificate: Certificate
    model: str
    data: str
    command: str
    widths: tuple[WidthRow, ...] = ()
    kept: tuple[KeptChannels, ...] = ()
    search: tuple[CurveRow, ...] = ()
    finetune: tuple[CurveRow, ...] = ()
    predictions: tuple[PredictionPoint, ...] = ()
    quality: PredictionQuality | None = None
    samples: LatencySamples | None = None


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Write the report to `path`; a reader sees the old page or the new one, never half of it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_atomically(path, render_report(inputs).encode())


def render_report(inputs: ReportInputs) -> str:
    """The report as an HTML document."""
    # autoescape: names of layers, files and processors are the user's, not ours.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    plots = {name: Markup(svg) for name, svg in _plots(inputs).items()}
    return environment.get_template("report.html.j2").render(
        inputs=inputs,
        certificate=inputs.certificate,
        plots=plots,
        ms=MillisecondsFormat.telling_apart(inputs.certificate.measured_ms, inputs.certificate.budget_ms),
        notices=_notices(inputs.certificate),
        device=_device_rows(inputs.certificate),
        descriptions=_FILE_DESCRIPTIONS,
        widths_summary=_widths_summary(inputs.widths),
        widest=max((row.before for row in inputs.widths), default=0),
    )


def _plots(inputs: ReportInputs) -> dict[str, str]:
    """SVG by name of the plots that there is data for."""
    certificate, plots = inputs.certificate, {}
    if inputs.samples is not None and inputs.samples.dense_ms and inputs.samples.pruned_ms:
        plots["latency"] = _latency_plot(certificate, inputs.samples)
    if inputs.predictions:
        plots["prediction"] = _prediction_plot(certificate, inputs.predictions)
    if inputs.search:
        plots["search"] = _curves("search", inputs.search, certificate)
    if inputs.finetune:
        plots["finetune"] = _curves("finetune", inputs.finetune, certificate)
    return plots


def _latency_plot(certificate: Certificate, samples: LatencySamples) -> str:
    # The budget is in milliseconds of the device's profile, so the samples are put on the same clock.
    pace = 1 + certificate.interleaved.reference_drift
    description = (
        f"Latency samples: dense around {certificate.dense_ms:.3g} ms, pruned around "
        f"{certificate.measured_ms:.3g} ms, budget {certificate.budget_ms:.3g} ms."
    )
    return latency_plot(
        [sample / pace for sample in samples.dense_ms],
        [sample / pace for sample in samples.pruned_ms],
        budget_ms=certificate.budget_ms,
        description=description,
    )


def _prediction_plot(certificate: Certificate, points: Iterable[PredictionPoint]) -> str:
    predicted_ms, measured_ms = zip(
        *((point.predicted_ms, point.measured_ms) for point in points), strict=True
    )
    return prediction_plot(
        predicted_ms,
        measured_ms,
        final_ms=(certificate.predicted_ms, certificate.measured_ms),
        tolerance=_PREDICTION_TOLERANCE,
        description=f"Predicted against measured latency of {len(measured_ms)} held-out candidates.",
    )


def _curves(name: str, rows: tuple[CurveRow, ...], certificate: Certificate) -> str:
    """SVG of the loss, and of latency and accuracy where a row has them."""
    budget = (certificate.budget_ms, "budget")
    dense = (100 * certificate.dense_accuracy, "dense network")
    nan = float("nan")
    panels = [CurvePanel("training loss", tuple(row.loss for row in rows))]
    if any(row.latency_ms is not None for row in rows):
        latencies = tuple(nan if row.latency_ms is None else row.latency_ms for row in rows)
        panels.append(CurvePanel("predicted latency, ms", latencies, budget))
    if any(row.accuracy is not None for row in rows):
        accuracies = tuple(nan if row.accuracy is None else 100 * row.accuracy for row in rows)
        panels.append(CurvePanel("accuracy, %", accuracies, dense))
    drawn = " and ".join(panel.label for panel in panels)
    ends = f"from epoch {rows[0].epoch:g} to {rows[-1].epoch:g}"
    return curve_plot(
        [row.epoch for row in rows], panels, name=name, description=f"Curves of {drawn} {ends}."
    )


def _notices(certificate: Certificate) -> tuple[str, ...]:
    """What a reader should know before relying on the verdict."""
    notices = []
    low_ms, high_ms = certificate.measured_ci_ms
    if low_ms <= certificate.budget_ms < high_ms:
        notices.append("The budget lies inside the interval: a repeat may come out on the other side of it.")
    drift = certificate.interleaved.reference_drift
    if abs(drift) >= _NOTABLE_DRIFT:
        notices.append(
            f"The reference network ran {percent(abs(drift))} {'slower' if drift > 0 else 'faster'} than "
            "when this device was profiled. The milliseconds here are those of the profile; on the machine as "
            f"it was during this run, both networks took {'longer' if drift > 0 else 'less'} by that share."
        )
    miss = certificate.predicted_ms / certificate.measured_ms - 1
    if abs(miss) > _PREDICTION_TOLERANCE:
        notices.append(
            f"LPNet's prediction is {percent(abs(miss))} {'above' if miss > 0 else 'below'} the measurement."
        )
    return tuple(notices)


def _widths_summary(rows: tuple[WidthRow, ...]) -> str:
    n_removed = sum(row.removed for row in rows)
    n_unchanged = sum(row.after == row.before for row in rows)
    n_narrowed = len(rows) - n_removed - n_unchanged
    return (
        f"Of {len(rows)} channel groups, {n_narrowed} narrowed, {n_removed} removed, {n_unchanged} unchanged."
    )


def _device_rows(certificate: Certificate) -> tuple[tuple[str, str], ...]:
    """Rows of the device's table; settings and digest have their place elsewhere on the page."""
    fields = {name: value for name, value in certificate.device.items() if name not in ("settings", "digest")}
    return tuple((name.replace("_", " "), written(value)) for name, value in fields.items())
