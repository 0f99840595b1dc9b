"""Rows of several labels, votes, counter-evidence and disputes on the review's page: by keyboard and by mouse."""

from __future__ import annotations

import json

import pytest
from page_checks import CONTRAST, CUT

from clsgen_dist.review.classes import by_class
from clsgen_dist.review.decision import Answer, Verdict
from clsgen_dist.review.export import export

pytestmark = pytest.mark.browser
TEXT = "The child coughs at night, has no fever, and a red rash on both arms."


def symptom_rows(cells):
    return [
        {"id": f"r{i}", "text": TEXT, "label": cell, "explanation": "It coughs."} for i, cell in enumerate(cells, 1)
    ]


def answered(page):
    """The answer that is chosen for each class."""
    return {
        line.get_attribute("data-class"): line.find_element("css selector", "label:has(:checked)").text.strip()
        for line in page.all(".class")
    }


def test_several_labels_are_changed_by_keyboard(opened, tmp_path):
    cells = [["cough", "fever"], None, {"cough": True, "fever": 0.3}]
    store, page = opened(symptom_rows(cells), labels=["cough", "fever", "rash"])
    page.wait_row("r1")
    assert answered(page) == {"cough": "yes", "fever": "yes", "rash": "no"}
    page.press("2", "3")
    assert page.text("save-word") == "Save new label" and page.text("label-before") == "The row says: cough, fever."
    page.press("a")
    page.wait_row("r2")
    assert set(answered(page).values()) == {"unknown"}
    page.press("3", "0")
    assert answered(page) == {"cough": "no", "fever": "no", "rash": "yes"} and page.text("rest-no") == ""
    page.press("3", "3", "a")
    page.wait_row("r3")
    assert answered(page) == {"cough": "yes", "fever": "30 %", "rash": "unknown"}
    page.press("a")
    page.wait(lambda: page.text("done-title"))
    made = [store.standing(number, "ada") for number in (1, 2, 3)]
    assert [one.verdict for one in made] == [Verdict.RELABEL, Verdict.RELABEL, Verdict.ACCEPT]
    export(store, tmp_path / "out.jsonl")
    assert [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        ["cough", "rash"], {"cough": False, "fever": False, "rash": True}, cells[2],
    ]  # fmt: skip


def test_several_labels_are_changed_by_mouse_on_a_phone_and_shown_again(opened):
    store, page = opened(symptom_rows([["cough", "fever"], ["rash"]]), labels=[f"sign {n}" for n in range(12)])
    page.size(375)
    page.open()
    page.all('[data-class="fever"] input')[2].click()
    page.all('[data-class="sign 11"] .choice')[0].click()
    assert page.script("return innerWidth") == 375 >= page.script("return document.body.scrollWidth")
    # A list that scrolls by itself shows a part of it.
    assert page.script(CUT.replace("!e.closest('.scroll')", "!e.closest('.scroll, .classes')"), 375) == []
    for scheme in ("light", "dark"):
        page.size(375, scheme)
        assert page.script(CONTRAST) == {}
    assert [e for e in page.all("input[type=radio]") if not e.accessible_name] == []
    page.element("save").click()
    page.wait_row("r2")
    made = store.standing(1, "ada")
    answers = by_class(made.answers, store.labels())
    assert (answers["cough"], answers["fever"], answers["sign 11"], answers["rash"]) == (1, None, 1, 0)
    page.open("/row/1")
    assert {name: words for name, words in answered(page).items() if words != "no"} == {
        "cough": "yes", "fever": "unknown", "sign 11": "yes",
    }  # fmt: skip
    page.all('[data-class="fever"] input')[0].click()
    page.all('[data-class="sign 11"] input')[1].click()
    page.press("a")
    page.wait_row("r2")
    assert store.standing(1, "ada").changed == () and store.standing(1, "ada").verdict == Verdict.ACCEPT


