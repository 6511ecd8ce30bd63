"""Plots of a report, as SVG to be placed inside its HTML.

Colours are CSS variables of the page, so one drawing serves the light and the dark scheme; every series
differs in shape or dash as well as in colour, and stays readable in grey. Text stays text. The same
inputs give the same bytes: no dates, no random ids.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

# matplotlib draws in these placeholder colours, which are then replaced by the page's variables. They are
# not otherwise used, and are told apart by eye if a drawing is looked at outside the page.
INK, MUTED, RULE, ACCENT, ALERT, BAND, PAPER = (
    "#101112",
    "#606162",
    "#c0c1c2",
    "#0072b2",
    "#d55e00",
    "#e0e1e2",
    "#fefdfc",
)
_CSS_VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    ACCENT: "--accent",
    ALERT: "--alert",
    BAND: "--band",
    PAPER: "--paper",
}

# 440 px wide at 72 px an inch: two fit side by side on a screen, and one shrinks little on a phone.
_WIDTH_INCHES = 440 / 72

_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
}

# A slow burst of a shared machine is many times the median: beyond this quantile samples are counted,
# not drawn.
_DRAWN_QUANTILE = 0.98


def prediction_plot(
    predicted_ms: Sequence[float],
    measured_ms: Sequence[float],
    *,
    final_ms: tuple[float, float],
    tolerance: float,
    description: str,
) -> str:
    """SVG of predicted against measured latency.

    Args:
        predicted_ms: LPNet's latency of each held-out candidate, in ms, [n_candidates].
        measured_ms: its measured latency, in ms, [n_candidates].
        final_ms: the pruned network's (predicted, measured) latency, in ms.
        tolerance: half width of the band around equality, relative (0.05 is ±5 %).
        description: what the plot shows, for readers who cannot see it.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        values = [*predicted_ms, *measured_ms, *final_ms]
        ends = np.array([0.9 * min(values), 1.05 * max(values)])
        label = f"within ±{tolerance:.0%}".replace("%", " %")
        axes.fill_between(ends, ends * (1 - tolerance), ends * (1 + tolerance), color=BAND, lw=0, label=label)
        axes.plot(ends, ends, color=MUTED, lw=1)
        axes.plot(
            measured_ms, predicted_ms, "o", ms=4.5, mfc=ACCENT, mec=PAPER, mew=0.5, label="held-out candidate"
        )
        axes.plot(final_ms[1], final_ms[0], "D", ms=9, mfc=ALERT, mec=INK, mew=1, label="pruned network")
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="measured, ms", ylabel="predicted, ms")
        axes.legend(loc="upper left")

    return _svg("prediction", 5.6, draw, description)


