"""What people decided, as rows that training reads, and as Label Studio's and Argilla's annotations and back."""

from __future__ import annotations

import json

import pytest

from clsgen_dist.curation.gate import gate
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.errors import DataError
from clsgen_dist.review.decision import Answer
from clsgen_dist.review.exchange import Format, write_as_rows
from clsgen_dist.review.export import export
from clsgen_dist.review.import_rows import import_rows, remember
from clsgen_dist.review.store import Store
from tests.review.review_rows import Clock, plain_rows, review_store

TRAINED = Columns(rejected="rejected")


def examples_of(path, columns=TRAINED, space="auto"):
    found = read_examples(str(path), columns=columns, labels=None, max_bad_fraction=0, quarantine=None, space=space)
    return {row.id: row for row in found.examples}


@pytest.fixture
def reviewed(tmp_path):
    rows = [{**row, "site": "north", "issues": [{"code": "short"}]} for row in plain_rows(6)]
    store = review_store(tmp_path, rows, clock=Clock())
    store.decide("ada", 1, Answer(evidence=((4, 8),), seconds=3.5))
    store.decide("ada", 2, Answer(explanations=("Spiculated margins.",)))
    store.decide("ada", 3, Answer(is_rejected=True))
    store.decide("ada", 4, Answer(label="malignant"))
    store.decide("ada", 5, Answer(label="benign", explanations=("Smooth.", "Round.")))
    store.set_note("bea", 3, "see 2")
    return store


def test_training_reads_what_was_accepted_and_rejected(reviewed, tmp_path):
    out = tmp_path / "out.jsonl"
    assert export(reviewed, out) == {"decided": 5, "undecided": 1}
    rows = examples_of(out)
    assert len(rows) == 6 and {row.text for row in rows.values()} == {row["text"] for row in plain_rows(6)}
    judged = {name: (row.label, row.explanations, row.rejected) for name, row in rows.items()}
    assert judged == {
        "r1": ("malignant", ("Margins 1 are irregular.",), ()),
        "r2": ("benign", ("Spiculated margins.",), ("Margins 2 are irregular.",)),
        "r3": ("malignant", (), ("Margins 3 are irregular.",)),
        "r4": ("malignant", (), ("Margins 4 are irregular.",)),
        "r5": ("benign", ("Smooth.", "Round."), ("Margins 5 are irregular.",)),
        "r6": ("benign", ("Margins 6 are irregular.",), ()),
    }
    assert rows["r1"].evidence == ((4, 8),)
    plain = examples_of(out, Columns())
    assert {name: row.explanations for name, row in plain.items()} == {name: of[1] for name, of in judged.items()}


def test_the_export_says_who_decided_what_when(reviewed, tmp_path):
    export(reviewed, tmp_path / "out.jsonl")
    first, _, third, _, _, last = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["site"] == "north" and first["issues"] == [{"code": "short"}]
    provenance = {
        "reviewer": "ada",
        "time": "1970-01-12T13:46:40.000+00:00",
        "decision": "accept",
        "changed": ["evidence"],
        "seconds": 3.5,
    }
    assert first["review"] == {
        "status": "decided",
        **provenance,
        "notes": [],
        "readings": [provenance | {"label": "malignant"}],
    }
    assert third["review"]["notes"] == [{"reviewer": "bea", "text": "see 2"}]
    unchanged = {name: last[name] for name in ("id", "text", "label", "explanation", "site", "issues")}
    assert unchanged == {**plain_rows(6)[5], "site": "north", "issues": [{"code": "short"}]}
    assert (last["chosen"], last["rejected"], last["review"]["status"]) == ([], [], "undecided")


def test_rows_whose_readings_disagree_are_written_as_they_were(tmp_path):
    store = review_store(tmp_path, plain_rows(4), second_reading=1.0)
    for row in (1, 2, 3):
        store.decide("ada", row, Answer())
    store.decide("bea", 1, Answer(label="unclear"))
    store.decide("bea", 2, Answer(explanations=("Better.",)))
    assert export(store, tmp_path / "out.jsonl") == {"disputed": 1, "decided": 1, "partly_read": 1, "undecided": 1}
    first, second, *_ = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["label"], first["chosen"], first["rejected"]) == ("malignant", [], [])
    assert [(one["reviewer"], one["label"]) for one in first["review"]["readings"]] == [
        ("ada", "malignant"),
        ("bea", "unclear"),
    ]
    assert second["explanation"] == "Better." and second["review"]["reviewer"] == "bea"


