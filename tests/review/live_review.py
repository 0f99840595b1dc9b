"""A review's server in this process, and its page in a browser, with what tests do on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from clsgen_dist.review.app import create_app
from clsgen_dist.review.store import Store
from clsgen_dist.serving.guards import LOOPBACK_NAMES, PatientProtocol


@contextmanager
def live_review(store: Store, port: str, **options: Any) -> Iterator[str]:
    """The address of a server; ``options``: reviewer, tokens."""
    app = create_app(store, hosts=LOOPBACK_NAMES, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=int(port), http=PatientProtocol, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


class ReviewPage:
    """The page in the browser."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url

    def size(self, width: int, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, path: str = "/") -> ReviewPage:
        self.browser.get(self.url + path)
        return self

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        """What is displayed, on one line; empty where it is not there."""
        found = self.all(f"#{name}")
        return " ".join(found[0].text.split()) if found else ""

    def name(self) -> str:
        """Of the reviewer."""
        found = self.all("header .who bdi")
        return found[0].text if found else ""

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any], seconds: float = 10) -> None:
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        # While a page is replaced by the next, its elements are gone.
        waiting = WebDriverWait(None, seconds, poll_frequency=0.02, ignored_exceptions=[WebDriverException])
        waiting.until(lambda _: condition())

    def wait_row(self, row_id: str) -> None:
        self.wait(lambda: self.is_ready() and self.text("row-id") == row_id)

    def is_ready(self) -> bool:
        """Whether the page's script has run."""
        return self.script("return document.readyState") == "complete"

    def press(self, *keys: str) -> None:
        """Keys one after another; a tuple is held together."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.browser, duration=0)
        for key in keys:
            held = key if isinstance(key, tuple) else (key,)
            for one in held[:-1]:
                chain.key_down(one)
            chain.send_keys(held[-1])
            for one in held[:-1]:
                chain.key_up(one)
        chain.perform()
