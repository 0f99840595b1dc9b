"""The model being trained, behind ``clsgen serve``, as its own teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from clsgen_dist.cli import main
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server


def test_the_model_being_trained_decides_and_explains_without_the_label(
    tmp_path: Path, free_port: Callable[[], str], capsys: object
) -> None:
    folder = hand_made_export(tmp_path / "m", ["no", "yes"])
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    texts = [f"note {n}: size {n} mm" for n in range(6)]
    with live_server(folder, free_port()) as server:
        rows.write_text("".join(json.dumps({"text": text, "label": "yes"}) + "\n" for text in [*texts, "zz no"]))
        words = ["data", "explain", str(rows), "--output", str(output), "--url", server.url, "--teacher", "self"]
        main([*words, "--labels", "[no, yes]", "--temperature", "0", "--max_tokens", "8"])
        printed = capsys.readouterr().out  # type: ignore[attr-defined]
        expected = server.predictor.predict([*texts, "zz no"], explain=False)
    answers = [json.loads(line) for line in output.with_name("out.jsonl.journal").open()]
    agreed = sum(prediction.label == "yes" for prediction in expected)
    assert sorted(answer["decision"] for answer in answers) == sorted(prediction.label for prediction in expected)
    assert all(answer["completion_tokens"] <= 8 and answer["prompt_tokens"] > 8 for answer in answers)
    assert f"agreement with the labels: {agreed / 7:.1%} of 7 decisions" in printed
    assert len(output.read_text().splitlines()) == 7
