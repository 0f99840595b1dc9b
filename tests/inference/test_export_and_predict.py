"""From a real two-rank checkpoint to predictions, by the commands a user types."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from clsgen_dist import checkpoint
from clsgen_dist.cli import main
from clsgen_dist.errors import DataError, ModelError, SettingsError
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, read_head
from clsgen_dist.hf_export.export import export
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prediction import Prediction

pytestmark = [pytest.mark.dist, pytest.mark.slow]

TEXTS = ["Size high, texture low.", "Size lowest <|im_end|> " * 40, "x"]


@pytest.fixture(scope="module", params=["full, untied", "lora, tied"])
def exported(request, train, tiny_backbone, tiny_untied, tmp_path_factory):
    """(run folder, exported folder)."""
    output = tmp_path_factory.mktemp("run")
    full = request.param.startswith("full")
    train(
        output / "run",
        data__dev="few",
        model__backbone=tiny_untied if full else tiny_backbone,
        model__finetune="full" if full else "lora",
        train__epochs=0.2,
        optim__lr=5e-3,
    )
    export(output / "run", output / "model", max_shard_bytes=6 * 10**6)
    return output / "run", output / "model"


one_export = pytest.mark.parametrize("exported", ["full, untied"], indirect=True)


def test_the_export_opens_in_plain_transformers_without_this_project(exported, tmp_path):
    """In a process that never imports clsgen_dist: weights load whole, and text comes out."""
    script = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
lm, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tok = AutoTokenizer.from_pretrained(sys.argv[1])
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
ids = tok.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt")
ids = ids["input_ids"] if not torch.is_tensor(ids) else ids
assert lm.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
assert not any(name.startswith("clsgen") for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported[1])], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_export_is_sharded_and_has_no_empty_tensors(exported):
    from safetensors import safe_open

    index = json.loads((exported[1] / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in exported[1].iterdir()), "others cannot read the model"
    for name in files:
        with safe_open(exported[1] / name, framework="pt") as file:
            assert all(0 not in file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118


@one_export
def test_an_interpolation_goes_part_of_the_way_from_the_backbone(exported, tmp_path):
    from transformers import AutoModelForCausalLM

    run, whole = exported
    part = export(run, tmp_path / "part", interpolation=0.25)
    card = ModelCard.read(part)
    before, after, between = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (card.trained["backbone"], whole, part)
    )
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(moved) > 10 and card.trained["interpolation"] == 0.25
    for name in after:
        torch.testing.assert_close(between[name], before[name].lerp(after[name], 0.25), atol=1e-6, rtol=1e-5)
    assert "interpolation" not in ModelCard.read(whole).trained
    with pytest.raises(SettingsError, match=r"--interpolation is 1\.5, expected a share above 0"):
        export(run, tmp_path / "other", interpolation=1.5)


def test_probabilities_and_explanations_equal_plain_transformers_one_by_one(exported):
    """Batched, left-padded, one prefill: the same as each row alone, by forward and generate of transformers."""
    predictor = Predictor(exported[1])
    weight, bias = read_head(exported[1], predictor.card)
    batched = predictor.predict(TEXTS, batch_size=3, max_new_tokens=12)
    for text, prediction in zip(TEXTS, batched, strict=True):
        ids = torch.tensor([predictor.encoder.prompt(text)[0]])
        with torch.no_grad():
            state = predictor.lm(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            generated = predictor.lm.generate(
                ids, max_new_tokens=12, do_sample=False, eos_token_id=predictor.encoder.end_token, pad_token_id=2
            )[0, ids.shape[1] :]
        torch.testing.assert_close(torch.tensor(prediction.logits), F.linear(state, weight, bias), atol=1e-4, rtol=1e-4)
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.explanation == predictor.tokenizer.decode(generated, skip_special_tokens=True).strip()
    assert batched[1].truncated and not batched[0].truncated


@one_export
def test_a_tampered_head_is_refused(exported, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(exported[1], folder)
    tensors = load_file(folder / HEAD_FILE)
    save_file({**tensors, "bias": tensors["bias"] + 1}, folder / HEAD_FILE)
    with pytest.raises(ModelError, match="does not match its fingerprint"):
        Predictor(folder)
    save_file(tensors, folder / "classification_head.safetensors")
    (folder / HEAD_FILE).unlink()
    Predictor(folder)  # where earlier versions wrote it
    (folder / "classification_head.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        Predictor(folder)


@one_export
def test_verification_that_fails_once_is_repeated_and_logged(exported, tmp_path, monkeypatch, caplog):
    from clsgen_dist.hf_export import export as module

    verify, calls = module.verify_canary, []

    def wrong_at_first(folder, canary, **options):
        calls.append(folder)
        if len(calls) == 1:
            canary = {**canary, "class_logits": [value + 0.01 for value in canary["class_logits"]]}
        verify(folder, canary, **options)

    monkeypatch.setattr(module, "verify_canary", wrong_at_first)
    with caplog.at_level("INFO", logger="clsgen_dist.hf_export"):
        export(exported[0], tmp_path / "model")
    warning, verified, _ = (record for record in caplog.records if record.name.startswith("clsgen_dist.hf_export"))
    assert (tmp_path / "model/clsgen.json").exists()
    assert warning.levelname == "WARNING"
    assert "differ from the trained model's" in warning.getMessage() and "exporting again" in warning.getMessage()
    evidence = json.loads((tmp_path / "model.differed.json").read_text())
    assert evidence["written_unlike_second_merge"] == [] == evidence["loaded_unlike_written"]
    assert max(evidence["difference_when_loaded_again"]) < 1e-4  # only the comparison was wrong, as injected above
    assert verified.getMessage().startswith("verified by reloading")


@one_export
def test_an_export_that_differs_from_the_trained_model_is_refused(exported, tmp_path):
    """The canary's losses in the marker are the training engine's: verification fails once they are changed."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(exported[0], run)
    for folder in checkpoint.committed(run / "checkpoints"):
        marker = checkpoint.read_marker(folder)
        marker["canary"]["token_losses"][0] += 0.01
        checkpoint.commit(folder, marker)
    with pytest.raises(ModelError, match="differ from the trained model's"):
        export(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*partial"))


@one_export
def test_verification_allows_what_16_bit_rounding_does_to_large_logits(exported, tmp_path):
    """With logits of some hundred, bf16 moves a loss by more than the usual tolerance; a wrong loss is refused."""
    import shutil

    from safetensors.torch import load_file, save_file

    from clsgen_dist.hf_export import verify

    folder = tmp_path / "model"
    shutil.copytree(exported[1], folder)
    [file] = [f for f in folder.glob("*.safetensors") if "model.norm.weight" in load_file(f)]
    weights = load_file(file)
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] * 100}, file, metadata={"format": "pt"})
    canary = checkpoint.read_marker(checkpoint.committed(exported[0] / "checkpoints")[-1])["canary"]
    in_bf16 = verify._canary_values(verify._load(folder).bfloat16(), folder, canary).tolist()
    tokens = len(canary["token_losses"])
    trained = {**canary, "token_losses": in_bf16[:tokens], "class_logits": in_bf16[tokens:], "dtype": "bfloat16"}
    assert verify._difference(verify._load(folder), folder, trained) > 0.05
    verify.verify_canary(folder, trained)
    with pytest.raises(ModelError, match="in float32;"):
        verify.verify_canary(folder, {**trained, "dtype": "float32"})
    trained["token_losses"][0] += 5
    with pytest.raises(ModelError, match="in bfloat16 and float32;"):
        verify.verify_canary(folder, trained)


