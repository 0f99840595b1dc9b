"""The review's pages and requests: who is let in, what is refused, what a page holds, and what it never holds."""

from __future__ import annotations

import re
import uuid

import pytest
import requests

from clsgen_dist.cli import main
from clsgen_dist.review.decision import Answer, Verdict
from clsgen_dist.review.store import Store
from clsgen_dist.review.views import pieces
from clsgen_dist.review.visible import named, shown
from tests.review.live_review import live_review
from tests.review.review_rows import plain_rows, review_store, written


@pytest.fixture(scope="module")
def served(tmp_path_factory, free_port):
    store = review_store(tmp_path_factory.mktemp("app"), plain_rows(30), second_reading=0.4)
    with live_review(store, free_port()) as url:
        yield store, url


def session(url, name="ada"):
    client = requests.Session()
    assert client.post(f"{url}/reviewer", json={"name": name}, timeout=9).json() == {"name": name}
    return client


def decision(row, **fields):
    return {"row": row, "key": uuid.uuid4().hex, **fields}


def test_a_name_is_asked_for_and_kept_in_the_browser(served):
    _, url = served
    page = requests.get(url, timeout=9)
    assert page.status_code == 200 and "Who reviews?" in page.text and "irregular" not in page.text
    assert requests.post(f"{url}/undo", json={}, timeout=9).json()["error"]["code"] == "no_reviewer"
    client = session(url, "Zoë 🙂")
    assert "Zoë 🙂" in client.get(url, timeout=9).text
    refused = client.post(f"{url}/reviewer", json={"name": "a\u202eb"}, timeout=9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "wrong_name")


def test_a_name_of_the_command_line_counts_until_the_page_is_told_another(tmp_path, free_port):
    store, client = review_store(tmp_path, plain_rows(1)), requests.Session()

    def name():
        return re.search(r"</span><bdi>(\w+)</bdi>", client.get(url, timeout=9).text)[1]

    with live_review(store, free_port(), reviewer="ada") as url:
        assert name() == "ada"
        client.post(f"{url}/reviewer", json={"name": "bea"}, timeout=9)
        assert name() == "bea"
    with live_review(store, free_port(), reviewer="carl") as url:
        assert name() == "carl"
    with live_review(store, free_port(), reviewer="ada") as url:
        assert name() == "bea"


def test_a_decision_is_in_the_file_when_it_is_answered(served):
    store, url = served
    client = session(url)
    page = client.get(url, timeout=9).text
    row = int(re.search(r'data-row="(\d+)"', page)[1])
    sent = decision(row, explanations=["Spiculated."], evidence=[[4, 8]], seconds=2.5)
    answer = client.post(f"{url}/decide", json=sent, timeout=9).json()
    kept = Store(store.path).standing(row, "ada")
    assert answer == {"decision": "mend", "entry": kept.entry}
    assert (kept.verdict, kept.explanations, kept.evidence, kept.seconds) == (
        Verdict.MEND, ("Spiculated.",), ((4, 8),), 2.5
    )  # fmt: skip
    assert client.post(f"{url}/decide", json=sent, timeout=9).json() == answer, "sent again"
    assert client.post(f"{url}/note", json={"row": row, "text": "why"}, timeout=9).ok
    assert store.note("ada", row) == "why"
    assert f'href="/row/{row}"' in client.get(url, timeout=9).text
    assert client.post(f"{url}/undo", json={}, timeout=9).json() == {"row": row}
    assert store.standing(row, "ada") is None
    assert client.post(f"{url}/undo", json={}, timeout=9).status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("decide", {"row": 1}, 400),
        ("decide", decision(999), 404),
        ("decide", decision(25, label="round"), 400),
        ("decide", decision(25, evidence=[[5, 4000]]), 400),
        ("decide", decision(25, evidence=[[-1, 4]]), 400),
        ("decide", decision(25, evidence=[[1, 2, 3]]), 400),
        ("decide", decision(25, explanations=["x" * 30_000]), 400),
        ("decide", decision(25, explanations=["\ud800"]), 400),
        ("decide", decision(25, seconds=-1), 400),
        ("decide", decision(25, verdict="accept"), 400),
        ("decide", decision(2**70), 404),
        ("decide", [1], 400),
        ("note", {"row": 1, "text": "x" * 6000}, 400),
        ("skip", {"row": 0}, 404),
        ("undo", {"all": True}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(path, body, status, served):
    store, url = served
    before = len(store.log())
    answer = session(url, "bea").post(f"{url}/{path}", json=body, timeout=9)
    assert answer.status_code == status and answer.json()["error"]["message"], answer.text
    assert len(store.log()) == before


def test_other_web_pages_can_change_nothing(served):
    store, url = served
    client, before = session(url, "carl"), len(store.log())
    sent = decision(28)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ):
        answer = client.post(f"{url}/decide", json=sent, headers=headers, timeout=9)
        assert answer.status_code in (403, 421), headers
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    form = client.post(f"{url}/decide", data='{"row": 3}', headers={"Content-Type": "text/plain"}, timeout=9)
    assert form.status_code == 400 and len(store.log()) == before
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    assert client.post(f"{url}/decide", json=sent, headers=own, timeout=9).status_code == 200