def test_what_a_row_had_before_is_kept(tmp_path):
    rows = plain_rows(2)
    for row in rows:
        row |= {"review": {"status": "disputed"}, "verdict": "spam", "odd": "\ud800"}
    store = review_store(tmp_path, rows)
    store.decide("ada", 1, Answer())
    export(store, tmp_path / "out.jsonl")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["verdict"], second["verdict"]) == ("spam", "spam")
    assert first["review"]["earlier"] == {"status": "disputed"} and first["odd"] == "\ud800"


def test_columns_keep_the_names_that_they_had(tmp_path):
    source = tmp_path / "rows.csv"
    source.write_text("key,body,class,why\n1,A mass.,odd,Because.\n")
    columns = Columns(id="key", text="body", label="class", explanation="why")
    store = Store(tmp_path / "s.sqlite")
    remember(store, columns, None)
    import_rows(store, str(source), columns)
    store.decide("ada", 1, Answer(explanations=("So.",)))
    export(store, tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert {name: row[name] for name in ("key", "body", "class", "why")} == {
        "key": "1", "body": "A mass.", "class": "odd", "why": "So."
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Format.LABEL_STUDIO, Format.ARGILLA])
def test_annotations_come_back_as_they_were_written(kind, reviewed, tmp_path):
    reviewed.decide("bea", 6, Answer(evidence=((0, 3), (5, 9)), counter_evidence=((10, 15),)))
    export(reviewed, tmp_path / "out.json", kind)
    assert write_as_rows(tmp_path / "out.json", kind, tmp_path / "back.jsonl") == 6
    again = Store(tmp_path / "again.sqlite")
    import_rows(again, str(tmp_path / "back.jsonl"), Columns())
    written = json.loads((tmp_path / "out.json").read_text())
    assert "ada" in json.dumps(written[0]) and "completed_by" not in json.dumps(written)
    for number in range(1, 7):
        made = reviewed.standing(number, "ada") or reviewed.standing(number, "bea")
        row = again.row(number)
        assert (row.id, row.text) == (f"r{number}", reviewed.row(number).text)
        assert (row.label, row.explanations, row.evidence) == (made.label, made.explanations, made.evidence)
        assert row.counter_evidence == made.counter_evidence


def test_a_label_studio_task_as_its_server_writes_it(tmp_path):
    common = {"from_name": "x", "to_name": "text", "origin": "manual"}
    other = {**common, "from_name": "quality", "type": "choices", "value": {"choices": ["good"]}}
    task = {
        "id": 17,
        "data": {"body": "A 🙂 mass with irregular margins."},
        "annotations": [
            {"id": 1, "was_cancelled": True, "result": [{**common, "type": "choices", "value": {"choices": ["no"]}}]},
            {
                "id": 2,
                "completed_by": 3,
                "was_cancelled": False,
                "result": [
                    {**common, "type": "choices", "value": {"choices": ["yes"]}},
                    other,
                    {**common, "type": "textarea", "value": {"text": ["Irregular."]}},
                    {**common, "type": "labels", "value": {"start": 14, "end": 23, "labels": ["Evidence"]}},
                ],
            },
            {"id": 3, "was_cancelled": False, "result": []},
        ],
        "predictions": [],
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps([task]))
    write_as_rows(tmp_path / "t.json", Format.LABEL_STUDIO, tmp_path / "r.jsonl")
    row = examples_of(tmp_path / "r.jsonl")["17"]
    assert (row.label, row.explanations) == ("yes", ("Irregular.",))
    assert [row.text[slice(*span)] for span in row.evidence] == ["irregular"]
    assert json.loads((tmp_path / "r.jsonl").read_text())["annotations"] == [task["annotations"][2]]


