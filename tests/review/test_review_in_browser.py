"""The page of `clsgen data review`: by keyboard, mouse and phone."""

from __future__ import annotations

import time

import pytest
from page_checks import CONTRAST, CUT

from clsgen_dist.review.decision import Verdict
from clsgen_dist.review.overview import progress
from tests.review.review_rows import plain_rows

pytestmark = pytest.mark.browser


def test_ten_rows_by_keyboard_alone(opened):
    from selenium.webdriver.common.keys import Keys

    store, page = opened(plain_rows(10))
    held = (Keys.CONTROL, Keys.ENTER)
    steps = {
        "r1": ["a"],
        "r2": ["r"],
        "r3": ["3", "a"],
        "r4": ["e", " They are round.", held],
        "r5": ["m", Keys.ARROW_RIGHT, (Keys.SHIFT, Keys.ARROW_RIGHT), Keys.ENTER, Keys.ESCAPE, "a"],
        "r6": ["n", "Ask Bea.", Keys.ESCAPE, "a"],
        "r7": ["s"],
        "r8": ["e", "!", Keys.ESCAPE, "2", "a"],
        "r9": ["?", Keys.ESCAPE, "a"],
        "r10": ["r"],
    }
    for row, keys in steps.items():
        page.wait_row(row)
        page.press(*keys)
    page.wait_row("r7")
    page.press("u")
    page.wait_row("r10")
    assert page.text("own") == "" and "accepted" in page.text("last")
    page.press("a")
    page.wait_row("r7")
    page.press("a")
    page.wait(lambda: page.text("done-title") == "Nothing is left to read")
    assert page.text("progress-words").startswith("10 of 10 readings done, 10 by you.")
    made = {number: store.standing(number, "ada") for number in range(1, 11)}
    words = [str(one.verdict) for one in made.values()]
    assert words == ["accept", "reject", "relabel", "mend", *["accept"] * 3, "relabel", "accept", "accept"]
    assert made[3].label == "unclear" and made[8].label == "malignant"
    assert made[4].explanations == ("Margins 4 are irregular. They are round.",)
    assert made[8].explanations == ("Margins 8 are irregular.!",)
    (span,) = made[5].evidence
    assert store.row(5).text[slice(*span)] == "mass 5"
    assert store.note("ada", 6) == "Ask Bea."
    assert len(store.log()) == 12 and all(one.seconds > 0 for one in made.values())