def test_pages_load_nothing_from_elsewhere_and_run_no_inline_script(served):
    _, url = served
    client = session(url)
    for path in ("/", "/rows", "/agreement", "/row/1", "/row/999", "/nowhere", f"/row/{2**70}"):
        answer = client.get(url + path, timeout=9)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; frame-ancestors 'none'") and "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert set(re.findall(r'(?:src|href)="(?!/)([^"]*)"', answer.text)) == set(), path
        assert not re.search(r"<script(?! type=\"module\" src)|\son\w+=|style=", answer.text), path
    assert [client.get(url + path, timeout=9).status_code for path in ("/row/999", "/nowhere")] == [404, 404]
    for path in ("/static/../app.py", "/static/%2e%2e/base.html.jinja", "/base.html.jinja"):
        assert client.get(url + path, timeout=9).status_code == 404


def test_a_second_reader_never_sees_the_first_ones_decision(tmp_path, free_port):
    store = review_store(tmp_path, plain_rows(3), second_reading=1.0)
    store.decide("ada", 1, Answer(label="unclear", explanations=("WORDS OF ADA",)))
    store.set_note("ada", 1, "NOTE OF ADA")
    with live_review(store, free_port(), reviewer="bea") as url:
        client = requests.Session()
        for path in ("/", "/row/1", "/rows", "/agreement", "/rows?decided_by=ada"):
            page = client.get(url + path, timeout=9).text
            assert "OF ADA" not in page and "relabelled" not in page, path
        assert 'value="malignant" checked' in client.get(f"{url}/row/1", timeout=9).text
        assert client.post(f"{url}/decide", json=decision(1), timeout=9).ok
        page = client.get(f"{url}/agreement", timeout=9).text
        assert "ada relabelled (<bdi>unclear</bdi>); bea accepted (<bdi>malignant</bdi>)." in page
        assert "they agree on 0" in page
        assert "ada" in client.get(f"{url}/rows?state=disputed&label=malignant", timeout=9).text
        listed = client.get(f"{url}/rows?state=nonsense&page=99999999999", timeout=9)
        assert listed.status_code == 200 and "3 rows" in listed.text


def test_strangers_sign_in_first(tmp_path, free_port):
    store = review_store(tmp_path, plain_rows(2))
    with live_review(store, free_port(), reviewer="ada", tokens=("key", "other")) as url:
        client = requests.Session()
        for path in ("/", "/rows", "/row/1", "/agreement"):
            page = client.get(url + path, timeout=9)
            assert page.status_code == 401 and "Access token" in page.text and "irregular" not in page.text
        assert client.post(f"{url}/decide", json=decision(1), timeout=9).status_code == 401
        assert client.post(f"{url}/undo", timeout=9).status_code == 401
        bad = client.post(f"{url}/login", headers={"Authorization": "Bearer wrong"}, timeout=9)
        assert bad.status_code == 401 and not client.cookies
        assert client.post(f"{url}/login", headers={"Authorization": "Bearer other"}, timeout=9).ok
        (cookie,) = client.cookies
        assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite").lower() == "strict"
        assert "irregular" in client.get(url, timeout=9).text
        assert client.post(f"{url}/decide", json=decision(1), timeout=9).ok