def test_a_label_studio_file_keeps_what_its_annotations_do_not_answer(tmp_path):
    """Exported by a server: of predictions only the ids, and the task's data as they were imported."""
    data = {"text": "A mass with margins.", "label": ["odd", "round"], "explanation": "So.", "evidence": [[2, 6]]}
    chosen = {"from_name": "label", "type": "choices", "value": {"choices": ["odd"]}}
    none = {"from_name": "label", "type": "choices", "value": {"choices": []}}
    against = {"type": "labels", "value": {"start": 12, "end": 19, "text": "margins", "labels": ["Counter-evidence"]}}
    tasks = [
        {"id": 1, "data": data, "annotations": [{"result": [chosen]}], "predictions": [7]},
        {"id": 2, "data": data, "annotations": [], "predictions": [8]},
        {"id": 3, "data": data, "annotations": [{"result": [none, against]}], "predictions": []},
        {"id": 4, "data": data, "annotations": [{"result": [none]}, {"result": [chosen], "ground_truth": True}]},
    ]
    (tmp_path / "t.json").write_text(json.dumps(tasks))
    write_as_rows(tmp_path / "t.json", Format.LABEL_STUDIO, tmp_path / "r.jsonl", "multilabel")
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [["odd"], ["odd", "round"], [], ["odd"]]
    assert [row["explanation"] for row in rows] == ["So."] * 4, "nobody was asked for explanations"
    assert [row.get("evidence") for row in rows] == [None, [[2, 6]], None, None], "spans were asked for"
    assert rows[2]["counter_evidence"] == [[12, 19]]
    read = examples_of(tmp_path / "r.jsonl", space="multilabel")
    assert read["3"].counter_evidence == ((12, 19),) and read["3"].answers == {"": 0.0}


@pytest.mark.parametrize("kind", [Format.LABEL_STUDIO, Format.ARGILLA])
def test_what_settled_a_dispute_is_what_comes_back(kind, tmp_path):
    store = review_store(tmp_path, plain_rows(1), second_reading=1.0)
    store.decide("ada", 1, Answer(label="unclear"))
    store.decide("bea", 1, Answer(counter_evidence=((4, 8),)))
    store.decide("carl", 1, Answer(label="benign", explanations=("Smooth.",)))
    export(store, tmp_path / "out.json", kind)
    write_as_rows(tmp_path / "out.json", kind, tmp_path / "back.jsonl")
    row = json.loads((tmp_path / "back.jsonl").read_text())
    assert (row["label"], row["explanations"]) == ("benign", ["Smooth."]) and len(row["annotations"]) >= 2