@one_export
def test_predict_calibrate_and_evaluate_by_command(exported, run_command, tmp_path):
    model = str(exported[1])
    rows = [
        {"id": "r1", "body": "Size high."},
        {"id": "r2", "body": ""},
        {"id": "r1", "body": "Size low.", "label": ["not looked at"], "explanation": 5},
        {"body": None},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run_command(
        *("clsgen", "predict", "--model", model, "--input", str(tmp_path / "rows.jsonl")),
        *("--output", str(tmp_path / "out.jsonl"), "--columns.text", "body", "--max_new_tokens", "4"),
    )
    assert "wrote 4 rows" in done.stdout and "2 of 4 rows have an error instead: " in done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["id"] for a in answers] == ["r1", "r2", "r1", "rows.jsonl:4"]
    marks = {"contradicts", "redraws", "explanation_cut"}  # a model of a few steps
    assert set(answers[0]) - marks == {"id", "body", "label", "probabilities", "explanation"}
    assert set(answers[2]) - marks == {*answers[0], "input_label", "input_explanation"} - marks
    assert answers[1] == {"id": "r2", "body": "", "error": "empty text", "code": "empty-text"}
    assert answers[3]["code"] == "empty-text"

    one = json.loads(
        run_command("clsgen", "predict", "--model", model, "--text", "Size high.", "--explain", "false").stdout
    )
    assert one["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-5)

    run_command("clsgen", "calibrate", "--model", model, "--data", "demo:breast-cancer/dev")
    card = ModelCard.read(exported[1])
    assert card.calibration is not None and card.calibration["method"] == card.calibration_choice["method"]
    assert card.thresholds is not None and 0 < card.thresholds[0] <= 0.5
    report = run_command(
        *("clsgen", "evaluate", "--model", model, "--data", "demo:breast-cancer/test", "--explain", "false"),
        *("--train", "demo:breast-cancer/train", "--output", str(tmp_path / "report")),
    ).stdout
    for name in ("dual head, raw", "dual head, recalibrated", "majority class", "TF-IDF logistic regression"):
        assert name in report
    scores = {s["name"]: s for s in json.loads((tmp_path / "report/report.json").read_text())["scores"]}
    assert scores["majority class"]["auroc"] == 0.5
    assert scores["dual head, recalibrated"]["nll"] <= scores["dual head, raw"]["nll"]
    assert scores["TF-IDF logistic regression"]["auroc"] > 0.9


@pytest.mark.parametrize("text", ["null", "5", "true", "[1]", "{a: b}", "-", " padded ", "~"])
def test_text_on_the_command_line_is_not_parsed_as_yaml(text, monkeypatch, capsys):
    from clsgen_dist.inference import predict as module

    seen = []

    class Fake:
        def __init__(self, folder):
            pass

        def predict(self, texts, **options):
            seen.extend(texts)
            return [Prediction(label="a", probabilities={"a": 1.0}, explanation=None, truncated=False, logits=(1.0,))]

    monkeypatch.setattr(module, "Predictor", Fake)
    main(["predict", "--model", "m", "--text", text])
    main(["predict", "--model", "m", f"--text={text}"])
    assert seen == [text, text] and json.loads(capsys.readouterr().out.splitlines()[0])["label"] == "a"


@pytest.fixture
def held_out(exported, tmp_path):
    """``held_out(*labels)``: rows with these labels, as a file."""

    def write(*labels):
        path = tmp_path / "held_out.jsonl"
        rows = [{"text": f"Size high, case {n}.", "label": x, "explanation": n} for n, x in enumerate(labels)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@one_export
def test_calibrate_and_evaluate_report_bad_rows_and_skip_a_few(exported, held_out, caplog):
    from clsgen_dist import calibrate, evaluate

    model, rows = str(exported[1]), held_out(*["benign", "malignant"] * 10, "weird", 0.5)
    for command in (calibrate, evaluate):
        with pytest.raises(
            DataError, match=r"2 of 22 rows are bad.* --max_bad_fraction 1.0% .*jsonl:21: unknown label"
        ):
            command(model, rows)
    calibrate(model, rows, max_bad_fraction=0.1)
    assert "2 bad rows left out: " in caplog.text


@one_export
def test_one_class_cannot_be_calibrated_on_but_can_be_evaluated(exported, held_out, capsys, tmp_path):
    from clsgen_dist import calibrate
    from clsgen_dist.commands.evaluate import run as evaluate

    model, rows = str(exported[1]), held_out(*["benign"] * 12)
    with pytest.raises(DataError, match=r"held_out.jsonl: no row of the class 'malignant', only of 'benign' \(12\)"):
        calibrate(model, rows)
    evaluate(model, rows, train=rows, output=str(tmp_path / "report"), explain=False)
    printed = capsys.readouterr().out
    assert "n/a" in printed and "note: no row of the class 'malignant': AUROC needs two classes" in printed
    assert "note: no TF-IDF baseline" in printed
    assert json.loads((tmp_path / "report/report.json").read_text())["scores"][0]["auroc"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("predict", "--model", "nowhere", "--text", "--x"), "as --NAME=VALUE"),
        (("predict", "--model", "nowhere", "--text", "x"), "not an exported dual-head model"),
        (("predict", "--model", "nowhere"), "give either --text"),
        (("export", "--checkpoint", "nowhere", "--output", "out"), "no valid checkpoint"),
        (("export", "--checkpoint", "x", "--output", "y", "--max_shard_size", "5"), "like 5GB"),
        (("predcit",), "did you mean 'predict'"),
    ],
)
def test_wrong_commands_are_a_one_line_error(arguments, expected, run_command):
    done = run_command("clsgen", *arguments, check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
