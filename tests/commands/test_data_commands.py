"""``clsgen data score`` and ``preview`` as a user runs them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def recipe_file(tmp_path, mixed, tiny_backbone):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
data: {{train: {rows}, max_prompt_length: 96, max_explanation_length: 64}}
model: {{backbone: {tiny_backbone}}}
train: {{batch_size: 8, micro_batch_tokens: 256}}
curriculum:
  difficulty: {{length: 1, loss_explanation: 2}}
  stages:
    - {{name: short, epochs: 0.5, difficulty: [0, 0.5], max_prompt_length: 64}}
    - {{name: all, epochs: 1, pacing: root, loss_schedule: cosine}}
"""
    )
    return path


def test_score_and_preview_show_what_would_be_trained(recipe_file, run_command, tmp_path):
    refused = run_command("clsgen", "data", "preview", "--config", str(recipe_file), check=False)
    assert refused.returncode == 2 and "clsgen data score" in refused.stderr
    plot = tmp_path / "score.png"
    rows = recipe_file.parent / "rows.jsonl"
    scored = run_command("clsgen", "data", "score", str(rows), "--config", str(recipe_file), "--plot", str(plot))
    for part in (
        "| length ",
        "| loss_explanation ",
        "(no label)",
        "Spearman's rho",
        "easiest:",
        "hardest:",
        "rows.jsonl:",
    ):
        assert part in scored.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot = tmp_path / "preview.png"
    printed = run_command(
        *("clsgen", "data", "preview", "--config", str(recipe_file), "--ranks", "2", "--plot", str(plot)),
        *("--plan", str(tmp_path / "plan.json")),
    ).stdout
    assert plot.stat().st_size > 10_000
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in printed.splitlines()
        if "|" in line
    }
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [(s["name"], s["first_step"], s["last_step"], s["rows"]) for s in plan] == [
        ("short", 0, 3, 24),
        ("all", 3, 9, 41),
    ]
    assert all(s["tokens"] > 24 * 45 and s["micro_steps"] >= s["last_step"] - s["first_step"] for s in plan)
    steps, visited, distinct = (int(n) for n in lines["short"][:3])
    assert (steps, visited) == (3, 24) and distinct <= 22
    assert float(lines["short"][4]) < 0.3 < float(lines["all"][4])


def test_misspelt_flags_and_commands_get_a_suggestion(run_command):
    done = run_command("clsgen", "data", "score", "x.jsonl", "--curriculum.ordr", "random", check=False)
    assert done.returncode == 2 and "did you mean --curriculum.order?" in done.stderr
    done = run_command("clsgen", "data", "previw", check=False)
    assert done.returncode == 2 and "did you mean 'preview'?" in done.stderr
    for flag, expected in (("--columns.txt", "did you mean --columns.text?"), ("--nearr", "did you mean --near?")):
        done = run_command("clsgen", "data", "check", flag, "a", "rows.jsonl", check=False)
        assert done.returncode == 2 and done.stderr.strip() == f"error: unknown option {flag}; {expected}"
    done = run_command("clsgen", "data", "score", "nowhere.jsonl", check=False)
    assert done.returncode == 2 and "nowhere.jsonl does not exist" in done.stderr


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("preview", ["--plan", "/proc/none/plan.json"], "cannot be written"),
        ("preview", ["--plot", "picture.xyz"], "picture.xyz cannot be written"),
        ("score", ["--show", "-1"], "--show is -1, expected 0 or more"),
        ("score", ["--seed=-1"], "seed is -1, expected 0 or more"),
    ],
)
def test_bad_flags_are_a_one_line_error(recipe_file, capsys, monkeypatch, tmp_path, command, flags, expected):
    from clsgen_dist.cli import main

    monkeypatch.chdir(tmp_path)
    rows = [str(recipe_file.parent / "rows.jsonl")] if command == "score" else []
    own = ["--curriculum.difficulty", '{"length": 1}', *flags]
    with pytest.raises(SystemExit) as end:
        main(["data", command, "--config", str(recipe_file), *own, *rows])  # the recipe first, then the file
    assert end.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and expected in errors[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "score", "--help"], ["usage: clsgen data score [FILE] [options]", "--show SHOW", "int, 0 or more"]),
        (["data", "check", "--help"], ["usage: clsgen data check [FILE ...] [options]", "0.5 to below 1"]),
        (["plan", "--help"], ["usage: clsgen plan [options]", "(type: int, more than 0, default: 1)"]),
        (["predict", "--help"], ["usage: clsgen predict --model MODEL [options]"]),
    ],
)
def test_help_shows_files_and_ranges(words, expected, capsys):
    from clsgen_dist.cli import main

    with pytest.raises(SystemExit) as end:
        main(words)
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and all(part in text for part in expected)
    assert words[:2] != ["data", "check"] or "required" not in text


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--ranks=0", "--ranks is 0, expected more than 0"),
        ("--predictions=-1", "--predictions is -1, expected 0 or more"),
        ("--seed=-1", "--seed is -1, expected 0 or more"),
    ],
)
def test_a_number_out_of_range_is_refused_before_the_demo_trains(option, expected, capsys):
    from clsgen_dist.cli import main

    with pytest.raises(SystemExit) as end:
        main(["demo", option])
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {expected}\n"