def test_an_argilla_record_without_answers_has_its_suggestions(tmp_path):
    record = {
        "id": "a-1",
        "fields": {"text": "A mass."},
        "metadata": {"site": "north"},
        "suggestions": {"quality": {"value": "odd", "score": 0.7, "agent": "m"}, "why": {"value": "So."}},
        "responses": {},
        "vectors": {},
    }
    (tmp_path / "t.json").write_text(json.dumps([record]))
    write_as_rows(tmp_path / "t.json", Format.ARGILLA, tmp_path / "r.jsonl")
    row = json.loads((tmp_path / "r.jsonl").read_text())
    assert row == {"site": "north", "id": "a-1", "text": "A mass.", "label": "odd", "explanations": ["So."]}


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", '[{"id": 1}]', '[{"data": {"a": "x", "b": "y"}}]'])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"t\.json"):
        write_as_rows(tmp_path / "t.json", Format.LABEL_STUDIO, tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_a_store_without_rows_is_an_empty_list(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    export(store, tmp_path / "out.json", Format.ARGILLA)
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_a_gates_reasons_are_the_issues_of_its_rows(tmp_path):
    rows = plain_rows(6)
    rows[1]["explanation"] = "The mass is 77 mm wide, with irregular margins."
    rows[4]["explanation"] = "It is benign: margins are irregular."
    rows.insert(3, {"id": "broken", "text": ""})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = CurationSettings(min_words=1)
    gate(
        str(tmp_path / "rows.jsonl"),
        tmp_path / "gated",
        columns=Columns(),
        labels=None,
        space="auto",
        settings=settings,
    )
    store = Store(tmp_path / "s.sqlite")
    import_rows(store, str(tmp_path / "gated" / "review.jsonl"), Columns())
    found = {store.row(n).id: store.row(n).issues for n in (1, 2)}
    assert {name: [one.code for one in of] for name, of in found.items()} == {
        "r2": ["ungrounded-number"], "r5": ["names-other-class"]
    }  # fmt: skip
    assert "77" in found["r2"][0].detail
    with (tmp_path / "gated" / "review.jsonl").open("a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match="changed after the gate; move it"):
        import_rows(Store(tmp_path / "t.sqlite"), str(tmp_path / "gated" / "review.jsonl"), Columns())


def test_explanations_that_stay_keep_their_provenance_and_new_ones_are_human(tmp_path):
    both = {"explanations": ["By Ann.", "By a model."], "provenance": ["ann", "teacher:big"]}
    cells = [
        ({"explanations": ["One.", "Two."], "provenance": "teacher:big"}, ("Mine.",), ["human", "teacher:big"]),
        ({"explanation": "One.", "provenance": "teacher:big"}, (None, "Added."), ["teacher:big", "human"]),
        ({"explanation": "One.", "provenance": "teacher:big"}, ("Mine.",), "human"),
        (both, ("",), "teacher:big"),
        (both, (None, "Mine."), ["ann", "human"]),
        ({"explanation": "One."}, (None, "Added."), [None, "human"]),
        ({"explanation": "One.", "provenance": "teacher:big"}, (), "teacher:big"),
        ({"explanation": "One.", "provenance": {"crawl": 3}}, ("Mine.",), {"crawl": 3}),
        ({"explanation": "One.", "provenance": "teacher:big"}, ("",), None),
    ]
    rows = [{"id": f"r{n}", "text": f"A mass {n}.", "label": "benign", **c} for n, (c, *_) in enumerate(cells, 1)]
    store = review_store(tmp_path, rows)
    for number, (_, typed, _) in enumerate(cells, 1):
        store.decide("ada", number, Answer(explanations=typed))
    export(store, tmp_path / "out.jsonl")
    written = [json.loads(line)["provenance"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [expected for *_, expected in cells]
    read = list(examples_of(tmp_path / "out.jsonl").values())
    assert [row.provenance for row in read] == [
        ("human", "teacher:big"), ("teacher:big", "human"), ("human",), ("teacher:big",), ("ann", "human"),
        (None, "human"), ("teacher:big",), (None,), (),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Format.LABEL_STUDIO, Format.ARGILLA])
def test_other_columns_and_origins_survive_the_way_there_and_back(kind, tmp_path):
    columns = {
        "patient": "P7",
        "extra": {"k": 1},
        "difficulty": 0.4,
        "issues": [{"code": "short", "detail": "2 words"}],
    }
    rows = [{**row, **columns, "provenance": "teacher:big"} for row in plain_rows(3)]
    store = review_store(tmp_path, rows)
    store.decide("ada", 1, Answer())
    store.decide("ada", 2, Answer(explanations=("Mine.",)))
    export(store, tmp_path / "out.json", kind)
    write_as_rows(tmp_path / "out.json", kind, tmp_path / "back.jsonl")
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert all({name: row[name] for name in columns} == columns for row in back)
    assert [row["provenance"] for row in back] == ["teacher:big", "human", "teacher:big"]


def test_what_people_typed_elsewhere_is_human_and_spans_beyond_the_text_are_left_out(tmp_path, caplog):
    spans = [{"value": {"start": s, "end": e, "labels": ["evidence"]}} for s, e in ((0, 3), ("0", 400), (5, 5))]
    typed = {"from_name": "why", "value": {"text": ["Because."]}}
    task = {"id": 4, "data": {"text": "bad span"}, "annotations": [{"result": [typed, *spans]}]}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    write_as_rows(tmp_path / "tasks.json", Format.LABEL_STUDIO, tmp_path / "rows.jsonl")
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert (row["explanations"], row["provenance"], row["evidence"]) == (["Because."], "human", [[0, 3]])
    assert "2 spans of evidence are not within their text" in caplog.text
    record = {"id": 5, "fields": {"text": "a"}, "responses": {"explanation": [{"value": "So.", "status": "submitted"}]}}
    (tmp_path / "records.json").write_text(json.dumps([record]))
    write_as_rows(tmp_path / "records.json", Format.ARGILLA, tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text())["provenance"] == "human"
