"""A review in the browser, for the tests of its page."""

from __future__ import annotations

import pytest

from tests.review.live_review import ReviewPage, live_review
from tests.review.review_rows import review_store


@pytest.fixture
def opened(browser, tmp_path, free_port):
    """``opened(rows)``: store and page of a review by ada."""
    running = []

    def start(rows, **options):
        store = review_store(tmp_path, rows, **options)
        context = live_review(store, free_port(), reviewer="ada")
        running.append(context)
        browser.get_log("browser")
        page = ReviewPage(browser, context.__enter__())
        page.size(1300)
        return store, page.open()

    yield start
    faults = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE" and e["source"] != "network"]
    browser.delete_all_cookies()  # of the page's host
    browser.get("about:blank")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for context in running:
        context.__exit__(None, None, None)
    assert faults == []
