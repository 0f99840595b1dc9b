"""A round trip through a Label Studio server: what people decided here is what comes back from there.

Runs where the environment has LABEL_STUDIO_URL, LABEL_STUDIO_EMAIL and LABEL_STUDIO_PASSWORD; it makes a project of its
own there, and deletes it. A server for it: ``label-studio start --no-browser --port 8181 --username EMAIL --password
PASSWORD``.
"""

from __future__ import annotations

import json
import os
import re

import pytest
import requests

from clsgen_dist.data.example import Columns
from clsgen_dist.review.decision import Answer
from clsgen_dist.review.exchange import Format, write_as_rows
from clsgen_dist.review.export import export
from clsgen_dist.review.import_rows import import_rows
from clsgen_dist.review.overview import all_rows
from clsgen_dist.review.store import Store
from tests.review.review_rows import plain_rows, review_store

URL = os.environ.get("LABEL_STUDIO_URL", "").rstrip("/")
pytestmark = pytest.mark.skipif(not URL, reason="needs a Label Studio server: LABEL_STUDIO_URL is not set")
INTERFACE = """<View><Text name="text" value="$text"/>
<Choices name="label" toName="text" choice="{choice}">{choices}</Choices><TextArea name="explanation" toName="text"/>
<Labels name="evidence" toName="text"><Label value="evidence"/><Label value="counter_evidence"/></Labels></View>"""


@pytest.fixture
def through_server():
    """``through_server(tasks, labels, choice)``: the tasks, imported into a new project and exported again."""
    session, projects = requests.Session(), []
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', session.get(f"{URL}/user/login/", timeout=120).text)[1]
    given = {name: os.environ[f"LABEL_STUDIO_{name.upper()}"] for name in ("email", "password")}
    session.headers["Referer"] = URL
    session.post(f"{URL}/user/login/", data={"csrfmiddlewaretoken": token, **given}, timeout=120).raise_for_status()
    session.headers["X-CSRFToken"] = session.cookies["csrftoken"]

    def trip(tasks, labels, choice):
        choices = "".join(f'<Choice value="{name}"/>' for name in labels)
        config = {"title": "clsgen round trip", "label_config": INTERFACE.format(choice=choice, choices=choices)}
        made = session.post(f"{URL}/api/projects", json=config, timeout=120)
        made.raise_for_status()
        projects.append(project := f"{URL}/api/projects/{made.json()['id']}")
        session.post(f"{project}/import", json=tasks, timeout=120).raise_for_status()
        back = session.get(f"{project}/export?exportType=JSON&download_all_tasks=true", timeout=120)
        back.raise_for_status()
        return back.json()

    yield trip
    for project in projects:
        session.delete(project, timeout=120)


def held(row):
    return row.label, row.answers, row.explanations, row.evidence, row.counter_evidence


@pytest.mark.parametrize("choice", ["single", "multiple"])
def test_what_was_decided_comes_back_from_a_label_studio_server(choice, through_server, tmp_path):
    rows = plain_rows(6)
    rows[2]["text"] = "👩‍⚕️🙂 The mass\r\n3 has\u202e irregular margins & <b>more</b>."
    rows[4]["evidence"] = ["mass"]
    if choice == "multiple":
        for number, row in enumerate(rows):
            row["label"] = [["benign", "unclear"], ["benign"], [], None, {"benign": 0.3}, ["unclear"]][number]
    store = review_store(tmp_path, rows)
    store.decide("ada", 1, Answer(evidence=((4, 8),), counter_evidence=((15, 24),)))
    store.decide("ada", 2, Answer(explanations=("Smooth.", "Round.")))
    store.decide("ada", 3, Answer(label="unclear", answers={"malignant": 1}, evidence=((4, 8), (10, 13))))
    store.decide("bea", 6, Answer(is_rejected=True))
    export(store, tmp_path / "out.json", Format.LABEL_STUDIO)
    sent = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "back.json").write_text(json.dumps(through_server(sent, store.labels(), choice)))
    assert write_as_rows(tmp_path / "back.json", Format.LABEL_STUDIO, tmp_path / "back.jsonl") == 6
    again = Store(tmp_path / "again.sqlite")
    import_rows(again, str(tmp_path / "back.jsonl"), Columns())
    found = {read.row.id: read.row for read in all_rows(again)}
    for read in all_rows(store):
        row = found[read.row.id]
        assert (row.text, held(row)) == (read.row.text, held(read.outcome or read.row))