def test_marks_by_mouse_count_characters_beyond_the_basic_plane(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    rows = plain_rows(1)
    rows[0]["text"] = "👩‍⚕️🙂 saw\nan irregular\u202e mass, spiculated margins."
    store, page = opened(rows)
    page.script(
        "const n = document.getElementById('text').firstChild, at = n.data.indexOf('irregular');"
        "getSelection().setBaseAndExtent(n, at, n, at + 10)"
    )
    page.element("mark").click()
    assert [m.get_property("textContent") for m in page.all("mark")] == ["irregular\ufffd"]
    ActionChains(page.browser, duration=0).move_to_element(page.all("mark")[0]).double_click().perform()
    page.wait(lambda: page.script("return getSelection().toString().trim()").startswith("irregular"))
    page.element("unmark").click()
    page.wait(lambda: len(page.all("mark")) <= 1)
    page.script(
        "const w = document.createTreeWalker(document.getElementById('text'), 4); let n;"
        "while ((n = w.nextNode()) && !n.data.includes('spiculated'));"
        "const at = n.data.indexOf('spiculated'); getSelection().setBaseAndExtent(n, at + 18, n, at - 1)"
    )
    page.element("mark").click()
    assert page.text("save-word") == "Accept with evidence"
    page.element("save").click()
    page.wait(lambda: page.text("done-title"))
    made = store.standing(1, "ada")
    assert [rows[0]["text"][slice(*span)] for span in made.evidence][-1] == "spiculated margins"
    page.open("/row/1")
    assert page.all("mark")[-1].get_property("textContent") == "spiculated margins"
    assert page.text("own").startswith("You accepted this row.")


HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=2</script>\u202ereversed\u0007 </div></textarea>"


def test_hostile_text_stays_text(opened):
    row = {"id": "<b>x</b>", "text": HOSTILE, "label": "<i>odd</i>", "explanation": HOSTILE,
           "issues": [{"code": "<u>c</u>", "detail": HOSTILE}]}  # fmt: skip
    store, page = opened([row])
    assert page.text("text") == HOSTILE.replace("\u202e", "\ufffd").replace("\u0007", "\u2407")
    assert page.element("explanation-1").get_property("value") == HOSTILE
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in page.text("hidden")
    count = "return document.images.length + document.querySelectorAll('b, i, u, main script').length"
    for path in ("/rows", "/"):
        page.open(path)
        assert page.script(count) == 0 and page.script("return window.hacked") is None
    page.press("a")
    page.wait(lambda: page.text("done-title"))
    assert store.standing(1, "ada").verdict == Verdict.ACCEPT
    assert store.standing(1, "ada").explanations == (HOSTILE,)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_readably_without_scrolling_sideways(scheme, opened):
    rows = plain_rows(2)
    rows[0] |= {"text": "word" * 60, "label": "malignant" * 8, "explanation": "because" * 30,
                "issues": [{"code": "copied-input", "detail": "x" * 80}], "evidence": [[4, 60]]}  # fmt: skip
    _, page = opened(rows)
    for width in (360, 1300):
        page.size(width, scheme)
        for path in ("/row/1", "/rows", "/agreement", "/"):
            page.open(path)
            assert page.script("return innerWidth") == width >= page.script("return document.body.scrollWidth"), path
            cut = (
                CUT
                if path != "/rows"
                else CUT.replace("!e.closest('.scroll') || e.matches('.scroll')", "!e.closest('.scroll')")
            )
            assert page.script(cut, width) == [], path
            assert page.script(CONTRAST) == {}, path
    dark = page.script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert dark == (scheme == "dark")


def test_a_screen_reader_finds_landmarks_headings_and_named_controls(opened):
    _, page = opened([{**row, "issues": ["short"]} for row in plain_rows(3)])
    page.press("a")
    page.wait_row("r2")
    controls = [e for e in page.all("button, input, textarea, select, a, progress, [tabindex]") if e.is_displayed()]
    assert len(controls) >= 18 and [e.get_attribute("outerHTML") for e in controls if not e.accessible_name] == []
    assert [e.aria_role for e in page.all("header, main, nav")] == ["banner", "navigation", "main"]
    assert [(e.tag_name, e.text) for e in page.all("h1, h2, h3") if e.is_displayed()] == [
        ("h1", "Review"),
        ("h2", "Text"),
    ]
    assert page.browser.title == "r2 · Review"
    assert page.script("return performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")


def test_filters_names_and_keys_that_are_switched_off(opened):
    store, page = opened([{**row, "issues": ["short"] if row["id"] == "r3" else []} for row in plain_rows(4)])
    page.wait_row("r3")
    page.all("select[name=label] option")[1].click()
    page.all("#filters button")[0].click()
    page.wait_row("r2")
    page.press("a")
    page.wait_row("r4")
    assert "label=benign" in page.browser.current_url
    page.element("help-button").click()
    page.element("single-keys").click()
    page.all("#help .close")[0].click()
    page.press("r")
    time.sleep(0.3)
    assert page.text("row-id") == "r4" and store.standing(4, "ada") is None
    page.element("help-button").click()
    page.element("single-keys").click()
    page.all("#help .close")[0].click()
    page.element("change-name").click()
    page.element("new-name").clear()
    page.element("new-name").send_keys("Bea\n")
    page.wait(lambda: page.is_ready() and page.name() == "Bea")
    page.press("r")
    page.wait(lambda: progress(store, "Bea").by_me == 1)
