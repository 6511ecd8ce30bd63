import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import matplotlib
import pytest

from latency.structure import KeptChannels
from pruning.certificate import (
    CERTIFIED_FILES,
    Certificate,
    CertifiedSettings,
    InterleavedRun,
    LatencySpread,
    RuntimeRecord,
)
from pruning.errors import StorageError
from pruning.report import (
    CurveRow,
    LatencySamples,
    PredictionPoint,
    PredictionQuality,
    ReportInputs,
    WidthRow,
    render_report,
    write_report,
)
from pruning.report_plots import INK, CurvePanel, curve_plot, latency_plot, prediction_plot

HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}


def make_certificate(**changes):
    values = {
        "budget_ms": 4.0,
        "dense_ms": 8.0,
        "predicted_ms": 3.9,
        "measured_ms": 3.8,
        "measured_ci_ms": (3.7, 3.95),
        "dense_accuracy": 0.98,
        "accuracy": 0.975,
        "dense_macs": 37_200_000,
        "macs": 15_000_000,
        "dense_params": 11_200_000,
        "params": 2_500,
        "interleaved": InterleavedRun(LatencySpread(8.11, 8.61), LatencySpread(3.85, 4.13), 48, 0.0125),
        "device": {"cpu_model": "Test CPU", "isa": ["avx2", "fma"], "cpu_limit": None, "digest": "00ff"},
        "device_digest": "00ff",
        "runtime": RuntimeRecord("1.20.0", {"session.set_denormal_as_zero": "1"}),
        "settings": CertifiedSettings("CPUExecutionProvider", 1, 1, (1, 3, 32, 32), (0.5,), (0.25,)),
        "seeds": {"seed": 7},
        "versions": {"python": "3.11.0"},
        "sha256": {name: f"{index:064x}" for index, name in enumerate(CERTIFIED_FILES)},
        "created": "2024-05-06T07:08:09+00:00",
    }
    return Certificate(**(values | changes))


def make_inputs(**changes):
    values = {
        "certificate": make_certificate(),
        "model": "torchvision:resnet18",
        "data": "digits",
        "command": "trimms run --speedup 2",
        "widths": (
            WidthRow("conv1", 64, 48),
            WidthRow("layer1.0.conv1", 64, 0, ("layer1.0.conv1", "layer1.0.conv2")),
            WidthRow("layer4.0.conv1", 512, 512),
        ),
        "kept": (KeptChannels("fc", 10, "the network's output"),),
        "search": (CurveRow(0.5, 0.7, latency_ms=8.0), CurveRow(1.0, 0.4, latency_ms=4.1)),
        "finetune": (CurveRow(1, 0.5, accuracy=0.9), CurveRow(2, 0.4), CurveRow(3, 0.3, accuracy=0.97)),
        "predictions": tuple(PredictionPoint(ms * 1.01, ms) for ms in (2.0, 4.0, 6.0)),
        "quality": PredictionQuality(250, 0.0123, 0.987, 0.0645, 0.0029),
        "samples": LatencySamples((8.0, 8.1, 8.2), (3.8, 3.85, 3.9)),
    }
    return ReportInputs(**(values | changes))


