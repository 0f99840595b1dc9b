"""The page of ``clsgen serve`` in a browser, with what tests do on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripted_server import ScriptedServer

FILL = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"


class Page:
    """The page in the browser, with what tests do on it."""

    def __init__(self, browser: Any, served: ScriptedServer) -> None:
        self.browser, self.served = browser, served

    def open(self, width: int = 1200, scheme: str = "light") -> Page:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get(self.served.url)
        self.wait(lambda: self.text("model") == self.served.info["model"])
        return self

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def text(self, name: str) -> str:
        """What is displayed, on one line."""
        return " ".join(self.element(name).text.split())

    def announced(self) -> str:
        """What a screen reader was given last."""
        return " ".join(self.element("status").get_property("textContent").split())

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any], seconds: float = 5) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(None, seconds, poll_frequency=0.02).until(lambda _: condition())

    def fill(self, text: str) -> None:
        """The driver types no characters beyond the Basic Multilingual Plane."""
        self.script(FILL, self.element("text"), text)

    def ask(self, text: str, reply: Any) -> None:
        """Asks and does not wait for the answer."""
        self.fill(text)
        self.served.replies.append(reply)
        self.element("decide").click()

    def wait_idle(self) -> None:
        self.wait(lambda: self.element("decide").get_attribute("aria-disabled") == "false")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.browser, duration=0)
        for key in keys[:-1]:
            chain.key_down(key)
        chain.send_keys(keys[-1])
        for key in keys[:-1]:
            chain.key_up(key)
        chain.perform()
