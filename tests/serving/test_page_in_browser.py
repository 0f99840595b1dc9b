"""The page of ``clsgen serve`` as people meet it: by mouse, keyboard and screen reader, at desk and phone width.

``served`` is a server whose answers the tests prescribe. All tests share one browser and one page address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from page_checks import CONTRAST, CUT
from page_driver import Page
from scripted_server import CUT as CONNECTION_BREAKS
from scripted_server import DECISION, END, HOLD, ScriptedServer, answer, scripted_server

pytestmark = pytest.mark.browser

EXPLANATION = ("Irregular", " shape and", " spiculated margins 🙂.")


@pytest.fixture(scope="module")
def served() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def page(browser: Any, served: ScriptedServer) -> Iterator[Page]:
    browser.get_log("browser")
    served.start_again()
    yield Page(browser, served)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    # Failed requests are asked for; errors of scripts and violations of the content policy are not.
    faults = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE" and e["source"] != "network"]
    assert faults == []


def test_the_probability_is_drawn_before_the_explanation_streams_in(page):
    page.open()
    page.script("window.said = []; new MutationObserver(() => said.push(document.getElementById('status').textContent))"
                ".observe(document.getElementById('status'), {childList: true})")  # fmt: skip
    page.ask("A mass.", answer(*EXPLANATION, hold=True))
    page.wait(lambda: page.text("verdict") == "malignant, 78 %")
    assert page.text("explanations") == "" and page.text("progress") == "Writing the explanation …"
    assert page.all(".prose")[0].get_attribute("aria-busy") == "true"

    (meter,) = page.all("[role=meter]")
    assert meter.accessible_name == "Probability of malignant" and meter.get_attribute("aria-valuenow") == "78.0"
    words = meter.get_attribute("aria-valuetext").replace("\xa0", " ")
    assert words == "78 %, interval 71 % to 84 %, threshold 37 %"
    places = page.script(
        "const t = arguments[0].getBoundingClientRect(), at = x => (x - t.left) / t.width;"
        "const box = c => arguments[0].querySelector(c).getBoundingClientRect();"
        "return [at(box('.fill').right), at(box('.whisker').left), at(box('.whisker').right),"
        "        at((box('.tick').left + box('.tick').right) / 2)]",
        meter,
    )
    assert places == pytest.approx([0.78, 0.71, 0.84, 0.37], abs=0.005)
    assert page.text("set") == "Not ruled out: benign, malignant."
    assert not page.element("hand-over").is_displayed()

    page.served.release()
    page.wait_idle()
    assert page.text("explanations") == "".join(EXPLANATION)
    assert page.all(".prose")[0].get_attribute("aria-busy") == "false"
    said = [text.replace("\xa0", " ") for text in page.script("return said")]
    assert said == ["Decision: malignant, 78 %.", f"Explanation finished. {''.join(EXPLANATION)}"]
    assert page.served.requests == [{"text": "A mass.", "stream": True, "decoding": {"length": "standard"}}]


def test_the_keyboard_alone_reaches_and_works_everything_with_visible_focus(page):
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.served.replies = [answer("Irregular."), answer("Spiculated.")]
    page.press(Keys.TAB)
    assert page.browser.switch_to.active_element.get_attribute("id") == "text"
    page.press("A mass.")
    page.press(Keys.TAB)
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("explanations") == "Irregular.")
    page.wait_idle()
    assert page.served.requests[0]["decoding"] == {"length": "detailed"}

    reached = []
    for _ in range(6):
        page.press(Keys.TAB)
        focused = page.browser.switch_to.active_element
        outline = page.script(
            "const s = getComputedStyle(arguments[0]); return s.outlineStyle + s.outlineWidth", focused
        )
        assert outline == "solid3px", focused.get_attribute("outerHTML")
        reached.append(focused.accessible_name)
    history = "malignant, 78 % A mass."
    names = ["Decide and explain", "Another explanation", "Copy JSON", "The text, read only", history, "Forget all"]
    assert [name.replace("\xa0", " ") for name in reached] == names

    page.press(Keys.SPACE)
    assert page.browser.switch_to.active_element.get_attribute("id") == "text"
    assert not page.element("history-section").is_displayed() and page.element("text").get_property("value") == ""
    page.press("Another mass.")
    page.press(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("explanations") == "Spiculated.")


def test_a_redraw_forgets_the_explanation_so_far(page):
    page.open()
    again = [("text", {"text": "Benign."}), HOLD, ("redraw", {"reason": "contradicts"}), HOLD]
    first, *rest = answer("Irregular.")
    page.ask("A mass.", [first, *again, *rest])
    page.wait(lambda: page.text("explanations") == "Benign.")
    page.served.release()
    page.wait(lambda: page.text("explanations").startswith("The first attempt stated another class"))
    page.served.release()
    page.wait_idle()
    assert page.text("explanations") == "Irregular."


def test_an_explanation_to_doubt_is_marked_and_an_uncertain_decision_goes_to_a_person(page):
    page.open()
    page.ask("A mass.", answer("Benign", contradicts=True, explanation_cut=True, hand_over=True, truncated=True))
    page.wait_idle()
    warning, prose, hint = (e.text for e in page.all("#explanations p"))
    assert warning == "The explanation states another class than the decision. Do not rely on it."
    assert (prose, hint) == ("Benign", "Cut off: the explanation reached its greatest length.")
    assert page.text("hand-over") == "Ask a person: the model is not certain enough to decide alone."
    assert page.text("notes") == "The text is longer than the model can read: its middle was left out."
    assert warning in page.announced()


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stopping_ends_the_request_and_keeps_what_arrived(page, by):
    from selenium.webdriver.common.keys import Keys

    page.open()
    first, piece, *rest = answer("Irregular", " shape")
    page.ask("A mass.", [first, piece, HOLD, *rest])
    page.wait(lambda: page.text("explanations") == "Irregular")
    if by == "button":
        page.element("stop").send_keys(Keys.ENTER)
        assert page.browser.switch_to.active_element.get_attribute("id") == "decide"
    else:
        page.press(Keys.ESCAPE)
    page.wait_idle()
    assert page.served.client_left.wait(5)
    assert page.text("explanations") == "Irregular Stopped before the end." and page.text("problem") == ""
    assert page.text("verdict") == "malignant, 78 %" and not page.element("stop").is_displayed()


def test_another_explanation_is_drawn_with_a_seed_beside_the_first(page):
    page.open()
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.ask("A round mass.", answer("Round.", evidence=[[2, 7]]))
    page.wait_idle()
    page.served.replies.append(answer("A mass.", evidence=[[8, 12]]))
    page.element("another").click()
    page.wait_idle()
    assert [e.text for e in page.all("#explanations h3, .prose")] == [
        "Explanation 1",
        "Round.",
        "Explanation 2",
        "A mass.",
    ]
    first, second = (request["decoding"] for request in page.served.requests)
    assert first == {"length": "standard"} and second.pop("seed") >= 0
    assert second == {"length": "standard", "temperature": 0.7}

    assert [mark.text for mark in page.all("mark")] == ["mass"]
    page.all(".explanation button")[0].click()
    assert [mark.text for mark in page.all("mark")] == ["round"]
    assert page.text("evidence-count") == "Explanation 1 names 1 passage of the text."

    page.element("copy").click()
    page.wait(lambda: page.text("copied") == "Copied.")
    copied = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert [(a["id"], a["explanation"], a["evidence"]) for a in json.loads(copied)] == [
        ("a1", "Round.", [[2, 7]]),
        ("a1", "A mass.", [[8, 12]]),
    ]
    # Over plain HTTP browsers have no navigator.clipboard.
    page.script("Object.defineProperty(navigator, 'clipboard', {value: undefined});"
                "document.getElementById('copied').textContent = ''")  # fmt: skip
    page.element("copy").click()
    page.wait(lambda: page.text("copied") == "Copied.")


def test_a_token_is_asked_for_and_kept_in_memory_only(page):
    page.open()
    page.served.token = "s3cret"
    assert not page.element("access").is_displayed()
    page.ask("A mass.", answer("Irregular."))
    page.wait(lambda: page.text("problem").startswith("The server needs an access token."))
    field = page.browser.switch_to.active_element
    assert (field.get_attribute("type"), field.accessible_name) == ("password", "Access token")
    field.send_keys("wrong\n")
    page.wait(lambda: page.text("problem").startswith("The server did not accept the access token."))
    field.clear()
    field.send_keys("s3cret\n")
    page.wait(lambda: page.text("explanations") == "Irregular.")
    assert page.served.authorization == [None, "Bearer wrong", "Bearer s3cret"]
    assert page.text("problem") == "" and page.element("text").get_property("value") == "A mass."
    assert page.script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_refused_requests_are_alerts_with_a_remedy_that_keep_the_text(page):
    page.open()
    alerts = {
        (429, "7"): "The server is busy with other requests. Your text is kept: try again in 7 seconds.",
        (503, None): "The server is not ready. Loading. Your text is kept: try again in a moment.",
        (413, None): "The text is too long for this server. Loading. Your text is kept. "
        "Shorten it to 200,000 characters at most, then ask again.",
        (422, None): "The server did not accept the request. Loading. Your text is kept. Change it, then ask again.",
    }
    assert page.element("problem").get_attribute("role") == "alert"
    for (status, wait), alert in alerts.items():
        page.ask("A mass.", (status, {"Retry-After": wait} if wait else {}, "loading"))
        page.wait_idle()
        page.wait(lambda alert=alert: page.text("problem").removesuffix(" Try again") == alert)
        assert page.element("text").get_property("value") == "A mass."
        assert bool(page.all("#problem button")) == (status in {429, 503})
        assert page.text("placeholder") == "No decision on this text."

    page.served.info["max_characters"] = 3
    page.open()
    page.fill("🙂🙂🙂🙂")
    page.element("decide").click()
    assert page.text("problem") == "The text is too long by 1 character. Shorten it to 3 characters at most."
    page.fill(" ")
    page.element("decide").click()
    assert page.text("problem") == "Enter a text first." and len(page.served.requests) == len(alerts)


@pytest.mark.parametrize(
    ("fault", "alert"),
    [
        (("error", {"error": {"message": "out of memory", "type": "t", "code": "c"}}), "The server could not finish"),
        (CONNECTION_BREAKS, "The connection was lost before the answer was complete."),
        (END, "The connection was lost before the answer was complete."),
    ],
    ids=["error event", "connection breaks", "stream ends early"],
)
def test_a_fault_while_streaming_keeps_what_arrived_and_can_be_tried_again(page, fault, alert):
    page.open()
    first, piece, *_ = answer("Irregular")
    page.ask("A mass.", [first, piece, fault])
    page.wait(lambda: page.text("problem").startswith(alert))
    assert page.text("explanations") == "Irregular Incomplete: the answer broke off here."
    assert page.text("verdict") == "malignant, 78 %" and page.element("text").get_property("value") == "A mass."
    page.served.replies.append(answer("Irregular."))
    page.all("#problem button")[0].click()
    page.wait(lambda: page.text("explanations") == "Irregular.")
    assert page.text("problem") == "" and len(page.all("#history li")) == 1


def test_evidence_is_counted_in_code_points_and_texts_are_never_html(page):
    page.open()
    evil = "<img src=x onerror=window.hacked=1>"
    text = f"👩‍⚕️🙂 {evil}: an irregular mass"
    start = len(text) - len("irregular mass")
    page.served.info["model"] = "<b>model</b>"
    page.open()
    page.ask(text, answer(evil, evidence=[[start, start + 9], [start + 4, len(text)], [9999, 10000], [2, 2]]))
    page.wait_idle()
    assert [mark.text for mark in page.all("mark")] == ["irregular mass"]
    assert page.text("source") == text and page.text("explanations") == evil
    assert page.text("evidence-count") == "The explanation names 1 passage of the text."
    assert page.script("return document.images.length + document.querySelectorAll('b').length") == 0
    assert page.script("return window.hacked") is None


def test_several_classes_have_a_bar_each_with_their_thresholds(page):
    names = ["effusion", "fracture", "pneumonia"]
    thresholds = dict(zip(names, [0.3, 0.355, 0.4], strict=True))
    page.served.info |= {"label_space": "multilabel", "labels": names, "thresholds": thresholds}
    page.open()
    probabilities = dict(zip(names, [0.34, 0.002, 0.995], strict=True))
    sets = {"may_apply": ["effusion", "pneumonia"], "need_not_apply": ["effusion", "fracture"]}
    labels = ["effusion", "pneumonia"]
    page.ask("A report.", answer("Two.", label=labels, probabilities=probabilities, set=sets, interval={}))
    page.wait_idle()
    assert page.text("verdict") == "effusion, 34 % pneumonia, over 99 %"
    assert page.text("set") == "Not ruled out: effusion, pneumonia. In doubt: effusion."
    bars = [
        (m.accessible_name, m.get_attribute("aria-valuetext").replace("\xa0", " ")) for m in page.all("[role=meter]")
    ]
    assert bars == [
        ("Probability of pneumonia", "over 99 %, threshold 40 %"),
        ("Probability of effusion", "34 %, threshold 30 %"),
        ("Probability of fracture", "under 1 %, threshold 35.5 %"),
    ]

    page.served.info |= {"label_space": "ordinal", "thresholds": None, "calibrated": False}
    page.open()
    page.ask("A report.", answer("Low.", label="fracture", probabilities=probabilities, set=[], interval={}))
    page.wait_idle()
    assert [m.accessible_name.removeprefix("Probability of ") for m in page.all("[role=meter]")] == names
    assert page.text("set").startswith("Every class is ruled out")
    assert "in order, from low to high" in page.text("notes") and "not calibrated" in page.text("notes")


def test_earlier_texts_live_in_this_tab_until_they_are_forgotten(page):
    page.open()
    for text, label in (("First mass.", "malignant"), ("Second mass.", "benign")):
        page.ask(text, answer(f"On {text}", label=label))
        page.wait_idle()
    listed = [item.text.split("\n") for item in page.all("#history li")]
    assert listed == [["benign, 22 %", "Second mass."], ["malignant, 78 %", "First mass."]]
    page.all("#history button")[1].click()
    assert page.text("explanations") == "On First mass." and page.text("source") == "First mass."
    assert page.all("#history [aria-current]")[0].text.endswith("First mass.")
    assert page.element("text").get_property("value") == "First mass."
    page.fill("A draft.")
    page.all("#history button")[0].click()
    assert page.text("source") == "Second mass." and page.element("text").get_property("value") == "A draft."
    page.ask("Third mass.", [("decision", DECISION), HOLD])
    page.wait(lambda: page.element("stop").is_displayed() and page.text("verdict"))
    page.element("forget").click()
    page.wait_idle()
    assert page.served.client_left.wait(5)
    assert "mass" not in page.script("return document.querySelector('main').innerHTML")
    assert page.element("text").get_property("value") == "" and not page.element("stop").is_displayed()
    assert page.script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_readably_without_scrolling_sideways(page, scheme):
    name = "malignant" * 8
    page.served.info |= {"labels": ["benign", name], "positive_label": name}
    page.open(360, scheme)
    changes = {"label": name, "probabilities": {"benign": 0.001, name: 0.999}, "set": ["x" * 60], "hand_over": True}
    page.ask("word" * 40, answer("because" * 20, evidence=[[2, 90]], contradicts=True, **changes))
    page.wait_idle()
    top = "return document.getElementById('answer').getBoundingClientRect().top"
    assert 0 <= page.script(top) < 100  # The answer came into view.
    page.served.replies.append((429, {}, "busy"))
    page.element("another").click()
    page.wait(lambda: page.text("problem"))
    page.script("document.getElementById('access').hidden = false")
    for width in (360, 1200):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.script("return innerWidth") == width >= page.script("return document.body.scrollWidth")
        assert page.script(CUT, width) == []
    assert page.script(CONTRAST) == {}
    dark = page.script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert dark == (scheme == "dark")
    moving = "const s = getComputedStyle(e); return s.animationName !== 'none' || parseFloat(s.transitionDuration) > 0"
    assert page.script(f"return [...document.querySelectorAll('*')].filter(e => {{ {moving} }}).length") == 0


def test_a_screen_reader_finds_landmarks_headings_and_named_controls(page):
    page.served.info["auth"] = True
    page.open()
    page.ask("A mass.", answer("Irregular."))
    page.wait_idle()
    controls = [e for e in page.all("button, input, textarea, [tabindex], [role=meter]") if e.is_displayed()]
    assert len(controls) >= 11 and all(e.accessible_name for e in controls)
    assert {e.aria_role for e in page.all("header, main")} == {"banner", "main"}
    assert all(e.accessible_name for e in page.all("section") if e.is_displayed())
    headings = [(e.tag_name, e.text) for e in page.all("h1, h2, h3") if e.is_displayed()]
    titles = ["Text", "Decision", "Explanation", "Evidence in the text", "Earlier in this tab"]
    assert headings == [("h1", "breast-mass"), *(("h2", title) for title in titles)]
    assert page.browser.title == "breast-mass" and page.text("question") == "Is the mass benign or malignant?"
    assert page.script("return performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")
