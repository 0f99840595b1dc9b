"""Predictions kept batch by batch: the same after a kill, on other rank counts, with a new calibration."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.stored_predictions import stored_predictions

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"note {n} " + "lesion " * (n % 7) for n in range(23)]
RANK = """
import json, os, signal, sys
from pathlib import Path
from clsgen_dist.inference import predict, stored_predictions as stored
model, folder, texts, kill_after = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
compute, done = predict.Predictor.compute, []
def counted(*args, **options):
    if kill_after and len(done) == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(args[2])
    return compute(*args, **options)
predict.Predictor.compute = counted
with stored.predicting_ranks() as ranks:
    model = Path(model)
    kept = stored.stored_predictions(predict.Predictor(model), model, texts, folder, "x", ranks=ranks, batch_size=4)
    print(json.dumps({"found": [[raw.first, raw.explanation] for raw in kept.rows], "computed": done}))
"""


@pytest.fixture
def start(folder, free_port):
    """Start ranks that predict TEXTS; returns what each found and which batches it computed."""

    def run(output: Path, ranks: int, kill_after: int = 0) -> list[dict]:
        common = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
        port = free_port()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(folder), str(output), json.dumps(TEXTS), str(kill_after)],
                env={
                    **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                    "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=120) for process in processes]
        assert all(process.returncode == (-signal.SIGKILL if kill_after else 0) for process in processes), outputs
        return [] if kill_after else [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    return run


@pytest.mark.dist
@pytest.mark.long
def test_killed_ranks_and_other_rank_counts_give_the_same_predictions(start, tmp_path):
    [whole] = start(tmp_path / "whole", 1)
    assert whole["computed"] == [0, 1, 2, 3, 4, 5]
    start(tmp_path / "killed", 2, kill_after=1)
    [part] = (tmp_path / "killed").glob("*/part-0001-0.jsonl")
    with part.open("a") as file:
        file.write('{"batch": 3, "rows": {"1"')  # torn by a kill
    resumed = start(tmp_path / "killed", 3)
    assert all(rank["found"] == whole["found"] for rank in resumed)
    # Batches 0 and 1 were there, and each other was computed once.
    assert sorted(number for rank in resumed for number in rank["computed"]) == [2, 3, 4, 5]


def test_a_new_calibration_reads_what_is_there_and_another_text_starts_anew(folder, tmp_path):
    def raws(texts: list[str]) -> list:
        return stored_predictions(
            Predictor(folder), folder, texts, tmp_path / "kept", "test", batch_size=4, decoding=decoding
        ).rows

    decoding = DecodingSettings(redraws=0)
    before = raws(TEXTS)
    card = ModelCard.read(folder)
    dataclasses.replace(card, calibration={"method": "affine", "scale": 0.5, "bias": [0.0, 1.0]}).write(folder)
    [part] = (tmp_path / "kept").glob("*/part-*.jsonl")
    changed = part.read_text().replace(json.dumps(before[0].explanation), json.dumps("as kept"))
    part.write_text(changed)
    assert raws(TEXTS)[0].explanation == "as kept"
    assert raws(TEXTS[:-1])[0].explanation == before[0].explanation
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_predictions_read_back_are_those_of_the_predictor(folder, tmp_path):
    predictor = Predictor(folder)
    stored = stored_predictions(predictor, folder, TEXTS, tmp_path, "test", batch_size=5).rows
    assert [predictor.read(raw) for raw in stored] == predictor.predict(TEXTS, batch_size=5)