HOSTILE = (
    "<script>window.hacked=1</script>\u202etxt.exe\u0007 \u200b{{ 3 * 1047197 + 1 }} </textarea>"
    "<img src=x onerror=alert(1)>"
)


def test_hostile_text_is_escaped_and_hidden_characters_are_visible(tmp_path, free_port):
    row = {"id": "<b>id</b>\u200e", "text": HOSTILE, "label": "<i>", "explanation": HOSTILE,
           "issues": [{"code": "<u>", "detail": HOSTILE}]}  # fmt: skip
    store = review_store(tmp_path, [row])
    with live_review(store, free_port(), reviewer="ada") as url:
        client = requests.Session()
        for path in ("/", "/rows"):
            page = client.get(url + path, timeout=9).text
            assert "<script>window" not in page and "<img" not in page and "<b>" not in page and "3141592" not in page
            assert "<i>" not in page and "<u>" not in page and "&lt;script&gt;" in page
        page = client.get(url, timeout=9).text
        assert page.count("</textarea>") == 2
        assert "\ufffdtxt.exe\u2407 \ufffd" in page and "1 × U+202E RIGHT-TO-LEFT OVERRIDE" in page
        assert "1 × U+0007 BELL" in page


def test_visible_text_is_as_long_as_the_text_and_evidence_stays_in_its_place():
    text = "a\r\n\x1b[0m\u2066b 👩\u200d⚕️ c\u200dd\U000e0041e\x7f"
    assert len(shown(text)) == len(text)
    assert shown(text) == "a␍\n␛[0m\ufffdb 👩\u200d⚕️ c\ufffdd\ufffde␡"
    assert shown("plain\ttext\n") == "plain\ttext\n" and named("plain") == []
    assert named("\u202e\u202e\x00")[0] == "2 × U+202E RIGHT-TO-LEFT OVERRIDE"
    found = pieces("abcdef", ((1, 3), (5, 6)), ((2, 4),))
    assert found == [("a", ""), ("b", "for"), ("c", "both"), ("d", "against"), ("e", ""), ("f", "for")]


def test_the_command_exports_what_a_store_has(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "rows.jsonl", plain_rows(3))
    words = ["data", "review", "rows.jsonl", "--labels", "[benign, malignant, 1.0]", "--export", "out.jsonl"]
    main(words)
    assert "out.jsonl: 3 rows, 3 undecided" in capsys.readouterr().out
    assert Store(tmp_path / "review.sqlite").labels() == ["benign", "malignant", "1"]
    with pytest.raises(SystemExit, match="2"):
        main(["data", "review", "--export", "rows.jsonl"])
    assert "which the rows were read from" in capsys.readouterr().err
    main(["data", "review", "--export", "out.json", "--export_format", "label-studio"])
    main(["data", "review", "out.json", "--format", "label-studio", "--store", "b.sqlite", "--export", "back.jsonl"])
    assert Store(tmp_path / "b.sqlite").row(2).explanations == ("Margins 2 are irregular.",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "none.sqlite"], "none.sqlite does not exist, and no file of rows is named"),
        (["rows.jsonl", "--host", "0.0.0.0"], "there are no tokens"),
        (["rows.jsonl", "--format", "xml"], "--format is 'xml', expected one of rows, label-studio, argilla"),
        (["rows.jsonl", "--second_reading", "2"], "expected a share from 0 to 1"),
        (["rows.jsonl", "--reviewer", "x" * 70], "the name has 70 characters"),
        (["nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_what_the_command_refuses(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLSGEN_TOKENS", raising=False)
    written(tmp_path / "rows.jsonl", plain_rows(1))
    with pytest.raises(SystemExit, match="2"):
        main(["data", "review", *words])
    assert message in capsys.readouterr().err
