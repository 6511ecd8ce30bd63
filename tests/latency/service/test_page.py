"""The page in a real browser, at a phone's width, by keyboard."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.known_network import KnownNetwork
from tests.serving import RunningService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; on Debian: apt install chromium")


@pytest.fixture(scope="module")
def page(service: RunningService, known_network: KnownNetwork) -> Iterator[Page]:
    """The page with everything on it, and no word of complaint from the browser at the end."""
    with service.client() as client:
        client.upload_space(_written(known_network), "small")
        client.upload_profile(known_network.profile)
        client.upload_lpnet(known_network.lpnet_folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=PHONE)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service.url)
        expect(page.locator("#message")).to_contain_text("A token is needed")
        page.wait_for_load_state("networkidle")
        said.clear()  # the browser notes each refusal
        page.locator("#token").fill(service.reader)
        page.keyboard.press("Enter")
        expect(page.locator("#latency")).to_contain_text("ms")
        yield page
        assert said == []
        assert all(url.startswith((service.url, "data:")) for url in asked)
        browser.close()


def _written(known_network: KnownNetwork) -> Path:
    path = known_network.lpnet_folder.parent / "base-for-page.onnx"
    path.write_bytes(known_network.base)
    return path


def latency_ms(page: Page) -> float:
    return float(page.locator("#latency").inner_text().split()[0])


def test_sliders_move_the_milliseconds_by_keyboard(page: Page, known_network: KnownNetwork) -> None:
    before = latency_ms(page)
    slider = page.get_by_label("inner", exact=True)
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#latency")).not_to_have_text(f"{before:.4g} ms")
    assert latency_ms(page) < before
    page.get_by_role("button", name="Full widths").press("Enter")
    expect(page.locator("#interval")).to_contain_text("100.0 %")


def test_every_layer_has_its_bar_and_they_sum_up(page: Page, known_network: KnownNetwork) -> None:
    texts = page.locator("#layers .bar span:last-child").all_inner_texts()
    assert len(texts) == len(known_network.space.layers) + 1
    assert sum(float(text.split()[0]) for text in texts) == pytest.approx(latency_ms(page), rel=1e-3)


def test_accuracy_coverage_staircase_and_devices_are_shown(page: Page) -> None:
    expect(page.locator("#accuracy-text")).to_have_text(
        re.compile(r"^7 held-out networks, mean error 0\.\d\d %\.$")
    )
    expect(page.locator("#coverage-text")).to_contain_text("42 training and 14 held-out measurements")
    assert page.locator("#coverage .bar").count() == 2
    assert page.locator("#devices li").count() == 1
    for chart in ("#accuracy", "#stairs"):
        assert page.locator(f"{chart} canvas").bounding_box()["width"] > 200  # type: ignore[index]


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