def test_votes_are_kept_or_become_one_class(opened):
    store, page = opened(symptom_rows([{"cough": 0.75, "rash": 0.25}] * 2), labels=["cough", "fever", "rash"])
    page.wait_row("r1")
    assert page.text("answers") == "Votes: cough 75 %, rash 25 %"
    page.press("2", "0", "a")
    page.wait_row("r2")
    page.press("1")
    assert page.text("save-word") == "Save new label"
    page.press("a")
    page.wait(lambda: page.text("done-title"))
    assert [(store.standing(n, "ada").changed, store.standing(n, "ada").label) for n in (1, 2)] == [
        ((), "cough"), (("label",), "cough"),
    ]  # fmt: skip


def test_counter_evidence_is_marked_by_keyboard_and_mouse_and_looks_different_without_colour(opened, tmp_path):
    from selenium.webdriver.common.keys import Keys

    rows = symptom_rows(["cough", "cough"])
    rows[0] |= {"evidence": ["coughs"], "counter_evidence": ["fever"]}
    store, page = opened(rows)
    page.wait_row("r1")
    marks = {mark.text: mark for mark in page.all("mark")}
    assert {text: mark.get_attribute("class") for text, mark in marks.items()} == {"coughs": "for", "fever": "against"}
    styles = [mark.value_of_css_property("border-bottom-style") for mark in marks.values()]
    assert styles == ["solid", "dashed"]
    spoken = "return getComputedStyle(document.querySelector('mark.against'), '::before').content"
    assert "counter-evidence" in page.script(spoken)
    step = Keys.ARROW_RIGHT
    page.press("m", step, step, "c", step, step, step, (Keys.SHIFT, step), Keys.ENTER, Keys.ESCAPE, "a")
    page.wait_row("r2")
    page.script(
        "const n = document.getElementById('text').firstChild, at = n.data.indexOf('red rash');"
        "getSelection().setBaseAndExtent(n, at, n, at + 8)"
    )
    page.element("mark-against").click()
    assert page.text("evidence-count") == "Marked: 1 against"
    page.press("a")
    page.wait(lambda: page.text("done-title"))
    first, second = store.standing(1, "ada"), store.standing(2, "ada")

    def quotes(spans):
        return [TEXT[slice(*span)] for span in spans]

    assert first.changed == ("evidence", "counter_evidence") and first.verdict == Verdict.ACCEPT
    assert quotes(first.counter_evidence) == ["coughs", "fever"] and quotes(first.evidence) == ["has no"]
    assert quotes(second.counter_evidence) == ["red rash"] and second.evidence == ()
    export(store, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[1]["counter_evidence"] == [list(second.counter_evidence[0])] and "evidence" not in rows[1]


def test_a_dispute_is_settled_by_keyboard_from_one_of_the_readings(opened):
    store, page = opened(symptom_rows([["cough"], ["rash"]]), second_reading=1.0, labels=["cough", "fever", "rash"])
    page.press("s")  # the page has opened it for ada
    page.wait_row("r2")
    store.decide("bea", 1, Answer(answers={"fever": 1}, explanations=("It is hot.",), counter_evidence=((31, 33),)))
    store.decide("carl", 1, Answer())
    page.open("/?state=disputed")
    page.wait_row("r1")
    assert "bea relabelled: cough, fever “It is hot.”" in page.text("readings")
    assert "carl accepted: cough" in page.text("readings") and "1 disputed row to settle" in page.text("progress-words")
    page.all("#readings a")[0].click()
    page.wait(lambda: page.is_ready() and page.element("explanation-1").get_property("value") == "It is hot.")
    assert answered(page) == {"cough": "yes", "fever": "yes", "rash": "no"} and len(page.all("mark.against")) == 1
    page.press("3", "a")
    page.wait_row("r2")
    made = store.standing(1, "ada")
    assert made.settles and dict(by_class(made.answers, store.labels())) == {"cough": 1, "fever": 1, "rash": 1}
    assert made.explanations == ("It is hot.",) and made.counter_evidence == ((31, 33),)
    assert "to settle" not in page.text("progress-words") and page.all("[name=state]") == []
