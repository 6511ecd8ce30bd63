"""A page that draws a device's staircases: latency of single convolutions at every width."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latency.probe import N_CONV_GROUPS, Staircase
from latency.probing import DeviceProbe
from pruning.files import write_atomically
from pruning.report_plots import staircase_plot

_TEMPLATES = Path(__file__).parent / "templates"


def write_probe_page(path: Path, probe: DeviceProbe) -> Path:
    """Write the page; returns its path.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    curves = [(_title(curve), curve, Markup(_plot(curve))) for curve in probe.result.staircases]
    page = environment.get_template("probe.html.j2").render(
        device=probe.fingerprint.describe(), step=probe.result.step, curves=curves
    )
    write_atomically(path, page.encode())
    return path


def _title(curve: Staircase) -> str:
    within = f", in each of {N_CONV_GROUPS} groups" if curve.kind.startswith("grouped") else ""
    return f"{curve.kind.capitalize()}{within}, {curve.image_px} × {curve.image_px}"


def _plot(curve: Staircase) -> str:
    name = curve.kind.replace(" ", "-")
    description = f"Latency of {curve.kind} by channels; it rises in steps of {curve.step}."
    widths = [point.width for point in curve.points]
    latencies_ms = [point.ratio * curve.reference_ms for point in curve.points]
    return staircase_plot(widths, latencies_ms, step=curve.step, name=name, description=description)