def latency_plot(
    dense_ms: Sequence[float], pruned_ms: Sequence[float], *, budget_ms: float, description: str
) -> str:
    """SVG of every sample of the interleaved run, dense above pruned, against the budget.

    Args:
        dense_ms: latency of the dense network, in ms, [n_pairs].
        pruned_ms: latency of the pruned network, in ms, [n_pairs].
        budget_ms: latency asked for, in ms.
        description: what the plot shows, for readers who cannot see it.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = (("dense", dense_ms, MUTED), ("pruned", pruned_ms, ACCENT))
        drawn_to_ms = 1.04 * max(budget_ms, *(float(np.quantile(s, _DRAWN_QUANTILE)) for _, s, _ in rows))
        for row, (name, samples_ms, colour) in enumerate(rows):
            values = np.asarray(samples_ms, dtype=np.float64)
            _bar_and_samples(axes, values, row=row, name=name, colour=colour, drawn_to_ms=drawn_to_ms)
        axes.axvline(budget_ms, color=ALERT, ls=(0, (4, 2)), lw=1.8)
        axes.text(budget_ms, -0.72, "budget", ha="center", va="bottom", fontsize=11)
        axes.set(xlim=(0, drawn_to_ms), ylim=(1.4, -0.7), xlabel="latency of one call, ms")
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)

    return _svg("latency", 3.6, draw, description)


def _bar_and_samples(
    axes: Axes, samples_ms: FloatArray, *, row: int, name: str, colour: str, drawn_to_ms: float
) -> None:
    median = float(np.median(samples_ms))
    axes.barh(row, median, height=0.44, color=BAND, edgecolor=colour, lw=1.4)
    drawn = samples_ms[samples_ms <= drawn_to_ms]
    # Golden-ratio jitter spreads neighbours evenly and needs no random numbers.
    jitter = (np.arange(len(drawn)) * 0.618034) % 1 - 0.5
    axes.plot(drawn, row + 0.36 * jitter, "o", ms=3, color=colour, mew=0, alpha=0.6)
    beyond = len(samples_ms) - len(drawn)
    unseen = f"  ({beyond} slower than the axis)" if beyond else ""
    # On paper of its own, since the budget's line may pass behind it.
    label = f"{name}, median {median:#.3g} ms{unseen}"
    paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
    axes.text(0, row - 0.28, label, va="bottom", fontsize=11, bbox=paper, zorder=5)


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """One curve of a `curve_plot`, with a horizontal line to compare it with.

    Attributes:
        label: what is drawn, with its unit.
        values: value at each epoch, NaN where there is none, [n_points].
        line: value and name of the horizontal line, if any.
    """

    label: str
    values: tuple[float, ...]
    line: tuple[float, str] | None = None


def curve_plot(
    epochs: Sequence[float],
    panels: Sequence[CurvePanel],
    *,
    name: str,
    description: str,
) -> str:
    """SVG of training curves, one panel above the other over the same epochs.

    Args:
        epochs: position of each point, in epochs, [n_points].
        panels: the curves, from top to bottom.
        name: short name, unique on the page.
        description: what the plot shows, for readers who cannot see it.
    """

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            _draw_panel(axes, np.asarray(epochs, dtype=np.float64), panel)
        rows[-1].set_xlabel("epoch")
        figure.align_ylabels()

    return _svg(name, 0.6 + 1.9 * len(panels), draw, description)


def staircase_plot(
    widths: Sequence[int], latencies_ms: Sequence[float], *, step: int, name: str, description: str
) -> str:
    """SVG of the latency of one kind of convolution at every width.

    Args:
        widths: channels, [n_points].
        latencies_ms: latency in ms, [n_points].
        step: widths worth having are its multiples; they are marked.
        name: short name, unique on the page.
        description: what the plot shows, for readers who cannot see it.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        points = np.asarray(widths), np.asarray(latencies_ms)
        axes.plot(*points, ".", ms=3, color=MUTED, label="width")
        on_step = points[0] % step == 0
        axes.plot(
            points[0][on_step], points[1][on_step], "o", ms=4.5, color=ACCENT, label=f"multiple of {step}"
        )
        axes.set(xlim=(0, max(widths) + 1), xlabel="channels", ylabel="latency, ms")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")

    return _svg(name, 3.4, draw, description)


def _draw_panel(axes: Axes, epochs: FloatArray, panel: CurvePanel) -> None:
    values = np.asarray(panel.values, dtype=np.float64)
    known = np.isfinite(values)
    # Marks on a short curve show where the points are; on a long one they would hide it.
    marker = "o" if known.sum() <= 40 else ""
    axes.plot(epochs[known], values[known], color=ACCENT, marker=marker, ms=4)
    if panel.line is not None:
        value, name = panel.line
        axes.axhline(value, color=ALERT, ls=(0, (4, 2)), lw=1.6)
        # At the left edge (x counts in axes, y in data): a curve ends near its line, but starts away from it.
        axes.annotate(name, (0, value), (4, 4), ("axes fraction", "data"), "offset points", fontsize=11)
    axes.set_ylabel(panel.label)
    axes.margins(y=0.18)


def _svg(name: str, height_inches: float, draw: Callable[[Figure], None], description: str) -> str:
    # From matplotlib's defaults, not from the user's own style file.
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    return _for_page(buffer.getvalue().decode(), name, description)


def _for_page(document: str, name: str, description: str) -> str:
    """The `<svg>` element of matplotlib's document, with the page's colours and font and ids of its own."""
    box = re.search(r'viewBox="([^"]+)"', document)
    assert box is not None, "matplotlib writes a viewBox"
    body = document[document.index("<defs>") : document.rindex("</svg>")]
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    # The page's font is used; matplotlib writes its own as one property or as two, depending on the version.
    body = re.sub(r"font: (?:\w+ )*?([\d.]+px) [^;\"]+", r"font-size: \1", body)
    body = re.sub(r" font-family: [^;\"]+;", "", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in _CSS_VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    title = f'<title id="{name}-title">{escape(description)}</title>'
    return (
        f'<svg viewBox="{box.group(1)}" role="img" aria-labelledby="{name}-title" class="plot">\n'
        f"{title}\n{body}</svg>"
    )
