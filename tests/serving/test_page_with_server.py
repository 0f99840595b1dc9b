"""The page and the real server together: a person asks, reads, asks again, stops, and needs a token."""

from __future__ import annotations

import pytest
import requests
from page_driver import Page

from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server

pytestmark = pytest.mark.browser

TEXT = "irregular mass 🙂 with spiculated edges"


def test_a_person_asks_the_real_server(browser, tmp_path, free_port):
    folder = hand_made_export(tmp_path / "m", ["benign", "malignant"])
    with live_server(folder, free_port(), tokens=("secret",), max_characters=500) as server:
        headers = {"Authorization": "Bearer secret"}
        server.info = requests.get(f"{server.url}/v1/info", headers=headers, timeout=9).json()
        browser.get_log("browser")
        page = Page(browser, server)
        browser.get(server.url)
        page.wait(lambda: page.element("access").is_displayed())
        page.element("token").send_keys("secret")
        page.fill(TEXT)
        page.element("decide").click()
        page.wait(lambda: page.text("verdict").startswith(("benign", "malignant")), 20)
        page.wait(lambda: page.element("decide").get_attribute("aria-disabled") == "false", 20)
        [expected] = server.predictor.predict([TEXT], explain=False)
        assert page.text("verdict").startswith(expected.label)
        first = page.text("explanations")
        assert first
        page.script("document.querySelector('[data-action=another], #another')?.click()")
        page.wait(lambda: len(page.all(".prose")) == 2, 20)
        page.wait(lambda: page.element("decide").get_attribute("aria-disabled") == "false", 20)
        page.fill("x" * 501)
        page.element("decide").click()
        page.wait(lambda: "500" in page.text("problem"), 20)
        assert server.backend.running == 0
        browser.get(f"{server.url}/docs")
        page.wait(lambda: len(page.all(".opblock-summary-path")) >= 9, 20)
        faults = [
            e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE" and e["source"] != "network"
        ]
        assert faults == [], "no script fails, and the policy of the server's headers allows all that the page needs"
