"""A real report as people meet it: in a browser at desk and phone width, by keyboard, by screen reader, on paper."""

from __future__ import annotations

import base64
import itertools
import re

import pytest
from page_checks import CONTRAST, CUT

from clsgen_dist.inference.calibrate import calibrate
from clsgen_dist.inference.evaluate import evaluate

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("few_resamples")]

ON_PAPER = """
return [...document.querySelectorAll('header *, main *')]
    .filter(e => e.getBoundingClientRect().right > arguments[0] + 1).map(e => e.outerHTML.slice(0, 80));
"""


@pytest.fixture
def report(folder, rows, columns, tmp_path):
    """The page of a calibrated model, with groups, sets, handing over, explanations, faithfulness and a comparison."""
    calibrate(folder, str(rows), threshold="recall=0.9", coverage=0.8, hand_over="workload=0.2")
    output = tmp_path / "report"
    evaluate(folder, str(rows), str(rows), columns, output=output, compare=folder, faithfulness_rows=4)
    return output / "index.html"


def test_the_page_serves_eyes_keyboard_screen_reader_and_paper(browser, report):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    for width in (1280, 375):
        # A headless window is at least 500 wide; a phone's screen has to be emulated.
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(report.as_uri())
        assert browser.execute_script(CUT, width) == []
        assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script(CONTRAST) == {}

    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text == "Skip to the report" and first.rect["x"] >= 0
    first.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#content")
    wide = [
        e
        for e in browser.find_elements(By.CSS_SELECTOR, ".scroll")
        if e.get_property("scrollWidth") > e.get_property("clientWidth")
    ]
    assert wide and all(e.get_attribute("tabindex") == "0" and e.accessible_name for e in wide)
    wide[0].send_keys(Keys.ARROW_RIGHT)

    pictures = browser.find_elements(By.CSS_SELECTOR, "svg")
    assert len(pictures) >= 4 and all(e.aria_role == "image" and len(e.accessible_name) > 20 for e in pictures)
    levels = browser.execute_script(
        "return [...document.querySelectorAll(':is(header, main) :is(h1,h2,h3)')].map(e => +e.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1 and max(b - a for a, b in itertools.pairwise(levels)) == 1
    assert all(e.find_elements(By.TAG_NAME, "caption") for e in browser.find_elements(By.TAG_NAME, "table"))

    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF") and 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 30
    # The text of a sheet of A4 is 178 mm wide.
    paper = round(178 / 25.4 * 96)
    size = {"width": paper, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.execute_script(ON_PAPER, paper) == []
        assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