class Page(HTMLParser):
    """A parsed page: its elements with attributes, its text, and whether every tag closes."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open, self.hidden = [], [], [], 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts).replace("\u00a0", " "))

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return render_report(make_inputs())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


# Drawing takes most of the time; tests about words go without plots.
NO_PLOTS = {"search": (), "finetune": (), "predictions": (), "samples": None}


def page_of(**changes):
    return Page(render_report(make_inputs(**changes)))


def test_the_same_inputs_give_the_same_bytes(html):
    assert render_report(make_inputs()) == html


def test_the_users_matplotlib_settings_do_not_change_it(html):
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "font.size": 30}):
        assert render_report(make_inputs()) == html


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(html, page):
    assert "http" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    used = {name for name, _ in page.elements}
    assert not used & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert all(reference.startswith("#") for reference in re.findall(r'href="([^"]*)"', html))


def test_every_tag_closes(page):
    assert page.open == []


def test_ids_are_unique_and_references_lead_somewhere(html, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    for _, attributes in page.elements:
        referred.update(attributes.get("aria-labelledby", "").split())
    assert referred - set(ids) == set()


def test_the_verdict_comes_first(page):
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert "Within budget Measured at 3.80 ms, within the budget of 4.00 ms" in page.text
    assert "95 % interval 3.70 to 3.95 ms" in page.text
    assert "2.11 times as fast as the dense network, at 97.5 % accuracy instead of 98.0 %" in page.text
    assert "−0.50 points" in page.text


def test_a_miss_is_called_a_miss():
    text = page_of(certificate=make_certificate(measured_ms=4.5, measured_ci_ms=(4.4, 4.6)), **NO_PLOTS).text
    assert "Over budget Measured at 4.50 ms, 0.50 ms over the budget of 4.00 ms" in text
    assert "Within budget" not in text
    assert "within the budget" not in text


def test_a_miss_by_little_does_not_round_to_a_hit():
    text = page_of(
        certificate=make_certificate(measured_ms=4.0004, measured_ci_ms=(3.9, 4.1)), **NO_PLOTS
    ).text
    assert "Measured at 4.0004 ms, 0.0004 ms over the budget of 4.0000 ms" in text


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"measured_ci_ms": (3.7, 4.1)}, "The budget lies inside the interval"),
        (
            {"interleaved": InterleavedRun(LatencySpread(9, 9), LatencySpread(4, 4), 8, 0.083)},
            "ran 8.3 % slower than when this device was profiled",
        ),
        (
            {"interleaved": InterleavedRun(LatencySpread(9, 9), LatencySpread(4, 4), 8, -0.06)},
            "ran 6.0 % faster than when this device was profiled",
        ),
        ({"predicted_ms": 4.18}, "LPNet's prediction is 10.0 % above the measurement"),
        ({"predicted_ms": 3.42}, "LPNet's prediction is 10.0 % below the measurement"),
    ],
)
def test_readers_are_told_what_weakens_the_verdict(changes, notice):
    assert notice in page_of(certificate=make_certificate(**changes), **NO_PLOTS).text


def test_an_ordinary_run_has_no_notices(html):
    assert 'aria-label="Notices"' not in html


def test_figures_of_dense_and_pruned_stand_side_by_side(page):
    assert "MACs37.2 M15 M−59.7 %" in page.text
    assert "Parameters11.2 M2.5 k−100.0 %" in page.text
    assert "Median8.11 ms3.85 ms" in page.text
    assert "90th percentile8.61 ms4.13 ms" in page.text
    assert "+1.2 % since the profile" in page.text


def test_errors_stand_beside_baseline_and_noise_floor(page):
    for row in (
        "LPNet, fitted to 250 candidates1.23 %",
        "Straight line in MACs6.45 %",
        "two measurements of one candidate0.29 %",
        "LPNet within ±5 %98.7 %",
    ):
        assert row in page.text


def test_an_unknown_noise_floor_is_said_to_be_unknown():
    quality = PredictionQuality(250, 0.01, 0.99, 0.06, None)
    assert "two measurements of one candidatenot measured" in page_of(quality=quality, **NO_PLOTS).text


def test_widths_before_and_after_have_bars_in_proportion(html, page):
    assert "Of 3 channel groups, 1 narrowed, 1 removed, 1 unchanged." in page.text
    assert "64 → 48" in page.text
    assert 'style="width:12.50%"><div style="width:75.00%">' in html
    assert 'style="width:100.00%"><div style="width:100.00%">' in html


def test_a_removed_branch_is_marked_with_what_went_with_it(html, page):
    assert "layer1.0.conv1 removedwith layer1.0.conv2" in page.text
    assert html.count('<div class="bar removed"') == 1


def test_kept_channels_are_listed_with_the_reason(page):
    assert "fc 10 the network's output" in re.sub(r"(?<=fc)|(?<=10)", " ", page.text).replace("  ", " ")


def test_conditions_and_hashes_are_there_to_repeat_the_run(page):
    certificate = make_certificate()
    for shown in (
        "cpu modelTest CPU",
        "isaavx2, fma",
        "cpu limitnone",
        "input size1 × 3 × 32 × 32",
        "ONNX Runtime session.set_denormal_as_zero1",
        "seed7",
        "trimms run --speedup 2",
        *certificate.sha256.values(),
        certificate.created,
    ):
        assert shown in page.text


def test_names_from_the_user_are_text_and_never_markup():
    inputs = make_inputs(
        certificate=make_certificate(
            device={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
            versions={HOSTILE: HOSTILE},
            sha256=dict.fromkeys((*CERTIFIED_FILES, HOSTILE), HOSTILE),
        ),
        model=HOSTILE,
        data=HOSTILE,
        command=HOSTILE,
        widths=(WidthRow(HOSTILE, 8, 0, (HOSTILE, HOSTILE + "2")),),
        kept=(KeptChannels(HOSTILE, 1, HOSTILE),),
        **NO_PLOTS,
    )
    html = render_report(inputs)
    assert "<script" not in html
    assert Page(html).text.count(HOSTILE) >= 12


def test_every_plot_says_what_it_shows(html, page):
    plots = page.named("svg")
    assert len(plots) == 4
    assert all(plot["role"] == "img" for plot in plots)
    for description in (
        "Latency samples: dense around 8 ms, pruned around 3.8 ms, budget 4 ms.",
        "Predicted against measured latency of 3 held-out candidates.",
        "Curves of training loss and predicted latency, ms from epoch 0.5 to 1.",
        "Curves of training loss and accuracy, % from epoch 1 to 3.",
    ):
        assert description in html


def test_sections_and_table_headers_are_labelled(page):
    assert {section["aria-labelledby"] for section in page.named("section")} >= {
        "prediction",
        "widths",
        "files",
    }
    assert all(header.get("scope") in ("col", "row") for header in page.named("th"))
    assert page.named("html") == [{"lang": "en"}]


def test_both_schemes_a_phone_and_paper_are_provided_for(html):
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "width=device-width" in html


def test_parts_that_a_run_did_not_produce_are_left_out():
    bare = page_of(widths=(), kept=(), quality=None, **NO_PLOTS)
    headings = [section["aria-labelledby"] for section in bare.named("section")]
    assert headings == ["before-after", "kept", "conditions", "files"]
    assert bare.named("svg") == []
    assert "None: every channel belonged to a group" in bare.text
    assert bare.open == []


def test_writes_the_rendered_page(tmp_path, html):
    write_report(tmp_path / "report.html", make_inputs())
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"Cannot write '.*report\.html'"):
        write_report(tmp_path / "file" / "report.html", make_inputs(**NO_PLOTS))


@pytest.mark.parametrize(("before", "after"), [(8, 9), (8, -1), (0, 0)])
def test_a_group_cannot_grow_or_start_from_nothing(before, after):
    with pytest.raises(ValueError, match=f"from {before} to {after} channels"):
        WidthRow("conv", before, after)


def drawings():
    return {
        "latency": latency_plot([8.0, 9.0], [4.0, 4.2], budget_ms=5.0, description="a < b"),
        "prediction": prediction_plot(
            [1.0, 2.0], [1.1, 2.1], final_ms=(1.5, 1.6), tolerance=0.05, description="a < b"
        ),
        "curves": curve_plot(
            [1.0], [CurvePanel("loss", (0.5,), (0.4, "line"))], name="c", description="a < b"
        ),
    }


@pytest.mark.parametrize("name", ["latency", "prediction", "curves"])
def test_a_plot_is_one_well_formed_element_in_the_pages_colours(name):
    svg = drawings()[name]
    # The namespace is HTML's to supply; a plain XML parser needs it spelt out.
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    assert root.tag == "svg"
    assert root.find("title").text == "a < b"
    assert "var(--ink)" in svg
    assert INK not in svg
    # Only black and white would be colours of matplotlib's own; neither may be left.
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "font-family" not in svg


def test_budget_and_samples_share_the_profiles_clock():
    # The machine ran at half speed, which samples show and the certified figures do not.
    slow = make_certificate(
        interleaved=InterleavedRun(LatencySpread(16, 16), LatencySpread(7.6, 7.6), 3, 1.0),
    )
    samples = LatencySamples((16.0,) * 3, (7.6,) * 3)
    text = page_of(certificate=slow, **NO_PLOTS | {"samples": samples}).text
    assert "dense, median 8.00 ms" in text
    assert "pruned, median 3.80 ms" in text


def test_a_slow_burst_is_counted_instead_of_drawn():
    svg = latency_plot([8.0] * 99 + [500.0], [4.0] * 100, budget_ms=5.0, description="")
    assert "(1 slower than the axis)" in svg
    assert svg.count("slower than the axis") == 1


def test_one_sample_is_enough_to_draw():
    assert "median 4.00 ms" in latency_plot([8.0], [4.0], budget_ms=5.0, description="")


def test_points_of_a_curve_that_are_not_known_are_not_drawn():
    full = curve_plot([1, 2, 3], [CurvePanel("a", (1.0, 2.0, 3.0))], name="n", description="")
    gap = curve_plot([1, 2, 3], [CurvePanel("a", (1.0, float("nan"), 3.0))], name="n", description="")
    markers = r'<use xlink:href="#n-m[0-9a-f]+"[^>]*fill: var\(--accent\)'
    assert (len(re.findall(markers, full)), len(re.findall(markers, gap))) == (3, 2)
